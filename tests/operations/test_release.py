"""Going back: which version, when it is refused, and that it is never forward to what was rolled back."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError, ModelNotFound, ReleaseRefused
from interlock.core.model import artifact_path
from interlock.operations import release
from interlock.operations.context import Context
from interlock.registry.rows import RampEpoch, ReleaseRow, ReleaseState
from interlock.rollout.plan import CANARY, NOW, ROLLBACK
from tests.operations.homes import a_home, carry_out, release_and_carry_out


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=4)
    for version in context.ledger.versions():
        artifact_path(context.home, version.digest).mkdir(parents=True)
    yield context
    context.close()


def test_rollback_goes_back_and_back_again(ctx: Context) -> None:
    for number in ("1", "2", "3"):
        release_and_carry_out(ctx, "iris", number)
    first = carry_out(ctx, release.rollback(ctx, "iris"))
    second = carry_out(ctx, release.rollback(ctx, "iris"))
    assert [first.number, second.number] == ["2", "1"]
    with pytest.raises(ReleaseRefused, match="nothing before it"):
        release.rollback(ctx, "iris")


def test_ten_releases_and_rollbacks_in_turn(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    for _ in range(10):
        release_and_carry_out(ctx, "iris", "2")
        assert carry_out(ctx, release.rollback(ctx, "iris")).number == "1"
    live = ctx.ledger.live("iris")
    assert live is not None and live.number == "1"


def test_a_failed_release_is_not_gone_back_to(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    bad = ctx.ledger.request_release("iris", "2", "now", 1.0)
    ctx.ledger.advance(bad.id, ReleaseState.PREPARING, time_s=2.0)
    ctx.ledger.advance(bad.id, ReleaseState.FAILED, "it crashed", time_s=3.0)
    release_and_carry_out(ctx, "iris", "3")
    assert release.rollback(ctx, "iris").number == "1"


def test_rollback_stops_a_release_under_way_and_keeps_what_is_live(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    release_and_carry_out(ctx, "iris", "2")
    under_way = ctx.ledger.request_release("iris", "3", "now", 1.0)
    ctx.ledger.advance(under_way.id, ReleaseState.PREPARING, time_s=2.0)
    back = carry_out(ctx, release.rollback(ctx, "iris"))
    assert back.number == "2"
    assert ctx.ledger.release(under_way.id).state is ReleaseState.SUPERSEDED
    assert release.rollback(ctx, "iris").number == "1"


def test_rollback_stops_the_very_first_release(ctx: Context) -> None:
    first = ctx.ledger.request_release("iris", "1", "now", 1.0)
    stopped = release.rollback(ctx, "iris")
    assert (stopped.id, stopped.state) == (first.id, ReleaseState.SUPERSEDED)
    assert ctx.ledger.open_releases() == []


def test_rollback_says_why_it_cannot(ctx: Context) -> None:
    with pytest.raises(ReleaseRefused, match="no live version"):
        release.rollback(ctx, "iris")
    with pytest.raises(ModelNotFound, match="'rose' here; known: iris"):
        release.rollback(ctx, "rose")


def test_unload_stops_what_is_under_way_and_takes_the_model_off(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    ctx.ledger.request_release("iris", "2", "now", 1.0)
    release.unload(ctx, "iris")
    assert ctx.ledger.live("iris") is None
    assert ctx.ledger.open_releases() == []


@pytest.fixture
def quick_node(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that ends a release between the look at the open ones and what is then done about them."""
    look = ctx.ledger.open_releases

    def look_too_early() -> list[ReleaseRow]:
        found = look()
        for row in found:
            carry_out(ctx, row)
        return found

    monkeypatch.setattr(ctx.ledger, "open_releases", look_too_early)


@pytest.mark.usefixtures("quick_node")
def test_unload_of_a_model_whose_release_has_just_ended(ctx: Context) -> None:
    row = ctx.ledger.request_release("iris", "1", "now", 1.0)
    release.unload(ctx, "iris")
    assert ctx.ledger.live("iris") is None and ctx.ledger.release(row.id).state is ReleaseState.DONE


@pytest.mark.usefixtures("quick_node")
def test_rollback_of_a_first_release_that_has_just_ended(ctx: Context) -> None:
    ctx.ledger.request_release("iris", "1", "now", 1.0)
    with pytest.raises(ReleaseRefused, match="version 1 of 'iris' is the first that was live"):
        release.rollback(ctx, "iris")


@given(st.lists(st.one_of(st.just("back"), st.integers(1, 5).map(str)), max_size=40))
def test_version_before_is_what_a_pile_of_releases_says(moves: list[str]) -> None:
    rows: list[ReleaseRow] = []
    pile: list[str] = []  # the model: released versions on top of each other, rolled back ones taken off

    def done(number: str, strategy: str) -> None:
        row_id = len(rows) + 1
        rows.append(ReleaseRow(row_id, "m", number, strategy, ReleaseState.DONE, "", None, 0, 0.0, 0.0, 0.0))

    for move in moves:
        before = release.version_before(rows[::-1])
        assert before == (pile[-2] if len(pile) > 1 else None)
        if move == "back":
            if before is not None:
                done(before, ROLLBACK)
                pile.pop()
        else:
            done(move, NOW)
            if not pile or pile[-1] != move:
                pile.append(move)


def test_a_canary_has_its_policy_and_only_one_release_of_a_model_is_under_way(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    with pytest.raises(ReleaseRefused, match="version 1 of 'iris' is live already"):
        release.release_canary(ctx, "iris", "1")
    row = release.release_canary(ctx, "iris", "2", {"budget": 7})
    assert row.policy is not None and (row.strategy, row.policy.budget) == (CANARY, 7.0)
    ramp(ctx, row)
    with pytest.raises(ReleaseRefused, match=rf"release {row.id} of 'iris' \(version 2\) is still ramping"):
        release.release_canary(ctx, "iris", "3")
    with pytest.raises(ReleaseRefused, match="still ramping"):
        release.release_blue_green(ctx, "iris", "3")


def test_a_canary_is_paused_resumed_with_another_budget_and_promoted(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    with pytest.raises(ReleaseRefused, match="no release of 'iris' is under way: nothing can be paused"):
        release.pause(ctx, "iris")
    row = ramp(ctx, release.release_canary(ctx, "iris", "2"))
    assert release.pause(ctx, "iris").state is ReleaseState.PAUSED
    with pytest.raises(ReleaseRefused, match="is paused and cannot be paused; that takes"):
        release.pause(ctx, "iris")
    with pytest.raises(ConfigError, match="budget 0 of a release"):
        release.resume(ctx, "iris", budget=0)
    resumed = release.resume(ctx, "iris", budget=200)
    assert (resumed.state, resumed.resumed_epoch, resumed.weight) == (ReleaseState.RAMPING, 1, 0.05)
    assert resumed.policy is not None and row.policy is not None and resumed.resumed_s is not None
    assert resumed.policy == msgspec.structs.replace(row.policy, budget=200.0)
    assert release.promote(ctx, "iris").state is ReleaseState.SWITCHING
    assert ctx.ledger.release(row.id).reason == "promoted by hand"


def test_what_is_aborted_gives_its_requests_back_or_ends(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    ramp(ctx, release.release_canary(ctx, "iris", "2"))
    assert release.abort(ctx, "iris").state is ReleaseState.ROLLING_BACK
    ctx.ledger.advance(ctx.ledger.open_releases()[0].id, ReleaseState.FAILED, "aborted by hand", time_s=9.0)
    release.release_blue_green(ctx, "iris", "2", keep_s=5.0)
    assert release.abort(ctx, "iris").state is ReleaseState.SUPERSEDED
    assert ctx.ledger.open_releases() == []


def ramp(ctx: Context, row: ReleaseRow) -> ReleaseRow:
    ctx.ledger.advance(row.id, ReleaseState.PREPARING, time_s=2.0)
    return ctx.ledger.advance(row.id, ReleaseState.RAMPING, time_s=3.0, epoch=RampEpoch(1, 0.05, (), 3.0))


def test_the_app_file_of_the_home_says_how_versions_are_tried(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    (ctx.home / "app.toml").write_text("[models.iris.release]\nbudget = 9\nshadow = 0.5\n")
    row = release.release_canary(ctx, "iris", "2", {"budget": 7})
    assert row.policy is not None and (row.policy.budget, row.policy.shadow) == (7.0, 0.5)
    (ctx.home / "app.toml").write_text("[models.iris.release]\nbudget = 0\n")
    with pytest.raises(ConfigError, match="app.toml"):
        release.release_canary(ctx, "iris", "2")
