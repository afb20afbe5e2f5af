"""Holds what is done when an alias moves: each move is dealt with once, and nothing else starts a release."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from interlock.registry.rows import Followed, ReleaseRow, ReleaseState
from interlock.rollout.follow import Ask, Note, Stay, Wait, next_step
from interlock.rollout.plan import CANARY, ROLLBACK

NUMBERS = st.sampled_from(["1", "2", "3"])


def a_row(
    id: int, number: str, state: ReleaseState = ReleaseState.DONE, strategy: str = CANARY
) -> ReleaseRow:
    return ReleaseRow(
        id=id,
        model="m",
        number=number,
        strategy=strategy,
        state=state,
        reason="",
        previous_number=None,
        epoch=0,
        requested_s=1.0,
        changed_s=1.0,
        finished_s=None,
    )


def last(number: str | None, release: int = 1) -> Followed:
    return Followed("champion", number, release)


@pytest.mark.parametrize(
    ("named", "before", "live", "newest", "wanted"),
    [
        (None, None, "1", None, Stay),
        ("2", None, "1", a_row(1, "1"), Ask),
        ("2", None, None, None, Ask),
        ("1", None, "1", a_row(1, "1"), Note),  # as it is when following begins
        ("2", None, "1", a_row(2, "2", ReleaseState.FAILED), Note),  # it has just been tried
        ("2", last("2"), "1", a_row(1, "2", ReleaseState.FAILED), Stay),  # rolled back: not again
        ("2", last("2"), "3", a_row(4, "3"), Stay),  # another one by hand
        ("3", last("2"), "2", a_row(1, "2"), Ask),
        ("2", last("3", 2), "1", a_row(2, "3", ReleaseState.FAILED), Ask),  # moved away and back again
        ("3", last("2"), "1", a_row(1, "2", ReleaseState.RAMPING), Wait),
        ("1", last("2"), "1", a_row(1, "2", ReleaseState.RAMPING), Wait),  # how it ends is not known yet
        ("1", last("2"), "1", a_row(1, "2", ReleaseState.FAILED), Note),
        ("3", last("2"), "1", a_row(2, "3", ReleaseState.RAMPING), Note),  # we were killed after asking
        ("3", last("2"), "1", a_row(2, "3", ReleaseState.FAILED), Note),
        ("3", last("2"), "1", a_row(1, "3", ReleaseState.FAILED), Ask),  # that was before the last move
        (None, last("2"), "2", a_row(1, "2"), Note),
        (None, last(None), "2", a_row(1, "2"), Stay),
        ("2", last(None), "1", a_row(1, "2", ReleaseState.FAILED), Ask),  # deleted, and set again
        ("2", Followed("other", "2", 1), "1", a_row(1, "1"), Ask),  # another alias was followed
        ("3", last("2", 3), "3", a_row(4, "3", strategy=ROLLBACK), Note),
        ("3", last("2", 3), "1", a_row(4, "3", ReleaseState.PREPARING, ROLLBACK), Wait),
    ],
)
def test_what_is_done(
    named: str | None,
    before: Followed | None,
    live: str | None,
    newest: ReleaseRow | None,
    wanted: type[Stay] | type[Wait] | type[Note] | type[Ask],
) -> None:
    assert type(next_step("champion", named, before, live, newest)) is wanted


@given(NUMBERS, st.none() | NUMBERS, st.sampled_from(ReleaseState), NUMBERS)
def test_nothing_is_asked_for_while_a_release_is_under_way(
    named: str, live: str | None, state: ReleaseState, number: str
) -> None:
    step = next_step("champion", named, last("9"), live, a_row(2, number, state))
    assert state.finished or not isinstance(step, Ask)


class Following(RuleBasedStateMachine):
    """An alias that moves, a person, and a follower that is killed between asking and remembering."""

    def __init__(self) -> None:
        super().__init__()
        self.named: str | None = None
        self.live: str | None = None
        self.last: Followed | None = None
        self.rows: list[ReleaseRow] = []
        self.moves = 0
        self.asked = 0

    @property
    def newest(self) -> ReleaseRow | None:
        return self.rows[-1] if self.rows else None

    @rule(number=st.none() | NUMBERS)
    def move(self, number: str | None) -> None:
        self.moves += number != self.named
        self.named = number

    @rule(is_killed=st.booleans())
    def look(self, is_killed: bool) -> None:
        step = next_step("champion", self.named, self.last, self.live, self.newest)
        newest_id = 0 if self.newest is None else self.newest.id
        if isinstance(step, Ask):
            assert self.newest is None or self.newest.state.finished
            assert step.number == self.named != self.live
            self.asked += 1
            self.rows.append(a_row(newest_id + 1, step.number, ReleaseState.RAMPING))
            if not is_killed:
                self.last = Followed("champion", step.number, newest_id + 1)
        elif isinstance(step, Note):
            self.last = Followed("champion", step.number, newest_id)

    @precondition(lambda self: self.rows and not self.rows[-1].state.finished)
    @rule(goes_well=st.booleans())
    def end(self, goes_well: bool) -> None:
        state = ReleaseState.DONE if goes_well else ReleaseState.FAILED
        self.rows[-1] = msgspec.structs.replace(self.rows[-1], state=state)
        if goes_well:
            self.live = self.rows[-1].number

    @invariant()
    def no_more_releases_than_moves(self) -> None:
        assert self.asked <= self.moves

    def teardown(self) -> None:
        """Left alone, it comes to rest: with the alias dealt with."""
        for _ in range(3):
            if self.rows and not self.rows[-1].state.finished:
                self.end(False)
            self.look(False)
        assert isinstance(next_step("champion", self.named, self.last, self.live, self.newest), Stay | Wait)


TestFollowing = Following.TestCase
