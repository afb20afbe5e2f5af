"""Runs a short form of the demo the way `make demo` does, and takes it apart where a real run cannot go."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from rich.console import Console

from examples.iris.node import CommandFailed, DemoNode, Swap
from examples.iris.report import Seen, exit_code, table
from interlock.operations.arrivals import percentiles
from interlock.operations.load import OpenLoopResult

SHORT = ("--swaps", "2", "--rate", "60", "--quiet-s", "0.5")
ONLY_SWAPS = ("--only-swaps",)
REPOSITORY = Path(__file__).resolve().parents[2]
RUN_S = 300.0


def start(
    folder: Path, *options: str, keep: bool = False, shell: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    # Into a file: a node that goes on would hold a pipe open.
    with (folder / "out").open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "examples.iris.demo", *options],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(folder), "KEEP": "1" if keep else "", **(shell or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def folder(interlock_home: Path) -> Path:
    """Where the demo makes its home: short, and removed after the test."""
    return interlock_home.parent


def wait_for(pattern: str, folder: Path, demo: "subprocess.Popen[str]") -> "re.Match[str]":
    until_s = time.monotonic() + RUN_S
    while True:
        said = (folder / "out").read_text()
        if found := re.search(pattern, said):
            return found
        assert demo.poll() is None and time.monotonic() < until_s, f"no {pattern!r} in:\n{said}"
        time.sleep(0.05)


def is_open(url: str) -> bool:
    at = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((at.hostname or "", at.port or 0)) == 0


@pytest.mark.beside
@pytest.mark.server
@pytest.mark.timeout(400)
@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_demo_swaps_and_releases_without_a_failed_request_and_leaves_what_it_says(
    folder: Path, is_whole: bool
) -> None:
    """The short form is kept, and shows how to stop it; the whole one leaves nothing."""
    # What the caller's shell says of other nodes and registries is not for the demo.
    shell = {"INTERLOCK_URL": "http://127.0.0.1:9", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    demo = start(folder, *SHORT, *(() if is_whole else ONLY_SWAPS), keep=not is_whole, shell=shell)
    code = demo.wait(RUN_S)
    said = (folder / "out").read_text()
    if not is_whole:
        check_it_goes_on_until_it_is_told(said)
    assert code == 0, said
    for number in ("1", "2"):
        assert re.search(rf"version {number}: onnx, runs inline", said)
    assert len(re.findall(r"largest difference \d", said)) >= 2
    assert len(re.findall(r"interlock register iris iris-\d\.joblib --trust --data train", said)) >= 2
    assert re.search(r"reference_accuracy +[\d.]+ -> [\d.]+ ", said)
    assert re.search(r"gate of iris version 2 against 1: [A-Z]+\n", said)
    assert re.search(r"accuracy +(pass|worse|undecided) .*margin 0\.1, 50 rows", said)
    assert re.search(r"4 swaps at 60 requests/s", said)
    requests = re.search(r"requests *│ *([\d,]+)", said)
    assert requests is not None and int(requests[1].replace(",", "")) > 60
    assert re.search(r"failures *│ *0 *│", said)
    assert re.search(r"p50, p99 during the swaps *│ *[\d.,]+ ms, [\d.,]+ ms", said)
    assert re.search(r"time to swap: median, greatest *│ *[\d.,]+ ms, [\d.,]+ ms", said)
    urls = re.search(r"inference (\S+) +admin (\S+)", said)
    assert urls is not None
    assert not is_open(urls[1]) and not is_open(urls[2])
    if not is_whole:
        return
    assert not list(folder.glob("il-demo-*"))
    # Two versions do not deserve it and are caught, a good one is promoted, and no client saw an error.
    assert re.search(r"│ 2 +│ 30 trees: three times as slow +│ rolled back │.*│ 0 +│$", said, re.MULTILINE)
    assert re.search(r"│ 3 +│ fails on 5 % of the irises +│ rolled back │.*│ 0 +│$", said, re.MULTILINE)
    assert re.search(r"│ 4 +│ 10 other trees +│ live +│.*│ 0 +│$", said, re.MULTILINE)
    assert re.search(r"failed requests: 0 of [\d,]{3,}", said)
    assert len(re.findall(r"(?m)^# Release \d+: version \d of forest, (?:failed|done)$", said)) == 3


@pytest.mark.beside
@pytest.mark.server
@pytest.mark.timeout(300)
def test_ctrl_c_stops_the_node(folder: Path) -> None:
    demo = start(folder, "--swaps", "100", *SHORT[2:], *ONLY_SWAPS)
    try:
        urls = wait_for(r"inference (\S+) +admin (\S+)", folder, demo)
        wait_for(r"swap 1 of 200: \S+", folder, demo)
        assert is_open(urls[1])
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
        assert not is_open(urls[1]) and not is_open(urls[2])
        assert not list(folder.glob("il-demo-*"))
    finally:
        demo.kill()
        demo.wait()


# Its short forms: the test above, and that of `interlock up --detach` in tests/cli/test_node.py.
@pytest.mark.soak
@pytest.mark.server
@pytest.mark.timeout(300)
def test_ctrl_c_during_the_start_leaves_no_node(folder: Path) -> None:
    demo = start(folder, *SHORT)
    try:
        wait_for(r"starting a node", folder, demo)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
        assert not list(folder.glob("il-demo-*"))
        assert not [p.pid for p in psutil.process_iter(["cmdline"]) if mentions(p.info["cmdline"], folder)]
    finally:
        demo.kill()
        demo.wait()


def mentions(command: list[str] | None, folder: Path) -> bool:
    return any(f"{folder}/il-demo-" in word for word in command or [])


def check_it_goes_on_until_it_is_told(said: str) -> None:
    home = re.search(r"interlock down --home (\S+)", said)
    assert home is not None, said
    node = DemoNode(Path(home[1]))
    try:
        asked = ("predict", "iris", "--data", "[[5.1, 3.5, 1.4, 0.2]]")
        assert re.search(r"(?m)^0 ", node.run(*asked))
    finally:
        node.down()
    with pytest.raises(CommandFailed, match=r"predict iris .*no node runs"):
        node.run(*asked)


def seen(failures: dict[str, int], ok: int = 90) -> Seen:
    latency = percentiles([1.0, 2.0, 3.0])
    load = OpenLoopResult(
        offered_per_s=100.0,
        done_per_s=90.0,
        sent=ok + sum(failures.values()),
        ok=ok,
        failures=failures,
        latency=latency,
        lag=latency,
        waited=0,
        reconnects=0,
    )
    return Seen(load, latency, latency, (Swap("2", 0.1, 0.5), Swap("1", 0.3, 0.7)))


def test_a_failed_request_fails_the_demo_and_stands_in_the_table() -> None:
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(seen({"status 503": 2, "closed": 1})))
    assert "3 (closed: 1, status 503: 2)" in shown.get()
    assert exit_code(seen({"status 503": 2})) == 1
    assert exit_code(seen({}, ok=0)) == 1
    assert exit_code(seen({})) == 0


def test_the_table_says_how_long_a_swap_took() -> None:
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(seen({})))
    assert "200 ms, 300 ms" in shown.get() and "600 ms, 700 ms" in shown.get()
