"""Decides which requests both versions run: settled, when a release is asked for, from what they allow."""

from typing import Any

import msgspec

from interlock.core.errors import ConfigError
from interlock.core.model import DATATYPES, Version
from interlock.core.policy import Policy
from interlock.core.route import Arm, Mirror, Route, check_mirror
from interlock.rollout.tally import CANDIDATE, INCUMBENT

MOST_DISAGREEMENT = 0.2
"""Of labels, where the user names no share: a version that is retrained differs in a few, a broken one in
most. Only of outputs with one whole number or truth value a row: texts and lists differ where nothing is
wrong."""
_ON: dict[str, Any] = {"shadow": 1.0, "reverse": 1.0, "shielded": True}
_OFF: dict[str, Any] = {"shadow": 0.0, "reverse": 0.0, "shielded": False, "most_disagreement": 1.0}


def settled(policy: Policy, incumbent: Version | None, candidate: Version, answers: bool = True) -> Policy:
    """The policy with everything said: what the user left out is on where the two versions allow it.

    `incumbent` None: there is nothing to compare with. Not `answers`: a shadow, whose answers nobody gets.
    Raises: ConfigError for what the user asked for and the versions do not allow.
    """
    outputs = {spec.name: DATATYPES[spec.datatype].kind for spec in candidate.signature.outputs}
    unknown = [one.output for one in policy.ranges if outputs.get(one.output, "O") not in "fiu"]
    if unknown:
        raise ConfigError(
            f"ranges of {', '.join(unknown)}: want outputs of numbers of version {candidate.number} of "
            f"{candidate.model!r}, which has {', '.join(outputs)}"
        )
    if incumbent is None:
        return msgspec.structs.replace(policy, **_OFF)
    found: dict[str, Any] = {}
    for name, on in _ON.items():
        asked = getattr(policy, name)
        if name != "shadow" and not answers:
            found[name] = _OFF[name]
            continue
        wanted = on if asked is None else asked
        found[name] = wanted
        if wanted:
            try:
                _check(name, wanted, incumbent, candidate)
            except ConfigError:
                if asked is not None:
                    raise
                found[name] = _OFF[name]
    policy = msgspec.structs.replace(policy, **found)
    if not answers and not policy.shadow:
        _check("shadow", 1.0, incumbent, candidate)
        raise ConfigError("a shadow of the share 0 of the requests sees nothing: want a share above 0")
    if policy.most_disagreement is None:
        judged = policy.is_paired and _share_labels(incumbent, candidate)
        policy = msgspec.structs.replace(policy, most_disagreement=MOST_DISAGREEMENT if judged else 1.0)
    return policy


def mirror_of(policy: Policy, weight: float) -> Mirror | None:
    """What is copied while the candidate has this share. The shadow goes on when it answers: a candidate that
    is asked little has cold caches and an empty queue, and is neither as slow nor as fast as it will be."""
    shadow = policy.shadow or 0.0
    reverse = (policy.reverse or 0.0) if weight > 0.0 else 0.0
    shielded = bool(policy.shielded) and weight > 0.0
    if not (shadow or reverse or shielded):
        return None
    return Mirror(
        CANDIDATE, shadow, reverse, shielded, policy.tolerance, policy.ranges, latency_ratio=policy.slower
    )


def _check(name: str, wanted: Any, incumbent: Version, candidate: Version) -> None:
    arms = (
        Arm(INCUMBENT, "incumbent", incumbent.number, 1.0),
        Arm(CANDIDATE, "candidate", candidate.number, 0.0),
    )
    route = Route(0, 0, "", arms, msgspec.structs.replace(Mirror(CANDIDATE, shadow=1.0), **{name: wanted}))
    check_mirror(route, {incumbent.number: incumbent, candidate.number: candidate})


def _share_labels(incumbent: Version, candidate: Version) -> bool:
    """Whether both give the same output of labels, and the same answer twice."""
    if not (incumbent.capabilities.deterministic and candidate.capabilities.deterministic):
        return False
    theirs = {(spec.name, spec.datatype) for spec in incumbent.signature.outputs}
    shared = [spec for spec in candidate.signature.outputs if (spec.name, spec.datatype) in theirs]
    # The first one that is not of fractions is what is compared (`serving/agreement.py`).
    labels = [spec for spec in shared if DATATYPES[spec.datatype].kind != "f"]
    return (
        bool(labels) and DATATYPES[labels[0].datatype].kind in "biu" and labels[0].shape in ((-1,), (-1, 1))
    )
