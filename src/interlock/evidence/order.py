"""Decides between which of the values seen a quantile lies: exact, for values that are over and done.

The number of n independent values that lie at or below the quantile of level q is Binomial(n, q), whatever
their distribution; so the k-th smallest is an upper end where P(Binomial(n, q) >= k) <= alpha.

Assumption: the values are independent draws of one distribution. Latencies of neighbouring requests are
not quite; a pause of the server makes many of them slow at once.
Source: David and Nagaraja (2003), "Order Statistics", section 7.1.
"""

from math import ceil, exp, floor, inf, lgamma, log, log1p, sqrt

import numpy as np

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.evidence.difference import Interval


def quantile_bounds(values: Array, level: float, alpha: float) -> Interval:
    """The ends of the quantile of `level`, each missed with a chance of `alpha` at most; -inf or inf where
    there are too few values for an end.

    Raises: ConfigError for a level or alpha outside of (0, 1).
    >>> quantile_bounds(np.arange(1000.0), 0.5, 0.025)
    Interval(least=468.0, greatest=531.0)
    """
    if not (0.0 < level < 1.0 and 0.0 < alpha < 1.0):
        raise ConfigError(f"the quantile {level} at {alpha}: want both in (0, 1)")
    n = len(values)
    ordered = np.sort(np.asarray(values, np.float64))
    chances = _chances(n, level)  # P(as many at or below the quantile), from `first` on
    first, masses = chances
    below = np.cumsum(masses)
    # P(B >= k) = 1 - P(B <= k - 1) <= alpha: the k-th smallest is an upper end, index k - 1.
    upper = first + int(np.searchsorted(below, 1 - alpha)) + 1
    # P(B <= k - 1) <= alpha: the k-th smallest is a lower end, index k - 1 >= 0.
    lower = first + int(np.searchsorted(below, alpha, side="right"))
    least = float(ordered[lower - 1]) if 1 <= lower <= n else -inf
    return Interval(least, float(ordered[upper - 1]) if upper <= n else inf)


def least_values(level: float, alpha: float) -> int:
    """How many values there must be for the quantile to have an upper end at all.

    >>> least_values(0.99, 0.025)
    368
    """
    return ceil(log(alpha) / log(level))


def _chances(n: int, level: float) -> tuple[int, Array]:
    """The binomial chances around the mean, from the first on that counts; beyond are 1e-15 of them."""
    reach = 40.0 + 12.0 * sqrt(n * level * (1 - level))
    first, last = max(0, floor(n * level - reach)), min(n, ceil(n * level + reach))
    whole = lgamma(n + 1)
    masses = [
        exp(whole - lgamma(k + 1) - lgamma(n - k + 1) + k * log(level) + (n - k) * log1p(-level))
        for k in range(first, last + 1)
    ]
    return first, np.array(masses)
