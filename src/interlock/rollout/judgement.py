"""What gates say of a candidate: each one, and all together."""

from enum import StrEnum
from math import e as EULER
from math import inf, log10

import msgspec

from interlock.core.finding import Finding
from interlock.core.state import PairCounts
from interlock.core.verdict import Verdict, worst

BUDGET_ALPHA = 0.05
"""Of the bound on the excess by which the harm budget is spent: it limits a trial and proves nothing."""
_MOST_LOG10 = 999.0
_LOG10_E = log10(EULER)


class Kind(StrEnum):
    """What a gate can do: roll back, hold, or let through."""

    ALARM = "alarm"
    HOLD = "hold"
    PROMOTION = "promotion"


class Gate(msgspec.Struct, frozen=True):
    """One gate. Evidence and threshold are powers of ten: at the threshold the gate speaks.

    `requests_needed`: of a promotion gate, about how many more requests of the model at the present weight
    and rates; None when it is not on its way.
    """

    name: str
    kind: Kind
    verdict: Verdict
    log10_e: float
    log10_threshold: float
    message: str
    requests_needed: float | None = None


class Judgement(msgspec.Struct, frozen=True):
    """What all gates say. `rollback` and `hold` are reasons, "" for none; `proved` when every promotion
    gate passed.

    `excess_most`: the candidate's rate of bad answers less the incumbent's is at most this, at all looks
    together (confidence 1 - `BUDGET_ALPHA`). `harm`: about how many more requests of clients failed than the
    incumbent would have failed; with a shield, how many it could not help. `requests_needed`: the greatest of
    the promotion gates'. `pairs`: the requests that both versions ran. `winner`: of an A/B test, the version
    that is to be promoted.
    """

    gates: tuple[Gate, ...]
    rollback: str
    hold: str
    proved: bool
    incumbent_requests: int
    incumbent_bad: int
    candidate_requests: int
    candidate_bad: int
    excess_most: float
    harm: float
    requests_needed: float | None
    pairs: PairCounts = PairCounts()
    winner: str = ""

    @property
    def verdict(self) -> Verdict:
        return worst(gate.verdict for gate in self.gates)


def as_findings(judgement: Judgement, model: str, version: str, now_s: float) -> list[Finding]:
    """What the gates found, in the form that incidents read."""
    return [
        Finding(
            monitor=f"gate.{gate.kind}.{gate.name}",
            model=model,
            version=version,
            verdict=gate.verdict,
            message=gate.message,
            time_s=now_s,
            evidence={"log10_e": gate.log10_e, "log10_threshold": gate.log10_threshold},
        )
        for gate in judgement.gates
    ]


def alarm(name: str, log_e: float, threshold: float, words: str) -> Gate:
    """A gate that rolls back when ln E reaches `threshold`; `words` say what was counted."""
    verdict = Verdict.FAIL if log_e >= threshold else Verdict.UNDECIDED
    evidence, limit = as_log10(log_e), as_log10(threshold)
    message = f"{name}: {words}; evidence 10^{evidence:.1f}, limit 10^{limit:.1f}"
    return Gate(name, Kind.ALARM, verdict, evidence, limit, message)


def as_log10(ln: float) -> float:
    """A natural logarithm to the base 10; bounded, as JSON has no infinity."""
    if ln in (inf, -inf):
        return _MOST_LOG10 if ln > 0 else -_MOST_LOG10
    return round(max(-_MOST_LOG10, min(ln * _LOG10_E, _MOST_LOG10)), 4)
