"""The supervisor's decisions: backoff, hangs, memory, quarantine, and that it always comes to rest."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from interlock.app.processes import (
    Crash,
    Doing,
    History,
    Kill,
    Kind,
    Limits,
    ProcessSpec,
    Quarantine,
    Quarantined,
    RunningView,
    Start,
    Stop,
    crashed,
    decide,
    forget,
    is_quarantined,
    not_before_s,
    quarantine,
)
from interlock.core.clock import FakeClock

LIMITS = Limits()
WORKER = ProcessSpec("worker-0", Kind.WORKER)
CONTROL = ProcessSpec("control", Kind.CONTROL)
KEY = "slow/1@abc"
EXECUTOR = ProcessSpec("x-slow-1", Kind.EXECUTOR, KEY, release=7, memory_limit_bytes=1000)
RELEASES = {KEY: 7}


def crash_again(
    history: History, now_s: float, doing: Doing, requests: int, release: int = 7, survived: int = 0
) -> History:
    view = RunningView(EXECUTOR, now_s, now_s, doing, KEY, requests, survived=survived)
    return crashed(history, now_s, view, "exit -11", {KEY: release}, LIMITS)


def test_what_is_wanted_and_does_not_run_is_started_and_what_is_not_wanted_is_stopped() -> None:
    running = {"x-old-1": RunningView(ProcessSpec("x-old-1", Kind.EXECUTOR, "old/1@abc"), 0.0, 10.0)}
    assert decide(10.0, [WORKER, EXECUTOR], running, History(), RELEASES, LIMITS) == [
        Stop("x-old-1"),
        Start(WORKER),
        Start(EXECUTOR),
    ]


def test_an_executor_of_the_same_number_with_another_artifact_is_replaced_one_after_the_other() -> None:
    other = msgspec.structs.replace(EXECUTOR, version_key="slow/1@def")
    running = {EXECUTOR.name: RunningView(EXECUTOR, 0.0, 10.0)}
    assert decide(10.0, [other], running, History(), {other.version_key: 8}, LIMITS) == [Stop(EXECUTOR.name)]
    assert decide(10.0, [other], {}, History(), {other.version_key: 8}, LIMITS) == [Start(other)]


def test_a_running_version_that_is_released_again_goes_on() -> None:
    again = msgspec.structs.replace(EXECUTOR, release=8)
    assert (
        decide(1.0, [again], {again.name: RunningView(EXECUTOR, 0.0, 1.0)}, History(), {KEY: 8}, LIMITS) == []
    )


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=60))
def test_the_first_restart_is_immediate_and_no_pause_exceeds_the_longest(gaps_s: list[float]) -> None:
    clock = FakeClock(1000.0)
    history = History()
    for gap_s in gaps_s:
        clock.advance(gap_s)
        history = crashed(history, clock(), RunningView(WORKER, 0.0), "exit 1", {}, LIMITS)
        pause_s = not_before_s(WORKER.name, history, LIMITS) - clock()
        count = len(history.crashes)
        assert pause_s <= 0.0 if count == 1 else pause_s <= LIMITS.longest_backoff_s + 1e-6
        if count >= 2:
            assert pause_s >= LIMITS.backoff_s - 1e-6
        assert all(clock() - crash.at_s < LIMITS.window_s for crash in history.crashes)


def test_pauses_double() -> None:
    crashes = tuple(Crash("worker-0", 5.0, "", 0, Doing.IDLE, 0, "") for _ in range(9))
    pauses = [round(not_before_s("worker-0", History(crashes[:n]), LIMITS) - 5.0, 6) for n in range(2, 10)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_the_search_for_a_culprit_is_not_held_up() -> None:
    """Its neighbours' deadlines run: neither a crash in company, nor those before, delays the next start."""
    history = History()
    for count in range(4):
        history = crash_again(history, 100.0 + count, Doing.RUNNING, 1)
    assert not_before_s(EXECUTOR.name, history, LIMITS) == 103.0 + 4 * LIMITS.backoff_s
    for requests in (8, 4, 2):
        history = crash_again(history, 110.0, Doing.RUNNING, requests)
        assert not_before_s(EXECUTOR.name, history, LIMITS) <= 110.0
    # The culprit alone is one crash more of its kind.
    history = crash_again(history, 115.0, Doing.RUNNING, 1)
    assert not_before_s(EXECUTOR.name, history, LIMITS) == 115.0 + 8 * LIMITS.backoff_s
    shared = RunningView(WORKER, 0.0, 1.0, Doing.RUNNING, KEY, 8)
    for _ in range(2):
        history = crashed(history, 120.0, shared, "exit -11", RELEASES, LIMITS)
    assert not_before_s(WORKER.name, history, LIMITS) == 120.0 + LIMITS.backoff_s, "it harms other models"


def test_a_silent_process_is_killed_and_one_that_loads_gets_longer() -> None:
    def after(silent_s: float, **changes: object) -> list[object]:
        view = msgspec.structs.replace(RunningView(WORKER, 0.0, 100.0), **changes)
        return list(decide(100.0 + silent_s, [view.spec], {view.spec.name: view}, History(), {}, LIMITS))

    assert after(LIMITS.heartbeat_s) == []
    (kill,) = after(LIMITS.heartbeat_s + 0.1)
    assert isinstance(kill, Kill) and "no heartbeat" in kill.why
    assert after(LIMITS.load_s, doing=Doing.LOADING) == []
    assert after(LIMITS.load_s + 1, doing=Doing.LOADING) != []
    assert after(LIMITS.heartbeat_s + 0.1, spec=CONTROL) == []
    assert after(LIMITS.start_s - 101, heartbeat_s=None) == []
    assert after(LIMITS.start_s + 0.1, heartbeat_s=None) != []


def test_a_batch_has_its_own_limit_however_long_the_heartbeat_is_missing() -> None:
    view = RunningView(EXECUTOR, 0.0, 10.0, Doing.RUNNING, KEY, 1, kill_at_s=100.0)
    assert decide(100.4, [EXECUTOR], {EXECUTOR.name: view}, History(), RELEASES, LIMITS) == []
    (kill,) = decide(100.6, [EXECUTOR], {EXECUTOR.name: view}, History(), RELEASES, LIMITS)
    assert isinstance(kill, Kill) and "hung" in kill.why


def test_nobody_is_blamed_for_a_stall_of_the_supervisor_itself() -> None:
    view = RunningView(WORKER, 0.0, 10.0)
    running = {WORKER.name: view}
    assert decide(100.0, [WORKER], running, History(), {}, LIMITS, watched_since_s=99.0) == []
    assert decide(105.0, [WORKER], running, History(), {}, LIMITS, watched_since_s=99.0) != []


def test_memory_above_the_limit_ends_an_executor() -> None:
    view = RunningView(EXECUTOR, 0.0, 10.0, resident_bytes=1001)
    (kill,) = decide(10.0, [EXECUTOR], {EXECUTOR.name: view}, History(), RELEASES, LIMITS)
    assert isinstance(kill, Kill) and "1,001" in kill.why and "1,000" in kill.why
    at_limit = msgspec.structs.replace(view, resident_bytes=1000)
    assert decide(10.0, [EXECUTOR], {EXECUTOR.name: at_limit}, History(), RELEASES, LIMITS) == []


def test_one_that_was_told_to_leave_is_killed_in_the_end_and_not_told_twice() -> None:
    view = RunningView(WORKER, 0.0, 10.0, stopping_s=10.0)
    assert decide(11.0, [], {WORKER.name: view}, History(), {}, LIMITS) == []
    late = msgspec.structs.replace(view, heartbeat_s=10.0 + LIMITS.stop_s)
    (kill,) = decide(10.1 + LIMITS.stop_s, [], {WORKER.name: late}, History(), {}, LIMITS)
    assert isinstance(kill, Kill)


def test_three_crashes_on_load_five_on_a_lone_request_forty_of_any_kind_quarantine() -> None:
    for doing, requests, tries in (
        (Doing.LOADING, 0, LIMITS.tries_load),
        (Doing.RUNNING, 1, LIMITS.tries_isolated),
        (Doing.RUNNING, 2, LIMITS.tries_any),
        (Doing.IDLE, 0, LIMITS.tries_any),
    ):
        history = History()
        for count in range(1, tries + 1):
            history = crash_again(history, 100.0 + count, doing, requests)
            actions = decide(100.0 + count, [EXECUTOR], {}, history, RELEASES, LIMITS)
            given_up = [action for action in actions if isinstance(action, Quarantine)]
            assert bool(given_up) == (count == tries), (doing, requests, count)
        assert given_up[0].version_key == KEY and "exit -11" in given_up[0].reason
        assert not any(isinstance(action, Start) for action in actions)


def test_an_executor_that_answers_others_between_its_crashes_is_not_given_up() -> None:
    def quarantines(history: History, now_s: float) -> bool:
        actions = decide(now_s, [EXECUTOR], {}, history, RELEASES, LIMITS)
        return any(isinstance(action, Quarantine) for action in actions)

    history = History()
    for count in range(LIMITS.tries_any - LIMITS.tries_isolated):
        history = crash_again(history, 100.0 + count, Doing.RUNNING, 1, survived=3)
        assert not quarantines(history, 100.0 + count)
    # From now on it answers nothing any more: the crash after its last answer is the first of five.
    for count in range(LIMITS.tries_isolated - 1):
        assert not quarantines(history, 140.0 + count)
        history = crash_again(history, 140.0 + count, Doing.RUNNING, 1)
    assert quarantines(history, 145.0)


def test_crashes_that_left_the_window_do_not_count() -> None:
    history = History()
    for count in range(20):
        history = crash_again(history, 100.0 + 20 * count, Doing.RUNNING, 1)
        actions = decide(100.0 + 20 * count, [EXECUTOR], {}, history, RELEASES, LIMITS)
        assert not any(isinstance(action, Quarantine) for action in actions)


def test_a_worker_is_blamed_on_the_version_in_its_breadcrumb_and_on_none_when_idle() -> None:
    history = History()
    for at_s in range(3):
        view = RunningView(WORKER, 0.0, 1.0, Doing.LOADING, "inline/2@abc")
        history = crashed(history, float(at_s), view, "exit -11", {"inline/2@abc": 3}, LIMITS)
    actions = decide(3.0, [WORKER], {}, history, {"inline/2@abc": 3}, LIMITS)
    assert isinstance(actions[0], Quarantine) and actions[0].version_key == "inline/2@abc"
    idle = RunningView(WORKER, 0.0, 1.0, Doing.IDLE, "inline/2@abc")
    assert crashed(History(), 1.0, idle, "exit 1", {}, LIMITS).crashes[0].version_key == ""


def test_a_new_release_gets_new_tries_and_an_unloaded_version_is_forgotten() -> None:
    held = History(quarantined={KEY: Quarantined(7, "crashed")})
    assert decide(1.0, [EXECUTOR], {}, held, RELEASES, LIMITS) == []
    again = msgspec.structs.replace(EXECUTOR, release=8)
    assert decide(1.0, [again], {}, held, {KEY: 8}, LIMITS) == [Start(again)]
    assert forget(held, RELEASES) is held
    assert forget(held, {KEY: 8}).quarantined == {}
    assert forget(held, {}).quarantined == {}


def test_crashes_under_the_release_before_do_not_count_for_the_new_one() -> None:
    history = History()
    for count in range(LIMITS.tries_load):
        history = crash_again(history, 100.0 + count, Doing.LOADING, 0)
    actions = decide(103.0, [EXECUTOR], {}, history, {KEY: 8}, LIMITS)
    assert not any(isinstance(action, Quarantine) for action in actions)


class Supervision(RuleBasedStateMachine):
    """Processes crash, hang and are released anew in any order; `_act` plays the supervisor's shell."""

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock(1000.0)
        self.history = History()
        self.running: dict[str, RunningView] = {}
        self.release = 7
        self.load_crashes = 0

    def _specs(self) -> list[ProcessSpec]:
        return [WORKER, msgspec.structs.replace(EXECUTOR, release=self.release)]

    def _act(self) -> None:
        now_s = self.clock()
        releases = {KEY: self.release}
        self.history = forget(self.history, releases)
        for action in decide(now_s, self._specs(), self.running, self.history, releases, LIMITS):
            match action:
                case Start(spec):
                    assert spec.name not in self.running
                    self.running[spec.name] = RunningView(spec, now_s, now_s)
                case Kill(name, why):
                    view = self.running.pop(name)
                    self.history = crashed(self.history, now_s, view, why, releases, LIMITS)
                case Quarantine():
                    self.history = quarantine(self.history, action)
                case Stop(name):
                    self.running.pop(name)

    @rule(seconds=st.floats(0.01, 8.0), hung=st.booleans())
    def time_passes(self, seconds: float, hung: bool) -> None:
        self.clock.advance(seconds)
        for name, view in self.running.items():
            if not (hung and name == EXECUTOR.name):
                self.running[name] = msgspec.structs.replace(view, heartbeat_s=self.clock())
        self._act()

    @precondition(lambda self: EXECUTOR.name in self.running)
    @rule(doing=st.sampled_from(Doing), requests=st.integers(1, 3))
    def the_executor_crashes(self, doing: Doing, requests: int) -> None:
        view = msgspec.structs.replace(
            self.running.pop(EXECUTOR.name), doing=doing, doing_version=KEY, requests=requests
        )
        self.history = crashed(self.history, self.clock(), view, "exit 9", {KEY: self.release}, LIMITS)
        self._act()

    @rule()
    def released_anew(self) -> None:
        self.release += 1
        self._act()

    @invariant()
    def a_quarantined_version_does_not_run_and_the_worker_is_never_given_up(self) -> None:
        if is_quarantined(self.history.quarantined, KEY, {KEY: self.release}):
            assert EXECUTOR.name not in self.running
        assert set(self.history.quarantined) <= {KEY}

    @invariant()
    def all_that_is_wanted_runs_after_the_longest_pause_unless_given_up(self) -> None:
        later_s = self.clock() + LIMITS.longest_backoff_s + 0.001
        started = {
            action.spec.name
            for action in decide(later_s, self._specs(), {}, self.history, {KEY: self.release}, LIMITS)
            if isinstance(action, Start)
        }
        given_up = is_quarantined(self.history.quarantined, KEY, {KEY: self.release})
        assert started == ({WORKER.name} if given_up else {WORKER.name, EXECUTOR.name})


TestSupervision = Supervision.TestCase
