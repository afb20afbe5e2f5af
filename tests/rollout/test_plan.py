"""The plan of a release: availability is kept in every interleaving, and every release comes to an end."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.letters import Report, VersionState, VersionStatus
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.plan import Action, Fail, Finish, Hold, Prepare, Switch, next_action
from interlock.rollout.snapshot import Limits, Snapshot, WorkerView, view_of

DIGEST = "sha256:" + "b" * 64
LIMITS = Limits()


def release(state: ReleaseState, number: str = "2", id: int = 9) -> ReleaseRow:
    return ReleaseRow(id, "iris", number, "now", state, "", "1", 0, 1.0, 1.0, None)


LIVE = release(ReleaseState.DONE, "1", 5)
WAITING = (ReleaseState.RAMPING, ReleaseState.PAUSED)
"""They wait for evidence, or for a person, for as long as the policy says."""


def status(state: VersionState, reason: str = "", digest: str = DIGEST) -> VersionStatus:
    return VersionStatus("iris", "2", digest, state, reason)


def worker(name: str, state: VersionState | None, seen: int = 10, revision: int = 10) -> WorkerView:
    return WorkerView(name, True, seen, revision, None if state is None else status(state))


def snapshot(state: ReleaseState, *workers: WorkerView, waited_s: float = 0.0) -> Snapshot:
    return Snapshot(release(state), LIVE, DIGEST, revision=10, waited_s=waited_s, workers=workers)


VIEWS = st.builds(
    WorkerView,
    st.sampled_from(["worker-0", "worker-1"]),
    st.booleans(),
    st.integers(8, 12),
    st.integers(8, 12),
    st.none()
    | st.builds(status, st.sampled_from(VersionState), st.just("why"), st.sampled_from([DIGEST, "sha256:x"])),
)
SNAPSHOTS = st.builds(
    Snapshot,
    st.builds(release, st.sampled_from(ReleaseState)),
    st.none() | st.just(LIVE),
    st.just(DIGEST),
    st.just(10),
    st.floats(0.0, 300.0),
    st.lists(VIEWS, min_size=1, max_size=4).map(tuple),
    st.none() | st.just("crashed 3 times"),
)


@given(SNAPSHOTS)
def test_the_route_moves_only_when_every_worker_has_the_version(snap: Snapshot) -> None:
    action = next_action(snap)
    if isinstance(action, (Switch, Finish)) and snap.release.state is not ReleaseState.KEEPING:
        assert snap.quarantined is None
        for view in snap.workers:
            assert view.connected and view.seen_revision >= snap.revision
            assert view.status is not None and view.status.digest == DIGEST
            assert view.status.state is VersionState.READY


@given(SNAPSHOTS)
def test_no_open_release_waits_beyond_its_limit_and_no_finished_one_moves(snap: Snapshot) -> None:
    action = next_action(snap)
    if snap.release.state.finished:
        assert isinstance(action, Hold)
    elif snap.waited_s > LIMITS.load_s and snap.release.state not in WAITING:
        assert not isinstance(action, Hold)


@given(SNAPSHOTS)
def test_a_failure_says_why_and_what_stays(snap: Snapshot) -> None:
    action = next_action(snap)
    if isinstance(action, Fail):
        stays = "nothing is live" if snap.live is None else "version 1 stays live"
        assert action.reason.endswith(stays) and len(action.reason) > len(stays) + 2
    if isinstance(action, Hold) and not snap.release.state.finished:
        assert action.why


@given(SNAPSHOTS)
def test_a_snapshot_and_its_action_come_back_from_the_log(snap: Snapshot) -> None:
    back = msgspec.json.decode(msgspec.json.encode(snap), type=Snapshot)
    assert back == snap
    action = next_action(snap)
    assert msgspec.json.decode(msgspec.json.encode(action), type=Action) == action


READY, FAILED, LOADING = VersionState.READY, VersionState.FAILED, VersionState.LOADING


@pytest.mark.parametrize(
    ("snap", "wanted"),
    [
        (snapshot(ReleaseState.REQUESTED), Prepare),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", READY)), Switch),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", READY), worker("worker-1", LOADING)), Hold),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", READY), worker("worker-1", None)), Hold),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", READY, seen=9)), Hold),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", READY), WorkerView("worker-1", False)), Hold),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", FAILED)), Fail),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", FAILED, seen=9)), Hold),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", LOADING), waited_s=121.0), Fail),
        (snapshot(ReleaseState.PREPARING, worker("worker-0", READY), waited_s=121.0), Switch),
        (snapshot(ReleaseState.SWITCHING, worker("worker-0", READY)), Finish),
        (snapshot(ReleaseState.SWITCHING, worker("worker-0", READY, revision=9)), Hold),
        (snapshot(ReleaseState.SWITCHING, worker("worker-0", READY, revision=9), waited_s=2.0), Finish),
        (snapshot(ReleaseState.SWITCHING, worker("worker-0", READY, 9, 9), waited_s=31.0), Fail),
        (snapshot(ReleaseState.SWITCHING, worker("worker-0", VersionState.QUARANTINED)), Fail),
        (snapshot(ReleaseState.SWITCHING, WorkerView("worker-0", False)), Hold),
    ],
)
def test_each_step(snap: Snapshot, wanted: type) -> None:
    assert isinstance(next_action(snap), wanted)


def test_a_failure_names_each_worker_that_failed() -> None:
    snap = snapshot(
        ReleaseState.PREPARING,
        worker("worker-0", READY),
        msgspec.structs.replace(worker("worker-1", FAILED), status=status(FAILED, "no such file")),
        msgspec.structs.replace(worker("worker-2", FAILED), status=status(FAILED, "out of memory")),
    )
    assert next_action(snap) == Fail("worker-1: no such file, worker-2: out of memory; version 1 stays live")


def test_a_view_takes_the_status_of_the_version_and_of_no_other() -> None:
    others = VersionStatus("iris", "1", "sha256:a", READY), VersionStatus("rose", "2", DIGEST, READY)
    report = Report("n", "worker-0", 1, 2, 7, 6, True, versions=(*others, status(LOADING)))
    assert view_of("worker-0", report, "iris", "2") == WorkerView("worker-0", True, 7, 6, status(LOADING))
    assert view_of("worker-0", report, "iris", "3").status is None
    assert not view_of("worker-0", None, "iris", "2").connected
