"""Where a lane's batches run: the Place protocol, and the two places inside a worker (inline, thread)."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from interlock.core.errors import InterlockError, PredictFailed
from interlock.core.model import Tensors
from interlock.runtime.protocol import Loaded

Outcome = Callable[[Tensors | InterlockError, float], None]
"""Called once on the event loop: the outputs or why there are none, and the seconds that predict took."""


class Place(Protocol):
    """Runs one batch at a time for one lane; a lane offers at most `slots` batches at once."""

    slots: int
    connected: bool
    """False while what runs the batches is gone and expected back."""

    def run(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        """Start a batch of `requests` joined requests. `kill_at_s` (monotonic): when a place that can
        kill may give the batch up as hung. Never raises; `done` may be called before this returns."""
        ...

    async def close(self) -> None:
        """Give the memory back; no batch is under way."""
        ...


def as_predict_failed(error: BaseException) -> InterlockError:
    """What a model raised, with its type and its words, bounded."""
    if isinstance(error, InterlockError):
        return error
    return PredictFailed(f"the model raised {type(error).__name__}: {str(error)[:500]}")


class Inline:
    """In the worker's loop: nothing is faster for a call far below a millisecond."""

    slots = 1
    connected = True

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def run(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        started = time.monotonic()
        result: Tensors | InterlockError
        try:
            result = self._loaded.predict(inputs, outputs)
        except Exception as error:
            result = as_predict_failed(error)
        done(result, time.monotonic() - started)

    async def close(self) -> None:
        await asyncio.to_thread(self._loaded.close)


class Threaded:
    """In a thread of the worker: for calls that release the GIL and would hold the loop too long."""

    slots = 1
    connected = True

    def __init__(self, loaded: Loaded, name: str) -> None:
        self._loaded = loaded
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name[:15])

    def run(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        self._pool.submit(self._work, inputs, outputs, done)

    def _work(self, inputs: Tensors, outputs: tuple[str, ...] | None, done: Outcome) -> None:
        started = time.monotonic()
        result: Tensors | InterlockError
        try:
            result = self._loaded.predict(inputs, outputs)
        except Exception as error:
            result = as_predict_failed(error)
        elapsed = time.monotonic() - started
        self._loop.call_soon_threadsafe(done, result, elapsed)

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._loaded.close)
