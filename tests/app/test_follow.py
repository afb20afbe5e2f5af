"""Holds that an alias that moves in a real registry asks for releases, each move once, and waits silently."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock.app import follow
from interlock.app.follow import Follower
from interlock.core.appfile import Follow
from interlock.core.errors import UntrustedArtifact
from interlock.operations.context import Context, open_context
from interlock.registry.mlflow import Registry
from interlock.registry.rows import ReleaseState
from tests.app.nodes import until
from tests.operations.homes import a_version, carry_out, release_and_carry_out

pytestmark = pytest.mark.slow

FOLLOW = {"line": Follow("champion")}


@pytest.fixture
def ctx(home_with_store: Path) -> Iterator[Context]:
    """Three versions of a model, of which the first is live, in the registry and in the ledger."""
    context = open_context(home_with_store)
    context.registry.client.create_registered_model("line")
    for number in ("1", "2", "3"):
        context.registry.client.create_model_version("line", source="s3://bucket/model")
        version = a_version("line", number)
        context.ledger.put_version(version, 1.0)
        (context.home / "artifacts" / version.digest.removeprefix("sha256:")).mkdir(parents=True)
    release_and_carry_out(context, "line", "1")
    yield context
    context.close()


def alias_events(ctx: Context) -> list[tuple[str, str | None]]:
    return [(e.kind, e.body["number"]) for e in ctx.ledger.events("line") if e.kind.startswith("alias.")]


def test_a_move_is_released_by_policy_once_whatever_becomes_of_it(ctx: Context) -> None:
    asked: list[int] = []
    follower = Follower(ctx, FOLLOW, lambda: asked.append(1))
    ctx.registry.set_alias("line", "champion", "2")
    follower.look("line")
    [row] = ctx.ledger.open_releases()
    assert (row.number, row.strategy, row.state, row.previous_number) == ("2", "canary", "requested", "1")
    assert row.policy is not None and row.policy.most_weight < 1, "never a jump of all requests"

    ctx.ledger.advance(row.id, ReleaseState.FAILED, "it was worse", time_s=2.0)
    follower.look("line")
    Follower(ctx, FOLLOW).look("line")  # of a control that was started anew
    assert ctx.ledger.open_releases() == []

    ctx.registry.set_alias("line", "champion", "3")
    follower.look("line")
    [row] = ctx.ledger.open_releases()
    ctx.registry.set_alias("line", "champion", "2")  # while that is under way
    follower.look("line")
    assert [one.id for one in ctx.ledger.open_releases()] == [row.id]
    carry_out(ctx, row)
    follower.look("line")
    assert [(one.number, one.previous_number) for one in ctx.ledger.open_releases()] == [("2", "3")]
    assert alias_events(ctx) == [("alias.released", number) for number in ("2", "3", "2")]
    assert len(asked) == 3


@pytest.mark.parametrize(("strategy", "policy"), [("now", False), ("shadow", True), ("blue-green", True)])
def test_how_is_as_the_app_file_says(ctx: Context, strategy: str, policy: bool) -> None:
    ctx.registry.set_alias("line", "champion", "2")
    Follower(ctx, {"line": Follow("champion", strategy)}).look("line")  # type: ignore[arg-type]
    [row] = ctx.ledger.open_releases()
    assert row.strategy == strategy and (row.policy is not None) == policy


def test_what_is_live_already_and_what_was_deleted_is_noted(ctx: Context) -> None:
    follower = Follower(ctx, FOLLOW)
    follower.look("line")  # there is no such alias
    ctx.registry.set_alias("line", "champion", "1")
    follower.look("line")
    follower.look("line")
    ctx.registry.client.delete_registered_model_alias("line", "champion")
    follower.look("line")
    assert alias_events(ctx) == [("alias.noted", "1"), ("alias.noted", None)]
    assert ctx.ledger.open_releases() == []


def test_what_cannot_be_released_is_refused_once_with_the_reason(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def untrusted(context: Context, model: str, number: str) -> None:
        tried.append(number)
        raise UntrustedArtifact("nobody vouched for it")

    monkeypatch.setitem(follow._ASK, "canary", untrusted)
    ctx.registry.set_alias("line", "champion", "2")
    follower = Follower(ctx, FOLLOW)
    for _ in range(3):
        follower.look("line")
    event = ctx.ledger.latest_events("line", 1)[0]
    assert (event.kind, event.body["reason"]) == ("alias.refused", "nobody vouched for it")
    assert tried == ["2"]


def test_a_registry_that_is_down_is_said_once_and_asked_again(
    ctx: Context, caplog: pytest.LogCaptureFixture
) -> None:
    ctx.registry.set_alias("line", "champion", "2")
    down = dataclasses.replace(ctx, registry=Registry(ctx.home, "http://127.0.0.1:9"))
    follower = Follower(down, FOLLOW)
    with caplog.at_level(logging.INFO, "interlock.follow"):
        for _ in range(3):
            follower.look("line")
        assert [record.message for record in caplog.records] == ["an alias has to wait"]
        assert ctx.ledger.open_releases() == []
        follower._context = ctx
        follower.look("line")
    assert [record.message for record in caplog.records][1:] == [
        "alias released",
        "aliases are followed again",
    ]
    assert len(ctx.ledger.open_releases()) == 1


def test_the_thread_looks_when_it_starts_and_when_it_is_woken(ctx: Context) -> None:
    follower = Follower(ctx, {"line": Follow("champion", every_s=3600)})
    ctx.registry.set_alias("line", "champion", "1")
    follower.start()
    until(lambda: alias_events(ctx) == [("alias.noted", "1")], "the first look")
    ctx.registry.set_alias("line", "champion", "2")
    follower.wake()
    until(lambda: len(ctx.ledger.open_releases()) == 1, "the look that was asked for")
