"""Waits for a release to end, over any way to read its row: the ledger, or a node's admin API."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from interlock.core.errors import ReleaseFailed
from interlock.registry.rows import ReleaseRow, ReleaseState

if TYPE_CHECKING:
    from interlock.operations.context import Context

POLL_S = 0.05
"""How often a wait looks at the row."""


def wait_release(ctx: Context, release_id: int, timeout_s: float) -> ReleaseRow:
    """The release once it has finished, however it ended.

    Raises: ReleaseFailed if it is still open after `timeout_s` (it goes on); LedgerError for an unknown one.
    """
    return poll_release(ctx.ledger.release, release_id, timeout_s)


def poll_release(
    read: Callable[[int], ReleaseRow],
    release_id: int,
    timeout_s: float,
    on_state: Callable[[ReleaseRow], None] = lambda row: None,
    told: ReleaseState | None = None,
    sleep: Callable[[float], None] = time.sleep,
    enough: tuple[ReleaseState, ...] = (),
) -> ReleaseRow:
    """`wait_release` over any way to read the row; `on_state` is called at each state after `told`. One
    that is in a state of `enough` is not waited for any longer."""
    until_s = time.monotonic() + timeout_s
    state = told
    while True:
        row = read(release_id)
        if row.state is not state:
            state = row.state
            on_state(row)
        if row.state.finished or row.state in enough:
            return row
        if time.monotonic() >= until_s:
            raise ReleaseFailed(
                f"release {row.id} of {row.model!r} (version {row.number}) is still {row.state} after "
                f"{timeout_s:g} s and goes on; see: interlock events {row.model}"
            )
        sleep(POLL_S)
