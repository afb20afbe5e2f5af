"""Decides what a self-test of the gates found: false alarms and detection, beside what is promised of both.

False alarms are counted twice. Each release of a copy of the live version (A/A) is one try, of which nobody
waits for hundreds. So what such releases count is also cut into blocks, each judged at all looks by gates
that know of nothing before it: where a block ends does not depend on what follows, so each raises an alarm
with a chance of at most alpha, whatever the others did, and their number is at most binomial.

A fault is compared with the information bound: the alarm at ln(K / alpha) takes, on average, at least that
much divided by the information in one request that both versions ran. Made slow, it is compared with the goal
of `LATENCY_GOAL` requests that the candidate answers.
"""

from collections.abc import Sequence
from math import log
from typing import Any, Literal

import msgspec

from interlock.core.fault import Fault
from interlock.core.model import DATATYPES, Version
from interlock.core.policy import Policy
from interlock.core.state import PairCounts
from interlock.core.verdict import Verdict
from interlock.evidence.binomial import Share, share
from interlock.rollout.gate import judge
from interlock.rollout.judgement import Judgement, Kind
from interlock.rollout.tally import EpochTally

BLOCK_REQUESTS = 200
"""Requests, of both versions together, in one block: enough that a gate could speak, and many blocks."""
LATENCY_GOAL = 10
"""Requests of its own after which the evidence against a candidate that is three times slower is complete."""

Outcome = Literal["promoted", "rolled back", "held"]


class Trial(msgspec.Struct, frozen=True):
    """One release of a self-test. `fault` None: a copy of the live version as it is.

    Until it was decided: `gates` that raised the alarm, `requests` that the candidate answered itself,
    `pairs` that both versions ran. `seconds` since it was asked for; `asked` and `failed`: requests of the
    self-test while it was open, and those that were not answered well. `to_zero_s`: from the decision until
    all workers had taken its requests back. `bound`: the least mean of what a test takes, in `pairs`, of
    `slow` the goal in `requests`.
    """

    fault: Fault | None
    outcome: Outcome
    gates: tuple[str, ...]
    reason: str
    requests: int
    pairs: int
    seconds: float
    asked: int
    failed: int
    to_zero_s: float | None = None
    bound: float | None = None

    @property
    def title(self) -> str:
        return "the same version" if self.fault is None else self.fault.title


class Report(msgspec.Struct, frozen=True):
    """All of one self-test. `alarms` counts A/A releases that were rolled back, `blocks` blocks with an
    alarm, by the gates in `block_gates`. `left_out`: faults that were not tried, and why. `against`: what did
    not hold, in words; empty when everything did."""

    model: str
    version: str
    policy: Policy
    rate_per_s: float
    seconds: float
    trials: tuple[Trial, ...]
    alarms: Share
    blocks: Share
    block_gates: tuple[str, ...]
    left_out: dict[str, str]
    against: tuple[str, ...]


class Blocks:
    """Cuts the counts of A/A releases into blocks, as they are looked at."""

    def __init__(self, policy: Policy) -> None:
        self.count = 0
        self.alarmed = 0
        self.gates: set[str] = set()
        self._policy = policy
        self._before: tuple[EpochTally, ...] = ()
        self._latest: tuple[EpochTally, ...] = ()
        self._is_alarmed = False

    def look(self, epochs: Sequence[EpochTally]) -> None:
        """The cumulative counts of the release under way. The next release begins with `begin`."""
        self._latest = tuple(epochs)
        found = since(epochs, self._before)
        spoke = alarms(judge(found, self._policy))
        self._is_alarmed = self._is_alarmed or bool(spoke)
        self.gates.update(spoke)
        if _requests(found) >= BLOCK_REQUESTS:
            self._close()

    def begin(self) -> None:
        """Another release: what is left of the one before is a block if it is half of one, or alarmed."""
        if self._is_alarmed or _requests(since(self._latest, self._before)) >= BLOCK_REQUESTS / 2:
            self._close()
        self._before = self._latest = ()

    def _close(self) -> None:
        self.count += 1
        self.alarmed += self._is_alarmed
        self._is_alarmed = False
        self._before = self._latest


def since(now: Sequence[EpochTally], before: Sequence[EpochTally]) -> tuple[EpochTally, ...]:
    """What was counted since an earlier look at the same release."""
    known = {epoch.number: epoch for epoch in before}
    return tuple(_less(epoch, known[epoch.number]) if epoch.number in known else epoch for epoch in now)


def alarms(judgement: Judgement) -> tuple[str, ...]:
    """The gates that would roll back."""
    return tuple(
        gate.name for gate in judgement.gates if gate.kind is Kind.ALARM and gate.verdict is Verdict.FAIL
    )


def why_not(fault: Fault, version: Version, policy: Policy) -> str:
    """Why a fault is nothing that the gates are to find in a version under a settled policy; "" if it is."""
    guardrail = {"fail": "errors", "slow": "latency"}.get(fault.kind, "outputs")
    if guardrail not in policy.guardrails:
        return f"the policy has no guardrail {guardrail}"
    if fault.kind in ("flip", "nan") and not policy.is_paired:
        return "no request is run by both versions, so answers are not compared"
    floats = any(DATATYPES[spec.datatype].kind == "f" for spec in version.signature.outputs)
    if fault.kind == "nan" and not floats:
        return "it has no output of fractions"
    limit = policy.most_disagreement
    if fault.kind == "flip" and (limit is None or limit >= 1.0):
        return "the policy sets no limit to how many answers may differ (--most-disagreement)"
    if fault.kind == "flip" and limit is not None and fault.level <= limit:
        return f"the policy lets {limit:.0%} of the answers differ (--most-disagreement)"
    if fault.kind == "slow" and fault.level <= policy.slower:
        return f"the policy allows {policy.slower:g} times as slow"
    return ""


def bound(fault: Fault, policy: Policy, log_threshold: float) -> float | None:
    """The least mean that a test takes to find a fault, in pairs; of `slow` the goal, in requests of its own.

    `log_threshold` is ln(K / alpha) of the alarms. The live version itself is taken to fail never: what it
    fails makes a fault harder to see. None where both versions run no request.

    >>> round(bound(Fault("fail", 0.05), Policy(reverse=1.0), log(800)))  # ln 800 / (.05 ln 2)
    193
    >>> round(bound(Fault("flip", 0.4), Policy(reverse=1.0, most_disagreement=0.2), log(800)))
    64
    """
    if fault.kind == "slow":
        return float(LATENCY_GOAL)
    if not policy.is_paired:
        return None
    # Of a pair that only the candidate fails, the null says that it is the candidate's with a chance of 1/2.
    information = fault.level * log(2.0)
    if fault.kind == "flip" and policy.most_disagreement is not None:
        information = divergence(fault.level, policy.most_disagreement)
    return log_threshold / information


def divergence(p: float, q: float) -> float:
    """The Kullback-Leibler divergence of a chance of p from one of q in (0, 1), in nats.

    >>> round(divergence(1.0, 0.5), 4), divergence(0.2, 0.2)
    (0.6931, 0.0)
    """
    return sum(a * log(a / b) for a, b in ((p, q), (1.0 - p, 1.0 - q)) if a > 0.0)


def report(
    version: Version,
    policy: Policy,
    rate_per_s: float,
    seconds: float,
    trials: Sequence[Trial],
    blocks: Blocks,
    left_out: dict[str, str],
) -> Report:
    """Sum it up, and say what did not hold: more false alarms than alpha allows, at a confidence of 97.5 %; a
    fault that was not caught."""
    same = [one for one in trials if one.fault is None]
    rolled_back = share(sum(one.outcome == "rolled back" for one in same), len(same))
    alarmed = share(blocks.alarmed, blocks.count)
    against = []
    for found, what in (
        (rolled_back, "releases of the same version"),
        (alarmed, "blocks of the same version"),
    ):
        if found.low > policy.alpha:
            against.append(
                f"false alarms: {found.hits} of {found.of} {what}, so at least {found.low:.2%}; alpha is "
                f"{policy.alpha:.2%}"
            )
    for one in trials:
        if one.fault is not None and one.outcome != "rolled back":
            against.append(f"not caught: {one.title} ended {one.outcome}: {one.reason}")
    gates = tuple(sorted(blocks.gates))
    return Report(
        version.model,
        version.number,
        policy,
        rate_per_s,
        seconds,
        tuple(trials),
        rolled_back,
        alarmed,
        gates,
        left_out,
        tuple(against),
    )


def pairs_run(pairs: PairCounts) -> int:
    """Requests that both versions ran."""
    return pairs.good + pairs.worse + pairs.better + pairs.bad


def _requests(epochs: Sequence[EpochTally]) -> int:
    return sum(epoch.incumbent.requests + epoch.candidate.requests for epoch in epochs)


def _less(now: EpochTally, before: EpochTally) -> EpochTally:
    counted = ("incumbent", "candidate", "pairs", "copies")
    return msgspec.structs.replace(
        now, **{name: _minus(getattr(now, name), getattr(before, name)) for name in counted}
    )


def _minus(now: Any, before: Any) -> Any:
    """Counts less earlier ones: numbers, and whatever is made of them."""
    if isinstance(now, msgspec.Struct):
        names = now.__struct_fields__
        return type(now)(*(_minus(getattr(now, name), getattr(before, name)) for name in names))
    if isinstance(now, tuple):
        return tuple(map(_minus, now, before))
    return now - before
