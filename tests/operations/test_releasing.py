"""Releases from Python, on a home without a node and against what a node tells."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import interlock
from interlock.core.errors import (
    ConfigError,
    ModelNotFound,
    NodeUnreachable,
    ReleaseFailed,
    ReleaseRefused,
)
from interlock.core.model import artifact_path
from interlock.core.policy import Policy, Undecided
from interlock.core.route import Range
from interlock.operations import releasing
from interlock.operations.context import Context
from interlock.registry.rows import ReleaseRow, ReleaseState
from tests.operations.homes import a_home, release_and_carry_out


@pytest.fixture(autouse=True)
def no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERLOCK_URL", raising=False)


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    context = a_home(tmp_path / "home", iris=3)
    for version in context.ledger.versions():
        artifact_path(context.home, version.digest).mkdir(parents=True)
    release_and_carry_out(context, "iris", "1")
    yield context
    context.close()


def test_without_a_node_a_release_is_asked_for(ctx: Context) -> None:
    row = interlock.release("iris", 2, home=ctx.home, budget=20, slower=1.5, unit="json:user")
    assert (row.number, row.strategy, row.state) == ("2", "canary", "requested")
    assert row.policy is not None and (row.policy.budget, row.policy.unit) == (20.0, "json:user")
    assert ctx.ledger.release(row.id) == row
    with pytest.raises(NodeUnreachable, match="no node runs"):
        interlock.look("iris", home=ctx.home)
    assert interlock.abort("iris", home=ctx.home).state == "superseded"


@pytest.mark.parametrize("strategy", ["canary", "shadow", "now", "blue-green"])
def test_each_strategy_has_its_name(ctx: Context, strategy: releasing.Strategy) -> None:
    keep: dict[str, Any] = {"keep_s": 7} if strategy in ("canary", "blue-green") else {}
    row = interlock.release("iris", "3", strategy=strategy, home=str(ctx.home), **keep)
    assert row.strategy == strategy and (row.policy is not None) == (strategy != "now")
    if keep:
        assert row.policy is not None and row.policy.keep_s == 7.0


def test_rules_may_be_the_policy_s_own_types(ctx: Context) -> None:
    ranges = (Range("y", 0.0),)
    row = interlock.release("iris", 2, home=ctx.home, undecided=Undecided.ROLL_BACK, guardrails=["errors"])
    assert row.policy is not None and row.policy.undecided is Undecided.ROLL_BACK
    assert row.policy.guardrails == ("errors",)
    row = interlock.release("iris", 3, home=ctx.home, ranges=ranges)
    assert row.policy is not None and row.policy.ranges == ranges


def test_the_app_file_says_what_is_left_out(ctx: Context) -> None:
    (ctx.home / "app.toml").write_text("[models.iris.release]\nbudget = 7\nlarger = 3\n")
    row = interlock.release("iris", 2, home=ctx.home, larger=4)
    assert row.policy is not None and (row.policy.budget, row.policy.larger) == (7.0, 4.0)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"budgt": 3}, "unknown budgt"),
        ({"budget": "much"}, "budget"),
        ({"margin": 2.0}, "margin 2 of a release"),
        ({"strategy": "now", "budget": 3}, "budget: no rules for a release by now"),
        ({"strategy": "blue-green", "margin": 0.1}, "margin: no rules for a release by blue-green"),
        ({"strategy": "shadow", "shielded": True}, "shielded: no rules for a release by shadow"),
        ({"strategy": "ab", "shadow": 0.5}, "shadow: no rules for a release by ab"),
        ({"strategy": "ramp"}, "strategy 'ramp': want one of canary, shadow"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_asked_for(
    ctx: Context, how: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        interlock.release("iris", 2, home=ctx.home, **how)
    assert ctx.ledger.open_releases() == []


def test_errors_are_those_of_the_operations(ctx: Context) -> None:
    with pytest.raises(ReleaseRefused, match="is live already"):
        interlock.release("iris", 1, home=ctx.home)
    with pytest.raises(ModelNotFound):
        interlock.rollback("rose", home=ctx.home)
    for step in (interlock.pause, interlock.resume, interlock.promote, interlock.abort):
        with pytest.raises(ReleaseRefused, match="no release of 'iris' is under way"):
            step("iris", home=ctx.home)
    assert issubclass(interlock.errors.ReleaseRefused, interlock.errors.InterlockError)


def test_the_home_and_the_url_are_those_of_the_environment(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERLOCK_HOME", str(ctx.home))
    assert interlock.release("iris", 2).model == "iris"
    monkeypatch.setenv("INTERLOCK_URL", "http://127.0.0.1:9")
    with pytest.raises(NodeUnreachable, match="127.0.0.1:9"):
        interlock.pause("iris")
    with pytest.raises(ReleaseRefused):  # what is said wins over the environment
        interlock.pause("iris", home=ctx.home)


class Telling:
    """A node that goes one state further at each question."""

    running = True

    def __init__(self, *states: ReleaseState, strategy: str = "canary") -> None:
        self.states = list(states)
        self.row = ReleaseRow(
            7, "iris", "2", strategy, ReleaseState.REQUESTED, "why", "1", 1, 1.0, 2.0, None, Policy()
        )

    def release_canary(self, name: str, selector: str | None, rules: dict[str, Any]) -> ReleaseRow:
        return self.row

    release_shadow = release_canary

    def release(self, name: str, selector: str | None) -> ReleaseRow:
        return self.row

    def rollback(self, name: str) -> ReleaseRow:
        return self.row

    def read_release(self, release_id: int) -> ReleaseRow:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return msgspec.structs.replace(self.row, state=state)

    def put(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def opened(home: Path, url: str | None) -> Iterator["Telling"]:
            yield self

        monkeypatch.setattr(releasing, "open_control", opened)


S = ReleaseState


def test_it_waits_for_the_first_share_or_the_end_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    Telling(S.PREPARING, S.RAMPING, S.SWITCHING, S.DONE).put(monkeypatch)
    assert interlock.release("iris").state == "ramping"
    Telling(S.PREPARING, S.RAMPING, S.SWITCHING, S.DONE).put(monkeypatch)
    assert interlock.release("iris", wait=True).state == "done"
    Telling(S.PREPARING, S.RAMPING, S.SWITCHING, S.DONE).put(monkeypatch)
    assert interlock.release("iris", strategy="now").state == "done"
    Telling(S.PREPARING).put(monkeypatch)
    assert interlock.release("iris", wait=False).state == "requested"
    Telling(S.PASSED).put(monkeypatch)
    assert interlock.release("iris", strategy="shadow", wait=True).state == "passed"


@pytest.mark.parametrize("state", [S.FAILED, S.SUPERSEDED])
def test_what_ended_otherwise_than_asked_is_an_error(
    state: ReleaseState, monkeypatch: pytest.MonkeyPatch
) -> None:
    Telling(S.RAMPING, state).put(monkeypatch)
    with pytest.raises(ReleaseFailed, match=rf"release 7 of 'iris' \(version 2\) {state}: why"):
        interlock.release("iris", wait=True)
    Telling(S.PREPARING).put(monkeypatch)
    with pytest.raises(ReleaseFailed, match="is still preparing after 0 s and goes on"):
        interlock.release("iris", timeout_s=0)


def test_a_rollback_that_a_newer_one_replaced_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    Telling(S.SUPERSEDED, strategy="rollback").put(monkeypatch)
    assert interlock.rollback("iris").state == "superseded"
