"""The loop over a real ledger: a node of workers that misbehave at will, and control killed at any moment."""

import asyncio
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from interlock.core.clock import FakeClock
from interlock.core.letters import Desired, Report, VersionState, VersionStatus
from interlock.core.model import Model, ModelSettings, Signature, Version
from interlock.core.policy import Policy
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.loop import Node, RolloutLoop
from interlock.rollout.plan import CANARY, Fail, next_action
from interlock.rollout.replay import decisions, replay
from tests.thorough import examples

WORKERS = ("worker-0", "worker-1")


def version(model: str, number: str) -> Version:
    digest = f"sha256:{ord(number[0]):064x}"
    return Version(model, number, digest, "onnx", "m.onnx", Signature((), ()))


class FakeWorker:
    """Follows the Desired as a worker does: at once, except where `broken` or `slow` say otherwise."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.desired: Desired | None = None
        self.loaded: dict[str, VersionState] = {}
        self.slow = False

    def take(self, desired: Desired) -> None:
        self.desired = desired
        wanted = {v.key for m in desired.models for v in m.versions}
        self.loaded = {key: state for key, state in self.loaded.items() if key in wanted}

    def work(self, broken: set[str]) -> None:
        for model in self.desired.models if self.desired else ():
            for v in model.versions:
                if v.key in broken:
                    self.loaded[v.key] = VersionState.FAILED
                elif not self.slow or self.loaded.get(v.key) is VersionState.READY:
                    self.loaded[v.key] = VersionState.READY
                else:
                    self.loaded.setdefault(v.key, VersionState.LOADING)

    def report(self) -> Report:
        seen = self.desired.revision if self.desired else -1
        models = self.desired.models if self.desired else ()
        statuses = tuple(
            VersionStatus(v.model, v.number, v.digest, self.loaded[v.key], "broken")
            for m in models
            for v in m.versions
            if v.key in self.loaded
        )
        settled = all(s.state is not VersionState.LOADING for s in statuses)
        return Report("n", self.name, 1, 2, seen, seen if settled else seen - 1, True, versions=statuses)


class FakeNode:
    """Two workers, a ledger on disk, and a loop that can be killed and started anew."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "ledger.db")
        self.clock = FakeClock(100.0)
        self.workers = {name: FakeWorker(name) for name in WORKERS}
        self.gone: set[str] = set()
        self.broken: set[str] = set()
        self.quarantined: dict[str, str] = {}
        self.published: list[Desired] = []
        self.ended: list[ReleaseRow] = []
        self.loop = self.new_loop()
        for model, numbers in (("a", "123"), ("b", "12")):
            for number in numbers:
                self.ledger.put_version(version(model, number), self.clock())

    def new_loop(self) -> RolloutLoop:
        self.loop = RolloutLoop(
            self.ledger,
            Node("n", WORKERS),
            self.reports,
            self.publish,
            on_end=self.ended.append,
            now_s=self.clock,
            clock=self.clock,
        )
        return self.loop

    def reports(self) -> dict[str, Report]:
        found = {name: w.report() for name, w in self.workers.items() if name not in self.gone}
        seen = self.published[-1].revision if self.published else -1
        supervisor = Report("n", "supervisor", 1, 3, seen, seen, True, quarantined=self.quarantined)
        return {**found, "supervisor": supervisor}

    def publish(self, desired: Desired) -> None:
        self.published.append(desired)
        for name, w in self.workers.items():
            if name not in self.gone:
                w.take(desired)

    def turn(self) -> bool:
        for name, w in self.workers.items():
            if name not in self.gone:
                w.work(self.broken)
        return self.loop.step()

    def settle(self) -> None:
        for _ in range(50):
            if not self.turn() and not self.ledger.open_releases():
                return
        raise AssertionError(self.ledger.open_releases())

    def release(self, model: str, number: str) -> ReleaseRow:
        return self.ledger.request_release(model, number, "now", self.clock())

    def live(self, model: str) -> str | None:
        row = self.ledger.live(model)
        return None if row is None else row.number

    def routed(self, model: str) -> str | None:
        for m in self.published[-1].models:
            if m.model.name == model and m.route is not None:
                return m.route.arms[0].version
        return None


@pytest.mark.parametrize("how", ["decided", "superseded"])
def test_who_asked_hears_of_the_end_of_a_release_by_evidence_whoever_ended_it(
    tmp_path: Path, how: str
) -> None:
    node = FakeNode(tmp_path)
    node.release("a", "1")
    node.settle()
    row = node.ledger.request_release("a", "2", CANARY, node.clock(), policy=Policy())
    node.turn()
    if how == "decided":
        node.broken.add("a/2")
        node.quarantined[version("a", "2").key] = "it crashed"
    else:
        node.ledger.request_release("a", "1", "rollback", node.clock(), supersede=True)
    node.settle()
    assert [(one.id, one.state.finished) for one in node.ended] == [(row.id, True)]


def test_a_release_goes_live_and_the_old_version_leaves_last(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.release("a", "1")
    node.settle()
    first = len(node.published)
    row = node.release("a", "2")
    node.settle()
    seen = [
        (sorted(v.number for v in m.versions), None if m.route is None else m.route.arms[0].version)
        for d in node.published[first:]
        for m in d.models
    ]
    assert seen == [(["1", "2"], "1"), (["1", "2"], "2"), (["2"], "2")]
    assert node.ledger.release(row.id).state is ReleaseState.DONE and node.live("a") == "2"
    kinds = [e.kind for e in node.ledger.events("a") if e.body.get("release") == row.id]
    assert kinds == ["release.requested", "release.preparing", "release.switching", "release.done"]
    revisions = [d.revision for d in node.published]
    assert revisions == sorted(set(revisions))


def test_a_version_that_does_not_load_fails_and_the_old_one_stays(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.release("a", "1")
    node.settle()
    node.broken.add(version("a", "2").key)
    row = node.release("a", "2")
    node.settle()
    ended = node.ledger.release(row.id)
    assert ended.state is ReleaseState.FAILED
    assert ended.reason == "worker-0: broken, worker-1: broken; version 1 stays live"
    assert node.routed("a") == "1" and [v.number for v in node.published[-1].models[0].versions] == ["1"]


def test_a_first_version_that_does_not_load_leaves_the_model_off_the_node(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.broken.add(version("a", "1").key)
    row = node.release("a", "1")
    node.settle()
    assert node.ledger.release(row.id).reason.endswith("nothing is live")
    assert node.published[-1].models == ()


def test_a_worker_that_dies_in_the_middle_is_waited_for_until_the_limit(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.gone.add("worker-1")
    row = node.release("a", "1")
    for _ in range(5):
        node.turn()
    assert node.ledger.release(row.id).state is ReleaseState.PREPARING
    node.gone.clear()
    node.workers["worker-1"].take(node.published[-1])
    node.settle()
    assert node.live("a") == "1"
    node.gone.add("worker-1")
    late = node.release("a", "2")
    node.turn()
    node.turn()
    node.clock.advance(121.0)
    node.settle()
    assert "worker-1 is not connected; version 1 stays live" in node.ledger.release(late.id).reason


def test_a_version_that_the_supervisor_gave_up_fails_with_its_reason(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    for w in node.workers.values():
        w.slow = True
    row = node.release("a", "1")
    node.turn()
    node.turn()
    node.quarantined = {version("a", "1").key: "crashed 3 times while it was loaded"}
    node.settle()
    assert "crashed 3 times while it was loaded" in node.ledger.release(row.id).reason


def test_releases_of_two_models_do_not_wait_for_each_other(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.broken.add(version("a", "1").key)
    node.release("a", "1")
    node.release("b", "1")
    node.settle()
    assert (node.live("a"), node.live("b")) == (None, "1")


def test_a_release_that_is_superseded_while_it_switches_gives_the_route_back(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.release("a", "1")
    node.settle()
    row = node.release("a", "2")
    while node.ledger.release(row.id).state is not ReleaseState.SWITCHING:
        node.turn()
    node.ledger.request_release("a", "1", "rollback", node.clock(), supersede=True)
    node.settle()
    assert (node.routed("a"), node.live("a")) == ("1", "1")


@pytest.mark.slow
def test_a_node_that_remembers_a_later_revision_than_the_ledger_is_told_all_the_same(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.workers["worker-0"].take(Desired("n", 500))
    node.turn()
    node.turn()
    assert node.published[-1].revision == 501


def test_settings_of_the_app_file_are_in_the_letter(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    mine = ModelSettings(default_timeout_s=1.5)
    this = Node("n", WORKERS)
    node.loop = RolloutLoop(node.ledger, this, node.reports, node.publish, settle=lambda model: mine)
    node.release("a", "1")
    node.settle()
    assert node.published[-1].models[0].model == Model("a", mine)


def test_a_quarantine_is_made_known_under_a_new_revision_of_the_same_letter(
    tmp_path: Path,
) -> None:
    node = FakeNode(tmp_path)
    node.release("a", "1")
    node.settle()
    before = node.published[-1]
    node.loop.send_anew()
    node.turn()
    assert node.published[-1] == msgspec.structs.replace(before, revision=before.revision + 1)


def test_a_replay_of_another_decision_is_found(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.release("a", "1")
    node.settle()
    events = node.ledger.events()
    assert len(decisions(events)) == 3 and replay(events) == []
    target = next(e for e in events if e.kind == "release.switching")
    record = {**target.body["snapshot"], "action": {"type": "fail", "reason": "made up"}}
    planted = [msgspec.structs.replace(target, body={**target.body, "snapshot": record})]
    (difference,) = replay(planted)
    assert difference.seq == target.seq and difference.logged == Fail("made up")
    assert difference.derived == next_action(decisions(planted)[0][2])


async def test_the_running_loop_acts_when_it_is_poked(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    task = asyncio.create_task(node.loop.run())
    row = node.release("a", "1")
    async with asyncio.timeout(10):
        while node.ledger.release(row.id).state is not ReleaseState.DONE:
            for w in node.workers.values():
                w.work(set())
            node.loop.poke()
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert node.live("a") == "1"


class Releases(RuleBasedStateMachine):
    """Releases, rollbacks, deaths of workers and of control, in any order."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.node = FakeNode(Path(self.folder.name))
        self.seen = 0
        self.node.turn()

    def teardown(self) -> None:
        if hasattr(self, "node"):
            assert replay(self.node.ledger.events()) == []
            self.node.ledger.close()
            self.folder.cleanup()

    @rule(model=st.sampled_from("ab"), number=st.sampled_from("12"), supersede=st.booleans())
    def asked(self, model: str, number: str, supersede: bool) -> None:
        if supersede or not any(row.model == model for row in self.node.ledger.open_releases()):
            self.node.ledger.request_release(model, number, "now", self.node.clock(), supersede=supersede)

    @rule(turns=st.integers(1, 3))
    def goes_on(self, turns: int) -> None:
        for _ in range(turns):
            self.node.turn()

    @rule(name=st.sampled_from(WORKERS), slow=st.booleans())
    def a_worker_dies_and_comes_back(self, name: str, slow: bool) -> None:
        fresh = FakeWorker(name)
        fresh.slow = slow
        self.node.workers[name] = fresh
        self.node.gone.discard(name)
        fresh.take(self.node.published[-1])

    @rule(name=st.sampled_from(WORKERS))
    def a_worker_stays_away(self, name: str) -> None:
        self.node.gone.add(name)

    @rule()
    def control_is_killed(self) -> None:
        self.node.new_loop()

    @rule(number=st.sampled_from("12"), model=st.sampled_from("ab"))
    def an_artifact_breaks(self, model: str, number: str) -> None:
        self.node.broken ^= {version(model, number).key}

    @rule(seconds=st.floats(0.1, 130.0))
    def time_passes(self, seconds: float) -> None:
        self.node.clock.advance(seconds)

    @precondition(lambda self: hasattr(self, "node"))
    @invariant()
    def what_is_live_is_loaded_and_a_switch_finds_its_version_ready(self) -> None:
        for desired in self.node.published[self.seen :]:
            for m in desired.models:
                assert m.route is None or m.route.arms[0].version in {v.number for v in m.versions}
        self.seen = len(self.node.published)

    @rule()
    def in_the_end_all_releases_finish_and_the_node_follows_the_ledger(self) -> None:
        node = self.node
        for name in list(node.gone):
            self.a_worker_dies_and_comes_back(name, False)
        for worker in node.workers.values():
            worker.slow = False
        node.settle()
        node.turn()
        for model in "ab":
            assert node.routed(model) == node.live(model)


Releases.TestCase.settings = settings(
    max_examples=examples(40), stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestReleases = Releases.TestCase
