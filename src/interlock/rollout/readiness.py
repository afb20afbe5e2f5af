"""Decides from a snapshot whether workers have a version, and whether they ever will."""

from collections.abc import Iterable

import msgspec

from interlock.core.letters import VersionState
from interlock.rollout.snapshot import Snapshot, WorkerView


def broken(snapshot: Snapshot) -> str:
    """Why the version, or one of several, can never become ready; "" while it may."""
    for one in candidates(snapshot):
        if one.quarantined is not None:
            return f"version {one.release.number} is quarantined: {one.quarantined}"
        if failures := ", ".join(_failures(one)):
            return failures
    return ""


def candidates(snapshot: Snapshot) -> Iterable[Snapshot]:
    """What is seen of each candidate, as if it were the only one."""
    yield snapshot
    for one in snapshot.variants:
        ramp = snapshot.ramp
        yield msgspec.structs.replace(
            snapshot,
            release=msgspec.structs.replace(snapshot.release, number=one.number),
            digest=one.digest,
            workers=one.workers,
            quarantined=one.quarantined,
            ramp=None if ramp is None else msgspec.structs.replace(ramp, crashes=one.crashes),
        )


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


def not_ready(snapshot: Snapshot, worker: WorkerView) -> str | None:
    """Why a worker does not have the version yet; None when it has."""
    if not worker.connected:
        return "is not connected"
    if worker.seen_revision < snapshot.revision:
        return "has not read of it yet"
    if worker.status is None or worker.status.digest != snapshot.digest:
        return "has not begun"
    return None if worker.status.state is VersionState.READY else f"is {worker.status.state}"


def not_switched(snapshot: Snapshot, worker: WorkerView) -> str | None:
    """Why a worker does not answer by it yet; None when it does."""
    why = not_ready(snapshot, worker)
    if why is not None or worker.revision >= snapshot.revision:
        return why
    return None if snapshot.waited_s >= snapshot.limits.settle_s else "has not switched yet"


def what_stays(snapshot: Snapshot) -> str:
    """What goes on answering when a release ends here, in words."""
    return "nothing is live" if snapshot.live is None else f"version {snapshot.live.number} stays live"
