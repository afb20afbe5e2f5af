"""Owns the one e-process that nearly all evidence here is made of: a mixture of tilted Bernoulli trials.

Take events that each "hit" with probability at most theta under the null, given all that came before. For any
fixed tilt g > 1

    E_t(g) = g^hits / prod_i (1 + (g - 1) theta_i)

starts at 1 and is a product of factors with mean <= 1, since E[g^hit] = 1 + (g - 1) P(hit): a
supermartingale, and a martingale at the null's edge. Any average of it over g, fixed beforehand, is one
too. By Ville's inequality P(some E_t >= 1/alpha) <= alpha: one threshold holds for all looks together, at
any times, chosen in any way. With g < 1 the same tests the null "at least theta". It is the likelihood
ratio of a fixed odds ratio g.

As the logarithm is concave, the product of (1 + (g - 1) p_i) over the true p_i is at most
(1 + (g - 1) mean p)^n (Jensen). So where theta is constant, the null is about the *average* of p_i so far:
drift inside an epoch does no harm.

Sources: Ville (1939); Robbins (1970), mixtures; Shafer (2021), tests as bets; Ramdas, Grunwald, Vovk and
Shafer (2023), "Game-theoretic statistics and safe anytime-valid inference".
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import exp, inf, isfinite, log, log1p

import msgspec

from interlock.core.errors import ConfigError

PRECISION = 1e-7
"""Of the ends of intervals: relative, or absolute below 1e-4 (1e-11)."""


class Mixture(msgspec.Struct, frozen=True):
    """Tilts (or bets) with the logarithms of their prior weights, fixed before any data are seen."""

    tilts: tuple[float, ...]
    log_weights: tuple[float, ...]

    def inverse(self) -> "Mixture":
        """The mixture that tests the other direction: 1/g with the weight of g."""
        return Mixture(tuple(1.0 / tilt for tilt in self.tilts), self.log_weights)


def mixture(tilts: Sequence[float], weights: Sequence[float] | None = None) -> Mixture:
    """Tilts with their prior weights, scaled to sum 1; equal without weights.

    Raises: ConfigError when a number is negative or not finite, or the lengths differ.

    >>> [round(exp(w), 2) for w in mixture((2, 4), (3, 1)).log_weights]
    [0.75, 0.25]
    """
    shares = tuple(weights) if weights is not None else (1.0,) * len(tilts)
    if not tilts or len(shares) != len(tilts) or not all(isfinite(t) and t >= 0 for t in tilts):
        raise ConfigError(f"tilts {tuple(tilts)}: want one or more finite numbers >= 0, a weight for each")
    if not all(isfinite(share) and share > 0 for share in shares):
        raise ConfigError(f"prior weights {shares}: want finite numbers above 0")
    total = sum(shares)
    return Mixture(tuple(float(t) for t in tilts), tuple(log(share / total) for share in shares))


def log_tilted(hits: float, trials: Iterable[tuple[float, float]], tilts: Mixture) -> float:
    """ln E: `hits` among all trials, given as (number, greatest probability of a hit under the null),
    the latter below 1 where a tilt is 0.

    Counts may be fractions (forecasts use them). -inf when every component of the mixture is refuted.

    >>> round(exp(log_tilted(1, [(2, 0.5)], mixture((3,)))), 6)  # 3 / 2^2
    0.75
    """
    sums = list(tilts.log_weights)
    for number, probability in trials:
        if number:
            norms = _log_norms(tilts.tilts, probability)
            sums = [total - number * norm for total, norm in zip(sums, norms, strict=True)]
    if hits:
        sums = [total + hits * log_tilt for total, log_tilt in zip(sums, _logs(tilts.tilts), strict=True)]
    return log_sum(sums)


@lru_cache
def _logs(tilts: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(times_log(1, tilt) for tilt in tilts)


@lru_cache(
    maxsize=4096
)  # a decision sees the same weights thousands of times; 4x, benchmarks/bench_evidence.py
def _log_norms(tilts: tuple[float, ...], probability: float) -> tuple[float, ...]:
    return tuple(log1p((tilt - 1.0) * probability) for tilt in tilts)


def times_log(count: float, value: float) -> float:
    """count * ln(value), with 0 * ln(0) = 0.

    >>> times_log(0, 0.0), times_log(2, 0.0)
    (0.0, -inf)
    """
    if not count:
        return 0.0
    return count * log(value) if value > 0 else -inf


def log_sum(logs: Sequence[float]) -> float:
    """ln of the sum of exp(logs), without overflow; -inf for none.

    >>> round(log_sum([1e9, 1e9]) - 1e9, 6)
    0.693147
    """
    greatest = max(logs, default=-inf)
    if greatest in (inf, -inf):
        return greatest
    return greatest + log(sum([exp(value - greatest) for value in logs]))


def log_threshold(alpha: float, gates: int = 1) -> float:
    """ln(gates / alpha), which ln E must reach. `alpha` is the chance of a false alarm, ever, in (0, 1).

    Raises: ConfigError.
    """
    if not 0.0 < alpha < 1.0 or gates < 1:
        raise ConfigError(f"alpha {alpha} for {gates} gates: want alpha in (0, 1), such as .01, and a gate")
    return log(gates / alpha)


def last_rejected(
    log_e: Callable[[float], float], rejected: float, kept: float, threshold: float
) -> float | None:
    """The end of a confidence sequence, between a value that may be rejected and one that may not.

    `log_e` is monotone between the two. Returns the rejected value next to the kept ones (so rounding only
    widens the interval); None when even `rejected` is kept.
    """
    if log_e(rejected) < threshold:
        return None
    while abs(rejected - kept) > PRECISION * max(abs(rejected), abs(kept), 1e-4):
        middle = (rejected + kept) / 2
        if log_e(middle) >= threshold:
            rejected = middle
        else:
            kept = middle
    return rejected
