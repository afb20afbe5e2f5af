"""Decides between which values the rate of one arm's bad events lies, at all times at once: for ramps and
people.

Null hypothesis for each end: "the rate, averaged over the requests so far, is at most (at least) p".
Evidence against it is a mixture of tilted Bernoulli trials (`mixture.py`) with odds ratios that lie ever
closer to 1, so that the interval keeps narrowing. By Jensen's inequality it covers the *running average*
of a rate that drifts. Assumption: the average is over what this arm was asked; to compare two arms, use
`difference.py` or `attribution.py`.

Sources: Robbins (1970); Howard, Ramdas, McAuliffe and Sekhon (2021), "Time-uniform, nonparametric,
nonasymptotic confidence sequences" (arXiv 1810.08240): discrete mixtures.
"""

from interlock.core.errors import ConfigError
from interlock.evidence.difference import Interval
from interlock.evidence.mixture import last_rejected, log_threshold, log_tilted, mixture

_STEPS = range(11)
_WEIGHTS = [1.0 / (step + 1.0) for step in _STEPS]
HIGHER = mixture([33, 17, 9, 5, 3] + [1 + 2.0**-step for step in _STEPS], [0.3] * 5 + _WEIGHTS)
"""Odds ratios above 1: 33 down to 1.001."""
LOWER = mixture([1 - 2.0**-step for step in _STEPS], _WEIGHTS)
"""Odds ratios below 1; the first is 0, for an arm without a single bad event."""

_END = 1.0 - 1e-12


def rate_interval(bad: float, requests: float, alpha: float) -> Interval:
    """The confidence sequence of an average rate, in [0, 1], from `bad` events among `requests`.

    P(it ever misses the average so far) <= alpha. Raises: ConfigError when bad is not in [0, requests].

    >>> found = rate_interval(20, 1000, 0.05)
    >>> round(found.least, 4), round(found.greatest, 4)
    (0.009, 0.038)
    """
    if not 0 <= bad <= requests:
        raise ConfigError(f"{bad} bad events among {requests} requests: want 0 <= bad <= requests")
    threshold = log_threshold(alpha / 2)
    least = last_rejected(lambda p: log_tilted(bad, [(requests, p)], HIGHER), 0.0, 1.0, threshold)
    greatest = last_rejected(lambda p: log_tilted(bad, [(requests, p)], LOWER), _END, 0.0, threshold)
    return Interval(0.0 if least is None else least, 1.0 if greatest is None else greatest)
