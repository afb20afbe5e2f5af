"""Time as an argument: the one clock of the process, and the fake that tests turn by hand."""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds of a monotonic clock that all processes of one machine share (CLOCK_MONOTONIC)."""

monotonic: Clock = time.monotonic


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
