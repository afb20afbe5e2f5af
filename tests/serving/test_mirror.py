"""Requests that two versions run: who is answered by which one, what is counted, and that a copy yields.

Past 400 lines because the machine of any order and the single orders that it is made of share one rig.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from interlock.core.clock import FakeClock
from interlock.core.errors import (
    DeadlineExceeded,
    InterlockError,
    ModelCrashed,
    Overloaded,
    PredictFailed,
    Quarantined,
)
from interlock.core.model import Model, ModelSettings
from interlock.core.request import Request, Ticket, parse_request_id
from interlock.core.route import COPY_ARM, Arm, Mirror, Route, unit_position
from interlock.core.state import ArmCounts, ArmKey, PairCounts
from interlock.serving.block import Block
from interlock.serving.block_reader import read_block
from interlock.serving.infer import Infer
from interlock.serving.lane import Lane
from interlock.serving.mirror import LEAST_LONGER_S, SHIELD_AFTER
from interlock.serving.pair import Pair
from tests.serving.fakes import FakeBatch, FakePlace, FakeSink, a_request, a_version
from tests.serving.test_lane import FakeTimeLoop, tick
from tests.thorough import examples

FAR_S = 600.0
OLD, NEW = "1", "2"
SALT = "m:1"
LOOKS = ("lane", "call", "mirror", "infer")


def a_route(weight: float, epoch: int = 0, **mirror: Any) -> Route:
    arms = (Arm(0, "incumbent", OLD, 1.0 - weight), Arm(1, "candidate", NEW, weight))
    return Route(1, epoch, SALT, arms, Mirror(1, **mirror) if mirror else None)


class Rig:
    """Two lanes on places that obey, a route between them, and the counts in a real block."""

    def __init__(
        self, folder: Path, loop: FakeTimeLoop, clock: FakeClock, process: str = "w", **capabilities: Any
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.block = Block.create(folder, process, 1)
        self.places = {number: FakePlace() for number in (OLD, NEW)}
        self.lanes = {
            number: Lane(a_version("m", number, **capabilities), ModelSettings(), place)
            for number, place in self.places.items()
        }
        self.infer = Infer(self.block, 7, self.read)
        self.asked = 0

    def route(self, route: Route) -> None:
        self.epoch = route.epoch

        async def swap() -> None:
            self.infer.swap(Model("m"), route, self.lanes)

        self.loop.run_until_complete(swap())

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass, and what was called soon run."""
        self.clock.advance(seconds)
        self.loop.run_until_complete(tick())

    def ask(
        self, *values: float, within_s: float = FAR_S, unit: bytes | None = None
    ) -> list[tuple[FakeSink, Ticket | None]]:
        """Requests of one row each, in one turn of the loop."""
        now = self.clock()
        jobs: list[tuple[Request, FakeSink]] = []
        for value in values:
            request = a_request([value], now, now + within_s)
            request.unit = unit
            jobs.append((request, FakeSink()))
        self.asked += len(values)
        tickets = self.infer.choose("m", None, unit).submit(jobs)
        return list(zip([sink for _, sink in jobs], tickets, strict=True))

    def running(self, number: str) -> list[FakeBatch]:
        return self.places[number].running

    def counts(self, number: str, arm: int) -> ArmCounts:
        return self.read().get(ArmKey("m", number, 1, self.epoch, arm), ArmCounts())

    def read(self) -> dict[ArmKey, ArmCounts]:
        view = read_block(self.block.path)
        assert view is not None
        return view.counts

    @property
    def pairs(self) -> PairCounts:
        """Of what the candidate answered, and of what it ran copies of."""
        return self.counts(NEW, 1).pairs.merge(self.counts(NEW, COPY_ARM).pairs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    clock = FakeClock(1000.0)
    for module in LOOKS:
        monkeypatch.setattr(f"interlock.serving.{module}.monotonic", clock)
    yield clock


@pytest.fixture
def rig(tmp_path: Path, clock: FakeClock) -> Iterator[Rig]:
    """In a loop whose timers go by the clock; `turn` turns it."""
    loop = FakeTimeLoop(clock)

    async def make() -> Rig:
        return Rig(tmp_path, loop, clock)

    yield loop.run_until_complete(make())
    loop.close()


def told(sink: FakeSink) -> tuple[str, float]:
    """Which version answered, and the first cell."""
    assert sink.response is not None, sink.error
    return sink.response.version, float(sink.response.outputs["y"][0, 0])


# --- shadow ---


def test_a_shadow_answers_nobody_and_is_compared(rig: Rig) -> None:
    rig.route(a_route(0.0, shadow=1.0))
    asked = rig.ask(1.0, 2.0)
    rig.turn()
    assert rig.running(OLD)[0].values == [1.0, 2.0] and not rig.running(NEW), (
        "nothing runs beside the client's"
    )
    rig.running(OLD)[0].end(compute_s=0.001)
    assert [told(sink) for sink, _ in asked] == [(OLD, 2.0), (OLD, 4.0)]
    rig.turn()
    (copy,) = rig.running(NEW)
    assert copy.values == [1.0, 2.0], "copies of one batch are one batch"
    copy.end({"y": np.array([[2.0, 2.0], [5.0, 5.0]], np.float32)}, compute_s=0.004)
    rig.turn()
    assert rig.pairs == PairCounts(good=2, agreed=1, disagreed=1, slower=1)
    assert rig.counts(OLD, 0).ok == 2 and rig.counts(NEW, 1).dispatched == 0
    copies = rig.counts(NEW, COPY_ARM)
    assert (copies.dispatched, copies.ok, copies.compute_ns) == (2, 2, 4_000_000)
    assert {key.arm for key, _ in rig.infer.stats("m", None)} == {0}, "statistics are of clients"


def test_what_only_one_of_two_fails(rig: Rig) -> None:
    rig.route(a_route(0.0, shadow=1.0))
    for old, new in ((True, True), (True, False), (False, True), (False, False)):
        ((sink, _),) = rig.ask(1.0)
        rig.turn()
        rig.running(OLD)[0].end(None if old else PredictFailed("raised"))
        rig.turn()
        rig.running(NEW)[0].end(None if new else PredictFailed("raised"))
        assert (sink.response is not None) is old, "the shadow's end is not the client's"
    pairs = rig.pairs
    assert (pairs.good, pairs.worse, pairs.better, pairs.bad) == (1, 1, 1, 1)


def test_without_a_share_nothing_is_copied_and_a_share_is_drawn_by_unit(rig: Rig) -> None:
    rig.route(a_route(0.0, shadow=0.25))
    drawn = 0
    for index in range(60):
        unit = b"u%d" % index
        for _ in range(2):  # the same each time
            rig.ask(1.0, unit=unit)
            rig.running(OLD)[0].end()
            rig.turn()
            expected = unit_position(unit, f"{SALT}:mirror") < 0.25
            assert bool(rig.running(NEW)) is expected
            drawn += expected
            for batch in rig.running(NEW):
                batch.end()
    assert rig.pairs.good == drawn > 0


def test_a_copy_that_is_in_the_way_is_dropped_and_counted(rig: Rig) -> None:
    rig.route(a_route(0.0, shadow=1.0))
    most = rig.lanes[NEW]._batcher.max_rows
    for value in range(most + 3):
        rig.ask(float(value))
        rig.running(OLD)[0].end()
        rig.turn()
    # One runs, as many as one largest batch wait, and two found no room.
    assert rig.running(NEW)[0].rows == 1 and rig.lanes[NEW].outstanding == most + 1
    assert rig.pairs == PairCounts(dropped=2)
    for _ in range(4):
        for batch in rig.running(NEW):
            batch.end()
        rig.turn()
    assert rig.pairs.good == most + 1 and rig.pairs.dropped == 2


def test_whoever_waits_for_an_answer_goes_before_copies(rig: Rig) -> None:
    rig.route(a_route(0.0, shadow=1.0))
    for value in (1.0, 2.0):
        rig.ask(value)
        rig.running(OLD)[0].end()
        rig.turn()
    direct = FakeSink()
    target = rig.infer.choose("m", NEW, None)
    target.submit([(a_request([3.0], rig.clock(), rig.clock() + FAR_S), direct)])
    assert rig.lanes[NEW].view(rig.clock()).waiting_rows == 1, "admission does not see copies"
    rig.running(NEW)[0].end()
    rig.turn()
    assert rig.running(NEW)[0].values == [3.0]


def test_a_copy_that_never_ran_by_its_deadline_says_nothing_of_its_version(rig: Rig) -> None:
    rig.route(a_route(0.0, shadow=1.0))
    asked = []
    for value in (1.0, 2.0):
        asked += rig.ask(value, within_s=1.0)
        rig.running(OLD)[0].end()
        rig.turn()
    rig.turn(1.5)
    assert rig.pairs == PairCounts(), "a copy has the client's time once to wait, and once to run"
    rig.turn(1.0)
    assert [sink.response is not None for sink, _ in asked] == [True, True]
    assert rig.pairs == PairCounts(worse=1, dropped=1), "only the one that ran has timed out"
    assert rig.counts(NEW, COPY_ARM).timed_out == 2 and rig.counts(OLD, 0).timed_out == 0


def test_a_broken_shadow_is_dropped_and_harms_nobody(rig: Rig) -> None:
    rig.route(a_route(0.0, shadow=1.0))
    rig.lanes[NEW].give_up(Quarantined("crashed too often"))
    ((sink, _),) = rig.ask(1.0)
    rig.running(OLD)[0].end()
    rig.turn()
    assert told(sink) == (OLD, 2.0) and rig.pairs == PairCounts(dropped=1)
    assert rig.infer._entries["m"].only is not None


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_that_leaves_before_its_answer_is_no_pair(rig: Rig, answered: bool) -> None:
    rig.route(a_route(0.0, shadow=1.0))
    ((sink, ticket),) = rig.ask(1.0)
    if answered:
        rig.running(OLD)[0].end()
    assert ticket is not None
    ticket.cancel()
    for _ in range(2):
        rig.turn()
        for number in (OLD, NEW):
            for batch in rig.running(number):
                batch.end()
    rig.turn()
    assert sink.settled is answered and rig.pairs.good == int(answered)
    assert rig.counts(OLD, 0).cancelled == int(not answered)
    assert rig.counts(NEW, COPY_ARM).dispatched == int(answered)
    assert all(lane.outstanding == 0 for lane in rig.lanes.values())


def test_a_batch_is_one_observation_of_its_time_and_only_equal_batches_compare(rig: Rig) -> None:
    rig.route(a_route(0.0, shadow=1.0, latency_ratio=1.5))
    for rows, new_s, expected in (
        (3, 0.0017, (1, 0)),
        (3, 0.0015, (1, 1)),
        (1, 0.001 * 1.5 + LEAST_LONGER_S, (1, 1)),
    ):
        rig.ask(*[1.0] * rows)
        rig.running(OLD)[0].end(compute_s=0.001)
        rig.turn()
        rig.running(NEW)[0].end(compute_s=new_s)
        assert (rig.pairs.slower, rig.pairs.faster) == expected
    for value in (7.0, 8.0, 9.0):  # the copies of the last two batches wait, and run as one
        rig.ask(value)
        rig.running(OLD)[0].end(compute_s=0.001)
        rig.turn()
    for rows in (1, 2):
        rig.turn()
        assert rig.running(NEW)[0].rows == rows
        rig.running(NEW)[0].end(compute_s=0.1)
    assert (rig.pairs.slower, rig.pairs.faster) == (2, 1) and rig.pairs.good == 10


# --- reverse shadow, shield ---


def canary(rig: Rig, **mirror: Any) -> None:
    rig.route(a_route(1.0, **mirror))


def test_in_a_reverse_shadow_the_candidate_answers_and_the_incumbent_runs_too(rig: Rig) -> None:
    canary(rig, reverse=1.0)
    asked = rig.ask(1.0, 2.0)
    rig.turn()
    rig.running(NEW)[0].end(PredictFailed("raised"))
    for _ in range(2):
        rig.turn()
        for batch in rig.running(NEW):
            batch.end(PredictFailed("raised") if 2.0 in batch.values else None)
    for _ in range(2):
        rig.turn()
        for batch in rig.running(OLD):
            batch.end()
    rig.turn()
    assert told(asked[0][0]) == (NEW, 2.0)
    assert isinstance(asked[1][0].error, PredictFailed), "nobody asked for a shield"
    pairs = rig.pairs
    assert (pairs.good, pairs.worse, pairs.agreed, pairs.shielded, pairs.unshielded) == (1, 1, 1, 0, 0)
    assert rig.counts(OLD, 0).dispatched == 0 and rig.counts(OLD, COPY_ARM).ok == 2


@pytest.mark.parametrize("reverse", [0.0, 1.0])
def test_a_shield_answers_for_the_candidate(rig: Rig, reverse: float) -> None:
    canary(rig, reverse=reverse, shielded=True)
    ((sink, _),) = rig.ask(3.0)
    rig.turn()
    rig.running(NEW)[0].end(PredictFailed("raised"))
    assert not sink.settled
    rig.turn()
    assert rig.running(OLD)[0].values == [3.0]
    rig.running(OLD)[0].end()
    rig.turn()
    assert told(sink) == (OLD, 6.0)
    assert sink.response is not None
    id = parse_request_id(sink.response.request_id)
    assert (id.arm, id.release) == (1, 1), "feedback is for the arm that it was sent to"
    # A run that was only made because the candidate failed is no pair.
    assert rig.pairs == PairCounts(worse=int(reverse), shielded=1)
    assert rig.counts(NEW, 1).failed == 1 and rig.counts(OLD, COPY_ARM).ok == 1
    assert rig.counts(OLD, 0).dispatched == 0, "a copy is no client's request"


def test_a_copy_that_begins_at_once_is_the_rescue_too(rig: Rig) -> None:
    canary(rig, reverse=1.0, shielded=True)
    ((sink, _),) = rig.ask(3.0)
    rig.running(NEW)[0].end(ModelCrashed("died"))
    rig.turn()
    rig.running(OLD)[0].end()
    assert told(sink) == (OLD, 6.0) and rig.counts(OLD, COPY_ARM).dispatched == 1


def test_a_copy_that_outlasts_the_clients_time_does_not_have_it_wait(rig: Rig) -> None:
    canary(rig, reverse=1.0, shielded=True)
    ((sink, _),) = rig.ask(3.0, within_s=1.0)
    rig.running(NEW)[0].end(PredictFailed("the candidate"))
    rig.turn(0.9)
    assert rig.running(OLD) and not sink.settled
    rig.turn(0.2)
    assert sink.error is not None and "the candidate" in sink.error.message
    rig.running(OLD)[0].end()
    rig.turn()
    assert rig.pairs == PairCounts(worse=1, unshielded=1)


def test_when_both_fail_the_client_hears_the_candidates_error(rig: Rig) -> None:
    for reverse in (0.0, 1.0):
        canary(rig, reverse=reverse, shielded=True)
        ((sink, _),) = rig.ask(3.0)
        rig.turn()
        rig.running(NEW)[0].end(PredictFailed("the candidate"))
        rig.turn()
        rig.running(OLD)[0].end(PredictFailed("the incumbent"))
        rig.turn()
        assert sink.error is not None and "the candidate" in sink.error.message
    assert (rig.pairs.bad, rig.pairs.unshielded, rig.pairs.shielded) == (1, 2, 0)


def test_a_candidate_that_hangs_is_shielded_within_the_clients_deadline(rig: Rig) -> None:
    canary(rig, shielded=True)
    ((sink, _),) = rig.ask(3.0, within_s=2.0)
    rig.turn(2.0 * SHIELD_AFTER - 0.01)
    assert not rig.running(OLD), "a candidate that is only slow has its time"
    rig.turn(0.02)
    rig.running(OLD)[0].end()
    assert told(sink) == (OLD, 6.0)
    rig.turn(1.0)
    assert rig.counts(NEW, 1).timed_out == 1, "and is judged by the client's deadline all the same"
    assert rig.pairs == PairCounts(shielded=1)


def test_a_candidate_that_makes_it_after_all_answers_and_stops_the_other(rig: Rig) -> None:
    canary(rig, shielded=True)
    ((sink, _),) = rig.ask(3.0, within_s=2.0)
    rig.turn(1.1)
    rig.running(NEW)[0].end()
    assert told(sink) == (NEW, 6.0)
    rig.running(OLD)[0].end()
    rig.turn()
    assert rig.counts(OLD, COPY_ARM).cancelled == 1 and rig.pairs == PairCounts()


def test_a_candidate_that_refuses_is_shielded(rig: Rig) -> None:
    canary(rig, reverse=1.0, shielded=True)
    rig.lanes[NEW].give_up(Quarantined("crashed too often"))
    ((sink, ticket),) = rig.ask(3.0)
    assert ticket is not None
    rig.turn()
    rig.running(OLD)[0].end()
    assert told(sink) == (OLD, 6.0)
    assert sink.response is not None and parse_request_id(sink.response.request_id).arm == 1
    assert rig.counts(NEW, 1).refused == 1
    assert rig.pairs == PairCounts(worse=1, shielded=1), "the route had chosen it, and it did not answer"


def test_a_rescue_does_not_wait_behind_copies(rig: Rig) -> None:
    canary(rig, reverse=1.0, shielded=True)
    asked = [*rig.ask(1.0)]
    rig.turn()
    asked += rig.ask(2.0)
    rig.turn()  # its copy waits behind that of the first
    for _ in range(2):
        rig.running(NEW)[0].end(PredictFailed("raised"))
        rig.turn()
    rig.running(OLD)[0].end()
    rig.turn()
    assert told(asked[0][0]) == (OLD, 2.0)
    rig.running(OLD)[0].end()
    assert told(asked[1][0]) == (OLD, 4.0)
    assert rig.pairs.shielded == 2 and rig.pairs.worse == 1
    rig.turn()
    rig.running(OLD)[0].end()
    rig.turn()
    assert rig.pairs.worse == 2 and rig.counts(OLD, COPY_ARM).ok == 3, "the copy still counts, by itself"


def test_leaving_while_the_incumbent_is_asked_keeps_the_failure(rig: Rig) -> None:
    canary(rig, reverse=1.0, shielded=True)
    ((sink, ticket),) = rig.ask(1.0)
    rig.running(NEW)[0].end(PredictFailed("raised"))
    assert ticket is not None
    ticket.cancel()
    rig.turn()
    rig.running(OLD)[0].end()
    rig.turn()
    assert not sink.settled and rig.pairs == PairCounts(worse=1)


def test_answers_that_cannot_be_sent_are_the_failure_of_who_gave_them(rig: Rig) -> None:
    canary(rig, reverse=1.0, shielded=True)
    target = rig.infer.choose("m", None, None)

    class Unsendable(FakeSink):
        def done(self, response: Any) -> None:
            super().done(response)
            assert target.unsent(rig.clock()), "the first one of this version"
            seen.append(response.version)

    seen: list[str] = []
    for candidate_fails in (False, True):
        target.submit([(a_request([1.0], rig.clock(), rig.clock() + FAR_S), Unsendable())])
        rig.turn()
        rig.running(NEW)[0].end(PredictFailed("raised") if candidate_fails else None)
        rig.turn()
        rig.running(OLD)[0].end()
        rig.turn()
    assert seen == [NEW, OLD]
    arm, copies = rig.counts(NEW, 1), rig.counts(OLD, COPY_ARM)
    assert (arm.ok, arm.failed) == (0, 2) and (copies.ok, copies.failed) == (1, 1)
    assert (rig.pairs.worse, rig.pairs.shielded, rig.pairs.unshielded) == (2, 0, 1)


def test_a_swap_leaves_what_is_under_way_to_its_own_epoch(rig: Rig) -> None:
    rig.route(a_route(1.0, epoch=1, reverse=1.0, shielded=True))
    ((first, _),) = rig.ask(1.0)
    rig.route(a_route(0.0, epoch=2))
    ((second, _),) = rig.ask(2.0)
    rig.turn()
    rig.running(NEW)[0].end(PredictFailed("raised"))
    for _ in range(3):
        rig.turn()
        for batch in rig.running(OLD):
            batch.end()
    rig.turn()
    assert told(first) == (OLD, 2.0) and told(second) == (OLD, 4.0)
    assert rig.pairs == PairCounts() and rig.counts(OLD, 0).ok == 1
    rig.epoch = 1
    assert (rig.pairs.worse, rig.pairs.shielded) == (1, 1) and rig.counts(OLD, 0).dispatched == 0


# --- any order ---

CANDIDATE_FAILS, INCUMBENT_FAILS, BOTH_FAIL = 1, 2, 3


@pytest.mark.parametrize("reverse", [0.0, 1.0])
@pytest.mark.parametrize("failed", [False, True])
def test_pairs_leave_nothing_for_the_collector_of_cycles(rig: Rig, reverse: float, failed: bool) -> None:
    canary(rig, reverse=reverse, shielded=True)
    gc.collect()
    gc.disable()
    try:
        asked = rig.ask(1.0, 2.0)
        for _ in range(6):
            rig.turn()
            for number in (NEW, OLD):
                for batch in rig.running(number):
                    batch.end(PredictFailed("raised") if failed and number == NEW else None)
        assert all(sink.settled for sink, _ in asked) and isinstance(asked[0][1], Pair)
        del asked
        rig.turn()
        for place in rig.places.values():
            place.batches = []
        del batch
        assert sum(type(one) is Pair for one in gc.get_objects()) == 0
    finally:
        gc.enable()


def fails(number: str, value: float) -> bool:
    """Requests are numbered, and the last digit says which version cannot answer."""
    return int(value) % 10 in (
        (CANDIDATE_FAILS, BOTH_FAIL) if number == NEW else (INCUMBENT_FAILS, BOTH_FAIL)
    )


class Asked(msgspec.Struct):
    """One client, and what is known of it."""

    value: float
    sink: FakeSink
    ticket: Ticket | None
    arm: int
    epoch: int
    route: Route
    is_drawn: bool
    deadline_s: float
    cancelled: bool = False


class MirrorMachine(RuleBasedStateMachine):
    """Clients, ends, failures, crashes, leavers, deadlines and swaps in any order: each client is answered
    once, by a version that may answer it; each pair is counted once; and all that began ends."""

    folder: Path
    made = 0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(1000.0)
        self.loop = FakeTimeLoop(self.clock)
        self.patch = pytest.MonkeyPatch()
        for module in LOOKS:
            self.patch.setattr(f"interlock.serving.{module}.monotonic", self.clock)
        self.clients: list[Asked] = []
        self.given_up = False

    @initialize(max_rows=st.integers(1, 4), slots=st.integers(1, 2))
    def begin(self, max_rows: int, slots: int) -> None:
        MirrorMachine.made += 1

        async def make() -> Rig:
            return Rig(self.folder, self.loop, self.clock, f"w{MirrorMachine.made}", max_batch_rows=max_rows)

        self.rig = self.loop.run_until_complete(make())
        for place in self.rig.places.values():
            place.slots = slots
        self.epochs = 0
        self.swap(0.5, 1.0, 1.0, True)

    def turn(self, seconds: float = 0.0) -> None:
        self.rig.turn(seconds)

    @rule(
        weight=st.sampled_from([0.0, 0.5, 1.0]),
        shadow=st.sampled_from([0.0, 0.5, 1.0]),
        reverse=st.sampled_from([0.0, 0.5, 1.0]),
        shielded=st.booleans(),
    )
    def swap(self, weight: float, shadow: float, reverse: float, shielded: bool) -> None:
        self.epochs += 1
        mirror = {"shadow": shadow, "reverse": reverse, "shielded": shielded}
        self.route = a_route(weight, self.epochs, **mirror if any(mirror.values()) else {})
        self.rig.route(self.route)

    @rule(
        kinds=st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=1, max_size=6),
        hasty=st.sampled_from([False, False, True]),
        turns=st.booleans(),
    )
    def ask(self, kinds: list[int], hasty: bool, turns: bool) -> None:
        unit = b"unit-%d" % len(self.clients)
        arm = self.route.choose(unit).index
        mirror = self.route.mirror
        share = 0.0 if mirror is None else mirror.reverse if arm else mirror.shadow
        is_drawn = unit_position(unit, f"{SALT}:mirror") < share
        values = [float(10 * (len(self.clients) + index) + kind) for index, kind in enumerate(kinds)]
        within_s = 0.5 if hasty else FAR_S
        for value, (sink, ticket) in zip(
            values, self.rig.ask(*values, within_s=within_s, unit=unit), strict=True
        ):
            deadline_s = self.clock() + within_s
            self.clients.append(
                Asked(value, sink, ticket, arm, self.epochs, self.route, is_drawn, deadline_s)
            )
        if turns:
            self.turn()

    def batches(self) -> list[tuple[str, FakeBatch]]:
        return [(number, batch) for number in (OLD, NEW) for batch in self.rig.running(number)]

    @precondition(lambda self: self.batches())
    @rule(pick=st.integers(0, 3), crash=st.booleans())
    def end(self, pick: int, crash: bool) -> None:
        found = self.batches()
        number, batch = found[pick % len(found)]
        bad = any(fails(number, value) for value in batch.values)
        error: InterlockError = ModelCrashed("died") if crash else PredictFailed("raised")
        batch.end(error if bad else None)
        self.turn()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        client = self.clients[data.draw(st.integers(0, len(self.clients) - 1))]
        if client.ticket is not None:
            client.cancelled = client.cancelled or not client.sink.settled
            client.ticket.cancel()

    @rule(seconds=st.sampled_from([0.03, 0.3, 0.6]))
    def let_time_pass(self, seconds: float) -> None:
        self.turn(seconds)
        for client in self.clients:
            if client.deadline_s <= self.clock():
                assert client.sink.settled or client.cancelled, "an answer by the deadline, whatever happens"

    @precondition(lambda self: len(self.clients) > 8 and not self.given_up)
    @rule()
    def quarantine_the_candidate(self) -> None:
        self.given_up = True
        self.rig.lanes[NEW].give_up(Quarantined("crashed too often"))
        self.turn()

    @invariant()
    def what_is_not_settled_is_under_way(self) -> None:
        if not hasattr(self, "rig"):
            return
        for number, lane in self.rig.lanes.items():
            rows = [counts for key, counts in self.rig.read().items() if key.version == number]
            begun = sum(row.dispatched for row in rows)
            ended = sum(row.ok + row.invalid + row.failed + row.timed_out + row.cancelled for row in rows)
            assert begun - ended == lane.outstanding

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.end_all()
        finally:  # a failure above is not to leave other tests with a clock that stands
            self.loop.close()
            self.patch.undo()

    def end_all(self) -> None:
        for _ in range(500):
            if not self.batches() and not any(lane.outstanding for lane in self.rig.lanes.values()):
                break
            for number, batch in self.batches():
                bad = any(fails(number, value) for value in batch.values)
                batch.end(PredictFailed("raised") if bad else None)
            self.turn(0.03)
        self.turn(FAR_S)
        assert not any(lane.outstanding for lane in self.rig.lanes.values())
        for client in self.clients:
            self.check(client)
        for epoch in range(1, self.epochs + 1):
            self.check_counts(epoch, [client for client in self.clients if client.epoch == epoch])
        self.check_nothing_is_kept()
        self.rig.block.close()

    def check(self, client: Asked) -> None:
        sink, mirror = client.sink, client.route.mirror
        shielded = mirror is not None and mirror.shielded and client.arm == 1
        own = NEW if client.arm else OLD
        if client.cancelled:
            assert not sink.settled
        elif sink.response is not None:
            version = sink.response.version
            assert told(sink) == (version, client.value * 2)
            assert not fails(version, client.value)
            assert version == own or (shielded and version == OLD)
        else:
            assert sink.error is not None, "every client hears"
            if isinstance(sink.error, (PredictFailed, ModelCrashed)):
                assert fails(own, client.value)
                late = isinstance(sink.error, DeadlineExceeded) or client.deadline_s < 2000.0
                assert not shielded or fails(OLD, client.value) or late
            else:
                assert isinstance(sink.error, (DeadlineExceeded, Quarantined, Overloaded))

    def check_counts(self, epoch: int, clients: list[Asked]) -> None:
        self.rig.epoch = epoch
        for arm, number in enumerate((OLD, NEW)):
            mine = [client for client in clients if client.arm == arm]
            counts = self.rig.counts(number, arm)
            assert counts.dispatched + counts.refused == len(mine), "a copy is nobody's request"
        pairs = self.rig.pairs
        counted = pairs.good + pairs.worse + pairs.better + pairs.bad + pairs.dropped
        drawn = [client for client in clients if client.is_drawn]
        # Who left, who was refused and who had next to no time may be no pair.
        doubtful = sum(
            client.cancelled or client.deadline_s < 1000.0 + FAR_S or self.given_up for client in drawn
        )
        assert len(drawn) - doubtful <= counted <= len(drawn)
        digits = [int(client.value) % 10 for client in drawn]
        slow = sum(client.deadline_s < 1000.0 + FAR_S for client in drawn) + len(drawn) * self.given_up
        assert pairs.worse <= digits.count(CANDIDATE_FAILS) + slow
        assert pairs.better <= digits.count(INCUMBENT_FAILS) + slow
        assert pairs.bad <= digits.count(BOTH_FAIL) + slow
        assert pairs.good <= digits.count(0) and pairs.agreed == pairs.good
        assert pairs.disagreed == pairs.unsound_both == 0
        answered_for = [
            c for c in clients if c.arm == 1 and c.sink.response and c.sink.response.version == OLD
        ]
        assert pairs.shielded == len(answered_for)

    def check_nothing_is_kept(self) -> None:
        for target in self.rig.infer._entries["m"].by_arm.values():
            for name in ("_to_copy", "_to_rescue", "_to_compare", "_guarded"):
                assert not getattr(target, name, None)


@pytest.fixture(autouse=True, scope="module")
def machine_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    MirrorMachine.folder = tmp_path_factory.mktemp("mirror")
    yield


TestMirrorMachine = MirrorMachine.TestCase
TestMirrorMachine.settings = settings(max_examples=examples(80), stateful_step_count=30, deadline=None)
