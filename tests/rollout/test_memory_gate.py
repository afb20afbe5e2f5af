"""The memory gate: no hold for what allocators do, one for a leak long before it has eaten the limit."""

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.feedback import Metric
from interlock.core.model import Placement, Profile, Signature, Version
from interlock.core.policy import Policy, Share
from interlock.core.state import ArmCounts, ArmKey
from interlock.core.verdict import Verdict
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.ab import judge_all as judge_arms
from interlock.rollout.gate import judge as judge_all
from interlock.rollout.judgement import Gate, Kind
from interlock.rollout.memory import MOST_POINTS, MemoryView, Point, Process, Track, Watch, added
from interlock.rollout.memory_gate import LEAST_POINTS, judge, steady_growth
from tests.rollout.test_gate import arm, epoch
from tests.thorough import examples

MB = 1_000_000
LIMIT = 4 << 30
POLICY = Policy()
Floats = npt.NDArray[np.float64]


def view(track: Track, resident_bytes: float, **more: object) -> MemoryView:
    process = Process(int(resident_bytes), 1, LIMIT, 8 << 30)
    values = {"place": "executor", "process": process, "candidate": track.points, "rate_per_s": 100.0}
    return MemoryView(**(values | {"spent_s": 1.0} | more))  # type: ignore[arg-type]


def watched(runs: npt.NDArray[np.int64], sizes: Floats, every: int = 7) -> tuple[int, Gate] | None:
    """The first look that holds, as (its place in the series, the gate); None where all let it through."""
    track: Track | None = None
    for look, (run, size) in enumerate(zip(runs.tolist(), sizes.tolist(), strict=True)):
        track = added(track, run, Process(int(size)))
        if look % every == 0:
            gate = judge(view(track, size, spent_s=run / 100.0), POLICY)
            assert gate.kind is Kind.HOLD
            if gate.verdict is Verdict.FAIL:
                return look, gate
    return None


def sawtooth(runs: npt.NDArray[np.int64], period: float, phase: float, rng: np.random.Generator) -> Floats:
    """Memory that rises by a fifth until it is collected, 90 to 110 MB, and jitters by 1 MB."""
    swing: Floats = ((runs / period + phase) % 1.0 - 0.5) * 20 * MB
    return 100 * MB + swing + rng.normal(0.0, MB, len(runs))


@pytest.mark.slow
def test_an_allocator_that_swings_by_a_tenth_is_never_held() -> None:
    rng = np.random.default_rng(1)
    for _ in range(examples(150)):
        runs = np.cumsum(rng.poisson(10, 2000))
        period = float(np.exp(rng.uniform(np.log(30), np.log(60_000))))
        assert watched(runs, sawtooth(runs, period, rng.random(), rng)) is None


def test_a_warm_up_that_adds_up_to_half_is_no_leak() -> None:
    rng = np.random.default_rng(2)
    for _ in range(examples(100)):
        runs = np.cumsum(rng.poisson(10, 1500))
        slow = float(np.exp(rng.uniform(np.log(20), np.log(3000))))
        grown = 80 * MB * rng.uniform(0.1, 0.5) * (1.0 - np.exp(-runs / slow))
        assert watched(runs, 80 * MB + grown + rng.normal(0.0, 0.3 * MB, len(runs))) is None


def test_a_step_is_no_leak() -> None:
    rng = np.random.default_rng(3)
    for _ in range(examples(100)):
        runs = np.cumsum(rng.poisson(10, 1500))
        steps = sum(30 * MB * (runs > at) for at in rng.uniform(0, runs[-1], 2))
        assert watched(runs, 80 * MB + steps + rng.normal(0.0, 0.3 * MB, len(runs))) is None


@pytest.mark.parametrize(("leak", "most"), [(1_000, 0.1), (10_000, 0.06), (100_000, 0.06)])
def test_a_leak_on_100_mb_is_held_before_it_has_taken_a_tenth_of_the_limit(leak: int, most: float) -> None:
    rng = np.random.default_rng(leak)
    for _ in range(examples(40)):
        runs = np.cumsum(rng.poisson(10, 60_000 if leak == 1_000 else 6_000))
        period = float(np.exp(rng.uniform(np.log(30), np.log(5_000))))
        found = watched(runs, sawtooth(runs, period, rng.random(), rng) + leak * runs)
        assert found is not None
        look, gate = found
        assert leak * runs[look] < most * LIMIT
        assert "more with each of its runs" in gate.message and "steadily" in gate.message


def test_without_noise_a_leak_is_seen_when_it_has_added_a_good_quarter() -> None:
    runs = np.arange(0, 60_000, 10)
    found = watched(runs, np.asarray(100.0 * MB + 1_000.0 * runs, np.float64), every=1)
    assert found is not None and 25 * MB < 1_000 * runs[found[0]] < 45 * MB
    assert "memory: 1000 bytes more with each of its runs" in found[1].message


def line(bytes_per_run: float, first: float = 100 * MB, count: int = 40) -> tuple[Point, ...]:
    return tuple(Point(100 * k, int(first + bytes_per_run * 100 * k)) for k in range(count))


def test_a_leak_that_would_take_more_than_a_day_is_let_through() -> None:
    points = line(20_000)
    leaks = MemoryView("executor", Process(180 * MB, 1, LIMIT), points, spent_s=400.0, rate_per_s=100.0)
    assert judge(leaks, POLICY).verdict is Verdict.FAIL
    rare = msgspec.structs.replace(leaks, rate_per_s=0.1, spent_s=1e6)
    assert judge(rare, POLICY).verdict is Verdict.PASS
    # What counts is the requests of the model, of which the candidate has a share.
    assert judge(msgspec.structs.replace(rare, rate_per_s=100.0), POLICY).verdict is Verdict.FAIL
    unknown = msgspec.structs.replace(leaks, process=Process(180 * MB))
    assert judge(unknown, POLICY).verdict is Verdict.PASS, "nothing says what there is to exhaust"


def test_an_incumbent_that_grows_alike_makes_it_no_fault_of_the_candidate() -> None:
    leaks = MemoryView("executor", Process(180 * MB, 1, LIMIT), line(20_000), line(11_000), 150 * MB)
    leaks = msgspec.structs.replace(leaks, spent_s=40.0, rate_per_s=100.0)
    assert judge(leaks, POLICY).verdict is Verdict.PASS
    assert judge(msgspec.structs.replace(leaks, incumbent=line(5_000)), POLICY).verdict is Verdict.FAIL
    assert judge(leaks, Policy(larger=1.5)).verdict is Verdict.FAIL


def test_workers_that_grew_before_are_not_held_against_it() -> None:
    process = Process(300 * MB, 1, None, LIMIT)
    workers = MemoryView("workers", process, line(20_000, 150 * MB), spent_s=40.0, rate_per_s=100.0)
    held = judge(workers, POLICY)  # 2 MB a second
    assert held.verdict is Verdict.FAIL and "the workers, which all their models share" in held.message
    assert judge(msgspec.structs.replace(workers, before_per_s=0.5e6), POLICY).verdict is Verdict.FAIL
    assert judge(msgspec.structs.replace(workers, before_per_s=1.5e6), POLICY).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        (200, 90, Verdict.FAIL),  # twice as much and 64 MiB more
        (170, 90, Verdict.PASS),
        (70, 20, Verdict.PASS),  # 3.5 times, of little
        (4200, 4000, Verdict.FAIL),  # nearly all that it may have
    ],
)
def test_a_candidate_that_is_much_larger_waits_for_a_person(mine: int, theirs: int, verdict: Verdict) -> None:
    flat = tuple(Point(k, mine * MB) for k in range(LEAST_POINTS))
    found = judge(MemoryView("executor", Process(mine * MB, 1, LIMIT), flat, flat, theirs * MB), POLICY)
    assert found.verdict is verdict and found.message.startswith("memory: ")
    assert (found.log10_e > found.log10_threshold) == (verdict is Verdict.FAIL)
    # Where one of them has no executor, registration has measured both.
    sizes = (mine * MB, theirs * MB)
    registered = judge(MemoryView("workers", Process(9 * MB), flat, registered=sizes), POLICY)
    assert (registered.verdict is Verdict.FAIL) == (mine > 2 * theirs and mine - theirs > 70)


def test_few_readings_decide_nothing_and_nothing_is_promoted_before_them() -> None:
    few = MemoryView("executor", Process(900 * MB, 1, LIMIT), line(0)[: LEAST_POINTS - 1], (), 90 * MB)
    assert judge(few, POLICY).verdict is Verdict.UNDECIDED
    epochs = [epoch(0.5, arm(3000, 0, 150), arm(3000, 0, 20))]
    enough = msgspec.structs.replace(few, candidate=line(0), process=Process(100 * MB, 1, LIMIT))
    assert judge_all(epochs, POLICY).proved and judge_all(epochs, POLICY, memory=enough).proved
    assert not judge_all(epochs, POLICY, memory=few).proved
    leaks = judge_all(epochs, POLICY, memory=msgspec.structs.replace(few, candidate=line(50_000)))
    assert leaks.hold.startswith("memory: ") and not leaks.proved and not leaks.rollback
    without = Policy(guardrails=("errors", "latency"))
    assert judge_all(epochs, without, memory=few).proved
    assert not any(gate.name == "memory" for gate in judge_all(epochs, without, memory=few).gates)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 10**12)), min_size=1, max_size=300),
    st.integers(0, 10**9),
)
def test_a_track_is_bounded_and_keeps_the_least_of_each_stretch(
    readings: list[tuple[int, int]], origin: int
) -> None:
    track, run, seen = added(None, origin, Process(7)), origin, [(0, 7)]
    for more, size in readings:
        run += more
        track = added(track, run, Process(size))
        seen.append((run - origin, size))
    assert len(track.points) <= MOST_POINTS and track.origin == origin
    starts = [point.run for point in track.points]
    assert starts[0] == 0 and all(b - a >= 1 for a, b in zip(starts, starts[1:], strict=False))
    for point, end in zip(track.points, [*starts[1:], run + 1], strict=True):
        assert point.least_bytes == min(size for at, size in seen if point.run <= at < end)
    found = judge(view(track, readings[-1][1]), POLICY)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Gate) == found
    assert steady_growth(track.points) is None or len(track.points) >= LEAST_POINTS


def version(number: str, placement: Placement) -> Version:
    digest = f"sha256:{number * 64}"
    signature = Signature((), ())
    return Version("m", number, digest, "python", "", signature, placement=placement, profile=Profile())


class Machine:
    """Executors by version number, and the workers under ""."""

    def __init__(self) -> None:
        self.sizes = {"": 100, "1": 50, "2": 60}
        self.incarnation = 1

    def __call__(self, version: Version | None) -> Process | None:
        size = self.sizes.get("" if version is None else version.number)
        return None if size is None else Process(size, self.incarnation)


def runs(candidate: int, incumbent: int) -> dict[ArmKey, ArmCounts]:
    return {
        ArmKey("m", "1", 9, 1, 0): ArmCounts(dispatched=incumbent),
        ArmKey("m", "2", 9, 1, 1): ArmCounts(dispatched=candidate - 1),
        ArmKey("m", "2", 9, 1, 254): ArmCounts(dispatched=1),
        ArmKey("other", "2", 9, 1, 1): ArmCounts(dispatched=77),
    }


def test_executors_are_compared_by_their_own_runs_and_anew_when_one_is_replaced() -> None:
    machine, executors = Machine(), [version(number, Placement.EXECUTOR) for number in ("1", "2")]
    watch = Watch(machine)
    for k in range(3):
        machine.sizes |= {"2": 60 + k, "1": 50 - k}
        found = watch.view(9, executors[1], executors[0], runs(10 + k, 20 + 5 * k), 7.0, 100.0 + k)
    assert found is not None and found.candidate == (Point(0, 60), Point(1, 61), Point(2, 62))
    assert found.incumbent == (Point(0, 50), Point(5, 49), Point(10, 48)) and found.incumbent_bytes == 50
    assert (found.place, found.rate_per_s, found.spent_s) == ("executor", 7.0, 2.0)
    machine.incarnation = 2
    found = watch.view(9, executors[1], executors[0], runs(20, 40), 7.0, 110.0)
    assert found is not None and found.candidate == (Point(0, 62),) and found.spent_s == 0.0
    watch.forget([])
    del machine.sizes["2"]
    assert watch.view(9, executors[1], executors[0], runs(20, 40), 7.0, 111.0) is None


def test_what_runs_in_the_workers_is_seen_beside_how_they_grew_before() -> None:
    machine, watch = Machine(), None
    watch = Watch(machine)
    for second in range(0, 300, 2):
        machine.sizes[""] = 100 + 10 * second
        watch.look(float(second))
    inline = [version(number, Placement.INLINE) for number in ("1", "2")]
    found = watch.view(9, inline[1], inline[0], runs(10, 20), None, 300.0)
    assert found is not None and found.place == "workers" and found.incumbent == ()
    assert found.before_per_s == pytest.approx(10.0, rel=0.15)
    fresh = Watch(machine).view(9, inline[1], inline[0], runs(10, 20), None, 300.0)
    assert fresh is not None and fresh.before_per_s is None


def test_each_candidate_of_an_ab_test_has_its_own_and_nothing_is_read_of_what_does_not_run() -> None:
    arms = (Share("2", 0.3), Share("3", 0.3))
    policy = Policy(arms=arms, metrics=(Metric("sold"),))
    row = ReleaseRow(9, "m", "2", "ab", ReleaseState.RAMPING, "", "1", 1, 0.0, 0.0, None, policy)
    live = ReleaseRow(4, "m", "1", "now", ReleaseState.DONE, "", None, 0, 0.0, 0.0, 0.0)
    machine = Machine()
    machine.sizes["3"] = 70
    watch, records = Watch(machine), {number: version(number, Placement.EXECUTOR) for number in "123"}

    def of(row: ReleaseRow) -> tuple[MemoryView | None, ...]:
        return watch.views(row, live, lambda model, number: records.get(number), runs(9, 9), 1.0, 5.0)

    assert [one and one.process.resident_bytes for one in of(row)] == [60, 70]
    del records["3"]
    assert [one is None for one in of(row)] == [False, True]
    assert of(msgspec.structs.replace(row, state=ReleaseState.PREPARING)) == ()
    epochs = [epoch(0.5, arm(3000, 0, 150), arm(3000, 0, 20))]
    leaks = MemoryView("executor", Process(180 * MB, 1, LIMIT), line(20_000), spent_s=40.0, rate_per_s=100.0)
    for memory, held in (((), ""), ((None, leaks), "version 3: memory: "), ((leaks,), "version 2: memory: ")):
        found = judge_arms((tuple(epochs), tuple(epochs)), policy, None, 0, (), memory)
        assert found.hold.startswith(held) and bool(found.hold) == bool(held)
