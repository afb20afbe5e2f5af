"""Decides whether a version keeps a latency at a rate of requests, from what an open loop saw; pure.

Latency counts from the intended send time. A request that failed counts as slower than any. PASS: the upper
end of the p99 is within the budget, failures are no more than allowed, and the rate was reached. WORSE: the
lower end is above the budget, or one of the others does not hold. UNDECIDED: too few requests, or the load
generator itself was late, which voids everything else.

The ends are exact for independent latencies (`evidence/order.py`); those of neighbours are alike, so a
run of some seconds says less than its number of requests.
"""

from math import ceil, inf, isfinite
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.evidence.order import least_values, quantile_bounds
from interlock.rollout.checks import Check, Outcome

LEVEL = 0.99
LEAST_RATE = 0.99
"""The part of the requests that must be answered by the end of the run (and the budget after it)."""
MOST_LAG = 0.2
"""The part of the budget that the generator's own p99 of lateness may be."""

_LONGEST_S = 86400
"""Nobody is told to load a model for more than a day."""


class Wanted(msgspec.Struct, frozen=True):
    """What is asked of a version: `rps` requests a second, their p99 within `p99_s`, failures at most.

    Raises: ConfigError.
    """

    rps: float
    p99_s: float
    max_failures: int = 0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not (self.rps > 0 and self.p99_s > 0 and self.max_failures >= 0 and 0 < self.alpha < 0.5):
            raise ConfigError(
                f"{self.rps:g} requests a second, p99 {self.p99_s:g} s, {self.max_failures} failures, alpha "
                f"{self.alpha:g}: want numbers above 0 (failures: 0 or more; alpha: below .5)"
            )


class Seen(msgspec.Struct, frozen=True):
    """What came of the requests after the warm-up. `latency_s` [requests], NaN for one that failed; `in_time`
    were answered by the end of the run and the budget after it; `lag_s`: the p99 of how late those left that
    found a connection free; `waited`: those that found none."""

    latency_s: Array
    in_time: int
    lag_s: float
    waited: int = 0
    failures: dict[str, int] = {}


def judge(wanted: Wanted, seen: Seen) -> tuple[Check, ...]:
    """The checks generator, p99, failures and rate, in that order.

    >>> [check.outcome for check in judge(Wanted(100, 0.02), Seen(np.full(1000, 0.004), 1000, 1e-5))]
    ['pass', 'pass', 'pass', 'pass']
    """
    generator = _generator(wanted, seen)
    checks: tuple[Check, ...] = (_p99(wanted, seen), _failures(wanted, seen), _rate(wanted, seen))
    if generator.outcome != "pass":
        checks = tuple(
            msgspec.structs.replace(check, outcome="undecided", words=f"{check.words}; void: see generator")
            for check in checks
        )
    return (generator, *checks)


def _generator(wanted: Wanted, seen: Seen) -> Check:
    most_s = MOST_LAG * wanted.p99_s
    facts = {"lag_p99_ms": _ms(seen.lag_s), "limit_ms": _ms(most_s), "waited": seen.waited}
    said = f"the generator itself was late by {1e3 * seen.lag_s:.3g} ms (p99), limit {1e3 * most_s:.3g} ms"
    if seen.lag_s <= most_s:
        return Check("generator", "pass", said, facts)
    return Check("generator", "undecided", f"{said}: free a core for it, or ask for a lower rate", facts)


def _p99(wanted: Wanted, seen: Seen) -> Check:
    slow = np.where(np.isnan(seen.latency_s), inf, seen.latency_s)
    n = len(slow)
    found = quantile_bounds(slow, LEVEL, wanted.alpha)
    at_s = float(np.quantile(slow, LEVEL, method="inverted_cdf")) if n else inf
    above = float((slow > wanted.p99_s).mean()) if n else 1.0
    outcome: Outcome = "undecided"
    if found.greatest <= wanted.p99_s:
        outcome = "pass"
    elif found.least > wanted.p99_s:
        outcome = "worse"
    needed_s = None
    if outcome == "undecided" and above != 1 - LEVEL:
        z = NormalDist().inv_cdf(1 - wanted.alpha) + NormalDist().inv_cdf(0.8)
        needed = z * z * max(above * (1 - above), 1e-9) / (above - (1 - LEVEL)) ** 2
        found_s = ceil(max(needed, least_values(LEVEL, wanted.alpha), n + 1) / wanted.rps)
        needed_s = found_s if found_s <= _LONGEST_S else None
    facts: dict[str, Any] = {
        "p99_ms": _ms(at_s),
        "least_ms": _ms(found.least),
        "greatest_ms": _ms(found.greatest),
        "budget_ms": _ms(wanted.p99_s),
        "share_above": above,
        "requests": n,
        "seconds_needed": needed_s,
    }
    most = "unknown" if isfinite(at_s) and not isfinite(found.greatest) else _shown(found.greatest)
    ends = f"{_shown(found.least)} to {most}"
    said = f"p99 {_shown(at_s)} ({ends}), budget {_shown(wanted.p99_s)}, {n} requests"
    if outcome == "undecided":
        said += (
            "; it is about the budget: no duration is likely to tell"
            if needed_s is None
            else f"; about {needed_s} s would probably tell: --duration {needed_s}s"
        )
    return Check("p99", outcome, said, facts)


def _failures(wanted: Wanted, seen: Seen) -> Check:
    failed = int(np.isnan(seen.latency_s).sum())
    told = ", ".join(f"{count} {reason}" for reason, count in seen.failures.items())
    words = f"{failed} of {len(seen.latency_s)} requests failed, at most {wanted.max_failures}"
    words += f" ({told}, warm-up included)" if told else ""
    facts = {"failed": failed, "limit": wanted.max_failures, "reasons": seen.failures}
    return Check("failures", "pass" if failed <= wanted.max_failures else "worse", words, facts)


def _rate(wanted: Wanted, seen: Seen) -> Check:
    share = seen.in_time / len(seen.latency_s) if len(seen.latency_s) else 0.0
    words = f"{share * wanted.rps:.1f} of {wanted.rps:g} requests a second were answered ({share:.2%})"
    facts = {"done_per_s": share * wanted.rps, "offered_per_s": wanted.rps, "share": share}
    return Check("rate", "pass" if share >= LEAST_RATE else "worse", words, facts)


def _ms(seconds: float) -> float | None:
    return round(1e3 * seconds, 4) if isfinite(seconds) else None


def _shown(seconds: float) -> str:
    if isfinite(seconds):
        return f"{1e3 * seconds:.3g} ms"
    return "unknown" if seconds < 0 else "no answer"
