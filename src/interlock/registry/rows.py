"""ReleaseRow and Event: what the ledger gives out, and which steps a release may take."""

from enum import StrEnum
from typing import Any

import msgspec


class ReleaseState(StrEnum):
    """Where a release stands. DONE, FAILED and SUPERSEDED are final."""

    REQUESTED = "requested"
    PREPARING = "preparing"
    SWITCHING = "switching"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"

    @property
    def finished(self) -> bool:
        return self not in OPEN_STATES


OPEN_STATES = (ReleaseState.REQUESTED, ReleaseState.PREPARING, ReleaseState.SWITCHING)

_ENDS = (ReleaseState.FAILED, ReleaseState.SUPERSEDED)
NEXT_STATES: dict[ReleaseState, tuple[ReleaseState, ...]] = {
    ReleaseState.REQUESTED: (ReleaseState.PREPARING, *_ENDS),
    ReleaseState.PREPARING: (ReleaseState.SWITCHING, *_ENDS),
    ReleaseState.SWITCHING: (ReleaseState.DONE, *_ENDS),
    ReleaseState.DONE: (),
    ReleaseState.FAILED: (),
    ReleaseState.SUPERSEDED: (),
}


class ReleaseRow(msgspec.Struct, frozen=True):
    """One release of one version. Times are wall-clock seconds (Unix); `finished_s` is None while it is open.

    `previous_number` is what was live when it was requested (None: nothing); `epoch` counts the changes of
    weight within the release; `reason` says why it failed or was superseded.
    """

    id: int
    model: str
    number: str
    strategy: str
    state: ReleaseState
    reason: str
    previous_number: str | None
    epoch: int
    requested_s: float
    changed_s: float
    finished_s: float | None


class Event(msgspec.Struct, frozen=True):
    """One line of the append-only log. `seq` only grows; `model` is None for what concerns the whole node."""

    seq: int
    time_s: float
    model: str | None
    kind: str
    body: dict[str, Any]
