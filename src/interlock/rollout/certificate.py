"""Decides what a finished release by evidence certifies: what was compared, how it ended, and what that is
worth. Derived from its row and its logged decisions alone, so that anybody can derive it again."""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from interlock.core.policy import Policy
from interlock.core.state import PairCounts
from interlock.core.verdict import Verdict
from interlock.registry.rows import Event, ReleaseRow, ReleaseState
from interlock.rollout.judgement import Gate, Kind
from interlock.rollout.plan import (
    AB,
    SHADOW,
    Action,
    Pass,
    Promote,
    RollBack,
    is_time_over,
    judged,
    policy_of,
)
from interlock.rollout.replay import decisions
from interlock.rollout.snapshot import RampView, Snapshot
from interlock.rollout.tally import EpochTally

SCHEMA = 1
DECIDED = {
    "person": "decided by a person",
    "evidence": "decided by the evidence",
    "time limit": "not decided: the time limit came before the evidence",
    "nobody": "not decided yet",
}


class Stage(msgspec.Struct, frozen=True):
    """What both versions did while the candidate had one share. Requests; `started_s` is Unix time. Of an A/B
    test, one of each candidate: `version`."""

    epoch: int
    weight: float
    started_s: float
    candidate: int
    candidate_bad: int
    incumbent: int
    incumbent_bad: int
    pairs: int
    version: str = ""


class Certificate(msgspec.Struct, frozen=True):
    """`verdict`: the release's last state; `decided`: "evidence", or "person" where one promoted or aborted
    it, "time limit" where that ended it, or "nobody" while it is open. `gates`: as the deciding look saw
    them, while counts go on to the last look: requests in flight ended after it. `excess_most` bounds the
    candidate's excess of failures, 95 %. `decisions` is how many were logged and `decisions_sha256` that of
    their records, in order."""

    release: int
    model: str
    strategy: str
    candidate: str
    candidate_digest: str
    incumbent: str | None
    verdict: str
    decided: str
    reason: str
    requested_s: float
    finished_s: float | None
    policy: Policy
    stages: tuple[Stage, ...]
    gates: tuple[Gate, ...]
    pairs: PairCounts
    excess_most: float | None
    harm: float | None
    guarantee: tuple[str, ...]
    decisions: int
    decisions_sha256: str
    schema: int = SCHEMA


def certify(row: ReleaseRow, events: Iterable[Event]) -> Certificate | None:
    """The certificate of a release from the log's events about it; None where nothing was compared.

    Raises: msgspec.ValidationError for a record that this code cannot read.
    """
    mine = [event for event in events if event.body.get("release") == row.id]
    taken = decisions(mine)
    looks = [
        (snapshot, action)
        for _, _, snapshot, action in taken
        if snapshot.ramp is not None and snapshot.ramp.epochs
    ]
    if not looks:
        return None
    seen, by_hand = looks[-1][0], _by_hand(mine)
    judgement, deciding = judged(seen), judged(seen if by_hand else _deciding(looks))
    assert seen.ramp is not None and judgement is not None and deciding is not None
    recorded = {seq for seq, *_ in taken}
    hashed = hashlib.sha256()
    for event in mine:
        if event.seq in recorded:
            hashed.update(msgspec.json.encode(event.body["snapshot"], order="deterministic") + b"\n")
    policy = policy_of(row)
    won = row.state in (ReleaseState.DONE, ReleaseState.SWITCHING, ReleaseState.KEEPING)
    candidate = row.number if won or not policy.arms else ", ".join(arm.version for arm in policy.arms)
    return Certificate(
        release=row.id,
        model=row.model,
        strategy=row.strategy,
        candidate=candidate,
        candidate_digest=_digest(looks, candidate),
        incumbent=row.previous_number,
        verdict=row.state.value,
        decided=_decided(row, by_hand, looks),
        reason=row.reason or _last_reason(mine),
        requested_s=row.requested_s,
        finished_s=row.finished_s,
        policy=policy,
        stages=tuple(_stages(seen.ramp, policy)),
        gates=deciding.gates,
        pairs=judgement.pairs,
        excess_most=judgement.excess_most,
        harm=judgement.harm,
        guarantee=_guarantee(row, policy, deciding.gates),
        decisions=len(taken),
        decisions_sha256=hashed.hexdigest(),
    )


def as_markdown(found: Certificate) -> str:
    """The certificate for people."""
    policy = found.policy
    lines = [
        f"# Release {found.release}: version {_plain(found.candidate)} of {_plain(found.model)}, "
        f"{found.verdict}",
        "",
        f"- strategy: {found.strategy}; compared with version {_plain(found.incumbent or 'none')}",
        f"- artifact of the candidate: `{found.candidate_digest}`",
        f"- asked for {_when(found.requested_s)}, ended {_when(found.finished_s)}",
        f"- {DECIDED[found.decided]}: {_plain(found.reason)}",
        f"- policy: harm budget {policy.budget:g} failed requests, margin {policy.margin:.2%}, alpha "
        f"{policy.alpha:.2%}, slower {policy.slower:g} times, share at most {policy.most_weight:g}",
        "",
        "## What was compared",
        "",
        "| share | since | candidate: requests | bad | incumbent: requests | bad | ran by both |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {_share(one)} | {_when(one.started_s)} | {one.candidate:,} | {one.candidate_bad:,} | "
        f"{one.incumbent:,} | {one.incumbent_bad:,} | {one.pairs:,} |"
        for one in found.stages
    ]
    pairs = found.pairs
    if found.stages and (found.policy.is_paired or found.policy.shielded):
        lines += [
            "",
            f"Of the requests that both ran, {pairs.worse:,} failed with the candidate alone, "
            f"{pairs.better:,} with the incumbent alone, {pairs.bad:,} with both; {pairs.disagreed:,} of "
            f"{pairs.agreed + pairs.disagreed:,} answers differed; {pairs.dropped:,} copies found no place. "
            f"{pairs.shielded:,} clients got the incumbent's answer instead of a failure, "
            f"{pairs.unshielded:,} got none.",
        ]
    if found.harm is not None and found.excess_most is not None:
        lines += [
            "",
            f"About {found.harm:.0f} requests of clients failed because of it. It fails at most "
            f"{found.excess_most:.2%} more often than what it was compared with (confidence 95 %).",
        ]
    lines += ["", "## Gates", "", "| gate | can | evidence | limit | verdict |", "|---|---|---|---|---|"]
    lines += [
        f"| {gate.name} | {_CAN[gate.kind]} | 10^{gate.log10_e:.1f} | 10^{gate.log10_threshold:.1f} | "
        f"{_said(gate)} |"
        for gate in found.gates
    ]
    lines += ["", "## What this is worth", ""]
    lines += [f"- {line}" for line in found.guarantee]
    lines += [
        "",
        f"{found.decisions} decisions are in the event log; their records have SHA-256 "
        f"`{found.decisions_sha256}`. Derive them again: `interlock replay {found.release}`.",
        "",
    ]
    return "\n".join(lines)


def _share(stage: Stage) -> str:
    return f"{stage.weight:.3g}" + (f" (version {_plain(stage.version)})" if stage.version else "")


_CAN = {Kind.ALARM: "roll back", Kind.HOLD: "pause", Kind.PROMOTION: "let through"}


def _said(gate: Gate) -> str:
    if gate.verdict is Verdict.FAIL:
        return "against it"
    if gate.verdict is Verdict.PASS:
        return "proved" if gate.kind is Kind.PROMOTION else "nothing against it"
    return "not proved" if gate.kind is Kind.PROMOTION else "nothing against it"


def _guarantee(row: ReleaseRow, policy: Policy, gates: Sequence[Gate]) -> tuple[str, ...]:
    alarms = sum(gate.kind is Kind.ALARM for gate in gates)
    limit = policy.most_disagreement
    alike = (
        f", and whose answers differ in at most {limit:.3g} of all,"
        if limit is not None and limit < 1.0
        else ""
    )
    proofs = [gate.name for gate in gates if gate.kind is Kind.PROMOTION]
    what = "called failed" if row.strategy == SHADOW else "rolled back"
    through = "passed" if row.strategy == SHADOW else "promoted"
    if row.strategy == AB:
        return _guarantee_of_test(policy)
    found = [
        f"A candidate that is no worse{alike} is {what} by one of the {alarms} alarms with a probability of "
        f"at most {policy.alpha:.2%}, however long this runs and however often one looks.",
        f"A candidate that misses one of the margins ({', '.join(proofs)}) is {through} with a probability "
        f"of at most {policy.alpha:.2%}.",
    ]
    if row.strategy != SHADOW:
        found.append(
            f"The share was kept such that the candidate fails at most {policy.budget:g} of its own requests "
            f"beyond the margin of {policy.margin:.2%} because of the trial, with confidence 95 %. What "
            "copies cost the incumbent's clients is not counted."
        )
    if policy.is_sticky:
        found.append(
            "Units stick to a version here: what is said of the alarms holds for those of pairs, and not for "
            "those that count requests by version (latency)."
        )
    found.append(
        "Assumed: docs/explanation/evidence.md, 'What is assumed'. A person's decision proves nothing."
    )
    return tuple(found)


def _guarantee_of_test(policy: Policy) -> tuple[str, ...]:
    metric = policy.metrics[0]
    same = f"A version whose mean of '{metric.name}' is no better than the live one's"
    what = (
        f"Requests count when they are {metric.age_s:g} s old, in both arms, with the feedback of that time."
    )
    if policy.is_sticky:
        same = f"A version with which each unit would give the same '{metric.name}' at the same time"
        what = (
            f"A unit counts once, with the first value that comes, if it comes within {metric.age_s:g} s of "
            "its request. A version whose units answer sooner, and no better, may look better meanwhile. "
            "Alarms of errors and latency count requests: where units stick to a version, they have no such "
            "guarantee."
        )
    return (
        f"{same} is promoted with a probability of at most {policy.alpha:.2%}, of all candidates together, "
        "however long this runs and however often one looks.",
        f"A version that is no worse is rolled back with a probability of at most {policy.alpha:.2%}, by all "
        "alarms of all candidates together.",
        what,
        "Assumed: docs/explanation/evidence.md, 'What is assumed'. A person's decision proves nothing.",
    )


def _digest(looks: Sequence[tuple[Snapshot, Action]], number: str) -> str:
    """The artifact of a candidate; of several, all of them in their order."""
    found: dict[str, str] = {}
    for snapshot, _ in looks:
        found[snapshot.release.number] = snapshot.digest
        found |= {one.number: one.digest for one in snapshot.variants}
    return ", ".join(found.get(one, "unknown") for one in number.split(", "))


def _stages(ramp: RampView, policy: Policy) -> Iterable[Stage]:
    if not policy.arms:
        return map(_stage, ramp.epochs)
    each = zip(policy.arms, (ramp.epochs, *ramp.others), strict=True)
    return [
        # Of all requests, where an epoch of the test has it among those of the two that it compares.
        msgspec.structs.replace(_stage(epoch, arm.version), weight=arm.weight if epoch.weight else 0.0)
        for arm, epochs in each
        for epoch in epochs
    ]


def _stage(epoch: EpochTally, version: str = "") -> Stage:
    pairs = epoch.both
    return Stage(
        epoch.number,
        epoch.weight,
        epoch.started_s,
        epoch.candidate.requests,
        epoch.candidate.bad,
        epoch.incumbent.requests,
        epoch.incumbent.bad,
        pairs.good + pairs.worse + pairs.better + pairs.bad,
        version,
    )


def _decided(row: ReleaseRow, by_hand: bool, looks: Sequence[tuple[Snapshot, Action]]) -> str:
    if not row.state.finished:
        return "nobody"
    if by_hand:
        return "person"
    ends = [action for _, action in looks if isinstance(action, Promote | Pass | RollBack)]
    return "time limit" if ends and is_time_over(ends[-1]) else "evidence"


def _deciding(looks: Sequence[tuple[Snapshot, Action]]) -> Snapshot:
    """The look that decided it; the last one where none did, or not yet."""
    found = [snapshot for snapshot, action in looks if isinstance(action, Promote | Pass | RollBack)]
    return found[-1] if found else looks[-1][0]


def _by_hand(events: Sequence[Event]) -> bool:
    """Whether the step that decided it has no look behind it: a person took it."""
    decisive = ("release.switching", "release.rolling_back", "release.passed", "release.superseded")
    steps = [event for event in events if event.kind in decisive]
    return bool(steps) and steps[-1].body.get("snapshot") is None


def _last_reason(events: Sequence[Event]) -> str:
    reasons = [str(event.body["reason"]) for event in events if event.body.get("reason")]
    return reasons[-1] if reasons else ""


def _when(time_s: float | None) -> str:
    if time_s is None:
        return "not yet"
    return (
        datetime.fromtimestamp(time_s, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
    )


def _plain(text: str) -> str:
    """Names and reasons come from outside: nothing in them may be Markdown, a new line, or what commands a
    terminal."""
    text = "".join(character if character.isprintable() else " " for character in text)
    for character in "\\`*_[]<>|#&~":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
