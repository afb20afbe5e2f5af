"""Waiting for a release ends when it has ended, tells each state once, and is bounded."""

import pytest

from interlock.core.errors import ReleaseFailed
from interlock.operations.wait import poll_release
from interlock.registry.rows import ReleaseRow, ReleaseState


def a_row(state: ReleaseState) -> ReleaseRow:
    return ReleaseRow(5, "iris", "2", "now", state, "", "1", 0, 0.0, 0.0, None)


def test_it_tells_each_state_once_and_ends_with_the_last() -> None:
    states = [ReleaseState.REQUESTED, ReleaseState.PREPARING, ReleaseState.PREPARING, ReleaseState.DONE]
    coming = iter(states)
    told: list[ReleaseState] = []
    row = poll_release(
        lambda _: a_row(next(coming)), 5, 10.0, lambda row: told.append(row.state), sleep=lambda _: None
    )
    assert row.state is ReleaseState.DONE
    assert told == [ReleaseState.REQUESTED, ReleaseState.PREPARING, ReleaseState.DONE]


def test_it_gives_up_and_says_that_the_release_goes_on() -> None:
    with pytest.raises(
        ReleaseFailed, match=r"release 5 of 'iris' \(version 2\) is still preparing after 0 s"
    ):
        poll_release(lambda _: a_row(ReleaseState.PREPARING), 5, 0.0)
