"""Flow: one stream on its way from a place to its sink; keeps the order, holds it back, stops it.

A place makes at most `AHEAD` parts more than the sink has taken, so that a sink that holds the flow costs the
memory of these and no more: the model waits. For the event loop.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from interlock.core.errors import InterlockError
from interlock.core.model import Tensors

AHEAD = 2
"""Parts made and not yet taken: the sink reads one while the model makes the next."""

End = Callable[[Tensors | InterlockError, float], None]


class Source(Protocol):
    """What makes the parts of one flow."""

    def taken(self) -> None:
        """The sink took a part: there is room for another."""
        ...

    def stop(self) -> None:
        """Make no more, close the model's generator, and end the flow."""
        ...


class Flow:
    """The parts of one request between a Source, which calls `offer` and `end`, and a lane."""

    __slots__ = ("_done", "_end", "_is_delivering", "_is_held", "_is_stopped", "_part", "_source", "_waiting")

    def __init__(self, source: Source, part: Callable[[Tensors], None], done: End) -> None:
        self._source = source
        self._part = part
        self._done: End | None = done
        self._waiting: deque[Tensors] = deque()
        self._end: tuple[Tensors | InterlockError, float] | None = None
        self._is_held = False
        self._is_stopped = False
        self._is_delivering = False

    def offer(self, tensors: Tensors) -> None:
        """The next part. A flow that is stopped or over drops it."""
        if not self._is_stopped and self._done is not None:
            self._waiting.append(tensors)
            self._deliver()

    def end(self, result: Tensors | InterlockError, elapsed_s: float) -> None:
        """Nothing more comes, once; what waits goes first. `elapsed_s`: what the model took for all parts."""
        self._end = result, elapsed_s
        self._deliver()

    def hold(self) -> None:
        """Deliver nothing until `resume`."""
        self._is_held = True

    def resume(self) -> None:
        self._is_held = False
        self._deliver()

    def stop(self) -> None:
        """Deliver no part any more, and have the source end. No-op at the end."""
        if self._is_stopped or self._done is None:
            return
        self._is_stopped = True
        self._waiting.clear()
        if self._end is None:
            self._source.stop()
        self._deliver()

    def _deliver(self) -> None:
        if self._is_delivering:
            return  # called from within `part`: the loop below goes on
        self._is_delivering = True
        try:
            while self._waiting and not self._is_held:
                self._part(self._waiting.popleft())
                self._source.taken()
        finally:
            self._is_delivering = False
        if self._end is not None and self._done is not None and not self._waiting:
            done, self._done = self._done, None
            done(*self._end)
