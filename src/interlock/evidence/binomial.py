"""Decides between which values a chance lies that was tried a number of times: for trials that are over.

What is looked at while it goes on is the matter of `confidence.py`.

Source: Clopper and Pearson (1934), Biometrika 26.
"""

from collections.abc import Callable
from math import exp, lgamma, log, log1p

import msgspec

from interlock.core.errors import ConfigError


class Share(msgspec.Struct, frozen=True):
    """How often, of how many, with the ends of the exact interval of the chance."""

    hits: int
    of: int
    low: float
    high: float


def share(hits: int, of: int, confidence: float = 0.95) -> Share:
    """The exact (Clopper-Pearson) interval of a binomial chance; [0, 1] where nothing was tried.

    Raises: ConfigError when `hits` is not in [0, of].

    >>> found = share(0, 20)
    >>> found.low, round(found.high, 4)
    (0.0, 0.1684)
    """
    if not 0 <= hits <= of:
        raise ConfigError(f"{hits} of {of}: want a part of them")
    tail = (1.0 - confidence) / 2
    low = _root(lambda p: 1.0 - _at_most(hits - 1, of, p) < tail) if hits else 0.0
    high = _root(lambda p: _at_most(hits, of, p) > tail) if hits < of else 1.0
    return Share(hits, of, low, high)


def _at_most(hits: int, of: int, p: float) -> float:
    """P(X <= hits) for X of Binomial(of, p), 0 < p < 1."""
    whole = lgamma(of + 1)
    return sum(
        exp(whole - lgamma(k + 1) - lgamma(of - k + 1) + k * log(p) + (of - k) * log1p(-p))
        for k in range(hits + 1)
    )


def _root(is_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2
