"""A real model streams through a lane, in a thread and in an executor, whatever it or its reader does.

Past 400 lines because most tests run on both places, by one rig and one model.
"""

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from interlock.core.errors import (
    DeadlineExceeded,
    InterlockError,
    ModelCrashed,
    OutputMismatch,
    PredictFailed,
)
from interlock.core.model import (
    Capabilities,
    ModelSettings,
    Signature,
    Tensors,
    TensorSpec,
    Version,
    artifact_path,
)
from interlock.core.request import Request, Response
from interlock.core.state import ArmCounts, ArmKey
from interlock.runtime.catalog import runtime_of
from interlock.serving.block import Block, Phase
from interlock.serving.block_reader import read_block
from interlock.serving.call import Call
from interlock.serving.executor import ExecutorPlace
from interlock.serving.executor_host import EXIT_HUNG
from interlock.serving.lane import Lane
from interlock.serving.placement import StreamPlace, Threaded
from interlock.serving.streams import AHEAD
from tests.serving.executor_process import Executor, until
from tests.serving.fakes import begin

pytestmark = pytest.mark.server

KEY = ArmKey("m", "1", 1, 0, 0)
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP64", (-1, -1)),), None)
(COUNT, RAISE, EXIT, HANG, LARGE, WRONG, TEXTS, RAISE_ON_CLOSE, KILL, SLOW_CLOSE) = range(10)
MODEL = """
import os, signal, time
import numpy as np
class Model:
    def __init__(self):
        self.made = self.closed = self.running = 0
    def stream(self, inputs):
        count, pause_s, command, at = inputs["x"][0].tolist()
        self.running += 1
        assert self.running == 1, "two streams at once"
        try:
            for i in range(int(count)):
                if i == int(at):
                    if command == 1:
                        raise ValueError("part %d broke" % i)
                    if command == 2:
                        os._exit(9)
                    if command == 3:
                        time.sleep(60)
                    if command == 5:
                        yield {"y": "no array"}
                    if command == 8:
                        os.kill(os.getpid(), signal.SIGKILL)
                self.made += 1
                if command == 4:
                    yield {"y": np.full((1, 1 << 20), i, np.float64)}
                else:
                    yield {"y": np.array([[i, time.monotonic(), self.made, self.closed]])}
                if pause_s:
                    time.sleep(pause_s)
        finally:
            self.running -= 1
            self.closed += 1
            if command == 7:
                raise KeyError("in finally")
"""


class Sink:
    """The parts and the end of one stream, and when they came; holds from `hold_at` parts on."""

    def __init__(self) -> None:
        self.parts: list[Tensors] = []
        self.came_s: list[float] = []
        self.response: Response | None = None
        self.error: InterlockError | None = None
        self.call: Call | None = None
        self.hold_at = -1

    @property
    def settled(self) -> bool:
        return self.response is not None or self.error is not None

    @property
    def numbers(self) -> list[int]:
        return [int(part["y"][0, 0]) for part in self.parts]

    def part(self, response: Response) -> None:
        assert not self.settled
        self.parts.append(response.outputs)
        self.came_s.append(time.monotonic())
        if len(self.parts) == self.hold_at and self.call is not None:
            self.call.hold()

    def done(self, response: Response) -> None:
        assert not self.settled
        self.response = response

    def fail(self, error: InterlockError, request_id: bytes) -> None:
        assert not self.settled
        self.error = error


class Rig:
    """A lane on one of the places, with its counts in a real block."""

    def __init__(self, home: Path, place: StreamPlace, version: Version, executor: Executor | None) -> None:
        self.place = place
        self.executor = executor
        self.block = Block.create(home / "run", "w", 1, rows=2)
        self.lane = Lane(version, ModelSettings(), place)

    def ask(
        self,
        count: int,
        pause_s: float = 0.0,
        command: int = COUNT,
        at: int = -1,
        *,
        within_s: float = 60.0,
        hold_at: int = -1,
    ) -> Sink:
        sink = Sink()
        sink.hold_at = hold_at
        now = time.monotonic()
        x = np.array([[count, pause_s, command, at]], np.float32)
        request = Request("m", {"x": x}, 1, now + within_s, now)
        sink.call = begin(self.lane, request, sink, b"id", self.block.slot(KEY))
        return sink

    async def ended(self, count: int, pause_s: float = 0.0, command: int = COUNT, at: int = -1) -> Sink:
        sink = self.ask(count, pause_s, command, at)
        await until(lambda: sink.settled)
        return sink

    async def model(self) -> tuple[int, int]:
        """Parts made and streams ended, before this question, by the model in its present life."""
        sink = await self.ended(1)
        assert sink.error is None, sink.error
        return int(sink.parts[0]["y"][0, 2]) - 1, int(sink.parts[0]["y"][0, 3])

    def counts(self) -> ArmCounts:
        view = read_block(self.block.path)
        assert view is not None
        counts = view.counts[KEY]
        settled = counts.ok + counts.invalid + counts.failed + counts.timed_out + counts.cancelled
        assert self.lane.outstanding == 0 and counts.dispatched == settled
        return counts


@pytest.fixture(params=["thread", "executor"])
async def rig(request: pytest.FixtureRequest, interlock_home: Path) -> AsyncIterator[Rig]:
    async for rig in _rig(interlock_home, request.param):
        yield rig


@pytest.fixture
async def remote(interlock_home: Path) -> AsyncIterator[Rig]:
    async for rig in _rig(interlock_home, "executor"):
        yield rig


async def _rig(home: Path, kind: str) -> AsyncIterator[Rig]:
    executor = Executor(home, MODEL, signature=SIGNATURE, capabilities=Capabilities(streaming=True))
    place: Threaded | ExecutorPlace
    if kind == "thread":
        loaded = runtime_of("python").load(artifact_path(home, executor.version.digest), executor.version)
        place = Threaded(loaded, "m")
    else:
        executor.start()
        place = ExecutorPlace(executor.path, executor.version, 77)
        await place.connect(time.monotonic() + 20)
    rig = Rig(home, place, executor.version, executor if kind == "executor" else None)
    try:
        yield rig
    finally:
        rig.block.close()
        await place.close()
        executor.stop()


async def test_fifty_parts_in_order_the_first_long_before_the_last(rig: Rig) -> None:
    sink = await rig.ended(50, 0.004)
    assert sink.numbers == list(range(50)) and sink.error is None
    made_s = [part["y"][0, 1] for part in sink.parts]
    assert made_s[0] < sink.came_s[0] < made_s[10]
    assert sink.response is not None and sink.response.outputs == {}
    counts = rig.counts()
    assert (counts.dispatched, counts.ok, counts.batches) == (1, 1, 1)
    assert counts.compute.sum_s < 0.1 < counts.total.sum_s


async def test_many_streams_take_turns(rig: Rig) -> None:
    sinks = [rig.ask(20) for _ in range(20)]
    await until(lambda: all(sink.settled for sink in sinks))
    assert all(sink.numbers == list(range(20)) for sink in sinks)
    assert rig.counts().ok == 20
    made, closed = await rig.model()
    assert made >= 400 and closed >= 20


@pytest.mark.beside
async def test_a_stream_without_parts_ends_well(rig: Rig) -> None:
    sink = await rig.ended(0)
    assert sink.response is not None and sink.parts == []


async def test_cancelled_after_three_parts_the_generator_is_closed_within_half_a_second(rig: Rig) -> None:
    before, ended = await rig.model()
    sink = rig.ask(10_000, 0.01)
    await until(lambda: len(sink.parts) == 3)
    assert sink.call is not None
    sink.call.cancel()
    cancelled_s = time.monotonic()
    made, closed = await rig.model()  # its turn comes when the generator is closed
    assert time.monotonic() < cancelled_s + 0.5
    assert closed == ended + 2
    assert made - before - 1 <= 3 + AHEAD
    assert len(sink.parts) == 3 and not sink.settled
    assert rig.counts().cancelled == 1


async def test_cancelled_before_it_was_begun_it_never_begins(rig: Rig) -> None:
    before, _ = await rig.model()
    sink = rig.ask(100)
    await asyncio.sleep(0)  # the lane hands it to its place
    assert sink.call is not None
    sink.call.cancel()
    made, _ = await rig.model()
    assert made - before - 1 <= AHEAD and sink.parts == [] and rig.counts().cancelled == 1


@pytest.mark.beside
async def test_an_error_in_the_middle_fails_after_the_parts(rig: Rig) -> None:
    sink = await rig.ended(50, 0.0, RAISE, 20)
    assert sink.numbers == list(range(20))
    assert isinstance(sink.error, PredictFailed) and "ValueError: part 20 broke" in sink.error.message
    assert (await rig.ended(5)).numbers == list(range(5))
    assert (rig.counts().failed, rig.counts().ok) == (1, 1)


@pytest.mark.beside
async def test_a_part_that_is_no_tensor_fails_the_stream(rig: Rig) -> None:
    sink = await rig.ended(10, 0.0, WRONG, 4)
    assert sink.numbers == list(range(4)) and isinstance(sink.error, OutputMismatch)
    assert (await rig.ended(5)).response is not None


@pytest.mark.beside
async def test_a_generator_that_raises_when_it_is_closed_hurts_nobody(rig: Rig) -> None:
    sink = rig.ask(10_000, 0.005, RAISE_ON_CLOSE)
    await until(lambda: len(sink.parts) >= 3)
    assert sink.call is not None
    sink.call.cancel()
    assert (await rig.ended(5)).numbers == list(range(5))
    assert not sink.settled and (rig.counts().cancelled, rig.counts().ok) == (1, 1)


async def test_the_deadline_in_the_middle_ends_the_stream_and_its_generator(rig: Rig) -> None:
    await rig.model()
    sink = rig.ask(10_000, 0.01, within_s=0.3)
    await until(lambda: sink.settled)
    assert isinstance(sink.error, DeadlineExceeded) and 3 < len(sink.parts) < 40
    late_s = time.monotonic()
    _, closed = await rig.model()
    assert time.monotonic() < late_s + 0.5 and closed >= 2
    assert rig.counts().timed_out == 1


async def test_a_slow_reader_holds_the_model_a_few_parts_ahead(rig: Rig) -> None:
    sink = rig.ask(50, hold_at=3)
    await until(lambda: len(sink.parts) == 3)
    if rig.executor is not None:
        await until(_waits(rig.executor))
    held_s = time.monotonic()
    await until(lambda: time.monotonic() > held_s + 0.1)
    assert len(sink.parts) == 3 and sink.call is not None
    resumed_s = time.monotonic()
    sink.call.resume()
    await until(lambda: sink.settled)
    assert sink.numbers == list(range(50))
    made_s = [part["y"][0, 1] for part in sink.parts]
    assert sum(one_s < resumed_s for one_s in made_s) == 3 + AHEAD


async def test_a_slow_reader_of_large_parts_costs_no_more_memory_than_a_few(rig: Rig) -> None:
    first = await rig.ended(4, 0.0, LARGE)
    assert first.response is not None
    del first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sink = rig.ask(60, 0.0, LARGE, hold_at=1)
    seen = 0
    while sink.parts or not sink.settled:
        await until(lambda: sink.settled or len(sink.parts) > 0)
        for part in sink.parts:
            assert part["y"].shape == (1, 1 << 20) and (part["y"] == seen).all()
            seen += 1
        sink.parts.clear()
        assert sink.call is not None
        sink.call.resume()
    assert seen == 60 and sink.error is None
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 12 * 8 * 1024**2, f"{grown >> 20} MB for 60 parts of 8 MB"


@pytest.mark.parametrize("command", [EXIT, KILL])
async def test_a_crash_in_the_middle_fails_after_the_parts_and_the_next_one_waits_for_the_next_life(
    remote: Rig, command: int
) -> None:
    executor = remote.executor
    assert executor is not None
    sink = remote.ask(50, 0.0, command, 10)
    waiting = remote.ask(5)
    await until(lambda: sink.settled)
    assert isinstance(sink.error, ModelCrashed) and sink.numbers == list(range(len(sink.parts)))
    assert 10 - AHEAD <= len(sink.parts) <= 10
    executor.wait()
    executor.start()
    await until(lambda: waiting.settled)
    assert waiting.numbers == list(range(5))
    assert (remote.counts().failed, remote.counts().ok) == (1, 1)


@pytest.mark.beside
async def test_a_stream_that_waits_for_its_executor_can_be_cancelled(remote: Rig) -> None:
    executor = remote.executor
    assert executor is not None
    executor.stop()
    await until(lambda: not remote.place.connected)
    sink = remote.ask(5)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sink.call is not None
    sink.call.cancel()
    executor.start()
    assert await remote.model() == (0, 1)  # the warm-up's, without parts
    assert not sink.settled and remote.counts().cancelled == 1


async def test_a_part_that_hangs_is_killed_and_one_that_comes_is_more_time(remote: Rig) -> None:
    executor = remote.executor
    assert executor is not None
    finished: asyncio.Future[Tensors | InterlockError] = asyncio.get_running_loop().create_future()
    numbers: list[int] = []
    inputs = {"x": np.array([[8, 0.2, 0, -1]], np.float32)}
    remote.place.stream(
        inputs,
        None,
        time.monotonic() + 0.6,
        lambda part: numbers.append(int(part["y"][0, 0])),
        lambda result, _: finished.set_result(result),
    )
    assert await asyncio.wait_for(finished, 20) == {} and numbers == list(range(8))
    sink = remote.ask(50, 0.0, HANG, 10, within_s=0.6)
    await until(lambda: sink.settled)
    assert isinstance(sink.error, DeadlineExceeded) and sink.numbers == list(range(10))
    assert executor.wait() == EXIT_HUNG
    executor.start()
    assert (await remote.ended(5)).numbers == list(range(5))


async def test_a_slow_reader_is_not_taken_for_a_hung_model(remote: Rig) -> None:
    executor = remote.executor
    assert executor is not None and executor.process is not None
    sink = remote.ask(20, hold_at=2, within_s=1.5)
    await until(_waits(executor))
    await until(lambda: sink.settled)
    assert isinstance(sink.error, DeadlineExceeded) and len(sink.parts) == 2
    assert (await remote.ended(5)).numbers == list(range(5))
    assert executor.process.poll() is None


async def test_a_worker_that_goes_away_in_the_middle_stops_the_stream(remote: Rig) -> None:
    executor = remote.executor
    assert executor is not None
    other = ExecutorPlace(executor.path, executor.version, 78)
    await other.connect(time.monotonic() + 20)
    numbers: list[int] = []
    ends: list[object] = []
    inputs = {"x": np.array([[1e9, 0.01, 0, -1]], np.float32)}
    other.stream(
        inputs,
        None,
        time.monotonic() + 60,
        lambda part: numbers.append(int(part["y"][0, 0])),
        lambda result, _: ends.append(result),
    )
    await until(lambda: len(numbers) == 3)
    await other.close()
    left_s = time.monotonic()
    assert (await remote.ended(5)).numbers == list(range(5))
    assert time.monotonic() < left_s + 0.5
    assert len(ends) == 1 and isinstance(ends[0], ModelCrashed)
    _, closed = await remote.model()
    assert closed == 3  # the warm-up's, that of the worker that left, the one after it


@pytest.mark.beside
async def test_two_workers_streams_do_not_mix(remote: Rig) -> None:
    executor = remote.executor
    assert executor is not None
    other = ExecutorPlace(executor.path, executor.version, 78, slots=2)
    await other.connect(time.monotonic() + 20)
    ends: list[object] = []
    numbers: list[list[int]] = [[], [], [], []]

    def part(index: int) -> Callable[[Tensors], None]:
        return lambda tensors: numbers[index].append(int(tensors["y"][0, 0]))

    inputs = {"x": np.array([[200, 0, 0, -1]], np.float32)}
    sink = remote.ask(200)
    for turn in range(2):
        for index in (2 * turn, 2 * turn + 1):
            far_s = time.monotonic() + 60
            other.stream(inputs, None, far_s, part(index), lambda result, _: ends.append(result))
        await until(lambda turn=turn: len(ends) == 2 * turn + 2)  # type: ignore[misc]
    await until(lambda: sink.settled)
    assert ends == [{}] * 4 and numbers == [list(range(200))] * 4 and sink.numbers == list(range(200))
    await other.close()


def _waits(executor: Executor) -> Callable[[], bool]:
    def waits() -> bool:
        block = executor.block()
        return block is not None and block.phase is Phase.RUNNING and block.kill_at_s == 0.0

    return waits


def _phase(executor: Executor) -> Phase | None:
    block = executor.block()
    return None if block is None else block.phase
