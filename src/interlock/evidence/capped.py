"""Decides between which values the mean of capped losses, or of their differences, lies: for a holdout.

Values lie in [-C, C]. Against "the mean is at least m" one bets on each row, in an order that does not
depend on the values:

    K_t = prod_{i <= t} 1 + l_i (m - x_i),        0 <= l_i <= 0.6 / C,

with l_i from the rows before i (their mean square about their mean). Where the mean is at least m, K is a
nonnegative supermartingale, so K ever reaches 1 / alpha with a chance of at most alpha (Ville). Valid for
every number of rows and every distribution in [-C, C]: heavy tails are what the cap is for. Ends are sought
within C / 2 of 0, where no bet can lose all; a mean beyond that is shown as C / 2, or has none.

A cap makes it a statement about the mean of min(loss, cap): one without a cap cannot be proved from any
number of rows, as a row that was never drawn may cost more than all others together.

Sources: Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting" (arXiv
2010.09686), sections 3 and 4 (predictable plug-in bets); Ville (1939); Bahadur and Savage (1956) for the
impossibility.
"""

from math import log

import numpy as np

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.evidence.difference import Interval

_LARGEST_BET = 0.6
_HALVINGS = 40


def mean_bounds(values: Array, cap: float, alpha: float, alpha_least: float | None = None) -> Interval:
    """The ends of the mean of independent values [rows] in [-cap, cap]: `greatest` misses it with a chance of
    `alpha` at most, `least` with one of `alpha_least` (by default the same). An end that the values do not
    tell is `cap` or -`cap`.

    Raises: ConfigError for a value beyond the cap, or a level outside of (0, 1).
    >>> found = mean_bounds(np.zeros(1000), 1.0, 0.05)
    >>> round(found.least, 3), round(found.greatest, 3)
    (-0.005, 0.005)
    """
    levels = (alpha, alpha if alpha_least is None else alpha_least)
    if not (cap > 0 and all(0.0 < level < 1.0 for level in levels)):
        raise ConfigError(f"a cap of {cap} at the levels {levels}: want one above 0, and levels in (0, 1)")
    scaled = np.asarray(values, np.float64) / cap
    if len(scaled) and not np.abs(scaled).max() <= 1.0 + 1e-9:
        raise ConfigError(f"a value of {np.abs(values).max():g} with a cap of {cap:g}: cut them first")
    return Interval(-cap * _greatest(-scaled, levels[1]), cap * _greatest(scaled, levels[0]))


def is_below(values: Array, mean: float, cap: float, alpha: float) -> bool:
    """Whether the values [rows] in [-cap, cap] say that their mean is below `mean`, which is in [-cap / 2,
    cap / 2]; wrong with a chance of `alpha` at most.

    >>> is_below(np.zeros(1000), 0.01, 1.0, 0.05), is_below(np.zeros(100), 0.01, 1.0, 0.05)
    (True, False)
    """
    scaled = np.asarray(values, np.float64) / cap
    return _is_rejected(scaled, _bets(scaled, alpha), mean / cap, alpha)


def _greatest(values: Array, alpha: float) -> float:
    """The least m in [-1/2, 1/2] against which the bets win 1 / alpha; 1 if there is none."""
    bets = _bets(values, alpha)
    low, high = -0.5, 0.5
    if not _is_rejected(values, bets, high, alpha):
        return 1.0
    if _is_rejected(values, bets, low, alpha):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _is_rejected(values, bets, middle, alpha) else (middle, high)
    return high


def _is_rejected(values: Array, bets: Array, m: float, alpha: float) -> bool:
    wealth = np.cumsum(np.log1p(bets * (m - values)))
    return bool(len(wealth) and wealth.max() >= log(1 / alpha))


def _bets(values: Array, alpha: float) -> Array:
    """The bet on each row, from those before it; they do not depend on m, so that K grows with m."""
    rows = len(values)
    before = np.arange(rows)
    mean = np.concatenate([[0.0], np.cumsum(values)[:-1]]) / (before + 1) if rows else values
    squares = np.concatenate([[0.0], np.cumsum((values - mean) ** 2)[:-1]]) if rows else values
    # One row of the greatest spread for a start would slow small holdouts; a tenth of it serves.
    variance = (0.01 + squares) / (before + 1)
    found: Array = np.minimum(_LARGEST_BET, np.sqrt(2 * log(1 / alpha) / (max(rows, 1) * variance)))
    return found
