"""`interlock watch` and `interlock certificate`: what they show, and with which code they leave."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from interlock.cli.main import cli
from interlock.cli.watch import _live
from interlock.core.errors import NodeUnreachable
from interlock.core.state import PairCounts
from interlock.operations import release
from interlock.operations.context import Context
from interlock.operations.control import AdminControl
from interlock.registry.rows import ReleaseState
from interlock.rollout.certificate import Certificate
from interlock.rollout.plan import CANARY, SHADOW, Action
from interlock.rollout.snapshot import Snapshot
from interlock.rollout.view import RolloutView
from tests.api.servers import Served, served
from tests.app.nodes import until
from tests.operations.homes import a_home, a_node, a_report, a_version, release_and_carry_out
from tests.rollout.histories import BAD, GOOD, POLICY, a_shadow, begun, decide, look, tried

pytestmark = pytest.mark.slow

NODE = a_node(a_report("worker-0"))
FEW = PairCounts(good=30, agreed=30)


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=3)
    release_and_carry_out(context, "iris", "1")
    yield context
    context.close()


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


class Looks(dict[str, tuple[Snapshot, Action]]):
    """What the rollout loop saw last, and how often anybody asked for it."""

    asked = 0

    def __call__(self) -> "Looks":
        self.asked += 1
        return self


@contextmanager
def looking(ctx: Context, looks: Looks) -> Iterator[Served]:
    with served(ctx, NODE, looked=looks) as api:
        yield api


# Watching


def test_once_shows_shares_gates_harm_and_events(ctx: Context) -> None:
    row = decide(ctx, begun(ctx, CANARY), tried(1, 0.0, GOOD))
    pairs = PairCounts(good=90, worse=10, agreed=90, shielded=8, unshielded=2)
    epochs = tried(1, 0.0, GOOD), tried(2, row.weight, pairs, asked=100, bad=10)
    looks = Looks(iris=look(ctx, row, *epochs))
    with looking(ctx, looks) as api:
        done = run("watch", "iris", "--once", "--url", api.url)
        assert done.exit_code == 0, done.output
        top = done.stdout.splitlines()[0]
        assert f"iris: version 2 against 1, canary, ramping, share {row.weight:.3g}" in top
        for words in (
            "traffic 100 requests/s",
            f"shares so far 0 → {row.weight:.3g}",
            "own requests 100 (10 bad)",
            "run by both 2,100",
            "harm 2 of 50",
            "paired errors",
            "errors within margin",
            "evidence, limit at the end",
            "release.ramping",
        ):
            assert words in done.stdout, words
        told = run("watch", "iris", "--once", "--json", "--url", api.url).stdout
        assert told.count("\n") == 1, "one line for each look"
        found = msgspec.json.decode(told, type=RolloutView)
        assert found.release == row and found.judgement is not None and found.judgement.harm == 2.0


def test_once_before_anything_is_compared_says_what_is_waited_for(ctx: Context) -> None:
    ctx.ledger.request_release("iris", "2", CANARY, 1.0, policy=POLICY)
    with looking(ctx, Looks()) as api:
        done = run("watch", "iris", "--once", "--url", api.url)
        assert done.exit_code == 0 and "it has not been looked at yet" in done.stdout
        assert "shares so far none yet" in done.stdout and "not measured yet" in done.stdout


@pytest.mark.parametrize(
    ("pairs", "code", "words"),
    [(GOOD, 0, "version 2 of iris passed as a shadow"), (BAD, 1, "ended as failed: paired errors")],
    ids=["good", "bad"],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["people", "programs"])
def test_watching_leaves_at_the_end_with_how_it_ended(
    ctx: Context, pairs: PairCounts, code: int, words: str, as_json: bool
) -> None:
    row = begun(ctx, SHADOW)
    looks = Looks(iris=look(ctx, row, tried(1, 0.0, FEW)))
    with looking(ctx, looks) as api:

        def end() -> None:
            until(lambda: looks.asked >= 3, "three looks")
            looks["iris"] = look(ctx, row, tried(1, 0.0, PairCounts(good=40, agreed=40)))
            seen = looks.asked
            until(lambda: looks.asked >= seen + 2, "another look")
            over = decide(ctx, row, tried(1, 0.0, pairs))
            if not over.state.finished:
                decide(ctx, over, tried(1, 0.0, pairs))
            looks.clear()

        ending = threading.Thread(target=end)
        ending.start()
        how = ["--json"] if as_json else []
        done = run("watch", "iris", "--interval", "0.1", "--url", api.url, *how)
        ending.join()
    assert done.exit_code == code, done.output
    assert f"release {row.id}: " in done.stderr and words in done.stderr
    assert done.stderr.endswith(f"see: interlock certificate {row.id}\n")
    lines = done.stdout.splitlines()
    if as_json:
        assert len(lines) >= 4 and all(json.loads(line)["release"]["id"] == row.id for line in lines)
        return
    assert len(lines) == 2, "a line for each look that differs"
    assert lines[0].startswith(
        f"release {row.id}: version 2 of iris is ramping, share 0, 0 requests of its own"
    )
    assert "30 run by both" in lines[0] and "40 run by both" in lines[1]


def test_a_canary_that_goes_live_ends_watching_with_0(ctx: Context) -> None:
    row = begun(ctx, CANARY)
    looks = Looks(iris=look(ctx, row, tried(1, 0.0, FEW)))

    def end() -> None:
        until(lambda: looks.asked >= 2, "two looks")
        release.promote(ctx, "iris")
        decide(ctx, ctx.ledger.release(row.id), tried(1, 0.0, FEW))
        looks.clear()

    with looking(ctx, looks) as api:
        ending = threading.Thread(target=end)
        ending.start()
        done = run("watch", "iris", "--interval", "0.1", "--url", api.url)
        ending.join()
    assert done.exit_code == 0 and f"release {row.id}: version 2 of iris is live" in done.stderr


def test_the_release_that_was_watched_ends_also_when_another_takes_its_place(ctx: Context) -> None:
    row = begun(ctx, CANARY)
    looks = Looks(iris=look(ctx, row, tried(1, 0.0, FEW)))

    def supersede() -> None:
        until(lambda: looks.asked >= 2, "two looks")
        looks["iris"] = look(ctx, release.rollback(ctx, "iris"))

    with looking(ctx, looks) as api:
        ending = threading.Thread(target=supersede)
        ending.start()
        done = run("watch", "iris", "--interval", "0.1", "--url", api.url)
        ending.join()
    assert done.exit_code == 1
    assert f"release {row.id}: version 2 of iris ended as superseded: version 1 was asked for" in done.stderr


def test_on_a_terminal_the_picture_is_drawn_anew_until_the_end(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=60)
    monkeypatch.setattr("interlock.cli.watch._console", lambda: console)
    row = begun(ctx, SHADOW)
    looks = Looks(iris=look(ctx, row, tried(1, 0.0, FEW)))

    def end() -> None:
        until(lambda: looks.asked >= 2, "two looks")
        looks["iris"] = look(ctx, row, tried(1, 0.0, PairCounts(good=41, agreed=41)))
        seen = looks.asked
        until(lambda: looks.asked >= seen + 2, "another look")
        decide(ctx, row, tried(1, 0.0, GOOD))
        looks.clear()

    with looking(ctx, looks) as api:
        control = AdminControl(api.url, None)
        ending = threading.Thread(target=end)
        ending.start()
        over = _live(control, control.rollout("iris"), 0.05)
        ending.join()
    assert over.state is ReleaseState.PASSED
    assert "run by both 30" in screen.getvalue() and "run by both 41" in screen.getvalue()


class Silent:
    """A node that breaks off what it is asked at some of the questions, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *silent: int) -> None:
        self.asked = 0
        self._silent = silent
        self._answer = AdminControl.rollout
        monkeypatch.setattr(AdminControl, "rollout", lambda control, name: self._rollout(control, name))

    def _rollout(self, control: AdminControl, name: str) -> RolloutView:
        self.asked += 1
        if self.asked in self._silent:
            raise NodeUnreachable("no node answers: Connection reset by peer")
        return self._answer(control, name)


def test_watching_outlasts_a_control_that_is_started_anew(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be killed at any moment: what it was asked meanwhile breaks off, and the release goes on."""
    row = begun(ctx, SHADOW)
    node = Silent(monkeypatch, 2, 3)
    looks = Looks(iris=look(ctx, row, tried(1, 0.0, FEW)))

    def end() -> None:
        until(lambda: node.asked >= 4, "an answer after the silence")
        decide(ctx, row, tried(1, 0.0, GOOD))
        looks.clear()

    with looking(ctx, looks) as api:
        ending = threading.Thread(target=end)
        ending.start()
        done = run("watch", "iris", "--interval", "0.1", "--url", api.url)
        ending.join()
    assert done.exit_code == 0 and "passed as a shadow" in done.stderr, done.output


def test_watching_ends_when_the_node_stays_silent(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(ctx, SHADOW)
    monkeypatch.setattr("interlock.cli.watch.PATIENCE_S", 0.3)
    Silent(monkeypatch, *range(2, 100))
    with looking(ctx, Looks()) as api:
        done = run("watch", "iris", "--interval", "0.1", "--url", api.url)
    assert done.exit_code == 1 and "no node answers: Connection reset by peer" in done.stderr


def test_nothing_to_watch_names_the_last_release(ctx: Context) -> None:
    row = a_shadow(ctx, BAD)
    with looking(ctx, Looks()) as api:
        done = run("watch", "iris", "--url", api.url)
        words = f"interlock: no release of 'iris' is under way; the last one ({row.id}) is failed\n"
        assert (done.exit_code, done.stderr) == (1, words)
        done = run("watch", "irsi", "--url", api.url)
        assert done.exit_code == 1 and "no model 'irsi' here" in done.stderr
        assert "did you mean iris?" in done.stderr


def test_without_a_node_nothing_goes_on(ctx: Context) -> None:
    begun(ctx, CANARY)
    done = run("watch", "iris")
    assert done.exit_code == 1
    assert f"no node runs in {ctx.home}, so no release of 'iris' goes on" in done.stderr
    assert "hint: start a node with: interlock up" in done.stderr


def test_names_and_reasons_cannot_command_the_terminal(ctx: Context) -> None:
    name = "evil\x1b[2J[red]"
    for number in ("1", "2"):
        ctx.ledger.put_version(a_version(name, number), 1.0)
    row = begun(ctx, SHADOW, name)
    row = ctx.ledger.advance(row.id, ReleaseState.PAUSED, "\x1b[3Jbecause", time_s=1.0)
    looks = Looks({name: look(ctx, row, tried(1, 0.0, FEW))})
    with looking(ctx, looks) as api:
        once = run("watch", name, "--once", "--url", api.url)
        assert once.exit_code == 0 and "[2J[red]" in once.stdout and "[3Jbecause" in once.stdout
        ctx.ledger.advance(row.id, ReleaseState.ROLLING_BACK, "\x1b[3J", time_s=2.0)
        ctx.ledger.advance(row.id, ReleaseState.FAILED, "\x1b[3J", time_s=3.0)
        looks.clear()
        over = run("watch", name, "--url", api.url)
        page = run("certificate", str(a_shadow(ctx, BAD, name).id), "--url", api.url)
        assert over.exit_code == 1 and page.exit_code == 0
        assert "\x1b" not in once.output + over.output + page.output


# Certificates


@pytest.mark.parametrize("through_a_node", [False, True], ids=["home", "node"])
def test_a_certificate_as_markdown_and_json(ctx: Context, through_a_node: bool) -> None:
    row = a_shadow(ctx, GOOD)
    with looking(ctx, Looks()) as api:
        where = ["--url", api.url] if through_a_node else []
        page = run("certificate", str(row.id), *where)
        assert page.exit_code == 0 and page.stdout.startswith(
            f"# Release {row.id}: version 2 of iris, passed"
        )
        assert page.stdout.endswith(f"`interlock replay {row.id}`.\n")
        found = msgspec.json.decode(
            run("certificate", str(row.id), "--json", *where).stdout, type=Certificate
        )
        assert (found.release, found.verdict, found.decisions) == (row.id, "passed", 3)
        assert found.decisions_sha256 in page.stdout


@pytest.mark.parametrize("through_a_node", [False, True], ids=["home", "node"])
def test_where_there_is_no_certificate_it_says_why(ctx: Context, through_a_node: bool) -> None:
    with looking(ctx, Looks()) as api:
        where = ["--url", api.url] if through_a_node else []
        done = run("certificate", "99", *where)
        assert (done.exit_code, done.stderr) == (1, "interlock: no release 99 in the ledger\n")
        done = run("certificate", "1", *where)
        assert done.exit_code == 1
        assert "release 1 of 'iris' (now) compared no versions: there is nothing to certify" in done.stderr
        assert run("certificate", "0", *where).exit_code == 2


def test_a_record_that_cannot_be_read_is_told_in_one_line(ctx: Context) -> None:
    row = begun(ctx, SHADOW)
    newer = {"decision": 99, "snapshot": {"another": "shape"}, "action": {"type": "conjure"}}
    ctx.ledger.advance(row.id, ReleaseState.ROLLING_BACK, "x", newer, time_s=row.requested_s + 1.0)
    for command in ("certificate", "replay"):
        done = run(command, str(row.id))
        assert done.exit_code == 1 and "a record that this Interlock cannot read" in done.stderr
        assert "a fault in Interlock" not in done.stderr
