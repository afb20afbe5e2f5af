"""Decides from bad events of two arms whether the candidate has more of them: failure attribution.

Request i goes to the candidate with probability w_i, set beforehand; p_a,i and p_b,i are the chances that
the incumbent or the candidate answers it badly, which may drift at will. Only bad events count, and the
question is whose each one was. With ratio r = p_b / p_a it was the candidate's with probability

    theta_r = w r / (w r + 1 - w).

Alarm, null hypothesis "p_b,i <= rho p_a,i for every i": given a bad event and the past, it is the
candidate's with probability at most theta_rho. Promotion, null hypothesis "p_b,i >= rho p_a,i": at least
theta_rho. Either is a tilted Bernoulli trial (`mixture.py`) with tilt g = r / rho, so that

    E = sum_j pi_j g_j^(bad of the candidate) / prod_epochs (1 + (g_j - 1) theta_rho)^(bad of both).

Assumptions: each request is assigned on its own (sticky units are not: `units.py`), with a weight that
does not depend on its outcome. Nothing is assumed of the rates, of their drift, or of when one looks;
within an epoch it suffices that the chance of being the candidate's, averaged over the bad events, keeps
to the null.

Sources: Lindon and Malek, "Anytime-Valid Inference For Multinomial Count Data", NeurIPS 2022 (arXiv
2011.03567); the mixture over a grid and the inversion are ours.
"""

from collections.abc import Sequence
from math import exp, inf, log

import msgspec

from interlock.core.errors import ConfigError
from interlock.evidence.epochs import Epoch, informative
from interlock.evidence.mixture import Mixture, last_rejected, log_threshold, log_tilted, mixture

HARM = mixture((1.12, 1.25, 1.5, 2.0, 3.0, 6.0, 20.0), (1.5, 1.4, 1.4, 1.6, 1.2, 0.6, 0.4))
"""Ratios, as multiples of the margin, that an alarm listens for. Few: each one costs all the others.
Mean detection is 1.25-1.33 times the bound where a rate grows 1.2- to 3-fold (benchmarks/bench_evidence.py).
"""
FINE = mixture((1.01, 1.02, 1.05, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0, 5.0, 10.0, 30.0))
"""For intervals: they narrow to about 1 %."""
GREATEST_RATIO = 1e9
"""Where the search for the ends of an interval stops."""


def log_e_harm(epochs: Sequence[Epoch], margin: float = 1.0, ratios: Mixture = HARM) -> float:
    """ln E against "the candidate's rate of bad events is at most `margin` times the incumbent's".

    `epochs` holds bad events. Roll back when it reaches ln(1 / alpha).

    Raises: ConfigError when `margin` is not above 0.

    >>> log_e_harm([Epoch(0.05, 226, 30)]) > log(1 / 0.01)
    True
    """
    return _log_e(epochs, margin, ratios)


def log_e_safe(epochs: Sequence[Epoch], margin: float = 1.0, ratios: Mixture = HARM) -> float:
    """ln E against "the candidate's rate of bad events is at least `margin` times the incumbent's".

    Promote when it reaches ln(1 / alpha). It moves on bad events only; where neither arm has any, use the
    absolute margin of `difference.py`. Raises: ConfigError.

    >>> log_e_safe([Epoch(0.5, 60, 10)]) > log(1 / 0.01)
    True
    """
    return _log_e(epochs, margin, ratios.inverse())


class RatioInterval(msgspec.Struct, frozen=True):
    """Bounds on p_b / p_a that hold at all looks together; `greatest` is inf while nothing bounds it."""

    least: float
    greatest: float


def ratio_interval(epochs: Sequence[Epoch], alpha: float, ratios: Mixture = FINE) -> RatioInterval:
    """The confidence sequence of the ratio of both rates: those not rejected at alpha / 2 in either
    direction.

    With a constant ratio, it lies inside at all times with probability >= 1 - alpha. If the ratio drifts:
    `least` is not above the greatest ratio so far, `greatest` not below the least one. E falls in `margin`
    towards harm and grows towards safety, component by component, so that a single test decides each end.
    Raises: ConfigError.

    >>> found = ratio_interval([Epoch(0.5, 100, 150)], 0.05)
    >>> round(found.least, 2), round(found.greatest, 2)
    (0.98, 2.33)
    """
    threshold = log_threshold(alpha / 2)
    far = log(GREATEST_RATIO)
    least = last_rejected(lambda m: _log_e(epochs, exp(m), ratios), -far, far, threshold)
    inverse = ratios.inverse()
    greatest = last_rejected(lambda m: _log_e(epochs, exp(m), inverse), far, -far, threshold)
    return RatioInterval(0.0 if least is None else exp(least), inf if greatest is None else exp(greatest))


def share(weight: float, ratio: float) -> float:
    """The candidate's share of bad events, in [0, 1], at a ratio p_b / p_a.

    >>> share(0.5, 3)
    0.75
    """
    return weight * ratio / (weight * ratio + 1.0 - weight)


def _log_e(epochs: Sequence[Epoch], margin: float, tilts: Mixture) -> float:
    if not 0.0 < margin < inf:
        raise ConfigError(
            f"the margin of a ratio is {margin}: want a number above 0, such as 1.1 for 10 % more"
        )
    seen = informative(epochs)
    hits = sum(epoch.candidate for epoch in seen)
    return log_tilted(hits, [(epoch.both, share(epoch.weight, margin)) for epoch in seen], tilts)
