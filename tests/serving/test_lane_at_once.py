"""A turn's requests that run as one batch, without a queue: the same answers and counts as through it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.core.errors import (
    Draining,
    InterlockError,
    ModelFailed,
    OutputMismatch,
    PredictFailed,
    Quarantined,
)
from interlock.core.model import ModelSettings, Tensors, Version
from interlock.core.request import Request, Response, Ticket
from interlock.core.state import ArmCounts, ArmKey
from interlock.serving.block import Block
from interlock.serving.block_reader import read_block
from interlock.serving.lane import Lane
from interlock.serving.placement import Outcome
from tests.serving.fakes import FakePlace, FakeSink, a_request, a_version, twice
from tests.thorough import examples

KEY = ArmKey("m", "1", 1, 0, 0)
POISON = 13.0
FAR_S = 600.0


class InstantPlace(FakePlace):
    """Answers before `run` returns; fails whatever holds POISON."""

    def __init__(self) -> None:
        super().__init__()
        self.instant = True
        self.sizes: list[int] = []
        self.wrong: Tensors | None = None

    def run(
        self, inputs: Tensors, outputs: tuple[str, ...] | None, requests: int, kill_at_s: float, done: Outcome
    ) -> None:
        self.sizes.append(len(inputs["x"]))
        poisoned = (inputs["x"] == POISON).any()
        done(PredictFailed("raised") if poisoned else self.wrong or twice(inputs), 0.001)


class Rig:
    """A lane whose place answers at once, and its counts in a real block."""

    def __init__(
        self, folder: Path, version: Version | None = None, settings: ModelSettings | None = None
    ) -> None:
        self.block = Block.create(folder, "w", 1, rows=2)
        self.slot = self.block.slot(KEY)
        self.place = InstantPlace()
        self.crumbs: list[tuple[str, int]] = []
        self.lane = Lane(
            version or a_version(max_batch_rows=32),
            settings or ModelSettings(),
            self.place,
            lambda *crumb: self.crumbs.append(crumb),
        )
        self.ids = map(b"%d".__mod__, count())

    def at_once(self, jobs: list[tuple[Request, FakeSink]]) -> Sequence[Ticket | None] | None:
        return self.lane.at_once(jobs, self.ids, self.slot)

    def queued(self, jobs: list[tuple[Request, FakeSink]]) -> None:
        self.lane.start(jobs, self.ids, self.slot)
        self.lane.step()

    def counts(self) -> ArmCounts:
        view = read_block(self.block.path)
        assert view is not None
        return view.counts.get(KEY, ArmCounts())


def jobs_of(*requests: list[float], within_s: float = FAR_S) -> list[tuple[Request, FakeSink]]:
    now = time.monotonic()
    return [(a_request(values, now, now + within_s), FakeSink()) for values in requests]


def heard(jobs: list[tuple[Request, FakeSink]]) -> list[list[float] | type[InterlockError]]:
    """What each sink was told: its values, or the kind of its error."""
    said: list[list[float] | type[InterlockError]] = []
    for _, sink in jobs:
        if sink.response is not None:
            said.append([float(value) for value in sink.response.outputs["y"][:, 0]])
        else:
            assert sink.error is not None
            said.append(type(sink.error))
    return said


def in_loop(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await work()

    asyncio.run(run())


@settings(max_examples=examples(100), deadline=None)
@given(
    requests=st.lists(
        st.lists(st.sampled_from([1.0, 2.0, 3.0, POISON]), min_size=1, max_size=4), min_size=1, max_size=8
    ),
    free=st.booleans(),
)
def test_the_answers_and_counts_are_those_of_the_queue(requests: list[list[float]], free: bool) -> None:
    version = a_version(max_batch_rows=32, side_effect_free=free)

    async def compare() -> None:
        with TemporaryDirectory() as one, TemporaryDirectory() as other:
            quick, slow = Rig(Path(one), version), Rig(Path(other), version)
            at_once, queued = jobs_of(*requests), jobs_of(*requests)
            tickets = quick.at_once(at_once)
            slow.queued(queued)
            for _ in range(3):
                await asyncio.sleep(0)
            assert tickets is not None
            assert len(tickets) == (len(requests) if any(POISON in r for r in requests) else 0)
            assert heard(at_once) == heard(queued)
            assert quick.place.sizes == slow.place.sizes and quick.crumbs == slow.crumbs
            mine, theirs = quick.counts(), slow.counts()
            for field in ("dispatched", "ok", "failed", "rows", "batches", "refused"):
                assert getattr(mine, field) == getattr(theirs, field), field
            assert mine.total.count == theirs.total.count and mine.queue.count == theirs.queue.count
            assert quick.lane.outstanding == slow.lane.outstanding == 0

    in_loop(compare)


async def test_what_must_wait_or_be_refused_is_left_to_the_queue(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.lane._latency.learn(1, 1.0)
    untouched = [
        jobs_of([1.0] * 33),  # more than a batch
        jobs_of([1.0], within_s=0.5),  # too late, as predicted
        [(a_request([1.0], 0.0, 1e9, outputs=("y",)), FakeSink())],
    ]
    for jobs in untouched:
        assert rig.at_once(jobs) is None
    rig.lane.draining = True
    assert rig.at_once(jobs_of([1.0])) is None
    rig.queued(refused := jobs_of([1.0]))
    assert heard(refused) == [Draining]
    rig.lane.draining = False
    rig.lane.give_up(Quarantined("crashed too often"))
    assert rig.at_once(jobs_of([1.0])) is None
    assert rig.place.sizes == [] and rig.counts().dispatched == 0


@pytest.mark.parametrize(
    ("version", "model"),
    [
        (a_version(batchable=False), ModelSettings()),
        (a_version(batch_axis=None), ModelSettings()),
        (a_version(width=-1), ModelSettings()),
        (a_version(), ModelSettings(max_wait_s=0.01)),
    ],
    ids=["not batchable", "no batch axis", "any width", "waits for company"],
)
async def test_a_lane_whose_requests_cannot_all_be_joined_never_runs_at_once(
    tmp_path: Path, version: Version, model: ModelSettings
) -> None:
    rig = Rig(tmp_path, version, model)
    assert rig.at_once(jobs_of([1.0])) is None and rig.place.sizes == []


async def test_nothing_overtakes_what_waits_or_runs(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.lane.start(waiting := jobs_of([1.0]), rig.ids, rig.slot)
    assert rig.at_once(jobs_of([2.0])) is None
    rig.lane.step()
    assert heard(waiting) == [[2.0]] and rig.at_once(jobs_of([2.0])) == []


async def test_whoever_asks_again_while_being_answered_gets_its_turn(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    second = jobs_of([5.0])

    class AsksAgain(FakeSink):
        def done(self, response: Response) -> None:
            super().done(response)
            assert rig.at_once(second) is None
            rig.queued(second)
            assert not second[0][1].settled

    (request, _), last = jobs_of([1.0])[0], jobs_of([2.0])[0]
    assert rig.at_once([(request, AsksAgain()), last]) == []
    assert heard(second) == [[10.0]] and heard([last]) == [[4.0]]
    assert rig.place.sizes == [2, 1] and rig.lane.outstanding == 0


async def test_outputs_that_break_the_signature_fail_the_batch(tmp_path: Path) -> None:
    rig = Rig(tmp_path, a_version(max_batch_rows=32, side_effect_free=False))
    rig.place.wrong = {"z": twice({"x": a_request([1.0], 0, 0).inputs["x"]})["y"]}  # type: ignore[dict-item]
    jobs = jobs_of([1.0], [2.0])
    tickets = rig.at_once(jobs)
    assert tickets is not None and len(tickets) == 2
    assert heard(jobs) == [OutputMismatch, OutputMismatch]
    assert rig.counts().failed == 2 and rig.lane.outstanding == 0


async def test_a_sink_that_raises_does_not_stop_the_lane(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    class Breaks(FakeSink):
        def done(self, response: Response) -> None:
            raise ModelFailed("cannot be sent")

    (request, _) = jobs_of([1.0])[0]
    with pytest.raises(ModelFailed):
        rig.at_once([(request, Breaks())])
    assert rig.counts().ok == 1
    assert rig.at_once(again := jobs_of([3.0])) == [] and heard(again) == [[6.0]]


async def test_a_turn_with_requests_for_other_outputs_keeps_them_apart(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    now = time.monotonic()
    chosen = (a_request([1.0], now, now + FAR_S, outputs=("y",)), FakeSink())
    jobs = [chosen, *jobs_of([2.0], [3.0])]
    assert rig.at_once(jobs) is None
    rig.queued(jobs)
    assert sorted(rig.place.sizes) == [1, 2] and heard(jobs) == [[2.0], [4.0], [6.0]]


async def test_whoever_goes_first_does_not_share_a_batch_with_who_does_not(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    now = time.monotonic()
    urgent = (a_request([1.0], now, now + FAR_S, priority=0), FakeSink())
    jobs = [*jobs_of([2.0], [3.0]), urgent]
    assert rig.at_once(jobs) is None
    rig.queued(jobs)
    assert rig.place.sizes == [1, 2] and heard(jobs) == [[4.0], [6.0], [2.0]]
    alone = [(urgent[0], FakeSink())]
    assert rig.at_once(alone) == [] and heard(alone) == [[2.0]]
