"""`interlock release --ab` and metrics: what reaches the ledger, from the command line and over the API, and
what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from interlock.cli.main import cli
from interlock.operations.context import Context
from interlock.registry.rows import RampEpoch, ReleaseState
from tests.api.servers import served
from tests.operations.homes import a_home, a_node, a_report, register_in_mlflow, release_and_carry_out

pytestmark = pytest.mark.slow
NODE = a_node(a_report("worker-0"))


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=3)
    register_in_mlflow(context, "iris", 3)
    release_and_carry_out(context, "iris", "1")
    yield context
    context.close()


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["release", "iris", *words, "--no-wait", "--json"])


def asked(ctx: Context, *words: str) -> dict[str, Any]:
    """The row of a release that was asked for; it is ended, so that the next can be."""
    done = run(*words)
    assert done.exit_code == 0, done.output
    row: dict[str, Any] = json.loads(done.stdout)
    CliRunner().invoke(cli, ["abort", "iris"])
    return row


def test_what_is_asked_for_is_in_the_ledger_whether_or_not_a_node_runs(ctx: Context) -> None:
    with served(ctx, NODE) as api:
        both = ["--arm", "2=0.3", "--arm", "3=0.2", "--metric", "click age_s=5", "--metric", "stars prove"]
        for where in ([], ["--url", api.url]):
            row = asked(ctx, "--ab", *both, *where)
            policy = row["policy"]
            assert (row["strategy"], row["number"]) == ("ab", "2")
            assert [(arm["version"], arm["weight"]) for arm in policy["arms"]] == [("2", 0.3), ("3", 0.2)]
            assert [(one["name"], one["age_s"], one["prove"]) for one in policy["metrics"]] == [
                ("click", 5.0, False),
                ("stars", 60.0, True),
            ]
            assert policy["unit"] == "header"
            assert (policy["shadow"], policy["reverse"], policy["shielded"]) == (0.0, 0.0, False)


def test_shares_are_equal_and_the_version_alone_gets_half(ctx: Context) -> None:
    shares = asked(ctx, "--ab", "--arm", "2", "--arm", "3", "--metric", "click")["policy"]["arms"]
    assert [arm["weight"] for arm in shares] == [pytest.approx(1 / 3), pytest.approx(1 / 3)]
    alone = asked(ctx, "3", "--ab", "--metric", "click", "--unit", "none")
    assert alone["policy"]["arms"] == [{"version": "3", "weight": 0.5}]
    assert (alone["number"], alone["policy"]["unit"]) == ("3", "none")


def test_promoted_by_hand_is_only_what_can_be_meant(ctx: Context) -> None:
    assert run("--ab", "--arm", "2", "--arm", "3", "--metric", "click").exit_code == 0
    (row,) = ctx.ledger.open_releases()
    ctx.ledger.advance(row.id, ReleaseState.PREPARING, time_s=row.requested_s)
    ctx.ledger.advance(
        row.id, ReleaseState.RAMPING, time_s=row.requested_s, epoch=RampEpoch(1, 0.6, (), row.requested_s)
    )
    done = CliRunner().invoke(cli, ["promote", "iris"])
    assert done.exit_code == 1 and "compares versions 2, 3 with the live one" in done.stderr
    assert CliRunner().invoke(cli, ["pause", "iris"]).exit_code == 0
    assert CliRunner().invoke(cli, ["resume", "iris"]).exit_code == 0
    assert CliRunner().invoke(cli, ["rollback", "iris"]).exit_code == 0
    assert ctx.ledger.release(row.id).state is ReleaseState.SUPERSEDED
    live = ctx.ledger.live("iris")
    assert live is not None and live.number == "1"


def test_metrics_of_the_policy_file_are_used_and_those_of_the_command_win(ctx: Context) -> None:
    (ctx.home / "app.toml").write_text(
        '[models.iris.release]\nunit = "none"\n'
        '[[models.iris.release.metrics]]\nname = "bought"\nprove = true\n'
    )
    from_file = asked(ctx, "2")["policy"]
    assert [one["name"] for one in from_file["metrics"]] == ["bought"] and from_file["metrics"][0]["prove"]
    assert asked(ctx, "2", "--ab")["policy"]["unit"] == "none"
    assert [one["name"] for one in asked(ctx, "2", "--metric", "click")["policy"]["metrics"]] == ["click"]


REFUSED = (
    (["2", "--ab"], "an A/B test without a metric has no verdict"),
    (["--ab", "--arm", "1=0.5", "--metric", "click"], "version 1 of 'iris' is live already"),
    (["--ab", "--arm", "9=0.5", "--metric", "click"], "9"),
    (["--ab", "--arm", "2=0.6", "--arm", "3=0.4", "--metric", "click"], "something left for the live"),
    (["--ab", "--arm", "2=much", "--metric", "click"], "want VERSION or VERSION=SHARE"),
    (["2", "--ab", "--arm", "3", "--metric", "click"], "version 2 and --arm"),
    (["2", "--arm", "3", "--metric", "click"], "several versions are compared with --ab"),
    (["--arm", "3"], "several versions are compared with --ab"),
    (["2", "--ab", "--metric", "click", "--shadow-share", "1"], "an A/B test copies nothing"),
    (["2", "--shadow", "--metric", "click"], "a shadow answers no requests"),
    (["2", "--now", "--metric", "click"], "these are rules for a canary"),
    (["2", "--metric", "click best=1"], "'best=1' is none of"),
    (["2", "--metric", ""], "name '' of feedback"),
)


def test_what_cannot_be_is_refused_with_what_to_do(ctx: Context) -> None:
    for words, said in REFUSED:
        done = run(*words)
        assert done.exit_code in (1, 2), done.output
        assert said in done.stderr and "a fault in Interlock" not in done.stderr, (words, done.stderr)
        assert not ctx.ledger.open_releases()
