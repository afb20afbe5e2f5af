"""Decides which latencies count as bad: above a cut that was set from earlier traffic.

bad_i = 1 when X_i > c for the incumbent, X_i > (1 + m) c for the candidate, with c a quantile of the
incumbent's *past* latencies. Counts of these go through `attribution.log_e_harm` with margin 1. Null
hypothesis: "at each cut, the candidate exceeds (1 + m) c at most as often as the incumbent exceeds c",
which holds where X_b is stochastically no greater than (1 + m) X_a. Exact for any cut that was fixed
before the requests it judges: a change begins a new epoch.

Latency is judged as served, at the present weight: what a full load would do to it is the matter of
utilisation gates.

Source: bad events as in `attribution.py`; compared with sequential two-sample quantile tests, Howard and
Ramdas (2022), "Sequential estimation of quantiles with applications to A/B testing" (arXiv 1906.09712).
"""

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from interlock.core.errors import ConfigError
from interlock.core.state import BOUNDS_S, Histogram
from interlock.evidence.paired import Pairs

LEVELS = (0.5, 0.95, 0.99)
LEAST_ABOVE = 10
"""So many past latencies must lie above a cut; fewer are as valid, but the cut may be where nothing is."""


class Cut(msgspec.Struct, frozen=True):
    """What is too slow, in seconds, for each arm. Both are bounds of the latency histogram, so that its
    counts say exactly how many lie above. `margin` is the one in force: the candidate's cut over the
    incumbent's, less 1."""

    level: float
    incumbent_s: float
    candidate_s: float

    @property
    def margin(self) -> float:
        return self.candidate_s / self.incumbent_s - 1.0


def cuts(past: Histogram, margin: float = 0.0, levels: Sequence[float] = LEVELS) -> tuple[Cut, ...]:
    """The cuts for the next epoch, from the incumbent's latencies so far; one for each level with enough of
    them.

    `margin` (.2 = 20 % slower is still all right) is rounded up to the histogram's steps of 19 %. Levels
    that fall into one bucket give one cut, named by the lowest; what lies beyond the last bound gives
    none.

    Raises: ConfigError when `margin` is negative or a level is not in (0, 1).

    >>> past = Histogram(tuple(1000 if k == 40 else 0 for k in range(97)), 1.0)
    >>> [(cut.level, cut.margin) for cut in cuts(past)]
    [(0.5, 0.0)]
    """
    if margin < 0 or not all(0.0 < level < 1.0 for level in levels):
        raise ConfigError(
            f"latency margin {margin}, levels {tuple(levels)}: want a margin >= 0, levels in (0, 1)"
        )
    found: dict[float, Cut] = {}
    for level in sorted(levels):
        quantile = past.quantile(level)
        if quantile is None or past.count * (1.0 - level) < LEAST_ABOVE:
            continue
        # Rounding must not take the cut for the one below it.
        candidate = bisect_right(BOUNDS_S, quantile * (1.0 + margin) * (1.0 - 1e-9))
        if candidate < len(BOUNDS_S):
            found.setdefault(quantile, Cut(level, quantile, BOUNDS_S[candidate]))
    return tuple(found.values())


def above(latencies: Histogram, cut_s: float) -> int:
    """How many latencies exceed a cut; exact, since a cut is a bound of the histogram.

    Raises: ConfigError when it is none.

    >>> above(Histogram(tuple(1 for _ in range(97)), 1.0), BOUNDS_S[90])
    6
    """
    index = bisect_right(BOUNDS_S, cut_s) - 1
    if index < 0 or BOUNDS_S[index] != cut_s:
        raise ConfigError(f"a cut at {cut_s} s is not a bound of the latency histogram; take it from cuts()")
    return sum(latencies.counts[index + 1 :])


def compare(candidate_s: float, incumbent_s: float, margin: float) -> Pairs:
    """One pair of latencies as evidence for `paired.py`: slower than 1 + margin allows, faster, or tied.

    Null hypothesis: the candidate takes more than (1 + margin) times as long no more often than less.

    >>> compare(0.025, 0.020, 0.1)
    Pairs(worse=1, same=0, better=0)
    """
    allowed_s = incumbent_s * (1.0 + margin)
    return Pairs(int(candidate_s > allowed_s), int(candidate_s == allowed_s), int(candidate_s < allowed_s))
