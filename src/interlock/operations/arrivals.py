"""Decides when the requests of an open loop leave, and what their latencies amount to; pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def schedule(rate: float, seconds: float, *, poisson: bool = False, seed: int = 0) -> Floats:
    """Intended send times in seconds from the start, ascending: constant spacing, or a Poisson process.

    >>> schedule(4, 1).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"rate {rate} and seconds {seconds} must be above 0")
    if not poisson:
        return np.arange(max(1, round(rate * seconds)), dtype=np.float64) / rate
    random = np.random.default_rng(seed)
    times: Floats = np.cumsum(random.exponential(1 / rate, size=int(rate * seconds * 1.2) + 100))
    return times[times < seconds]


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds; None where nothing was measured."""

    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None


def percentiles(times_ms: Sequence[float] | Floats) -> Percentiles:
    """Nearest-rank percentiles: each is a value that was really measured.

    >>> percentiles([3.0, 1.0, 2.0]).p50_ms
    2.0
    """
    if len(times_ms) == 0:
        return Percentiles(None, None, None, None, None)
    shares = (0.5, 0.9, 0.99, 0.999, 1.0)
    values = np.quantile(np.asarray(times_ms, dtype=np.float64), shares, method="inverted_cdf")
    return Percentiles(*(round(float(value), 4) for value in values))
