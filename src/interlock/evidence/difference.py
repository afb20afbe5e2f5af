"""Decides by how much the candidate's rate of bad events exceeds the incumbent's: bets on weighted
differences.

Request i, answered by the candidate (A_i = 1) with probability w_i, has the score

    S_i = Y_i A_i / w_i - Y_i (1 - A_i) / (1 - w_i),      Y_i = 1 when it was bad,

whose mean given the past is exactly the excess p_b,i - p_a,i. A bet of a fixed fraction gives E = prod (1
+ lambda S_i) / (1 + lambda delta): an e-process for "the excess is at most delta" (lambda > 0) or "at
least delta" (lambda < 0), mixed over the fraction. By Jensen's inequality the null is about the average
excess in each weight epoch, so drift does no harm; nor does a ramp, since w_i is in the score.

Two intervals, one for each arm, would not do: while the weight grows and both rates drift, the arms'
averages lie at different times, and their difference has either sign whatever the candidate is like
(Simpson's paradox).

Assumptions: each request is assigned on its own, with a weight that does not depend on its outcome; the
counts of requests hold all that were settled or given up. Clean traffic promotes: with no bad event in
either arm, after about ln(1 / alpha) / delta requests of the candidate. Of a rate above one half, count
the good events instead.

Sources: Horvitz and Thompson (1952), the score; Waudby-Smith and Ramdas (2024), "Estimating means of
bounded random variables by betting" (arXiv 2010.09686), section 4; Waudby-Smith et al., "Anytime-valid
off-policy inference for contextual bandits" (arXiv 2210.10768).
"""

from collections.abc import Callable, Sequence
from math import log1p

import msgspec

from interlock.core.errors import ConfigError
from interlock.evidence.epochs import Epoch, same
from interlock.evidence.mixture import Mixture, last_rejected, log_sum, log_threshold, mixture, times_log

FRACTIONS = mixture((0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 1.0), (1, 1, 1, 1, 1, 1, 1, 5))
"""Of the greatest bet. The last one promotes clean traffic: E is zero in it after one bad answer of the
candidate."""


def log_e_harm(
    requests: Sequence[Epoch], bad: Sequence[Epoch], margin: float, fractions: Mixture = FRACTIONS
) -> float:
    """ln E against "the excess p_b - p_a, averaged over each epoch, is at most `margin`" (a probability).

    `requests` and `bad` count the same epochs: all requests settled or given up, and the bad ones among them.

    Raises: ConfigError when they differ in epochs, or `margin` is not in (-1, 1).

    >>> log_e_harm([Epoch(0.1, 9000, 1000)], [Epoch(0.1, 90, 60)], 0.005) > 4.7
    True
    """
    return _by_margin(requests, bad, fractions, 1.0)(margin)


def log_e_safe(
    requests: Sequence[Epoch], bad: Sequence[Epoch], margin: float, fractions: Mixture = FRACTIONS
) -> float:
    """ln E against "the excess p_b - p_a, averaged over each epoch, is at least `margin`": the promotion
    test.

    Raises: ConfigError.

    >>> log_e_safe([Epoch(0.1, 10800, 1200)], [Epoch(0.1, 0, 0)], 0.005) > 4.7
    True
    """
    return _by_margin(requests, bad, fractions, -1.0)(margin)


def safe_by_margin(requests: Sequence[Epoch], bad: Sequence[Epoch]) -> Callable[[float], float]:
    """`log_e_safe` of these counts as a function of the margin, for those who try many: most of it is the
    same for all."""
    return _by_margin(requests, bad, FRACTIONS, -1.0)


class Interval(msgspec.Struct, frozen=True):
    """Bounds that hold at all looks together."""

    least: float
    greatest: float


def excess_interval(requests: Sequence[Epoch], bad: Sequence[Epoch], alpha: float) -> Interval:
    """The confidence sequence of the excess p_b - p_a, in [-1, 1]: those not rejected at alpha / 2 either
    way.

    It holds for the average excess where all epochs have the same one, and for one that drifts within an
    epoch. Raises: ConfigError.

    >>> found = excess_interval([Epoch(0.5, 1000, 1000)], [Epoch(0.5, 20, 60)], 0.05)
    >>> round(found.least, 3), round(found.greatest, 3)
    (0.011, 0.073)
    """
    threshold = log_threshold(alpha / 2)
    least = last_rejected(_by_margin(requests, bad, FRACTIONS, 1.0), -_END, _END, threshold)
    greatest = last_rejected(safe_by_margin(requests, bad), _END, -_END, threshold)
    return Interval(-1.0 if least is None else least, 1.0 if greatest is None else greatest)


_END = 1.0 - 1e-9


def _by_margin(
    requests: Sequence[Epoch], bad: Sequence[Epoch], fractions: Mixture, sign: float
) -> Callable[[float], float]:
    epochs: list[tuple[float, list[tuple[float, float]]]] = []
    for asked, worse in same(requests, bad):
        if not asked.is_informative:
            continue
        weight = asked.weight
        # The greatest bet that no single outcome can take below zero.
        limit = weight if sign < 0 else min(weight, 1.0 - weight)
        stakes = [sign * fraction * limit for fraction in fractions.tilts]
        won = [
            times_log(worse.candidate, 1.0 + stake / weight)
            + times_log(worse.incumbent, 1.0 - stake / (1.0 - weight))
            for stake in stakes
        ]
        epochs.append((asked.both, list(zip(stakes, won, strict=True))))

    def log_e(margin: float) -> float:
        if not -1.0 < margin < 1.0:
            raise ConfigError(
                f"the margin of a difference of rates is {margin}: want one in (-1, 1), such as .005"
            )
        sums: Sequence[float] = fractions.log_weights
        for both, bets in epochs:
            sums = [
                total + (won - both * log1p(stake * margin))
                for total, (stake, won) in zip(sums, bets, strict=True)
            ]
        return log_sum(sums)

    return log_e
