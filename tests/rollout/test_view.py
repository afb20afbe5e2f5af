"""How an open release reads for people: what is compared, what is allowed, and what is waited for."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from interlock.core.state import PairCounts
from interlock.operations import release
from interlock.operations.context import Context
from interlock.rollout.plan import CANARY, SHADOW
from interlock.rollout.view import RolloutView, unseen, view
from tests.operations.homes import a_home, release_and_carry_out
from tests.rollout.histories import GOOD, POLICY, RATE_PER_S, begun, decide, look, tried


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=2)
    release_and_carry_out(context, "iris", "1")
    yield context
    context.close()


def seen(view: RolloutView) -> RolloutView:
    """The view, as it comes out of JSON."""
    assert msgspec.json.decode(msgspec.json.encode(view), type=RolloutView) == view
    return view


def test_before_anything_is_compared_there_is_no_judgement(ctx: Context) -> None:
    row = ctx.ledger.request_release("iris", "2", CANARY, 1.0, policy=POLICY)
    found = seen(unseen(row, "1", 5.0))
    assert (found.release, found.incumbent, found.decided, found.judgement) == (row, "1", "hold", None)
    found = seen(view(*look(ctx, row), 5.0))
    assert (found.decided, found.why, found.epochs, found.judgement) == ("prepare", "", (), None)
    found = seen(view(*look(ctx, decide(ctx, row), pending=True), 5.0))
    assert (found.decided, found.why) == ("hold", "worker-0 has not read of it yet")
    assert found.may_send is None and found.rate_per_s == RATE_PER_S


def test_a_shadow_says_how_many_copies_ran_and_what_is_still_needed(ctx: Context) -> None:
    row = begun(ctx, SHADOW)
    few = tried(1, 0.0, PairCounts(good=30, agreed=30))
    found = seen(view(*look(ctx, row, few), 5.0))
    assert found.decided == "hold" and found.why.startswith("a shadow, 30 copies: ")
    assert found.judgement is not None and found.judgement.pairs.good == 30
    assert found.epochs == (few,) and found.incumbent == "1"


def test_a_canary_says_its_harm_and_how_many_more_requests_its_budget_allows(ctx: Context) -> None:
    row = begun(ctx, CANARY)
    few = seen(view(*look(ctx, row, tried(1, 0.0, PairCounts(good=30, agreed=30))), 5.0))
    assert few.judgement is not None and few.may_send is not None
    assert few.judgement.excess_most == 1.0, "what copies did says nothing of answers"
    assert few.may_send == pytest.approx(POLICY.budget / (1.0 - POLICY.margin))
    many = seen(view(*look(ctx, row, tried(1, 0.0, GOOD)), 5.0))
    assert (many.decided, many.may_send) == ("weight", few.may_send)
    assert many.why.startswith("the harm budget allows")


def test_who_pauses_it_is_what_is_waited_for(ctx: Context) -> None:
    begun(ctx, CANARY)
    row = release.pause(ctx, "iris")
    found = seen(view(*look(ctx, row, tried(1, 0.0, PairCounts(good=30, agreed=30))), 5.0))
    assert (found.decided, found.why) == ("hold", "paused: paused by hand")


def test_where_nothing_is_live_it_has_no_incumbent(ctx: Context) -> None:
    row = ctx.ledger.request_release("iris", "2", CANARY, 1.0, policy=POLICY)
    ctx.ledger.set_live("iris", None, 2.0)
    found = seen(view(*look(ctx, row), 5.0))
    assert found.incumbent is None
