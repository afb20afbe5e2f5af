"""Decides from requests that both versions answered whether the candidate is worse: shadow and reverse
shadow.

Z_i = (candidate bad) - (incumbent bad), in {-1, 0, +1}, on the same request. A bet of a fixed fraction gives

E = sum_j pi_j (1 + lambda_j)^worse (1 - lambda_j)^better / (1 + lambda_j delta)^pairs,       0 <= lambda_j
< 1,

against "the average of E[Z_i | past] so far is at most delta". (It is prod 1 + l (Z_i - delta) with l =
lambda / (1 + lambda delta); that the average suffices follows from Jensen's inequality.) At delta = 0 it
is the sequential McNemar test: q = (1 + lambda) / 2 is the share of discordant pairs that only the
candidate fails. Promotion mirrors it: (1 - lambda)^worse (1 + lambda)^better / (1 - lambda delta)^pairs
against "at least delta".

Assumptions: which requests are paired does not depend on their outcomes. There are none on assignment, so
sticky units, drift and ramps do no harm; both outcomes are counted together, once both are settled or
given up.

Sources: McNemar (1947); Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by
betting" (arXiv 2010.09686), section 4.
"""

from collections.abc import Callable
from math import log1p

import msgspec

from interlock.core.errors import ConfigError
from interlock.evidence.difference import Interval
from interlock.evidence.mixture import Mixture, last_rejected, log_sum, log_threshold, mixture, times_log

HARM_BETS = mixture((0.07, 0.16, 0.32, 0.5, 0.68, 0.85, 0.97), (1.2, 1.5, 1.1, 1.1, 1.0, 1.0, 1.1))
"""Bets of the alarm; q = .535 to .985. Mean detection is 1.22-1.25 times the bound: see benchmarks/."""
SAFE_BETS = mixture((0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 1.0), (1, 1, 1, 1, 1, 1, 1, 5))
"""Bets of the promotion. The last is for clean pairs: it is lost at the first pair that only the candidate
fails."""


class Pairs(msgspec.Struct, frozen=True):
    """Counts of pairs: only the candidate failed (`worse`), only the incumbent did (`better`), neither or
    both (`same`). For latency: slower, faster, tied; see `exceedance.py`."""

    worse: float = 0
    same: float = 0
    better: float = 0

    def __post_init__(self) -> None:
        if not (self.worse >= 0 and self.same >= 0 and self.better >= 0):
            raise ConfigError(f"counts of pairs {self.worse}, {self.same}, {self.better}: want numbers >= 0")

    @property
    def count(self) -> float:
        return self.worse + self.same + self.better

    @property
    def harm(self) -> float:
        """Bad events that the candidate had beyond the incumbent's on the same requests: the sum of Z."""
        return self.worse - self.better

    def merge(self, other: "Pairs") -> "Pairs":
        """The pairs of two workers, nodes or epochs together."""
        return Pairs(self.worse + other.worse, self.same + other.same, self.better + other.better)


def log_e_harm(pairs: Pairs, margin: float = 0.0, bets: Mixture = HARM_BETS) -> float:
    """ln E against "the average excess of bad events so far is at most `margin`" (a probability).

    Raises: ConfigError when `margin` is not in (-1, 1).

    >>> log_e_harm(Pairs(worse=20, same=1000, better=3)) > 4.7
    True
    """
    return _by_margin(pairs, bets, 1.0)(margin)


def log_e_safe(pairs: Pairs, margin: float, bets: Mixture = SAFE_BETS) -> float:
    """ln E against "the average excess of bad events so far is at least `margin`": the promotion test.

    Raises: ConfigError.

    >>> log_e_safe(Pairs(same=1200), 0.005) > 4.7  # clean pairs
    True
    """
    return _by_margin(pairs, bets, -1.0)(margin)


def safe_by_margin(pairs: Pairs) -> Callable[[float], float]:
    """`log_e_safe` of these pairs as a function of the margin, for those who try many: most of it is the
    same for all."""
    return _by_margin(pairs, SAFE_BETS, -1.0)


def excess_interval(pairs: Pairs, alpha: float) -> Interval:
    """The confidence sequence of the average excess so far, in [-1, 1], at alpha / 2 for either end.

    `greatest` is the U_t of a harm budget; ask for 2 * alpha where only that end is used. Raises:
    ConfigError.

    >>> found = excess_interval(Pairs(worse=40, same=950, better=10), 0.05)
    >>> round(found.least, 3), round(found.greatest, 3)
    (0.009, 0.057)
    """
    threshold = log_threshold(alpha / 2)
    least = last_rejected(_by_margin(pairs, HARM_BETS, 1.0), -_END, _END, threshold)
    greatest = last_rejected(safe_by_margin(pairs), _END, -_END, threshold)
    return Interval(-1.0 if least is None else least, 1.0 if greatest is None else greatest)


_END = 1.0 - 1e-9


def _by_margin(pairs: Pairs, bets: Mixture, sign: float) -> Callable[[float], float]:
    worse, better, count = pairs.worse, pairs.better, pairs.count
    parts = [
        (sign * bet, weight + times_log(worse, 1.0 + sign * bet) + times_log(better, 1.0 - sign * bet))
        for bet, weight in zip(bets.tilts, bets.log_weights, strict=True)
    ]

    def log_e(margin: float) -> float:
        if not -1.0 < margin < 1.0:
            raise ConfigError(f"the margin of a paired excess is {margin}: want one in (-1, 1), such as .005")
        return log_sum([won - count * log1p(stake * margin) for stake, won in parts])

    return log_e
