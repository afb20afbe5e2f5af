"""Decides the next step of a release from one snapshot of everything that matters.

Strategy `now` (and `rollback`, which is the same towards what was live before): requested -> preparing
(loaded beside the old version) -> switching (the route points to it) -> done. Whatever goes wrong before that
leaves the old version live, and the reason names each process that could not.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from interlock.core.letters import Report, VersionState, VersionStatus
from interlock.registry.rows import ReleaseRow, ReleaseState

DECISION = 1
"""Number of this decision code, logged with each decision: a replay compares like with like."""


class WorkerView(msgspec.Struct, frozen=True):
    """One worker that should be there, as its latest Report shows it; `connected` is False when it is not.

    `status` is that of the version being released, None where the worker does not have it.
    """

    process: str
    connected: bool
    seen_revision: int = -1
    revision: int = -1
    status: VersionStatus | None = None


class Limits(msgspec.Struct, frozen=True):
    """Seconds. `load_s`: for loading everywhere; `switch_s`: for the swap; `settle_s`: after which a worker
    that has the version and has read the route counts as switched, though it still works on other models."""

    load_s: float = 120.0
    switch_s: float = 30.0
    settle_s: float = 2.0


class Snapshot(msgspec.Struct, frozen=True):
    """All that a decision sees. `waited_s` is how long the release has been in its state under the eyes of
    this control; `revision` the Desired that carries the state, before which a Report says nothing of it;
    `quarantined` why the supervisor gave the version up, None if it did not.
    """

    release: ReleaseRow
    live: ReleaseRow | None
    digest: str
    revision: int
    waited_s: float
    workers: tuple[WorkerView, ...]
    quarantined: str | None = None
    limits: Limits = Limits()


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """Wait; `why` says for what."""

    why: str


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Load the version beside the live one."""


class Switch(msgspec.Struct, frozen=True, tag="switch"):
    """Every worker has it: point the route at it."""


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Every worker routes to it: it is live, and the old one may go."""


class Fail(msgspec.Struct, frozen=True, tag="fail"):
    """Give up; the old version stays."""

    reason: str


Action = Hold | Prepare | Switch | Finish | Fail

NEXT_STATE: dict[type[Prepare | Switch | Finish | Fail], ReleaseState] = {
    Prepare: ReleaseState.PREPARING,
    Switch: ReleaseState.SWITCHING,
    Finish: ReleaseState.DONE,
    Fail: ReleaseState.FAILED,
}


def next_action(snapshot: Snapshot) -> Action:
    """What to do now about one open release."""
    match snapshot.release.state:
        case ReleaseState.REQUESTED:
            return Prepare()
        case ReleaseState.PREPARING:
            return _prepare(snapshot)
        case ReleaseState.SWITCHING:
            return _switch(snapshot)
        case finished:
            return Hold(f"the release is {finished}")


def view_of(process: str, report: Report | None, model: str, number: str) -> WorkerView:
    """What a worker's latest Report (None: it is not connected) says about one version."""
    if report is None:
        return WorkerView(process, connected=False)
    statuses = (s for s in report.versions if s.model == model and s.number == number)
    return WorkerView(process, True, report.seen_revision, report.revision, next(statuses, None))


def _prepare(snapshot: Snapshot) -> Action:
    if broken := _broken(snapshot):
        return Fail(f"{broken}; {_what_stays(snapshot)}")
    waiting = [f"{w.process} {why}" for w in snapshot.workers if (why := _not_ready(snapshot, w)) is not None]
    if not waiting:
        return Switch()
    if snapshot.waited_s > snapshot.limits.load_s:
        limit = f"not ready everywhere within {snapshot.limits.load_s:g} s"
        return Fail(f"{limit}: {', '.join(waiting)}; {_what_stays(snapshot)}")
    return Hold(", ".join(waiting))


def _switch(snapshot: Snapshot) -> Action:
    if broken := _broken(snapshot):
        return Fail(f"{broken}; {_what_stays(snapshot)}")
    waiting = [
        f"{w.process} {why}" for w in snapshot.workers if (why := _not_switched(snapshot, w)) is not None
    ]
    if not waiting:
        return Finish()
    if snapshot.waited_s > snapshot.limits.switch_s:
        limit = f"not routed everywhere within {snapshot.limits.switch_s:g} s"
        return Fail(f"{limit}: {', '.join(waiting)}; {_what_stays(snapshot)}")
    return Hold(", ".join(waiting))


def _broken(snapshot: Snapshot) -> str:
    """Why the version can never become ready; "" while it may."""
    if snapshot.quarantined is not None:
        return f"version {snapshot.release.number} is quarantined: {snapshot.quarantined}"
    return ", ".join(_failures(snapshot))


def _failures(snapshot: Snapshot) -> Iterable[str]:
    for worker in snapshot.workers:
        status = worker.status
        # What a worker said before it read this release's Desired may be about an earlier try.
        if not worker.connected or worker.seen_revision < snapshot.revision or status is None:
            continue
        if status.digest == snapshot.digest and status.state in (
            VersionState.FAILED,
            VersionState.QUARANTINED,
        ):
            yield f"{worker.process}: {status.reason or status.state}"


def _not_ready(snapshot: Snapshot, worker: WorkerView) -> str | None:
    if not worker.connected:
        return "is not connected"
    if worker.seen_revision < snapshot.revision:
        return "has not read of it yet"
    if worker.status is None or worker.status.digest != snapshot.digest:
        return "has not begun"
    return None if worker.status.state is VersionState.READY else f"is {worker.status.state}"


def _not_switched(snapshot: Snapshot, worker: WorkerView) -> str | None:
    why = _not_ready(snapshot, worker)
    if why is not None or worker.revision >= snapshot.revision:
        return why
    return None if snapshot.waited_s >= snapshot.limits.settle_s else "has not switched yet"


def _what_stays(snapshot: Snapshot) -> str:
    return "nothing is live" if snapshot.live is None else f"version {snapshot.live.number} stays live"


def as_record(snapshot: Snapshot, action: Action) -> dict[str, Any]:
    """A decision as the event log keeps it: JSON values from which `replay` derives it again."""
    record: dict[str, Any] = msgspec.to_builtins(
        {"decision": DECISION, "snapshot": snapshot, "action": action}
    )
    return record
