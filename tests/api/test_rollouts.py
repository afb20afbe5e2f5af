"""The admin API's paths about one release: how it stands while it is open, what it certifies after."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from interlock.operations.context import Context
from interlock.registry.rows import ReleaseState
from interlock.rollout.certificate import Certificate
from interlock.rollout.plan import CANARY, SHADOW, Action
from interlock.rollout.snapshot import Snapshot
from interlock.rollout.view import RolloutView
from tests.api.servers import served
from tests.operations.homes import a_home, a_node, a_report, release_and_carry_out
from tests.rollout.histories import GOOD, POLICY, a_shadow, begun, decide, look, tried

NODE = a_node(a_report("worker-0"))


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=2)
    release_and_carry_out(context, "iris", "1")
    yield context
    context.close()


def test_an_open_release_is_told_as_the_last_look_saw_it(ctx: Context) -> None:
    row = begun(ctx, SHADOW)
    looked: dict[str, tuple[Snapshot, Action]] = {"iris": look(ctx, row, tried(1, 0.0, GOOD))}
    with served(ctx, NODE, looked=lambda: looked) as api:
        code, body = api.ask("GET", "/api/models/iris/rollout")
        found = msgspec.convert(body, RolloutView)
        assert (code, found.release, found.decided, found.incumbent) == (200, row, "pass", "1")
        assert found.judgement is not None and found.judgement.proved


def test_a_release_that_no_look_has_seen_yet_is_open_all_the_same(ctx: Context) -> None:
    """It was asked for just now, or control has been killed and has just started."""
    row = ctx.ledger.request_release("iris", "2", CANARY, 1.0, policy=POLICY)
    with served(ctx, NODE) as api:
        for _ in range(3):
            code, body = api.ask("GET", "/api/models/iris/rollout")
            found = msgspec.convert(body, RolloutView)
            assert (code, found.release, found.incumbent, found.judgement) == (200, row, "1", None)
            assert found.why == "it has not been looked at yet"
            row = decide(ctx, row, tried(1, 0.0, GOOD))


def test_where_none_is_under_way_the_last_one_is_named(ctx: Context) -> None:
    row = a_shadow(ctx, GOOD)
    with served(ctx, NODE) as api:
        code, body = api.ask("GET", "/api/models/iris/rollout")
        assert (code, body["error"]["code"]) == (404, "NotFound")
        words = f"no release of 'iris' is under way; the last one ({row.id}) is passed"
        assert body["error"]["message"] == words
        code, body = api.ask("GET", "/api/models/rose/rollout")
        assert (code, body["error"]["code"]) == (404, "ModelNotFound")


def test_a_certificate_and_why_there_is_none(ctx: Context) -> None:
    row = a_shadow(ctx, GOOD)
    with served(ctx, NODE) as api:
        code, body = api.ask("GET", f"/api/releases/{row.id}/certificate")
        found = msgspec.convert(body, Certificate)
        assert (code, found.release, found.verdict) == (200, row.id, "passed")
        code, body = api.ask("GET", "/api/releases/1/certificate")
        assert (code, body["error"]["code"]) == (404, "NotFound")
        assert "release 1 of 'iris' (now) compared no versions" in body["error"]["message"]
        code, body = api.ask("GET", "/api/releases/99/certificate")
        assert (code, body["error"]["code"]) == (404, "NotFound")
        assert "no release 99" in body["error"]["message"]


def test_a_record_that_cannot_be_read_is_an_error_that_says_so(ctx: Context) -> None:
    row = begun(ctx, SHADOW)
    newer = {"decision": 99, "snapshot": {"another": "shape"}, "action": {"type": "conjure"}}
    ctx.ledger.advance(row.id, ReleaseState.ROLLING_BACK, "x", newer, time_s=row.requested_s + 1.0)
    with served(ctx, NODE) as api:
        code, body = api.ask("GET", f"/api/releases/{row.id}/certificate")
        assert (code, body["error"]["code"]) == (500, "LedgerError")
        assert "a record that this Interlock cannot read" in body["error"]["message"]
