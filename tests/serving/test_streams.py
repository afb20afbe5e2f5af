"""Parts arrive in order and once, and end when nobody wants them: the flow, and the lane around it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import (
    ConfigError,
    DeadlineExceeded,
    InterlockError,
    ModelCrashed,
    OutputMismatch,
    PredictFailed,
    Quarantined,
    RequestTooLarge,
)
from interlock.core.model import ModelSettings, Tensors
from interlock.core.request import Response
from interlock.core.state import ArmCounts, ArmKey
from interlock.serving.block import Block
from interlock.serving.block_reader import read_block
from interlock.serving.call import Call
from interlock.serving.executor import NotStarted
from interlock.serving.lane import Lane
from interlock.serving.placement import Outcome
from interlock.serving.streams import Flow
from tests.serving.fakes import FakePlace, a_request, a_version, begin

KEY = ArmKey("m", "1", 1, 0, 0)
FAR_S = 600.0


class FakeSource:
    """Counts what a flow tells it."""

    def __init__(self) -> None:
        self.parts_taken = 0
        self.stops = 0

    def taken(self) -> None:
        self.parts_taken += 1

    def stop(self) -> None:
        self.stops += 1


class FakeStream(FakeSource):
    """One stream that a lane has begun: the test makes its parts."""

    def __init__(self, inputs: Tensors, kill_at_s: float, part: Callable[[Tensors], None], done: Outcome):
        super().__init__()
        self.inputs = inputs
        self.kill_at_s = kill_at_s
        self.flow = Flow(self, part, done)

    def give(self, *values: float) -> None:
        for value in values:
            self.flow.offer({"y": np.full((1, 2), value, np.float32)})

    def end(self, error: InterlockError | None = None) -> None:
        self.flow.end({} if error is None else error, 0.01)


class StreamPlace(FakePlace):
    """Keeps each stream until the test ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[FakeStream] = []

    def stream(
        self,
        inputs: Tensors,
        outputs: tuple[str, ...] | None,
        kill_at_s: float,
        part: Callable[[Tensors], None],
        done: Outcome,
    ) -> Flow:
        self.streams.append(FakeStream(inputs, kill_at_s, part, done))
        return self.streams[-1].flow


class StreamSink:
    """Remembers the first value of each part, and how it ended; `on_part` may act from within."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.response: Response | None = None
        self.error: InterlockError | None = None
        self.on_part: Callable[[], None] = lambda: None

    @property
    def settled(self) -> bool:
        return self.response is not None or self.error is not None

    def part(self, response: Response) -> None:
        assert not self.settled
        self.values.append(float(response.outputs["y"][0, 0]))
        self.on_part()

    def done(self, response: Response) -> None:
        assert not self.settled
        self.response = response

    def fail(self, error: InterlockError, request_id: bytes) -> None:
        assert not self.settled
        self.error = error


class Rig:
    """A lane of a version that streams, on a place that obeys, with its counts in a real block."""

    def __init__(self, folder: Path) -> None:
        self.block = Block.create(folder, "w", 1, rows=2)
        self.slot = self.block.slot(KEY)
        self.place = StreamPlace()
        self.lane = Lane(a_version(streaming=True), ModelSettings(), self.place)
        self.count = 0

    def ask(self, *values: float, within_s: float = FAR_S) -> tuple[StreamSink, Call]:
        now = time.monotonic()
        sink = StreamSink()
        self.count += 1
        request = a_request(list(values), now, now + within_s)
        return sink, begin(self.lane, request, sink, b"%d" % self.count, self.slot)

    @property
    def stream(self) -> FakeStream:
        return self.place.streams[-1]

    def idle(self) -> ArmCounts:
        """Nothing is under way, and every request that was dispatched settled once."""
        view = read_block(self.block.path)
        assert view is not None
        counts = view.counts[KEY]
        settled = counts.ok + counts.invalid + counts.failed + counts.timed_out + counts.cancelled
        assert self.lane.outstanding == 0 and counts.dispatched == settled == counts.total.count
        assert not self.lane.congested
        return counts


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def tick() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        await asyncio.sleep(0.001)


OPS = st.lists(st.sampled_from(("offer", "offer", "hold", "resume", "stop", "end")), max_size=30)


@given(ops=OPS, reaction=st.sampled_from(("", "hold", "stop", "resume")), at=st.integers(0, 5))
def test_a_flow_delivers_a_prefix_in_order_and_ends_once(ops: list[str], reaction: str, at: int) -> None:
    source = FakeSource()
    came: list[int] = []
    ends: list[object] = []

    def part(tensors: Tensors) -> None:
        assert not ends
        came.append(int(tensors["n"]))
        if reaction and len(came) == at:
            getattr(flow, reaction)()

    flow = Flow(source, part, lambda result, _: ends.append(result))
    offered, is_held, is_over, is_stopped = 0, False, False, False
    for op in ops:
        if op == "offer" and not is_over:
            before = len(came)
            flow.offer({"n": np.array(offered)})
            offered += 1
            if not (is_held or is_stopped or reaction):
                assert len(came) == before + 1
        elif op == "end" and not is_over:
            flow.end({}, 0.0)
            is_over = True
        elif op in ("hold", "resume"):
            is_held = op == "hold"
            getattr(flow, op)()
        elif op == "stop":
            flow.stop()
            is_stopped = True
    assert came == list(range(len(came)))
    assert source.parts_taken == len(came)
    assert source.stops <= 1
    if is_over and (is_stopped or not (is_held or reaction == "hold")):
        assert len(ends) == 1
    assert len(ends) <= is_over
    flow.resume()
    if is_over:
        assert len(ends) == 1
    if not (is_stopped or reaction):
        assert len(came) == offered


async def test_parts_come_at_once_and_the_end_comes_empty(rig: Rig) -> None:
    sink, call = rig.ask(7)
    await tick()
    assert rig.stream.inputs["x"].tolist() == [[7, 7]]
    rig.stream.give(1)
    assert sink.values == [1]
    rig.stream.give(2, 3)
    rig.stream.end()
    assert sink.values == [1, 2, 3]
    assert sink.response is not None and sink.response.outputs == {} and sink.response.request_id == b"1"
    counts = rig.idle()
    assert (counts.ok, counts.batches, counts.rows) == (1, 1, 1)
    call.cancel()
    call.resume()
    assert rig.idle().cancelled == 0 and rig.stream.stops == 0


async def test_one_request_at_a_time_each_in_its_turn(rig: Rig) -> None:
    sinks = [rig.ask(value)[0] for value in range(3)]
    for turn in range(3):
        await tick()
        assert len(rig.place.streams) == turn + 1 and rig.lane.congested
        rig.stream.give(turn)
        rig.stream.end()
    await tick()
    assert [sink.values for sink in sinks] == [[0], [1], [2]]
    assert rig.idle().batches == 3


async def test_a_part_may_have_any_number_of_rows_and_a_request_no_more_than_fit(rig: Rig) -> None:
    sink, _ = rig.ask(1, 2)
    await tick()
    rig.stream.flow.offer({"y": np.zeros((5, 2), np.float32)})
    rig.stream.end()
    assert sink.response is not None and len(sink.values) == 1
    with pytest.raises(RequestTooLarge):
        rig.ask(*range(9))
    assert rig.idle().refused == 1


async def test_cancelled_while_it_waits_it_never_begins(rig: Rig) -> None:
    first, _ = rig.ask(1)
    second, waiting = rig.ask(2)
    third, _ = rig.ask(3)
    await tick()
    waiting.hold()
    waiting.cancel()
    rig.stream.end()
    await tick()
    assert rig.stream.inputs["x"][0, 0] == 3
    rig.stream.end()
    await tick()
    assert first.settled and third.settled and not second.settled
    assert rig.idle().cancelled == 1


async def test_cancelled_in_the_middle_the_source_is_stopped_and_what_it_still_gives_is_dropped(
    rig: Rig,
) -> None:
    sink, call = rig.ask(1)
    other, _ = rig.ask(2)
    await tick()
    rig.stream.give(1, 2, 3)
    call.cancel()
    call.cancel()
    stopped = rig.stream
    assert stopped.stops == 1
    stopped.give(4)
    await tick()
    assert len(rig.place.streams) == 1  # the model is not free yet
    stopped.end()
    await tick()
    assert sink.values == [1, 2, 3] and not sink.settled
    assert len(rig.place.streams) == 2
    rig.stream.end()
    await tick()
    assert other.response is not None
    counts = rig.idle()
    assert (counts.ok, counts.cancelled) == (1, 1)


async def test_a_sink_may_cancel_from_within_its_part(rig: Rig) -> None:
    sink, call = rig.ask(1)
    await tick()
    sink.on_part = call.cancel
    rig.stream.give(1, 2)
    rig.stream.end()
    await tick()
    assert sink.values == [1] and not sink.settled and rig.idle().cancelled == 1


async def test_an_error_in_the_middle_comes_after_the_parts(rig: Rig) -> None:
    sink, call = rig.ask(1)
    await tick()
    sink.on_part = call.hold
    rig.stream.give(1, 2)
    rig.stream.end(PredictFailed("broke"))
    assert sink.values == [1] and not sink.settled
    sink.on_part = lambda: None
    call.resume()
    assert sink.values == [1, 2] and isinstance(sink.error, PredictFailed)
    assert rig.idle().failed == 1 and len(rig.place.streams) == 1


async def test_a_crash_after_parts_is_not_tried_again(rig: Rig) -> None:
    sink, _ = rig.ask(1)
    await tick()
    rig.stream.give(1)
    rig.stream.end(ModelCrashed("died"))
    await tick()
    assert isinstance(sink.error, ModelCrashed) and len(rig.place.streams) == 1
    assert rig.idle().failed == 1


async def test_what_has_not_begun_begins_again(rig: Rig) -> None:
    sink, _ = rig.ask(1)
    await tick()
    rig.stream.end(NotStarted("gone"))
    await until(lambda: len(rig.place.streams) == 2)
    rig.stream.give(5)
    rig.stream.end()
    assert sink.values == [5] and sink.response is not None
    assert rig.idle().ok == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"z": np.zeros((1, 2), np.float32)},
        {"y": np.zeros((1, 2), np.float64)},
        {"y": np.zeros(2, np.float32)},
    ],
)
async def test_a_part_against_the_signature_fails_the_stream_and_stops_it(rig: Rig, wrong: Tensors) -> None:
    sink, _ = rig.ask(1)
    await tick()
    rig.stream.give(1)
    rig.stream.flow.offer(wrong)
    assert isinstance(sink.error, OutputMismatch) and rig.stream.stops == 1
    rig.stream.give(2)
    rig.stream.end()
    assert sink.values == [1] and rig.idle().failed == 1


async def test_the_deadline_is_that_of_the_whole_stream(rig: Rig) -> None:
    sink, _ = rig.ask(1, within_s=0.05)
    await tick()
    rig.stream.give(1)
    await until(lambda: sink.error)
    assert isinstance(sink.error, DeadlineExceeded) and sink.values == [1]
    assert rig.stream.stops == 1
    rig.stream.end()
    assert rig.idle().timed_out == 1


async def test_the_deadline_comes_for_a_sink_that_holds(rig: Rig) -> None:
    sink, call = rig.ask(1, within_s=0.05)
    await tick()
    sink.on_part = call.hold
    rig.stream.give(1, 2)
    rig.stream.end()  # the model is done, but not its reader
    await until(lambda: sink.error)
    assert sink.values == [1] and isinstance(sink.error, DeadlineExceeded)
    call.resume()
    assert sink.values == [1] and rig.idle().timed_out == 1


async def test_a_held_stream_gives_its_source_no_room(rig: Rig) -> None:
    sink, call = rig.ask(1)
    await tick()
    rig.stream.give(1)
    call.hold()
    rig.stream.give(2, 3)
    assert sink.values == [1] and rig.stream.parts_taken == 1
    call.resume()
    assert sink.values == [1, 2, 3] and rig.stream.parts_taken == 3
    rig.stream.end()
    assert rig.idle().ok == 1


async def test_a_version_given_up_ends_its_streams(rig: Rig) -> None:
    sink, _ = rig.ask(1)
    waiting, _ = rig.ask(2)
    await tick()
    rig.stream.give(1)
    rig.lane.give_up(Quarantined("crashes", 60.0))
    assert isinstance(sink.error, Quarantined) and isinstance(waiting.error, Quarantined)
    assert rig.stream.stops == 1
    rig.stream.end()
    await tick()
    assert rig.idle().failed == 2


async def test_computing_counts_until_the_first_part_and_all_of_it_is_learned(rig: Rig) -> None:
    _, _ = rig.ask(1)
    await tick()
    begun_s = time.monotonic()
    rig.stream.give(1)
    first_s = time.monotonic() - begun_s
    await until(lambda: time.monotonic() > begun_s + 0.05)
    rig.stream.flow.end({}, 0.05)
    counts = rig.idle()
    assert counts.compute.count == 1 and counts.compute.sum_s < 0.04 + first_s
    assert counts.total.sum_s >= 0.05
    assert rig.lane.view(time.monotonic()).batch_s > 0.04


async def test_a_place_that_cannot_stream_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="streams"):
        Lane(a_version(streaming=True), ModelSettings(), FakePlace())
