"""Decides what the gates say of all candidates of an A/B test together.

Each is compared with the incumbent alone, at its share of alpha (a union bound): the chance that any of them
is rolled back though it is no worse, or promoted though it is no better, is at most alpha.
"""

from collections.abc import Sequence
from itertools import zip_longest

import msgspec

from interlock.core.policy import Policy
from interlock.core.verdict import Verdict
from interlock.rollout.gate import Load, judge
from interlock.rollout.judgement import Gate, Judgement, Kind
from interlock.rollout.memory import MemoryView
from interlock.rollout.metrics import MetricTally
from interlock.rollout.tally import EpochTally


def judge_all(
    epochs: Sequence[tuple[EpochTally, ...]],
    policy: Policy,
    load: Load | None,
    ratio_since: int,
    scored: Sequence[MetricTally],
    memory: Sequence[MemoryView | None] = (),
) -> Judgement:
    """`epochs`, `memory`: those of each candidate, in the order of `policy.arms`; no memory: it is not
    known."""
    each = msgspec.structs.replace(policy, alpha=policy.alpha / len(policy.arms))
    found = [
        judge(of, each, load, ratio_since, scored=scored, arm=index, memory=held)
        for index, (of, held) in enumerate(zip_longest(epochs, memory[: len(epochs)]), start=1)
    ]
    names = [arm.version for arm in policy.arms]
    verdict = f"{policy.metrics[0].name} better"
    proved = [(_evidence(one, verdict), name) for one, name in zip(found, names, strict=True) if one.proved]
    needed = [one.requests_needed for one in found if one.requests_needed is not None]
    return Judgement(
        gates=tuple(
            gate if len(names) == 1 else _named(gate, name)
            for one, name in zip(found, names, strict=True)
            for gate in one.gates
        ),
        rollback="; ".join(
            f"version {name}: {one.rollback}" for one, name in zip(found, names, strict=True) if one.rollback
        ),
        hold="; ".join(
            f"version {name}: {one.hold}" for one, name in zip(found, names, strict=True) if one.hold
        ),
        proved=bool(proved),
        incumbent_requests=found[0].incumbent_requests,
        incumbent_bad=found[0].incumbent_bad,
        candidate_requests=sum(one.candidate_requests for one in found),
        candidate_bad=sum(one.candidate_bad for one in found),
        excess_most=max(one.excess_most for one in found),
        harm=sum(one.harm for one in found),
        requests_needed=min(needed) if needed else None,
        winner=max(proved)[1] if proved else "",
    )


def served(epochs: Sequence[tuple[EpochTally, ...]], policy: Policy, number: str) -> int:
    """How many requests one candidate has been sent and answered, well or not."""
    return sum(
        epoch.candidate.requests
        for arm, of in zip(policy.arms, epochs, strict=True)
        for epoch in of
        if arm.version == number
    )


def proofs(judgement: Judgement, policy: Policy) -> str:
    """Why the winner is one, in words."""
    mine = f"version {judgement.winner}: " if len(policy.arms) > 1 else ""
    return "; ".join(
        gate.message
        for gate in judgement.gates
        if gate.kind is Kind.PROMOTION and gate.name.startswith(mine) and gate.verdict is Verdict.PASS
    )


def _evidence(judgement: Judgement, name: str) -> float:
    return next(gate.log10_e for gate in judgement.gates if gate.name == name)


def _named(gate: Gate, version: str) -> Gate:
    return msgspec.structs.replace(
        gate, name=f"version {version}: {gate.name}", message=f"version {version}: {gate.message}"
    )
