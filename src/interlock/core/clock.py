"""Time as an argument: the one clock of the process, and the fake that tests turn by hand."""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds of a monotonic clock that all processes of one machine share (CLOCK_MONOTONIC)."""

monotonic: Clock = time.monotonic


def in_words(duration_s: float) -> str:
    """A duration for people, with digits enough that a short one is not nothing.

    >>> in_words(1.5), in_words(0.1), in_words(0.0012345), in_words(1e-6)
    ('1.500 s', '0.100 s', '1.23 ms', '0.001 ms')
    """
    return f"{duration_s:.3f} s" if duration_s >= 0.1 else f"{duration_s * 1e3:.3g} ms"


class FakeClock:
    """A clock that moves only when told to.

    >>> clock = FakeClock(); clock.advance(1.5); clock()
    1.5
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (>= 0)."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self.now_s += seconds
