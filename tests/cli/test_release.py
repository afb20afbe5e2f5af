"""`interlock release` of what is compared: which options reach the policy, what is refused, what is told."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from interlock.cli.main import cli
from interlock.core.policy import Policy
from interlock.operations.context import Context
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.mirroring import MOST_DISAGREEMENT
from interlock.rollout.plan import CANARY, SHADOW
from tests.api.servers import served
from tests.operations.homes import (
    a_home,
    a_node,
    a_report,
    register_in_mlflow,
    release_and_carry_out,
)

NODE = a_node(a_report("worker-0"))


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=3)
    register_in_mlflow(context, "iris", 3)
    yield context
    context.close()


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def asked(*words: str) -> dict[str, Any]:
    """The policy of the release that a command asked for, as its JSON shows it."""
    done = run("release", "iris", *words, "--no-wait", "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)["policy"]
    return found


SHARES = ("shadow", "reverse", "shielded", "most_disagreement")


@pytest.mark.slow
def test_what_is_run_by_both_is_as_the_options_say(ctx: Context) -> None:
    release_and_carry_out(ctx, "iris", "1")
    with served(ctx, NODE) as api:
        for words, expected in (
            ([], (1.0, 1.0, True, MOST_DISAGREEMENT)),
            (["--shadow-share", "0.25"], (0.25, 1.0, True, MOST_DISAGREEMENT)),
            (["--shadow-share", "0", "--reverse-share", "0.5"], (0.0, 0.5, True, MOST_DISAGREEMENT)),
            (["--no-shield"], (1.0, 1.0, False, MOST_DISAGREEMENT)),
            (["--shield", "--most-disagreement", "0.05"], (1.0, 1.0, True, 0.05)),
            (["--most-disagreement", "1"], (1.0, 1.0, True, 1.0)),
            (["--shadow"], (1.0, 0.0, False, MOST_DISAGREEMENT)),
            (["--shadow", "--shadow-share", "0.1", "--margin", "0.02"], (0.1, 0.0, False, MOST_DISAGREEMENT)),
        ):
            for where in ([], ["--url", api.url]):
                found = asked("2", *words, *where)
                assert tuple(found[name] for name in SHARES) == expected, (words, where)
    assert found["margin"] == 0.02
    (row,) = ctx.ledger.open_releases()
    assert row.strategy == SHADOW and row.policy is not None and row.policy.shadow == 0.1


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused_or_compares_nothing(ctx: Context) -> None:
    done = run("release", "iris", "2", "--shadow")
    assert done.exit_code == 1
    assert "no version of 'iris' is live, so there are no requests to copy" in done.stderr
    assert "interlock release iris 2 --now" in done.stderr and ctx.ledger.open_releases() == []
    assert tuple(asked("2")[name] for name in SHARES) == (0.0, 0.0, False, 1.0)
    ctx.ledger.advance(ctx.ledger.open_releases()[0].id, ReleaseState.FAILED, time_s=1.0)
    release_and_carry_out(ctx, "iris", "1")
    for words, message in (
        (("1", "--shadow"), "version 1 of 'iris' is live already: a shadow needs another version"),
        (("2", "--shadow", "--shadow-share", "0"), "sees nothing: want a share above 0"),
        (("2", "--shadow-share", "2"), "shadow 2 of a release: want 0 to 1"),
        (("2", "--most-disagreement", "0"), "most_disagreement 0 of a release: want 0.0001 to 1"),
        (("2", "--reverse-share", "-1"), "reverse -1 of a release: want 0 to 1"),
    ):
        done = run("release", "iris", *words)
        assert done.exit_code == 1 and message in done.stderr, done.output
        assert "Traceback" not in done.output and "a fault in Interlock" not in done.stderr
    assert ctx.ledger.open_releases() == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--shadow", "--keep", "5"], "--keep: nothing is kept with --shadow"),
        (["--now", "--shadow-share", "1"], "shadow: these are rules for a canary"),
        (["--now", "--shield"], "shielded: these are rules for a canary"),
        (["--blue-green", "--most-disagreement", "0.5"], "most_disagreement: these are rules for a canary"),
        (["--trust", "--url", "http://127.0.0.1:1"], "--trust with --url: code is vouched for on the node's"),
        (["--shadow", "--shadow-share", "much"], "'much' is not a valid float"),
    ],
)
def test_options_that_do_not_fit_are_a_usage_error(words: list[str], expected: str) -> None:
    done = run("release", "iris", "2", *words)
    assert done.exit_code == 2 and expected in " ".join(done.stderr.split())


class Ending:
    """A release as a node tells of it: a little further at each question."""

    running = True

    def __init__(self, *states: ReleaseState, strategy: str = SHADOW, reason: str = "") -> None:
        self._states = list(states)
        self.row = ReleaseRow(
            7, "iris", "2", strategy, ReleaseState.REQUESTED, reason, "1", 1, 1.0, 2.0, None, Policy()
        )

    def release_shadow(self, name: str, selector: str | None, rules: dict[str, Any]) -> ReleaseRow:
        return self.row

    release_canary = release_shadow

    def read_release(self, release_id: int) -> ReleaseRow:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        return msgspec.structs.replace(self.row, state=state)


def of(control: Ending, monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    monkeypatch.setattr("interlock.operations.control.open_control", lambda home, url: nullcontext(control))
    return run("release", "iris", "2", *words)


PREPARING, RAMPING = ReleaseState.PREPARING, ReleaseState.RAMPING


def test_a_shadow_that_passed_is_told_with_what_to_do_next(monkeypatch: pytest.MonkeyPatch) -> None:
    control = Ending(PREPARING, RAMPING, ReleaseState.PASSED, reason="errors within margin: 0 of 200")
    done = of(control, monkeypatch, "--shadow", "--wait")
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "version 2 of iris passed as a shadow (release 7): errors within margin: 0 of 200; "
        "release it with: interlock release iris 2\n"
    )
    assert "release 7: version 2 of iris is ramping …" in done.stderr


def test_a_shadow_that_failed_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    control = Ending(PREPARING, RAMPING, ReleaseState.FAILED, reason="paired errors")
    done = of(control, monkeypatch, "--shadow", "--wait")
    assert done.exit_code == 1 and "(version 2) failed: paired errors; version 1 stays live" in done.stderr


@pytest.mark.parametrize("strategy", [SHADOW, CANARY])
def test_unless_it_is_told_to_wait_it_leaves_when_copies_run(
    monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    control = Ending(PREPARING, RAMPING, strategy=strategy)
    done = of(control, monkeypatch, f"--{strategy}")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        "release 7: version 2 of iris runs copies of the requests; see how it goes on"
    )
