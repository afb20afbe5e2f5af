"""Decides about the means of bounded values in two arms (business metrics, scores, capped durations).

Values lie in [0, 1]: cap them and scale them, and turn them round where less is worse. The score of
request i,

    S_i = (A_i / w_i - (1 - A_i) / (1 - w_i)) (X_i - c),

has as its mean, given the past, the candidate's mean minus the incumbent's, for any centre c set
beforehand. With xi = S / B >= -1 and psi(l) = -ln(1 - l) - l, the inequality exp(l xi - psi(l) xi^2) <= 1
+ l xi makes

    E = sum_j pi_j exp(l_j sum xi_i - psi(l_j) sum xi_i^2) / prod (1 + l_j delta / B)

an e-process for "the excess, averaged over each weight epoch, is at most delta". It needs sums and sums of
squares only, which merge; a bet on every single value would not.

Assumptions: each request is assigned on its own, with a weight that does not depend on its outcome; a
value that comes late is counted under the epoch of its dispatch, at one fixed age in both arms. Valid for
any distribution in [0, 1] and any drift. What is above the cap counts as the cap: the test is about the
mean of the capped value.

Sources: Fan, Grama and Liu (2015), "Exponential inequalities for martingales with applications", lemma 4.1;
Howard et al. (2021), arXiv 1810.08240, theorem 4 (empirical Bernstein); Waudby-Smith et al. (2022), arXiv
2210.10768 (weights).
"""

from collections.abc import Sequence
from math import isfinite, log1p

import msgspec

from interlock.core.errors import ConfigError
from interlock.evidence.mixture import Mixture, log_sum, mixture

STAKES = mixture((0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.35, 0.6))
"""Values of l."""
_ROUNDING = 1e-9


class Moments(msgspec.Struct, frozen=True):
    """Sums over values in [0, 1]: how many, their sum, the sum of their squares."""

    count: float = 0
    total: float = 0
    squares: float = 0

    def __post_init__(self) -> None:
        slack = _ROUNDING * (1.0 + self.count)
        ordered = -slack <= self.squares <= self.total + slack <= self.count + 2 * slack
        if not (
            ordered
            and isfinite(self.count)
            and self.total**2 <= self.squares * self.count + slack * self.count
        ):
            raise ConfigError(
                f"moments {self.count}, {self.total}, {self.squares}: of no values in [0, 1]; cap and scale"
            )

    def merge(self, other: "Moments") -> "Moments":
        """The values of both together."""
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def about(self, centre: float) -> tuple[float, float]:
        """The sum of deviations from a centre, and of their squares."""
        squares = self.squares - 2 * centre * self.total + centre * centre * self.count
        return self.total - centre * self.count, max(0.0, squares)


class MeanEpoch(msgspec.Struct, frozen=True):
    """Values of both arms while the weight was constant. `centre`, in [0, 1], is set when the epoch begins:
    the incumbent's mean so far is best (power; any is valid). `requests`: how many there were of both arms,
    where those that are not in the moments had just the value of the centre; None where all are in them."""

    weight: float
    centre: float
    incumbent: Moments
    candidate: Moments
    requests: float | None = None

    def __post_init__(self) -> None:
        if not (0.0 <= self.weight <= 1.0 and 0.0 <= self.centre <= 1.0):
            raise ConfigError(
                f"weight {self.weight} and centre {self.centre} of an epoch: want both in [0, 1]"
            )
        if self.requests is not None and self.requests < self.incumbent.count + self.candidate.count:
            raise ConfigError(f"{self.requests} requests of an epoch: fewer than have values")


def log_e_harm(epochs: Sequence[MeanEpoch], margin: float = 0.0, stakes: Mixture = STAKES) -> float:
    """ln E against "the candidate's mean exceeds the incumbent's by at most `margin`", where more is worse.

    Raises: ConfigError when `margin` is not in (-1, 1).

    >>> low, high = Moments(9000, 900, 900), Moments(1000, 200, 200)  # zeros and ones
    >>> log_e_harm([MeanEpoch(0.1, 0.1, low, high)]) > 4.7
    True
    """
    return _log_e(epochs, margin, stakes, 1.0)


def log_e_safe(epochs: Sequence[MeanEpoch], margin: float, stakes: Mixture = STAKES) -> float:
    """ln E against "the candidate's mean exceeds the incumbent's by at least `margin`": the promotion test.

    Raises: ConfigError.
    """
    return _log_e(epochs, margin, stakes, -1.0)


def _log_e(epochs: Sequence[MeanEpoch], margin: float, stakes: Mixture, sign: float) -> float:
    if not -1.0 < margin < 1.0:
        raise ConfigError(f"the margin of a difference of means is {margin}: want one in (-1, 1)")
    sums = list(stakes.log_weights)
    for epoch in epochs:
        w, c = epoch.weight, epoch.centre
        if not 0.0 < w < 1.0:
            continue
        # The lowest that a score can be, so that xi >= -1: the two arms at their worst for this direction.
        bound = max(c / w, (1.0 - c) / (1.0 - w)) if sign > 0 else max((1.0 - c) / w, c / (1.0 - w))
        plus, plus_squares = epoch.candidate.about(c)
        minus, minus_squares = epoch.incumbent.about(c)
        xi = sign * (plus / w - minus / (1.0 - w)) / bound
        xi_squares = (plus_squares / w**2 + minus_squares / (1.0 - w) ** 2) / bound**2
        count = epoch.incumbent.count + epoch.candidate.count if epoch.requests is None else epoch.requests
        for index, stake in enumerate(stakes.tilts):
            psi = -log1p(-stake) - stake
            # |margin| < 1 <= bound for either w, so that the logarithm exists.
            sums[index] += stake * xi - psi * xi_squares - count * log1p(sign * stake * margin / bound)
    return log_sum(sums)
