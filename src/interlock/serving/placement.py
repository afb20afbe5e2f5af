"""Where a lane's batches run: the Place protocol, and the two places inside a worker (inline, thread)."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from interlock.core.errors import ConfigError, InterlockError, PredictFailed
from interlock.core.model import Tensors, Version
from interlock.runtime.protocol import Loaded, Streams
from interlock.serving.streams import AHEAD, Flow

_log = logging.getLogger(__name__)

Outcome = Callable[[Tensors | InterlockError, float], None]
"""Called once on the event loop: the outputs or why there are none, and the seconds that predict took."""


class Place(Protocol):
    """Runs one batch at a time for one lane; a lane offers at most `slots` batches at once."""

    slots: int
    connected: bool
    """False while what runs the batches is gone and expected back."""
    instant: bool
    """`run` calls `done` before it returns."""

    def run(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        """Start a batch of `requests` joined requests. `kill_at_s` (monotonic): when a place that can
        kill may give the batch up as hung. Never raises; `done` may be called before this returns."""
        ...

    async def close(self) -> None:
        """Give the memory back; no batch is under way."""
        ...


@runtime_checkable
class StreamPlace(Place, Protocol):
    """A place that can also run versions that stream: one request at a time."""

    def stream(
        self,
        inputs: Tensors,
        outputs: tuple[str, ...] | None,
        kill_at_s: float,
        part: Callable[[Tensors], None],
        done: Outcome,
    ) -> Flow:
        """Start one request. `part` is called with each part in order, `done` once, when the model is free
        again: with {} after the last part, or with why there are no more. Time until `kill_at_s` is what each
        part may take. Never raises; `part` is not called before this returns, `done` may be."""
        ...


def stream_place(version: Version, place: Place) -> StreamPlace | None:
    """The place, if the version streams; None if it does not. Raises: ConfigError if the place cannot."""
    if not version.capabilities.streaming:
        return None
    if not isinstance(place, StreamPlace):
        raise ConfigError(f"{version.key} streams, and its place does not: want one in a thread or executor")
    return place


def as_predict_failed(error: BaseException) -> InterlockError:
    """What a model raised, with its type and its words, bounded."""
    if isinstance(error, InterlockError):
        return error
    return PredictFailed(f"the model raised {type(error).__name__}: {str(error)[:500]}")


class Inline:
    """In the worker's loop: nothing is faster for a call far below a millisecond."""

    slots = 1
    connected = True
    instant = True

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
    instant = False

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

    def stream(
        self,
        inputs: Tensors,
        outputs: tuple[str, ...] | None,
        kill_at_s: float,
        part: Callable[[Tensors], None],
        done: Outcome,
    ) -> Flow:
        assert isinstance(self._loaded, Streams)  # the loader's care: `streams_of`
        source = ThreadSource(self._loop, part, done)
        self._pool.submit(source.work, self._loaded, inputs, outputs)
        return source.flow

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._loaded.close)


class ThreadSource:
    """A generator that runs in a thread; between two parts it sees whether it is to stop, or to wait."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, part: Callable[[Tensors], None], done: Outcome
    ) -> None:
        self.flow = Flow(self, part, done)
        self._loop = loop
        self._room = threading.Semaphore(AHEAD)
        self._is_stopped = False

    def taken(self) -> None:
        self._room.release()

    def stop(self) -> None:
        self._is_stopped = True
        self._room.release()

    def work(self, model: Streams, inputs: Tensors, outputs: tuple[str, ...] | None) -> None:
        """Run the stream to its end, in the calling thread."""
        result: Tensors | InterlockError = {}
        elapsed_s = 0.0
        try:
            parts = model.stream(inputs, outputs)
            try:
                while True:
                    self._room.acquire()
                    if self._is_stopped:
                        break
                    started_s = time.monotonic()
                    part = next(parts, None)
                    elapsed_s += time.monotonic() - started_s
                    if part is None:
                        break
                    self._loop.call_soon_threadsafe(self.flow.offer, part)
            finally:
                parts.close()
        except Exception as error:
            result = as_predict_failed(error)
            if self._is_stopped:  # nobody is left to hear of it
                _log.warning("a stream was stopped, and its model raised: %s", result)
        self._loop.call_soon_threadsafe(self.flow.end, result, elapsed_s)
