"""The lane on a real event loop, with a place that obeys: who is joined, who fails, who is answered when.

Past 400 lines because the machine of any order and the single orders that it is made of share one rig.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from math import ceil, log2
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from interlock.core.clock import Clock, FakeClock
from interlock.core.errors import (
    DeadlineExceeded,
    Draining,
    InterlockError,
    InvalidRequest,
    ModelCrashed,
    OutputMismatch,
    Overloaded,
    PredictFailed,
    Quarantined,
    RequestTooLarge,
)
from interlock.core.model import ModelSettings, Tensors, Version
from interlock.core.request import Request
from interlock.core.state import ArmCounts, ArmKey
from interlock.serving.block import Block
from interlock.serving.block_reader import read_block
from interlock.serving.call import Call
from interlock.serving.executor import NotStarted
from interlock.serving.lane import Lane
from tests.serving.fakes import FakePlace, FakeSink, a_request, a_version, begin, twice
from tests.thorough import examples

FAR_S = 600.0
KEY = ArmKey("m", "1", 1, 0, 0)
POISON = 13.0


class Rig:
    """A lane on a FakePlace, its counts in a real block, and what became of each request."""

    def __init__(
        self,
        folder: Path,
        version: Version | None = None,
        settings: ModelSettings | None = None,
        slots: int = 1,
        process: str = "w",
        clock: Clock = time.monotonic,
    ) -> None:
        self.clock = clock
        self.block = Block.create(folder, process, 1, rows=2)
        self.slot = self.block.slot(KEY)
        self.place = FakePlace(slots)
        self.crumbs: list[tuple[str, int]] = []
        self.lane = Lane(
            version or a_version(), settings or ModelSettings(), self.place, lambda *c: self.crumbs.append(c)
        )
        self.count = 0

    def ask(
        self,
        *values: float,
        within_s: float = FAR_S,
        width: int = 2,
        outputs: tuple[str, ...] | None = None,
        priority: int = 1,
    ) -> tuple[FakeSink, Call]:
        now = self.clock()
        request = a_request(
            list(values), now, now + within_s, width=width, outputs=outputs, priority=priority
        )
        return self.start(request)

    def start(self, request: Request) -> tuple[FakeSink, Call]:
        sink = FakeSink()
        self.count += 1
        return sink, begin(self.lane, request, sink, b"%d" % self.count, self.slot)

    def counts(self) -> ArmCounts:
        view = read_block(self.block.path)
        assert view is not None
        return view.counts.get(KEY, ArmCounts())

    def check_idle(self) -> ArmCounts:
        """Nothing is under way, and every request that was dispatched settled once."""
        counts = self.counts()
        settled = counts.ok + counts.invalid + counts.failed + counts.timed_out + counts.cancelled
        assert self.lane.outstanding == 0 and counts.dispatched == settled
        assert counts.total.count == settled
        return counts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


async def tick(times: int = 4) -> None:
    """Let the loop turn: what was called soon has run."""
    for _ in range(times):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        await asyncio.sleep(0.001)


def answer(sink: FakeSink) -> list[float]:
    assert sink.response is not None, sink.error
    return [float(value) for value in sink.response.outputs["y"][:, 0]]


async def test_the_requests_of_one_turn_are_one_batch_and_each_gets_its_rows(
    folder: Path,
) -> None:
    rig = Rig(folder)
    asked = [rig.ask(1.0), rig.ask(2.0, 3.0), rig.ask(4.0)]
    assert rig.place.batches == []
    await tick()
    (batch,) = rig.place.batches
    assert batch.values == [1.0, 2.0, 3.0, 4.0] and batch.requests == 3 and rig.lane.outstanding == 3
    batch.end()
    assert [answer(sink) for sink, _ in asked] == [[2.0], [4.0, 6.0], [8.0]]
    assert [s.response.request_id for s, _ in asked if s.response] == [b"1", b"2", b"3"]
    counts = rig.check_idle()
    assert (counts.ok, counts.batches, counts.rows) == (3, 1, 4)
    assert rig.crumbs == [("m/1@" + rig.lane.version.digest[7:19], 3), ("", 0)]


async def test_while_a_batch_runs_the_next_forms_and_starts_when_it_ends(folder: Path) -> None:
    rig = Rig(folder)
    first, _ = rig.ask(1.0)
    await tick()
    late = [rig.ask(2.0)[0], rig.ask(3.0)[0]]
    await tick()
    assert len(rig.place.running) == 1
    rig.place.running[0].end()
    assert answer(first) == [2.0]
    await tick()
    assert rig.place.running[0].values == [2.0, 3.0]
    rig.place.running[0].end()
    assert [answer(sink) for sink in late] == [[4.0], [6.0]]
    rig.check_idle()


async def test_a_place_with_two_slots_gets_two_batches(folder: Path) -> None:
    rig = Rig(folder, a_version(max_batch_rows=1), slots=2)
    for value in (1.0, 2.0, 3.0):
        rig.ask(value)
    await tick()
    assert [batch.values for batch in rig.place.running] == [[1.0], [2.0]]
    rig.place.running[1].end()
    await tick()
    assert [batch.values for batch in rig.place.running] == [[1.0], [3.0]]
    for batch in rig.place.running:
        batch.end()
    rig.check_idle()


async def test_an_inline_place_ends_its_batch_in_the_same_turn(folder: Path) -> None:
    rig = Rig(folder)
    rig.place.answer = None
    sinks = [rig.ask(float(value))[0] for value in range(20)]
    await tick(1)
    assert [answer(sink) for sink in sinks] == [[value * 2.0] for value in range(20)]
    assert rig.place.calls == 3, "batches of eight rows"
    rig.check_idle()


async def test_more_rows_than_a_batch_holds_run_in_parts_and_come_back_whole(folder: Path) -> None:
    rig = Rig(folder)
    values = [float(value) for value in range(20)]
    sink, _ = rig.ask(*values)
    small, _ = rig.ask(99.0)
    sizes = []
    while not (sink.settled and small.settled):
        await tick()
        (batch,) = rig.place.running
        sizes.append(batch.rows)
        batch.end()
    assert sizes == [8, 8, 5]
    assert answer(sink) == [value * 2 for value in values] and answer(small) == [198.0]
    counts = rig.check_idle()
    assert (counts.dispatched, counts.ok, counts.rows) == (2, 2, 21)


async def test_when_a_part_fails_its_call_fails_once_and_the_others_are_dropped(folder: Path) -> None:
    rig = Rig(folder)
    sink, _ = rig.ask(*[float(value) for value in range(20)])
    other, _ = rig.ask(50.0)
    await tick()
    rig.place.running[0].end(PredictFailed("no"))
    assert isinstance(sink.error, PredictFailed) and rig.lane.outstanding == 1
    await tick()
    assert rig.place.running[0].values == [50.0], "nothing is computed for who has an answer already"
    rig.place.running[0].end()
    assert answer(other) == [100.0]
    assert rig.check_idle().failed == 1


async def test_a_call_in_parts_that_is_cancelled_settles_once(folder: Path) -> None:
    rig = Rig(folder)
    sink, call = rig.ask(*[float(value) for value in range(20)])
    await tick()
    call.cancel()
    call.cancel()
    assert rig.lane.outstanding == 0
    rig.place.running[0].end()
    await tick()
    assert not sink.settled and not rig.place.running
    assert rig.check_idle().cancelled == 1


async def test_rows_that_cannot_be_split_or_queued_are_refused_busy_or_not(
    folder: Path,
) -> None:
    rig = Rig(folder, a_version(batchable=False))
    with pytest.raises(RequestTooLarge, match="9 rows: version 1 of 'm' takes at most 8"):
        rig.ask(*([0.0] * 9))
    rig = Rig(folder, settings=ModelSettings(queue_rows=10), process="v")
    for _ in range(2):
        with pytest.raises(RequestTooLarge, match=r"11 rows in one request: the queue .*holds 10"):
            rig.ask(*([0.0] * 11))
        rig.ask(1.0)
        await tick()
    assert rig.counts().refused == 2 and rig.lane.outstanding == 2


async def test_a_model_without_rows_runs_one_request_at_a_time_and_nothing_is_cut_off(
    folder: Path,
) -> None:
    version = a_version(batch_axis=None)
    rig = Rig(folder, version)
    one, two = rig.ask(1.0), rig.ask(2.0)
    await tick()
    rig.place.running[0].end({"y": np.full((3, 2), 7, np.float32)})
    assert one[0].response is not None and one[0].response.outputs["y"].shape == (3, 2)
    await tick()
    rig.place.running[0].end()
    assert answer(two[0]) == [4.0]
    rig.check_idle()


@pytest.mark.parametrize("count", [2, 5, 8])
async def test_one_poisoned_row_fails_alone(folder: Path, count: int) -> None:
    rig = Rig(folder)
    sinks = [rig.ask(POISON if value == 1 else float(value))[0] for value in range(count)]
    while rig.lane.outstanding:
        await tick()
        (batch,) = rig.place.running
        batch.end(PredictFailed("the model raised ValueError") if POISON in batch.values else None)
    assert isinstance(sinks[1].error, PredictFailed)
    assert [answer(sink) for k, sink in enumerate(sinks) if k != 1] == [
        [2.0 * k] for k in range(count) if k != 1
    ]
    assert rig.place.calls <= 2 * ceil(log2(count)) + 1
    counts = rig.check_idle()
    assert (counts.ok, counts.failed) == (count - 1, 1)


async def test_what_ends_its_process_is_found_with_one_more_crash(folder: Path) -> None:
    """Halving would cost a process at each level, and its start each time."""
    rig = Rig(folder)
    sinks = [rig.ask(POISON if value == 3 else float(value))[0] for value in range(8)]
    crashes = 0
    while rig.lane.outstanding:
        await tick()
        (batch,) = rig.place.running
        assert batch.kill_at_s - time.monotonic() < FAR_S / 2, "neighbours wait behind it"
        if POISON in batch.values:
            crashes += 1
            batch.end(ModelCrashed("the executor died"))
        else:
            batch.end()
    assert crashes == 2 and isinstance(sinks[3].error, ModelCrashed)
    assert sum(sink.response is not None for sink in sinks) == 7
    rig.check_idle()


@pytest.mark.parametrize("error", [PredictFailed("no"), ModelCrashed("the executor died")])
async def test_who_is_left_of_a_batch_that_failed_is_not_blamed(folder: Path, error: InterlockError) -> None:
    """The culprit may have been one whose client has left since."""
    rig = Rig(folder)
    (_, poisoned), (sink, _) = rig.ask(POISON), rig.ask(1.0)
    await tick()
    poisoned.cancel()
    rig.place.running[0].end(error)
    await tick()
    assert rig.place.running[0].values == [1.0]
    rig.place.running[0].end()
    await tick()
    assert sink.response is not None
    rig.check_idle()


async def test_a_slow_model_that_crashes_is_halved_for_alone_would_take_too_long(folder: Path) -> None:
    rig = Rig(folder)
    rig.ask(0.0)
    await tick()
    rig.place.running[0].end(compute_s=5.0)
    for value in range(8):
        rig.ask(float(value))
    await tick()
    rig.place.running[0].end(ModelCrashed("no"))
    await tick()
    assert rig.place.running[0].values == [0.0, 1.0, 2.0, 3.0]


async def test_a_request_with_effects_is_never_run_twice(folder: Path) -> None:
    rig = Rig(folder, a_version(side_effect_free=False))
    sinks = [rig.ask(1.0)[0], rig.ask(2.0)[0]]
    await tick()
    rig.place.running[0].end(PredictFailed("no"))
    await tick()
    assert all(isinstance(sink.error, PredictFailed) for sink in sinks) and rig.place.calls == 1
    rig.check_idle()


async def test_a_caller_that_leaves_disturbs_nobody(folder: Path) -> None:
    rig = Rig(folder, a_version(max_batch_rows=3))
    asked = [rig.ask(float(value)) for value in range(5)]
    asked[0][1].cancel()  # before its batch was made
    await tick()
    assert rig.place.running[0].values == [1.0, 2.0, 3.0]
    asked[2][1].cancel()  # in the middle of a running batch
    asked[4][1].cancel()  # alone behind it
    assert rig.lane.outstanding == 2
    rig.place.running[0].end()
    await tick()
    assert not rig.place.running
    assert [sink.settled for sink, _ in asked] == [False, True, False, True, False]
    assert answer(asked[1][0]) == [2.0] and answer(asked[3][0]) == [6.0]
    counts = rig.check_idle()
    assert (counts.ok, counts.cancelled) == (2, 3)


async def test_the_deadline_is_kept_while_the_model_runs_and_the_late_result_is_dropped(folder: Path) -> None:
    rig = Rig(folder)
    hasty, _ = rig.ask(1.0, within_s=0.03)
    patient, _ = rig.ask(2.0)
    await tick()
    (batch,) = rig.place.running
    behind, _ = rig.ask(3.0, within_s=0.03)
    await until(lambda: hasty.settled and behind.settled)
    assert isinstance(hasty.error, DeadlineExceeded)
    assert hasty.error.message == "no answer within 30 ms (the request was running)"
    assert isinstance(behind.error, DeadlineExceeded) and "waiting" in behind.error.message
    assert not patient.settled and rig.lane.outstanding == 1
    batch.end()
    assert answer(patient) == [4.0]
    counts = rig.check_idle()
    assert (counts.ok, counts.timed_out) == (1, 2)


async def test_one_that_expired_while_nothing_ran_holds_up_nobody(folder: Path) -> None:
    rig = Rig(folder, a_version(width=-1))
    first, _ = rig.ask(0.0)
    await tick()
    late, call = rig.ask(1.0, within_s=0.02, width=3)
    other, _ = rig.ask(2.0, width=5)
    (batch,) = rig.place.running
    while time.monotonic() < call.deadline_s:
        pass  # the loop is held: the deadline passes unseen, and then the batch ends
    batch.end()
    await until(lambda: len(rig.place.running) == 1)
    rig.place.running[0].end()
    await until(lambda: late.settled and other.settled)
    assert answer(first) == [0.0] and isinstance(late.error, DeadlineExceeded) and answer(other) == [4.0]
    rig.check_idle()


async def test_a_batch_waits_for_company_no_longer_than_it_may(folder: Path) -> None:
    rig = Rig(folder, settings=ModelSettings(max_wait_s=0.03))
    began_s = time.monotonic()
    sink, _ = rig.ask(1.0)
    await tick()
    rig.ask(2.0)
    assert not rig.place.running
    await until(lambda: rig.place.running)
    assert time.monotonic() - began_s >= 0.028 and rig.place.running[0].values == [1.0, 2.0]
    rig.place.running[0].end()
    assert answer(sink) == [2.0]
    rig.check_idle()


async def test_a_batch_that_never_began_is_run_again_whole_for_any_model(folder: Path) -> None:
    rig = Rig(folder, a_version(side_effect_free=False))
    sinks = [rig.ask(1.0)[0], rig.ask(2.0)[0]]
    await tick()
    rig.place.running[0].end(NotStarted("the executor went away"))
    rig.ask(3.0)
    await until(lambda: rig.place.running)
    assert rig.place.running[0].values == [1.0, 2.0]
    rig.place.running[0].end()
    assert [answer(sink) for sink in sinks] == [[2.0], [4.0]]
    await tick()
    rig.place.running[0].end()
    rig.check_idle()


async def test_a_place_that_refuses_at_once_does_not_hold_the_loop(folder: Path) -> None:
    rig = Rig(folder)
    rig.place.answer = NotStarted("no shared memory")
    sink, _ = rig.ask(1.0, within_s=0.1)
    await until(lambda: sink.settled)
    assert isinstance(sink.error, DeadlineExceeded) and rig.place.calls <= 8
    assert rig.check_idle().timed_out == 1


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({}, r"returned \[\], the signature wants 'y'"),
        ({"y": np.zeros((2, 2), np.float64)}, "dtype float64, the signature wants float32"),
        ({"y": np.zeros(2, np.float32)}, "shape .*the signature wants 2 axes"),
        ({"y": np.zeros((3, 2), np.float32)}, "3 rows for a batch of 2"),
        ({"y": [[1.0, 2.0], [1.0, 2.0]]}, "'y' is a list"),
    ],
    ids=["names", "dtype", "rank", "rows", "no array"],
)
async def test_outputs_against_the_signature_fail_the_request_with_what_came_and_what_is_wanted(
    folder: Path, outputs: Tensors, said: str
) -> None:
    rig = Rig(folder)
    sink, _ = rig.ask(1.0, 2.0)
    await tick()
    rig.place.running[0].end(outputs)
    with pytest.raises(OutputMismatch, match=said):
        assert sink.error is not None
        raise sink.error
    assert rig.check_idle().failed == 1


async def test_requests_for_other_outputs_or_of_other_shapes_are_not_joined(folder: Path) -> None:
    rig = Rig(folder, a_version(width=-1), slots=9)
    for width, outputs in ((2, None), (3, None), (2, ("y",)), (2, None)):
        rig.ask(1.0, width=width, outputs=outputs)
    await tick()
    assert [(batch.rows, batch.outputs) for batch in rig.place.running] == [
        (2, None),
        (1, None),
        (1, ("y",)),
    ]
    for batch in rig.place.running:
        batch.end()
    rig.check_idle()


async def test_inputs_that_cannot_be_joined_fail_without_the_model(folder: Path) -> None:
    rig = Rig(folder)  # its signature fixes the width, so that the wire lets no other through
    sinks = [rig.ask(1.0)[0], rig.ask(2.0, width=3)[0]]
    await tick()
    while rig.place.running:  # each alone can be run, and is
        rig.place.running[0].end()
        await tick()
    assert [answer(sink) for sink in sinks] == [[2.0], [4.0]]
    rig.check_idle()


async def test_a_version_given_up_answers_all_that_waits_runs_and_comes(folder: Path) -> None:
    rig = Rig(folder, a_version(max_batch_rows=4))
    running = [rig.ask(1.0)[0], rig.ask(*([2.0] * 9))[0]]
    await tick()
    waiting, _ = rig.ask(3.0)
    rig.lane.give_up(Quarantined("crashed 5 times", 60.0))
    assert all(isinstance(sink.error, Quarantined) for sink in (*running, waiting))
    with pytest.raises(Quarantined, match="crashed 5 times"):
        rig.ask(4.0)
    rig.place.running[0].end(ModelCrashed("died"))
    await tick()
    assert not rig.place.running
    counts = rig.check_idle()
    assert (counts.failed, counts.refused) == (3, 1)


async def test_a_draining_lane_takes_nothing_new_and_a_full_one_says_when_to_come_back(folder: Path) -> None:
    rig = Rig(folder, settings=ModelSettings(queue_rows=10))
    rig.ask(1.0)
    await tick()
    rig.ask(*([2.0] * 8))
    with pytest.raises(Overloaded, match="8 rows wait already, the limit is 9") as refused:
        rig.ask(3.0, 4.0)
    assert refused.value.retry_after_s >= 0
    rig.ask(3.0, 4.0, priority=0)
    with pytest.raises(DeadlineExceeded):
        rig.ask(1.0, within_s=-1.0)
    rig.lane.draining = True
    with pytest.raises(Draining, match="m/1@"):
        rig.ask(5.0)
    while rig.lane.outstanding:
        rig.place.running[0].end()
        await tick()
    counts = rig.check_idle()
    assert (counts.ok, counts.refused) == (3, 3)


async def test_what_is_the_clients_fault_is_counted_apart(folder: Path) -> None:
    rig = Rig(folder)
    sink, _ = rig.ask(1.0)
    await tick()
    rig.place.running[0].end(InvalidRequest("negative"))
    assert isinstance(sink.error, InvalidRequest) and rig.check_idle().invalid == 1


async def test_one_request_alone_may_run_until_its_deadline_and_a_batch_for_a_share(
    folder: Path,
) -> None:
    rig = Rig(folder)
    now = time.monotonic()
    rig.ask(1.0, within_s=100.0)
    await tick()
    assert rig.place.running[0].kill_at_s == pytest.approx(now + 100.0, abs=1.0)
    rig.ask(2.0, within_s=100.0)
    rig.ask(3.0, within_s=200.0)
    rig.place.running[0].end()
    await tick()
    assert rig.place.running[0].kill_at_s == pytest.approx(now + 25.0, abs=1.0)
    rig.place.running[0].end()


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose timers go by a clock that the test turns."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._fake_clock = clock

    def time(self) -> float:
        return self._fake_clock()


class LaneMachine(RuleBasedStateMachine):
    """Requests, ends, failures, cancellations and deadlines in any order: each request is answered once and
    rightly, and the counts add up."""

    folder: Path
    made = 0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(1000.0)
        self.loop = FakeTimeLoop(self.clock)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("interlock.serving.lane.monotonic", self.clock)
        self.patch.setattr("interlock.serving.call.monotonic", self.clock)
        self.asked: list[tuple[FakeSink, Call, list[float]]] = []
        self.cancelled: set[int] = set()
        self.refused = 0
        self.given_up = False

    @initialize(max_rows=st.integers(1, 6), slots=st.integers(1, 2), free=st.booleans())
    def begin(self, max_rows: int, slots: int, free: bool) -> None:
        LaneMachine.made += 1
        version = a_version(max_batch_rows=max_rows, side_effect_free=free)
        self.free = free

        async def make() -> Rig:
            return Rig(self.folder, version, slots=slots, process=f"w{LaneMachine.made}", clock=self.clock)

        self.rig = self.loop.run_until_complete(make())

    def turn(self) -> None:
        self.loop.run_until_complete(tick())

    @rule(
        values=st.lists(st.integers(0, 9), min_size=1, max_size=8),
        poisoned=st.sampled_from([False, False, True]),
        hasty=st.sampled_from([False, False, False, True]),
        outputs=st.sampled_from([None, None, ("y",)]),
        priority=st.integers(0, 1),
        turns=st.booleans(),
    )
    def ask(
        self,
        values: list[int],
        poisoned: bool,
        hasty: bool,
        outputs: tuple[str, ...] | None,
        priority: int,
        turns: bool,
    ) -> None:
        cells = [float(value) for value in values] + [POISON] * poisoned
        within_s = 0.5 if hasty else FAR_S
        try:
            sink, call = self.rig.ask(*cells, within_s=within_s, outputs=outputs, priority=priority)
        except (Quarantined, Overloaded, DeadlineExceeded) as error:
            assert self.given_up or hasty, error
            self.refused += 1
        else:
            self.asked.append((sink, call, cells))
        if turns:
            self.turn()

    def end_one(self, pick: int, error: InterlockError | None, always: bool = False) -> None:
        running = self.rig.place.running
        batch = running[pick % len(running)]
        batch.end(error if always or POISON in batch.values else None)
        self.turn()

    @precondition(lambda self: self.rig.place.running)
    @rule(pick=st.integers(0, 1), crash=st.booleans())
    def end(self, pick: int, crash: bool) -> None:
        self.end_one(pick, ModelCrashed("died") if crash else PredictFailed("raised"))

    @precondition(lambda self: self.rig.place.running)
    @rule(pick=st.integers(0, 1))
    def not_started(self, pick: int) -> None:
        self.end_one(pick, NotStarted("gone"), always=True)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.asked) - 1))
        sink, call, _ = self.asked[index]
        if not sink.settled:
            self.cancelled.add(index)
        call.cancel()

    @rule()
    def let_deadlines_pass(self) -> None:
        self.advance(0.6)
        for index, (sink, call, _) in enumerate(self.asked):
            if call.deadline_s <= self.clock():
                assert sink.settled or index in self.cancelled

    @rule()
    def let_a_place_come_back(self) -> None:
        self.advance(0.03)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.turn()

    @precondition(lambda self: len(self.asked) > 6)
    @rule()
    def give_up(self) -> None:
        self.given_up = True
        self.rig.lane.give_up(Quarantined("crashed too often"))
        assert self.rig.lane.outstanding == 0

    @invariant()
    def counts_add_up(self) -> None:
        if not hasattr(self, "rig"):
            return
        counts = self.rig.counts()
        settled = counts.ok + counts.invalid + counts.failed + counts.timed_out + counts.cancelled
        assert counts.dispatched == len(self.asked) and counts.refused == self.refused
        assert counts.dispatched - settled == self.rig.lane.outstanding
        assert counts.cancelled == len(self.cancelled)
        assert self.rig.lane.outstanding == sum(
            not sink.settled and index not in self.cancelled for index, (sink, _, _) in enumerate(self.asked)
        )

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.end_all()
        finally:  # a failure above is not to leave other tests with a clock that stands
            self.loop.close()
            self.patch.undo()

    def end_all(self) -> None:
        self.let_deadlines_pass()
        for _ in range(500):
            if self.drained():
                break
            self.advance(0.03)
        self.rig.check_idle()
        for index, (sink, _, cells) in enumerate(self.asked):
            self.check(index, sink, cells)
        self.rig.block.close()

    def drained(self) -> bool:
        for batch in self.rig.place.running:
            batch.end(PredictFailed("raised") if POISON in batch.values else None)
        return self.rig.lane.outstanding == 0

    def check(self, index: int, sink: FakeSink, cells: list[float]) -> None:
        if index in self.cancelled:
            assert not sink.settled
        elif sink.response is not None:
            assert POISON not in cells
            assert answer(sink) == [cell * 2 for cell in cells]
        elif isinstance(sink.error, (PredictFailed, ModelCrashed)):
            assert POISON in cells or not self.free, (
                "only who is poisoned may fail, where halves may be tried"
            )
        else:
            assert isinstance(sink.error, DeadlineExceeded | Quarantined)


async def test_high_priority_is_not_refused_for_what_it_overtakes(folder: Path) -> None:
    rig = Rig(folder)
    rig.lane._latency.learn(8, 1.0)
    rig.ask(1.0)
    await tick()
    for _ in range(3):
        rig.ask(*[2.0] * 8)  # three batches of a second each wait
    with pytest.raises(Overloaded):
        rig.ask(3.0, within_s=2.5)
    sink, _ = rig.ask(4.0, within_s=2.5, priority=0)
    rig.place.running[0].end()
    await tick()
    assert rig.place.running[0].values == [4.0]
    rig.place.running[0].end()
    await tick()
    assert answer(sink) == [8.0]


@pytest.fixture(autouse=True, scope="module")
def machine_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    LaneMachine.folder = tmp_path_factory.mktemp("lane")
    yield


TestLaneMachine = LaneMachine.TestCase
TestLaneMachine.settings = settings(max_examples=examples(60), stateful_step_count=25, deadline=None)


def test_the_fake_answers_as_the_tests_believe() -> None:
    assert twice({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2.0, 2.0]]
