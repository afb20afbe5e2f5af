"""A release is decided again from the log, and a decision that nobody would take is found."""

from pathlib import Path

import msgspec
from click.testing import CliRunner, Result

from interlock.cli.main import cli
from interlock.registry.rows import ReleaseState
from interlock.rollout.plan import Prepare, Switch, as_record
from interlock.rollout.snapshot import Snapshot
from tests.operations.homes import a_home


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def test_what_was_decided_is_decided_again_and_what_was_made_up_is_found(interlock_home: Path) -> None:
    ctx = a_home(interlock_home, iris=2)
    row = ctx.ledger.request_release("iris", "1", "now", 1.0)
    assert "holds no decisions" in run("replay", str(row.id)).stderr
    snapshot = Snapshot(row, None, "", 1, 0.0, ())
    ctx.ledger.advance(row.id, ReleaseState.PREPARING, "", as_record(snapshot, Prepare()), time_s=2.0)
    done = run("replay", str(row.id))
    assert (done.exit_code, done.stdout) == (0, f"release {row.id} of iris: 1 decisions, 0 differ\n")
    ctx.ledger.advance(row.id, ReleaseState.SWITCHING, "", as_record(snapshot, Switch()), time_s=3.0)
    found = run("replay", str(row.id))
    assert (
        found.exit_code == 1 and "2 decisions, 1 differ" in found.stdout and "now Prepare()" in found.stdout
    )
    (told,) = msgspec.json.decode(run("replay", str(row.id), "--json").stdout)
    assert told["logged"] == {"type": "switch"} and told["derived"] == {"type": "prepare"}
    ctx.close()
