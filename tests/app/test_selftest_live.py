"""`interlock release NAME --selftest` on a real node: it finds what is to be found, and leaves nothing,
whoever ends it."""

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from interlock.core.fault import is_selftest, selftest_model
from interlock.core.settings import run_folder
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from interlock.serving.counters import read_all
from tests.app.nodes import RunningNode, put_onnx, put_python, until

pytestmark = [pytest.mark.server, pytest.mark.timeout(180)]

HIDDEN = selftest_model("m")
QUICK = ("--margin", "0.03", "--slower", "4", "--rate", "150", "--seconds", "60")
"""Wide margins, as in `traffic.py`: decided within seconds."""


def command(home: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "interlock.cli.main",
        "release",
        "m",
        "--selftest",
        "--home",
        str(home),
        *words,
    ]


@contextmanager
def asked(node: RunningNode) -> Iterator[Counter[Any]]:
    """A client of the model itself meanwhile; what it got, by answer."""
    found: Counter[Any] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.02):
            found[node.infer("m")] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def check_nothing_is_left(node: RunningNode, ledger: Ledger) -> None:
    assert [model.name for model in ledger.models()] == ["m"] and ledger.open_releases() == []
    assert [row.model for row in ledger.releases()] == ["m"]
    until(lambda: b"selftest" not in node.get("/api/status")[1], "every process without it")
    assert json.loads(node.get("/api/models/m/versions")[1])[0]["live"]
    until(lambda: node.infer(HIDDEN)[0] == 404, "no answers")
    assert "unloaded" not in node.infer(HIDDEN)[1]
    assert not list(node.home.glob("certificates/*"))


def test_the_same_version_passes_and_faults_are_caught_and_nobody_else_hears_of_it(
    interlock_home: Path,
) -> None:
    put_onnx(interlock_home, "m", "1", 3.0)
    with RunningNode(interlock_home) as node:
        node.wait_ready()
        assert node.release("m", "1").state is ReleaseState.DONE
        with asked(node) as answers:
            words = ("--trials", "1", "--fault", "fail=0.2", "--fault", "nan=0.2", "--json")
            done = subprocess.run(command(interlock_home, *QUICK, *words), capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        found = json.loads(done.stdout)
        same, fails, nan = found["trials"]
        assert same["fault"] is None and same["outcome"] != "rolled back" and same["failed"] == 0
        assert (fails["outcome"], nan["outcome"]) == ("rolled back", "rolled back")
        assert fails["gates"] and nan["gates"] == ["unsound outputs"]
        for one in (fails, nan):
            assert abs(one["fault"]["level"] - 0.2) < 0.01
            assert one["bound"] / 2 < one["pairs"] < 10 * one["bound"] and one["to_zero_s"] < 5.0
        assert (found["alarms"]["hits"], found["alarms"]["of"]) == (0, 1) and found["blocks"]["of"] > 1
        assert set(answers) == {(200, 6.0)} and answers.total() > 20
        ledger = Ledger(interlock_home / "ledger.db")
        check_nothing_is_left(node, ledger)
        assert all(is_selftest(e.model or "") or e.body.get("release") in (1, None) for e in ledger.events())
        mine = {key.release for key in read_all(run_folder(interlock_home)) if key.model == "m"}
        assert mine == {1}, "no evidence of the model itself"
        ledger.close()


@pytest.mark.beside
def test_whoever_ends_the_command_its_model_goes(interlock_home: Path) -> None:
    put_python(interlock_home, "m", "1", 3.0)
    with RunningNode(interlock_home) as node:
        node.wait_ready()
        assert node.release("m", "1").state is ReleaseState.DONE
        ledger = Ledger(interlock_home / "ledger.db")
        for number in (signal.SIGINT, signal.SIGKILL):
            process = subprocess.Popen(
                command(interlock_home, *QUICK, "--fault", "fail=0.2"), stdout=subprocess.DEVNULL
            )
            until(
                lambda: any(row.model == HIDDEN for row in ledger.releases() if row.epoch), "a canary", 60.0
            )
            busy = subprocess.run(command(interlock_home), capture_output=True, timeout=60)
            assert busy.returncode == 1 and b"another self-test runs" in busy.stderr
            process.send_signal(number)
            assert process.wait(30) in (130, -signal.SIGKILL)
            if number == signal.SIGKILL:
                until(lambda: ledger.model(HIDDEN) is None, "control tidies up")
            check_nothing_is_left(node, ledger)
        assert node.answers("m", 6.0) and not [name for name in node.pids("x-") if "selftest" in name]
        ledger.close()
