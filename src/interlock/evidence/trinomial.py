"""Decides between which values the excess of wrong answers lies, for pairs that are over: a holdout.

T = worse - better is a sum of n independent values in {-1, 0, 1}. Its distribution is computed, not
approximated: from its characteristic function by FFT, folded at a width beyond which 1e-12 of it lies
(Bernstein's inequality). For an excess m, and a share d of pairs that differ, P(T <= t) has one unknown, d.
It is bounded as Berger and Boos do: the greatest P over those d that are within a Chernoff interval of level
gamma, plus gamma; so P(excess >= m is rejected | it is so) <= alpha for every n and every d, up to the steps
in which d is tried (`STEPS`).

What is looked at while it goes on is the matter of `paired.py`: its price is two to three times the rows.

Assumption: the rows are independent draws of what the model will be asked.
Sources: Berger and Boos (1994), "P values maximized over a confidence set for the nuisance parameter", JASA
89; Tango (1998), Statistics in Medicine 17, has the problem and an approximate answer.
"""

from math import ceil, inf, log, sqrt

import numpy as np

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.evidence.difference import Interval
from interlock.evidence.paired import Pairs

STEPS = 32
"""So many shares of differing pairs are tried between the ends of their interval."""
_GAMMA = 0.1
"""The part of alpha that the interval of the share takes."""
_FOLDED = 1e-12
_HALVINGS = 24


def excess_bounds(pairs: Pairs, alpha: float, alpha_least: float | None = None) -> Interval:
    """The ends of the excess of the candidate's wrong answers, in [-1, 1]: `greatest` misses it with a chance
    of `alpha` at most, `least` with one of `alpha_least` (by default the same).

    Raises: ConfigError for a level outside of (0, 1) or no pairs.
    >>> found = excess_bounds(Pairs(worse=10, same=980, better=10), 0.05)
    >>> round(found.least, 3), round(found.greatest, 3)
    (-0.011, 0.011)
    """
    levels = (alpha, alpha if alpha_least is None else alpha_least)
    if not all(0.0 < level < 1.0 for level in levels) or not pairs.count:
        raise ConfigError(f"{pairs.count:g} pairs at the levels {levels}: want some, and levels in (0, 1)")
    greatest = _greatest(pairs, levels[0])
    mirrored = Pairs(pairs.better, pairs.same, pairs.worse)
    return Interval(-_greatest(mirrored, levels[1]), greatest)


def is_below(pairs: Pairs, excess: float, alpha: float) -> bool:
    """Whether the pairs say that the excess is below a value; wrong with a chance of `alpha` at most.

    >>> is_below(Pairs(same=600), 0.01, 0.05), is_below(Pairs(same=200), 0.01, 0.05)
    (True, False)
    """
    return _chance(pairs, excess, alpha) <= alpha


def _greatest(pairs: Pairs, alpha: float) -> float:
    """The least excess of which the data say at `alpha` that it is not reached."""
    low, high = pairs.harm / pairs.count, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_below(pairs, middle, alpha) else (middle, high)
    return high


def _chance(pairs: Pairs, excess: float, alpha: float) -> float:
    """The greatest chance of a T as low as the one seen where the excess is at least `excess`."""
    n, gamma = pairs.count, _GAMMA * alpha
    least, most = _chernoff((pairs.worse + pairs.better) / n, log(2 / gamma) / n)
    least, most = max(least, abs(excess)), min(max(most, abs(excess)), 1.0)
    if least > most:
        return gamma
    shares = np.linspace(least, most, STEPS)
    return gamma + float(_at_most(pairs.harm, n, (shares + excess) / 2, (shares - excess) / 2).max())


def _at_most(t: float, n: float, worse: Array, better: Array) -> Array:
    """P(T <= t), [choices], for chances [choices] of +1 and of -1."""
    mean = float((worse - better)[0]) * n
    variance = float((n * (worse + better - (worse - better) ** 2)).max())
    tail = log(2 / _FOLDED)
    reach = 2 * tail / 3 + sqrt((2 * tail / 3) ** 2 + 2 * tail * variance)
    if t < mean - reach:
        return np.zeros_like(worse)
    start = int(mean - reach) - 1
    width = 1 << ceil(log(2 * reach + 4, 2))
    angles = 2j * np.pi * np.arange(width // 2 + 1) / width  # the other half are their conjugates
    step = np.exp(angles)
    one = 1 - (worse + better)[:, None] + worse[:, None] * step + better[:, None] / step
    # T - start lies in [0, width) but for what is folded.
    chances = np.fft.irfft(np.conj(one**n * np.exp(-start * angles)), width, axis=1)
    found: Array = chances[:, : int(t) - start + 1].sum(axis=1)
    return np.clip(found, 0.0, 1.0)


def _chernoff(share: float, room: float) -> tuple[float, float]:
    """The chances whose divergence from the share is within `room`."""

    def divergence(p: float) -> float:
        if not 0.0 < p < 1.0:
            return 0.0 if p == share else inf
        first = share * log(share / p) if share else 0.0
        return first + ((1 - share) * log((1 - share) / (1 - p)) if share < 1 else 0.0)

    ends = []
    for outer in (0.0, 1.0):
        inner = share
        for _ in range(40):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if divergence(middle) <= room else (inner, middle)
        ends.append(outer)
    return ends[0], ends[1]
