"""ReleaseRow, RampEpoch and Event: what the ledger gives out, and which steps a release may take."""

from enum import StrEnum
from typing import Any

import msgspec

from interlock.core.policy import Policy
from interlock.evidence.exceedance import Cut


class ReleaseState(StrEnum):
    """Where a release stands. DONE, PASSED (a shadow that proved itself), FAILED and SUPERSEDED are final."""

    REQUESTED = "requested"
    PREPARING = "preparing"
    RAMPING = "ramping"
    PAUSED = "paused"
    SWITCHING = "switching"
    KEEPING = "keeping"
    ROLLING_BACK = "rolling_back"
    DONE = "done"
    PASSED = "passed"
    FAILED = "failed"
    SUPERSEDED = "superseded"

    @property
    def finished(self) -> bool:
        return self not in OPEN_STATES


_ENDS = (ReleaseState.FAILED, ReleaseState.SUPERSEDED)
NEXT_STATES: dict[ReleaseState, tuple[ReleaseState, ...]] = {
    ReleaseState.REQUESTED: (ReleaseState.PREPARING, *_ENDS),
    ReleaseState.PREPARING: (ReleaseState.RAMPING, ReleaseState.SWITCHING, *_ENDS),
    # A new weight is a step from ramping to ramping.
    ReleaseState.RAMPING: (
        ReleaseState.RAMPING,
        ReleaseState.PAUSED,
        ReleaseState.SWITCHING,
        ReleaseState.PASSED,
        ReleaseState.ROLLING_BACK,
        ReleaseState.SUPERSEDED,
    ),
    ReleaseState.PAUSED: (
        ReleaseState.RAMPING,
        ReleaseState.SWITCHING,
        ReleaseState.ROLLING_BACK,
        ReleaseState.SUPERSEDED,
    ),
    ReleaseState.SWITCHING: (ReleaseState.KEEPING, ReleaseState.DONE, *_ENDS),
    ReleaseState.KEEPING: (ReleaseState.DONE, ReleaseState.ROLLING_BACK, ReleaseState.SUPERSEDED),
    ReleaseState.ROLLING_BACK: _ENDS,
    ReleaseState.DONE: (),
    ReleaseState.PASSED: (),
    ReleaseState.FAILED: (),
    ReleaseState.SUPERSEDED: (),
}
OPEN_STATES = tuple(state for state, following in NEXT_STATES.items() if following)


class ReleaseRow(msgspec.Struct, frozen=True):
    """One release of one version. Times are wall-clock seconds (Unix); `finished_s` is None while it is open.

    `previous_number` is what was live when it was requested (None: nothing); `epoch` counts the changes of
    weight within the release; `reason` says why it failed, was superseded, is paused or is rolled back.
    `weight` is the candidate's share while both versions answer; `policy` how it is tried, None where all
    switch at once. `resumed_epoch` and `resumed_s`: where it stood when a person last resumed it, 0 and
    None if nobody did.
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
    policy: Policy | None = None
    weight: float = 0.0
    resumed_epoch: int = 0
    resumed_s: float | None = None


class RampEpoch(msgspec.Struct, frozen=True):
    """A stretch of a release in which the weight and the cuts are constant. `number` is in the key of all
    counts; `cuts` say what is slow, set before the first request that they judge; `started_s` is Unix
    time."""

    number: int
    weight: float
    cuts: tuple[Cut, ...]
    started_s: float


class Event(msgspec.Struct, frozen=True):
    """One line of the append-only log. `seq` only grows; `model` is None for what concerns the whole node."""

    seq: int
    time_s: float
    model: str | None
    kind: str
    body: dict[str, Any]


class Followed(msgspec.Struct, frozen=True):
    """The last move of an alias that was dealt with: to which version (None: it was deleted), and which was
    the model's newest release by then (0: none)."""

    alias: str
    number: str | None
    release: int
