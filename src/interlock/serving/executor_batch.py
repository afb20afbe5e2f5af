"""What a worker has under way in an executor: a batch, or a stream that is read part by part, in its slot."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from interlock.core.errors import MalformedMessage
from interlock.core.model import Tensors
from interlock.serving.executor_arena import CANCEL, RUN, STREAM, TAKEN, Arena, Done, read, read_head
from interlock.serving.placement import Outcome
from interlock.serving.streams import AHEAD, Flow

SHORTEST_BATCH_S = 0.05
"""What a batch, or one part, gets at the least."""

_done = msgspec.msgpack.Decoder(Done)


class Batch:
    """What is asked of the executor, once or again."""

    kind = RUN
    __slots__ = ("done", "inputs", "kill_at_s", "outputs", "requests", "sequence", "timer")

    def __init__(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.requests = requests
        self.kill_at_s = kill_at_s
        self.done = done
        self.sequence = 0
        self.timer: asyncio.TimerHandle | None = None


class StreamBatch(Batch):
    """A batch of one request that is answered in parts: the Source of its flow."""

    kind = STREAM
    __slots__ = ("flow", "part_s", "read", "taken_parts", "_tell")

    def __init__(
        self,
        tell: Callable[[int, "StreamBatch"], None],
        inputs: Tensors,
        outputs: tuple[str, ...] | None,
        kill_at_s: float,
        part: Callable[[Tensors], None],
        done: Outcome,
    ) -> None:
        self.flow = Flow(self, part, done)
        super().__init__(inputs, outputs, 1, kill_at_s, self.flow.end)
        self._tell = tell
        self.part_s = max(kill_at_s - time.monotonic(), SHORTEST_BATCH_S)
        self.read = 0
        self.taken_parts = 0

    def taken(self) -> None:
        self.taken_parts += 1
        self.kill_at_s = time.monotonic() + self.part_s
        self._tell(TAKEN, self)

    def stop(self) -> None:
        self._tell(CANCEL, self)


class Slot:
    """One batch under way, in an arena of its own each way; for the parts of a stream there are `AHEAD`."""

    __slots__ = ("batch", "inputs", "outputs", "parts")

    def __init__(self) -> None:
        self.parts: list[Arena | None] = [None] * AHEAD
        self.inputs: Arena | None = None
        self.outputs: Arena | None = None
        self.batch: Batch | None = None

    def part(self, sequence: int, at: int, size: int, fresh: Arena | None) -> tuple[Flow, Tensors]:
        """A part that has arrived, copied out of its arena, and the flow that it is for.

        Raises: MalformedMessage, ValidationError: not what may come now.
        """
        batch = self.batch
        if not isinstance(batch, StreamBatch) or sequence != batch.sequence:
            raise MalformedMessage(f"a part for batch {sequence}")
        if batch.read - batch.taken_parts >= AHEAD:
            raise MalformedMessage(f"more than {AHEAD} parts ahead")
        if fresh is not None:
            self.parts[batch.read % AHEAD] = fresh
        arena = self.parts[batch.read % AHEAD]
        if arena is None:
            raise MalformedMessage("a part before any arena")
        head = _done.decode(read_head(arena, at, size))
        batch.read += 1
        batch.kill_at_s = time.monotonic() + batch.part_s
        return batch.flow, read(arena, head.pieces, copy=True)
