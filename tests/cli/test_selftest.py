"""`interlock release NAME --selftest`: which options reach the plan, what is refused, what is told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from interlock.cli.main import cli
from interlock.core.fault import Fault
from interlock.core.policy import Policy
from interlock.evidence.binomial import share
from interlock.operations import selftest
from interlock.operations.selftest import Plan
from interlock.rollout.selftest import Report, Trial


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["release", "iris", *words])


def a_report(*against: str) -> Report:
    trials = (
        Trial(None, "promoted", (), "", 1200, 3000, 36.0, 3600, 0),
        Trial(Fault("fail", 0.05), "rolled back", ("paired errors",), "", 0, 274, 3.3, 350, 1, 0.16, 193.0),
        Trial(Fault("slow", 3.0), "held", (), "undecided\x1b[31m", 9, 500, 60.0, 6000, 0, None, 10.0),
    )
    return Report(
        "iris", "3", Policy(), 100.0, 61.0, trials, share(0, 1), share(1, 40), ("latency p50",),
        {"flip on 40 %": "it has no labels"}, against,
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the operation was asked; it finds that all held, or not where it is told so."""
    found: list[Any] = []

    def operation(ctx: Any, name: str, plan: Plan, rules: dict[str, Any], say: Any) -> Report:
        found.append((name, plan, rules))
        say("the same version …")
        return a_report(*(["not caught: slow, 3 times"] if plan.trials == 7 else []))

    monkeypatch.setattr(selftest, "selftest", operation)
    yield found


def test_the_options_reach_the_plan_and_rules_the_releases(asked: list[Any], tmp_path: Path) -> None:
    assert run("--selftest").exit_code == 0
    rows = tmp_path / "rows.csv"
    rows.write_text("a\n1\n")
    words = (
        "--selftest --trials 2 --fault fail=0.1 --fault slow=2 --rate 50 --seconds 30 --margin 0.03".split()
    )
    assert run(*words, "--data", str(rows), "--canary").exit_code == 0
    faults = (Fault("fail", 0.1), Fault("slow", 2.0))
    assert asked == [("iris", Plan(), {}), ("iris", Plan(2, faults, 50.0, 30.0, rows), {"margin": 0.03})]


def test_the_help_says_what_the_plan_does_by_default() -> None:
    text = " ".join(run("--help").stdout.split())
    plan = Plan()
    faults = " ".join(f"{fault.kind}={fault.level:g}" for fault in plan.faults)
    for default in (plan.trials, faults, f"{plan.rate_per_s:g}", f"{plan.limit_s:g}"):
        assert f"[default: {default}]" in text


def test_it_tells_what_it_found(asked: list[Any]) -> None:
    done = run("--selftest")
    assert done.stderr == "the same version …\n"
    lines = done.stdout.splitlines()
    assert lines[0] == "gates of iris, tried on copies of version 3: alpha 1.00%, 100 requests/s, 61 s"
    assert "the same version, 1 releases: 1 promoted, 0 held, 0 rolled back" in lines
    assert "  false alarms of releases: 0 of 1, 95 % interval 0.0% to 97.5%" in lines
    assert any(line.endswith("to 13.2% (latency p50)") for line in lines)
    (row,) = (line.split() for line in lines if line.startswith("fail on 5 %"))
    assert row == "fail on 5 % rolled back paired errors 3.3 0 274 193 both ran 0.16 1 of 350".split()
    assert any("10 own" in line and "undecided [31m" in line for line in lines), (
        "nothing commands the terminal"
    )
    assert "not tried: flip on 40 %: it has no labels" in lines
    assert lines[-1] == "all held: no more false alarms than alpha allows, every fault was caught"


def test_what_did_not_hold_is_told_and_ends_with_1(asked: list[Any]) -> None:
    done = run("--selftest", "--trials", "7")
    assert done.exit_code == 1 and done.stdout.splitlines()[-1] == "not caught: slow, 3 times"
    done = run("--selftest", "--trials", "7", "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["against"] == ["not caught: slow, 3 times"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["2", "--selftest"], "copies of the live version"),
        (["--selftest", "--now"], "copies of the live version"),
        (["--selftest", "--url", "http://127.0.0.1:1"], "want --home"),
        (["--trials", "2"], "are for --selftest"),
        (["--fault", "fail=0.1"], "are for --selftest"),
        (["--selftest", "--rate", "1e6"], "--rate"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: list[Any], words: list[str], said: str) -> None:
    done = run(*words)
    assert done.exit_code == 2 and said in done.stderr and asked == []


def test_a_fault_that_is_none_is_an_error(asked: list[Any]) -> None:
    done = run("--selftest", "--fault", "crash=1")
    assert done.exit_code == 1 and "fail, slow, flip, nan" in done.stderr and asked == []
