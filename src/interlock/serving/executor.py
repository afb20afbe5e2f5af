"""Owns the worker's side of an executor: a Place whose batches run in a process of the version's own.

When that process dies, the batch that it was running fails (`ModelCrashed`), one that it had not begun comes
back to be tried again whole (`NotStarted`), and the place connects again by itself to the next incarnation;
a batch offered meanwhile waits for it, at most until its `kill_at_s`.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from interlock.core import errors
from interlock.core.errors import (
    ConfigError,
    InputMismatch,
    InterlockError,
    InvalidRequest,
    LoadFailed,
    MalformedMessage,
    ModelCrashed,
    ModelFailed,
    PredictFailed,
    RequestTooLarge,
    Unavailable,
)
from interlock.core.model import Tensors, Version
from interlock.serving.executor_arena import (
    DONE,
    FAILED,
    HELLO,
    PART,
    READY,
    REFUSED,
    Arena,
    Done,
    Hello,
    Peer,
    Run,
    TooLarge,
    Trouble,
    layout,
    read,
    read_head,
    room,
    write,
)
from interlock.serving.executor_batch import SHORTEST_BATCH_S, Batch, Slot, StreamBatch
from interlock.serving.executor_host import reason_path
from interlock.serving.placement import Outcome
from interlock.serving.streams import Flow

FIRST_RETRY_S = 0.005
LAST_RETRY_S = 0.25
_LONGEST_BATCH_S = 86_400.0

_encoder = msgspec.msgpack.Encoder()
_done = msgspec.msgpack.Decoder(Done)
_trouble = msgspec.msgpack.Decoder(Trouble)
_KINDS: dict[str, type[InterlockError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, (ModelFailed, InvalidRequest))
}
_log = logging.getLogger(__name__)


class NotStarted(Unavailable):
    """The executor went away before it began this batch: running it again is safe for any model."""


class ExecutorPlace:
    """The Place of one version in its executor. For one event loop.

    `owner` is the worker's incarnation. `changed(connected, reason)` is called on the loop when the executor
    is lost, each time that another cannot load the version, and when one is ready again.
    """

    def __init__(
        self,
        path: Path,
        version: Version,
        owner: int,
        changed: Callable[[bool, str], None] | None = None,
        slots: int = 1,
    ) -> None:
        self.slots = slots
        self.connected = False
        self.instant = False
        self._path = path
        self._version_key = version.key
        self._owner = owner
        self._changed = changed
        self._sequence = 0
        self._slots = [Slot() for _ in range(slots)]
        self._waiting: list[Batch] = []
        self._peer: Peer | None = None
        self._greeting: asyncio.Future[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    async def connect(self, deadline_s: float) -> None:
        """Wait until the executor has loaded the version, at most until `deadline_s` (monotonic).

        Raises: LoadFailed with the executor's own reason, or with what was seen until the deadline.
        """
        await self._connect(deadline_s, patient=False)

    def run(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        """See `Place.run`. `kill_at_s` bounds the running time from when the executor begins the batch:
        what waits behind another worker's batch is not hung."""
        batch = Batch(inputs, outputs, requests, kill_at_s, done)
        if self.connected:
            self._send(batch)
        else:
            self._wait(batch)

    def _wait(self, batch: Batch) -> None:
        if self._closed:
            batch.done(NotStarted(f"{self._version_key} is being unloaded"), 0.0)
        else:
            self._waiting.append(batch)
            left_s = min(max(batch.kill_at_s - time.monotonic(), 0.0), _LONGEST_BATCH_S)
            batch.timer = self._loop.call_later(left_s, self._give_up, batch)

    def stream(
        self,
        inputs: Tensors,
        outputs: tuple[str, ...] | None,
        kill_at_s: float,
        part: Callable[[Tensors], None],
        done: Outcome,
    ) -> Flow:
        """See `StreamPlace.stream`. The time until `kill_at_s` is given to each part anew."""
        batch = StreamBatch(self.tell, inputs, outputs, kill_at_s, part, done)
        if self.connected:
            self._send(batch)
        else:
            self._wait(batch)
        return batch.flow

    def tell(self, kind: int, batch: StreamBatch) -> None:
        """Send `TAKEN` or `CANCEL`; one that the executor has not been asked for yet is over at once."""
        if batch in self._waiting:
            self._give_up(batch)
            return
        for index, slot in enumerate(self._slots):
            if slot.batch is batch and self._peer is not None:
                try:
                    self._peer.send(kind, index, batch.sequence, 0, 0)
                except OSError as error:
                    self._lost(f"{type(error).__name__}: {error}")

    async def close(self) -> None:
        """Leave the executor; the supervisor ends it when no Desired has the version."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._peer is not None:
            self._lost("the place is closed")
        for batch in list(self._waiting):
            self._give_up(batch)

    def _send(self, batch: Batch) -> None:
        peer = self._peer
        assert peer is not None
        slot = next((slot for slot in self._slots if slot.batch is None), None)
        if slot is None:
            return batch.done(NotStarted(f"more than {self.slots} batches offered at once"), 0.0)
        left_s = batch.kill_at_s - time.monotonic()
        try:
            pieces, sources, end = layout(batch.inputs)
            kill_after_s = min(max(left_s, SHORTEST_BATCH_S), _LONGEST_BATCH_S)
            head = _encoder.encode(Run(pieces, batch.outputs, batch.requests, kill_after_s))
            fresh = room(slot.inputs, end + len(head))
        except TooLarge as error:
            return batch.done(RequestTooLarge(f"the batch is too large for an executor: {error}"), 0.0)
        except ConfigError as error:
            return batch.done(InputMismatch(error.message), 0.0)
        except (OSError, MemoryError) as error:
            return batch.done(Unavailable(f"no shared memory for the batch: {error}"), 0.0)
        arena = slot.inputs = fresh or slot.inputs
        assert arena is not None
        self._sequence += 1
        batch.sequence = self._sequence
        slot.batch = batch
        try:
            write(arena, pieces, sources, end, head)
            peer.send(
                batch.kind, self._slots.index(slot), batch.sequence, end, len(head), fresh.fd if fresh else -1
            )
        except OSError as error:
            self._lost(f"{type(error).__name__}: {error}")
        if fresh is not None:
            fresh.close()

    def _readable(self) -> None:
        peer = self._peer
        if peer is None:
            return
        settled: list[tuple[Batch, Tensors | InterlockError, float]] = []
        parts: tuple[tuple[Flow, Tensors], ...] = ()
        try:
            frames = peer.receive()
            if frames is None:
                return self._lost("it ended (os._exit, a signal, or out of memory)")
            for kind, index, sequence, at, size, arena in frames:
                slot = self._slots[index]
                if kind == PART:
                    parts += (slot.part(sequence, at, size, arena),)
                    continue
                if arena is not None:
                    slot.outputs = arena
                if slot.outputs is None:
                    raise MalformedMessage("a frame before any arena")
                head = read_head(slot.outputs, at, size)
                if kind in (READY, REFUSED):
                    self._greeted(kind, head)
                else:
                    settled.append(self._settled(kind, slot, sequence, slot.outputs, head))
        except (InterlockError, msgspec.MsgspecError, IndexError, OSError, MemoryError) as error:
            self._lost(f"it sent what cannot be understood: {type(error).__name__}: {error}")
        for flow, tensors in parts:
            flow.offer(tensors)
        for batch, result, elapsed_s in settled:  # its caller may offer the next one in here
            batch.done(result, elapsed_s)

    def _greeted(self, kind: int, head: bytes) -> None:
        trouble, greeting = _trouble.decode(head), self._greeting
        if greeting is None or greeting.done():
            raise MalformedMessage("a second greeting")
        if kind == READY:
            greeting.set_result(None)
        else:
            greeting.set_exception(LoadFailed(trouble.message))

    def _settled(
        self, kind: int, slot: Slot, sequence: int, arena: Arena, head: bytes
    ) -> tuple[Batch, Tensors | InterlockError, float]:
        batch = slot.batch
        if batch is None or sequence != batch.sequence or kind not in (DONE, FAILED):
            raise MalformedMessage(f"a frame of kind {kind} for batch {sequence}")
        result: Tensors | InterlockError
        if kind == DONE:
            answer = _done.decode(head)
            result, elapsed_s = read(arena, answer.pieces, copy=True), answer.elapsed_s
        else:
            trouble = _trouble.decode(head)
            result = _KINDS.get(trouble.error, PredictFailed)(trouble.message)
            elapsed_s = trouble.elapsed_s
        slot.batch = None
        return batch, result, elapsed_s

    def _lost(self, why: str) -> None:
        peer, self._peer = self._peer, None
        if peer is None:
            return
        self._loop.remove_reader(peer.sock.fileno())
        peer.close()
        was_connected, self.connected = self.connected, False
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(ConnectionError(why))
        lost = []
        for slot in self._slots:
            if slot.batch is not None and slot.inputs is not None:
                lost.append((slot.batch, slot.inputs.began == slot.batch.sequence))
            slot.batch = slot.inputs = slot.outputs = None
            slot.parts = [None] * len(slot.parts)
        if was_connected and not self._closed:
            if self._changed is not None:
                self._changed(False, why)
            self._connecting = self._loop.create_task(self._connect(None, patient=True))
        for batch, began in lost:
            batch.done(self._fate(batch, began, why), 0.0)

    def _fate(self, batch: Batch, began: bool, why: str) -> InterlockError:
        if not began:
            return NotStarted(f"the executor of {self._version_key} went away before it began: {why}")
        if time.monotonic() >= batch.kill_at_s:
            return ModelCrashed(f"{self._version_key} gave no answer in time, and its executor was killed")
        return ModelCrashed(f"the executor of {self._version_key} died in predict: {why}")

    def _give_up(self, batch: Batch) -> None:
        if batch in self._waiting:
            self._waiting.remove(batch)
            if batch.timer is not None:
                batch.timer.cancel()
            batch.done(NotStarted(f"the executor of {self._version_key} did not come back in time"), 0.0)

    async def _connect(self, deadline_s: float | None, patient: bool) -> None:
        # Patient: after a loss. Whether the version is given up is the supervisor's to decide, by quarantine.
        retry_s, last = FIRST_RETRY_S, "nothing listens there"
        while True:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise LoadFailed(f"no executor for {self._version_key} until the deadline: {self._why(last)}")
            try:
                await asyncio.wait_for(self._greet(), left_s)
                break
            except LoadFailed as error:
                if not patient:
                    raise
                if self._changed is not None:
                    self._changed(False, error.message)
            except TimeoutError:
                last = "it is still loading"
            except OSError as error:
                last = f"{type(error).__name__}: {error}"
            await asyncio.sleep(retry_s if left_s is None else max(min(retry_s, left_s), 0.0))
            retry_s = min(retry_s * 1.5, LAST_RETRY_S)
        self.connected = True
        if patient and self._changed is not None:
            self._changed(True, "")
        waiting, self._waiting = self._waiting, []
        for batch in waiting:
            if batch.timer is not None:
                batch.timer.cancel()
            # The connection may be lost again, and a caller may answer one `done` with another `run`.
            if self.connected:
                self._send(batch)
            else:
                self._wait(batch)

    async def _greet(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(str(self._path))  # at once, or BlockingIOError when its backlog is full
        except OSError:
            sock.close()
            raise
        peer = self._peer = Peer(sock)
        self._greeting = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), self._readable)
        try:
            head = _encoder.encode(Hello(self._version_key, self._owner))
            arena = self._slots[0].inputs = Arena.new(4096)
            write(arena, (), [], 64, head)
            peer.send(HELLO, 0, 0, 64, len(head), arena.fd)
            arena.close()
            await self._greeting
        except BaseException:
            self._lost("greeting given up")
            raise
        finally:
            self._greeting = None

    def _why(self, last: str) -> str:
        try:
            return reason_path(self._path).read_text()
        except OSError:
            return last
