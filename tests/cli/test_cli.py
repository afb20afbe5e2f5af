"""The commands, offline on a home folder and through a node's admin API: what they print, how they end."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from interlock.cli.main import COMMANDS, Commands, cli
from interlock.core.letters import VersionState
from interlock.operations.context import Context
from interlock.registry.rows import ReleaseState
from tests.api.servers import Served, served
from tests.operations.homes import (
    a_home,
    a_node,
    a_report,
    a_status,
    a_version,
    carrying_out,
    register_in_mlflow,
    release_and_carry_out,
)

pytestmark = pytest.mark.slow

LISTING = ["status", "models", "versions", "events", "quarantine"]
NODE = a_node(a_report("worker-0", a_status("iris", "2", VersionState.READY)))


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=3)
    release_and_carry_out(context, "iris", "1")
    release_and_carry_out(context, "iris", "2")
    yield context
    context.close()


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def of(api: Served, *words: str) -> Result:
    return run(*words, "--url", api.url)


# Without a node


def test_status_without_a_node_says_so_and_what_it_would_serve(ctx: Context) -> None:
    done = run("status")
    assert done.exit_code == 0
    assert "no node runs in" in done.stdout
    assert done.stdout.splitlines()[-1].split()[:3] == ["iris", "2", "3"]
    assert json.loads(run("status", "--json").stdout)["models"][0]["live"] == "2"


def test_models_versions_events_as_tables_and_json(ctx: Context) -> None:
    assert [m["name"] for m in json.loads(run("models", "--json").stdout)] == ["iris"]
    assert run("models").stdout.split()[:6] == ["MODEL", "LIVE", "NEWEST", "VERSIONS", "LAST", "RELEASE"]
    versions = json.loads(run("versions", "iris", "--json").stdout)
    assert [(v["number"], v["live"]) for v in versions] == [("3", False), ("2", True), ("1", False)]
    lines = run("versions", "iris").stdout.splitlines()
    assert lines[2].split()[:2] == ["2", "live"]
    events = json.loads(run("events", "iris", "--json").stdout)
    assert events[-1]["kind"] == "release.done"
    assert "release.done" in run("events").stdout.splitlines()[-1]
    assert len(json.loads(run("events", "-n", "2", "--json").stdout)) == 2


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_events_of_a_model_that_nobody_knows_are_an_error(ctx: Context, follow: list[str]) -> None:
    done = run("events", "irsi", *follow)
    assert done.exit_code == 1 and "no model 'irsi' in the registry or the ledger" in done.stderr
    assert "did you mean iris?" in done.stderr


def test_events_hold_the_snapshots_of_decisions_when_asked(ctx: Context) -> None:
    row = ctx.ledger.request_release("iris", "3", "now", ctx.now_s())
    seen = {"waited_s": 1.5, "note": "\x1b[2J"}
    ctx.ledger.advance(row.id, ReleaseState.PREPARING, "because", seen, time_s=ctx.now_s())
    brief = run("events", "iris")
    assert "reason=because" in brief.stdout and "waited_s" not in brief.stdout
    assert len(brief.stdout.splitlines()) == len(json.loads(run("events", "iris", "--json").stdout))
    assert "snapshot" not in run("events", "--json").stdout
    full = run("events", "iris", "--full").stdout
    assert '"waited_s": 1.5' in full and "\x1b" not in full
    assert json.loads(run("events", "--full", "--json").stdout)[-1]["body"]["snapshot"] == seen


def test_a_release_without_a_node_waits_for_the_next_one(ctx: Context) -> None:
    register_in_mlflow(ctx, "iris", 3)
    done = run("release", "iris", "--now")
    assert done.exit_code == 0, done.output
    assert "version 3 of iris is requested; no node runs here" in done.stdout
    (row,) = ctx.ledger.open_releases()
    assert (row.number, row.state) == ("3", ReleaseState.REQUESTED)
    done = run("rollback", "iris", "--json")
    assert (done.exit_code, json.loads(done.stdout)["number"]) == (0, "2")


def test_quarantine_wants_a_node(ctx: Context) -> None:
    done = run("quarantine")
    assert done.exit_code == 1 and "no node runs in" in done.stderr and "interlock up" in done.stderr


# Through a node


def test_status_of_a_node(ctx: Context) -> None:
    with served(ctx, NODE) as api:
        done = of(api, "status")
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("node local: ready\n")
        assert "worker-0" in done.stdout and "64.0 MiB" in done.stdout and "1/1" in done.stdout
    late = a_node(a_report("worker-0", a_status("iris", "2", VersionState.FAILED, "no memory"), ready=False))
    with served(ctx, late) as api:
        done = of(api, "status")
        assert done.exit_code == 1 and "worker-0 is not ready: iris/2 failed" in done.stdout
        done = of(api, "versions", "iris")
        assert "failed: no memory" in done.stdout


def test_a_release_is_waited_for_and_told(ctx: Context) -> None:
    with served(ctx, NODE) as api, carrying_out(ctx):
        done = of(api, "rollback", "iris")
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("version 1 of iris is live (release 3, ")
        assert "release 3: version 1 of iris is requested …" in done.stderr


def test_a_release_that_fails_says_why_and_what_stays(ctx: Context) -> None:
    with served(ctx, NODE) as api, carrying_out(ctx, "worker-0 failed: shape mismatch"):
        done = of(api, "rollback", "iris")
        assert done.exit_code == 1
        assert "failed: worker-0 failed: shape mismatch; version 2 stays live" in done.stderr
        done = of(api, "rollback", "iris", "--json")
        assert done.exit_code == 1 and json.loads(done.stdout)["state"] == "failed"


def test_waiting_is_bounded_and_can_be_left_out(ctx: Context) -> None:
    with served(ctx, NODE) as api:
        done = of(api, "rollback", "iris", "--timeout", "0.1")
        assert done.exit_code == 1 and "still requested after 0.1 s and goes on" in done.stderr
        done = of(api, "rollback", "iris", "--no-wait")
        assert done.exit_code == 0 and "version 2 of iris is requested" in done.stdout


def test_events_follow_what_happens_next(ctx: Context) -> None:
    with served(ctx, NODE) as api:
        command = [sys.executable, "-m", "interlock.cli.main", "events", "--follow", "--json", "--after", "0"]
        follower = subprocess.Popen([*command, "--url", api.url], stdout=subprocess.PIPE)
        with follower:
            assert follower.stdout is not None
            seen = json.loads(follower.stdout.readline())
            assert seen["seq"] == 1
            ctx.ledger.append_event("test.later", {}, model=None, time_s=5.0)
            while seen["kind"] != "test.later":  # bounded by the test's own time-out
                seen = json.loads(follower.stdout.readline())
            follower.terminate()


def test_quarantine_is_listed(ctx: Context) -> None:
    import msgspec

    report = msgspec.structs.replace(
        a_report("supervisor"), quarantined={a_version("iris", "3").key: "crashed 3 times"}
    )
    with served(ctx, a_node(report)) as api:
        done = of(api, "quarantine")
        assert done.exit_code == 0 and "crashed 3 times" in done.stdout
        assert json.loads(of(api, "quarantine", "--json").stdout)[0]["reason"] == "crashed 3 times"


# What goes wrong


def test_errors_are_one_line_with_a_hint_and_no_traceback(ctx: Context) -> None:
    for words in (["versions", "rose"], ["rollback", "rose"]):
        done = run(*words)
        assert done.exit_code == 1 and "Traceback" not in done.output
        first, hint = done.stderr.splitlines()
        assert (
            first.startswith("interlock: no model 'rose'")
            and hint == "  hint: list the models with: interlock models"
        )


def test_the_errors_of_a_node_are_the_same_errors(ctx: Context) -> None:
    with served(ctx, NODE) as api:
        done = of(api, "rollback", "rose")
        assert done.exit_code == 1 and "no model 'rose' here; known: iris" in done.stderr
        assert "hint: list the models" in done.stderr


@pytest.mark.slow
def test_a_name_that_is_nearly_right_is_suggested(ctx: Context) -> None:
    ctx.ledger.put_version(a_version("churn", "1"), 1.0)
    with served(ctx, NODE) as api:
        for done in (run("rollback", "iriss"), run("versions", "Iris"), of(api, "release", "irs", "--now")):
            assert done.exit_code == 1, done.output
            assert "hint: did you mean iris? list the models with: interlock models" in done.stderr
        assert "did you mean" not in run("rollback", "weather").stderr


@pytest.mark.slow
def test_the_hint_names_the_model_that_was_asked_about(ctx: Context) -> None:
    register_in_mlflow(ctx, "iris", 3)
    done = run("release", "iris", "9", "--now")
    assert done.exit_code == 1 and "hint: list the versions with: interlock versions iris\n" in done.stderr


def test_debug_shows_the_traceback(ctx: Context) -> None:
    done = run("--debug", "rollback", "rose")
    assert type(done.exception).__name__ == "ModelNotFound"


@pytest.mark.parametrize(
    "url", ["localhost:8002", "ftp://x", "http://", "http://localhost:99999", "http://[::1"]
)
def test_a_url_that_is_none_is_told(url: str) -> None:
    done = run("status", "--url", url)
    assert done.exit_code == 1 and f"URL {url!r}" in done.stderr


def test_nobody_there_is_told_in_one_line() -> None:
    done = run("status", "--url", "http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "no node answers at http://127.0.0.1:9: Connection refused" in done.stderr


def test_a_server_that_is_no_node_is_told(ctx: Context) -> None:
    with served(ctx, NODE) as api:
        done = run("status", "--url", f"{api.url}/elsewhere")
        assert done.exit_code == 1 and "elsewhere/api/status" in done.stderr


def test_a_wrong_token_is_told(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    (ctx.home / "run").mkdir()
    (ctx.home / "run" / "token").write_text("a-token-of-enough-characters")
    with served(ctx, NODE) as api:
        assert "this API wants a token" in of(api, "status").stderr
        monkeypatch.setenv("INTERLOCK_TOKEN", "a-token-of-other-characters")
        assert "the token is wrong" in of(api, "status").stderr
        monkeypatch.setenv("INTERLOCK_TOKEN", "a-token-of-enough-characters")
        assert of(api, "status").exit_code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["release", "iris", "--now", "--budget", "5"], "budget: these are rules for a canary"),
        (["release", "iris", "2", "--now", "--keep", "5"], "want --blue-green --keep"),
        (["release", "iris", "--unit", "body"], "unit 'body' of a release: want none, header, or json:FIELD"),
        (["nothing"], "No such command 'nothing'"),
        (["up", "--workers", "none"], "want 1 to 256, or auto"),
        (["up", "--workers", "0"], "want 1 to 256, or auto"),
        (["up", "--http-port", "70000"], "0<=x<=65535"),
        (["register", "iris", "no-such-file"], "does not exist"),
        (["versions"], "Missing argument 'NAME'"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(words: list[str], expected: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert expected in " ".join(done.stderr.split())


def test_beyond_loopback_without_a_token_nothing_starts(interlock_home: Path) -> None:
    done = run("up", "--admin-host", "0.0.0.0")
    assert done.exit_code == 1 and "wants a token" in done.stderr
    assert not interlock_home.exists()


def test_down_without_a_node_is_told(interlock_home: Path) -> None:
    done = run("down")
    assert done.exit_code == 1 and "no node runs in" in done.stderr


def test_names_cannot_command_the_terminal(ctx: Context) -> None:
    ctx.ledger.put_version(a_version("evil\x1b[2J[red]", "1"), 1.0)
    for words in (["models"], ["status"], ["events"], ["rollback", "evil\x1b[2J[red]"]):
        output = run(*words).output
        assert "\x1b" not in output and "[2J[red]" in output


# The command line itself


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time\nstart = time.process_time()\n"
        "from interlock.cli.main import cli\n"
        "try: cli(['--help'], prog_name='interlock')\nexcept SystemExit: pass\n"
        "spent = time.process_time() - start\n"
        "heavy = {'mlflow', 'pandas', 'sqlalchemy', 'fastapi', 'rich', 'numpy', 'httpcore',"
        " 'interlock.client'} & sys.modules.keys()\n"
        "print(spent, *heavy, file=sys.stderr)"
    )
    spent_s = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        spent, *heavy = done.stderr.split()
        assert heavy == []
        spent_s.append(float(spent))
    assert min(spent_s) < 0.3


def test_asking_a_node_imports_no_registry(ctx: Context) -> None:
    code = (
        "import sys\nfrom interlock.cli.main import cli\n"
        "try: cli(['models', '--url', sys.argv[1]])\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'mlflow', 'pandas', 'sqlalchemy', 'fastapi'} & sys.modules.keys()\nassert not heavy, heavy"
    )
    with served(ctx, NODE) as api:
        subprocess.run([sys.executable, "-c", code, api.url], check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "Example" in done.stdout and f"interlock {command}" in done.stdout
    assert ("--json" in done.stdout) or command not in LISTING


def test_version(repository: Path) -> None:
    from interlock import __version__

    done = subprocess.run(
        [sys.executable, "-m", "interlock.cli.main", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"interlock {__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0 and "_INTERLOCK_COMPLETE" in done.stdout


def test_bash_completes_commands(tmp_path: Path) -> None:
    binary = Path(sys.executable).parent / "interlock"
    words = subprocess.run(
        [binary],
        env={"COMP_WORDS": "interlock re", "COMP_CWORD": "1", "_INTERLOCK_COMPLETE": "bash_complete"},
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert words == ["plain,register", "plain,release", "plain,resume", "plain,replay"]


def test_model_names_are_completed_from_the_node(ctx: Context) -> None:
    from interlock.cli.names import names_for_completion

    with served(ctx, NODE) as api:
        assert names_for_completion(ctx.home, api.url) == ["iris"]
    assert names_for_completion(ctx.home, None) == []
    assert names_for_completion(ctx.home, "http://127.0.0.1:9") == []


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EROFS, "must be writable"), (errno.EACCES, "belong to this user"), (errno.ENOSPC, "make room")],
)
def test_what_the_system_refuses_is_told_with_what_helps(number: int, hint: str) -> None:
    class Refused(Commands):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            @click.command(cmd_name)
            def refused() -> None:
                raise OSError(number, os.strerror(number), "/the/home")

            return refused

    said = CliRunner().invoke(Refused(params=[]), ["up"])
    assert said.exit_code == 1
    assert "'/the/home'" in said.stderr and "Traceback" not in said.stderr
    assert hint in said.stderr.splitlines()[1] and said.stderr.splitlines()[1].startswith("  hint: ")
