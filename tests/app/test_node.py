"""Real nodes: every process may die at any moment, and service comes back; a node comes up and goes whole."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from interlock.app.claim import clear_remains
from interlock.app.sockets import open_admin_socket, open_data_sockets
from interlock.core.errors import ConfigError
from interlock.core.request import parse_request_id
from interlock.core.settings import run_folder
from interlock.operations.discovery import find_node
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from interlock.rollout.replay import decisions, replay
from tests.app.nodes import RunningNode, lives, put_onnx, put_python, until

pytestmark = [pytest.mark.server, pytest.mark.timeout(180)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    put_onnx(home, "iris", "1", 2.0)
    put_onnx(home, "iris", "2", 3.0)
    put_python(home, "slow", "1", 10.0)
    return home


def has_finished(ledger: Ledger, id: int) -> bool:
    return ledger.release(id).state.finished


def restarts(node: RunningNode) -> dict[str, int]:
    """Of every process that `interlock status` shows as running."""
    processes = json.loads(node.get("/api/status")[1])["node"]["processes"]
    return {p["report"]["process"]: p["restarts"] for p in processes if p["up"] and p["report"]["pid"]}


def log_of(home: Path, name: str) -> str:
    return (home / "logs" / f"{name}.log").read_text()


@pytest.mark.beside
def test_a_node_serves_survives_the_death_of_each_process_and_goes_down(home: Path) -> None:
    with RunningNode(home, workers=2) as node:
        node.wait_ready()
        assert find_node(home) is not None
        assert node.release("iris", "1").state is ReleaseState.DONE
        assert node.release("slow", "1").state is ReleaseState.DONE
        assert node.answers("iris", 4.0) and node.answers("slow", 20.0)

        for name in ("worker-0", "worker-1", "x-slow-1", "control"):
            node.kill(name)
            until(lambda: node.answers("iris", 4.0), f"iris after the death of {name}")
            until(lambda: node.answers("slow", 20.0), f"slow after the death of {name}")
            node.wait_ready()
        until(lambda: restarts(node) == dict.fromkeys(node.pids(), 1) | {"supervisor": 0}, "the restarts")
        _, page = node.get("/metrics")
        assert b'interlock_process_restarts_total{process="x-slow-1"} 1' in page
        assert b'interlock_process_up{process="x-slow-1"} 1' in page
        assert re.search(rb'interlock_process_resident_bytes{process="x-slow-1"} \d{8}', page)
        assert node.release("iris", "2").state is ReleaseState.DONE
        until(lambda: node.answers("iris", 6.0), "the new version")

        ledger = Ledger(home / "ledger.db")
        for number in ("1", "2"):
            id = ledger.request_release("iris", number, "now", time.time()).id
            node.kill("control")
            until(partial(has_finished, ledger, id), "a release during which control was killed")
            assert ledger.release(id).state is ReleaseState.DONE
        ledger.close()
        node.wait_ready()
        status, metrics = node.get("/metrics")
        assert status == 200 and b'interlock_process_up{process="worker-1"} 1' in metrics
        pids = node.pids()
        assert set(pids) == {"control", "worker-0", "worker-1", "x-slow-1"}
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(20) == 0
        assert not node.pids() and not any(lives(pid) for pid in pids.values())
        assert find_node(home) is None and not (run_folder(home) / "node.json").exists()

    ledger = Ledger(home / "ledger.db")
    events = ledger.events()
    assert len(decisions(events)) == 15 and replay(events) == []
    ledger.close()


@pytest.mark.beside
def test_a_release_asked_for_while_no_node_ran_is_carried_out_at_the_start(home: Path) -> None:
    ledger = Ledger(home / "ledger.db")
    ledger.request_release("iris", "2", "now", time.time())
    ledger.close()
    with RunningNode(home) as node:
        until(node.is_up, "open ports")
        until(lambda: node.answers("iris", 6.0), "the release")


def test_orphans_leave_within_five_seconds_and_the_next_start_restores_everything(home: Path) -> None:
    with RunningNode(home, workers=2) as node:
        node.wait_ready()
        node.release("iris", "1")
        node.release("slow", "1")
        port, pids = node.node.http_port, node.pids()
        node.process.kill()
        node.process.wait()
        started_s = time.monotonic()
        with RunningNode(home, workers=2, http_port=port) as again:
            until(lambda: not any(lives(pid) for pid in pids.values()), "orphans gone", 5.5)
            until(again.is_up, "open ports")
            until(lambda: again.answers("iris", 4.0) and again.answers("slow", 20.0), "service")
            again.wait_ready()
            assert time.monotonic() - started_s < 10.0
            assert again.node.http_port == port


STUCK = """
import sys, time
from pathlib import Path
from interlock.serving.counters import Block
block = Block.create(Path(sys.argv[1]), "worker-0", 7)
print("here", flush=True)
time.sleep(60)
"""


def test_an_orphan_that_does_not_leave_is_killed_and_what_is_left_of_a_node_removed(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    run.mkdir()
    for name in ("node.json", "x-1.sock", "worker-0.desired.json"):
        (run / name).write_text("{}")
    stuck = subprocess.Popen([sys.executable, "-c", STUCK, str(run)], stdout=subprocess.PIPE)
    assert stuck.stdout is not None and stuck.stdout.readline() == b"here\n"
    clear_remains(tmp_path, within_s=0.1)
    assert stuck.wait(10) == -signal.SIGKILL
    stuck.stdout.close()
    assert [path.name for path in run.iterdir() if path.is_file()] == ["worker-0.desired.json"]


@pytest.mark.beside
def test_a_second_node_in_the_same_home_is_refused_with_the_pid_of_the_first(home: Path) -> None:
    with RunningNode(home) as node:
        node.wait_ready()
        with RunningNode(home) as second:
            assert second.process.wait(20) == 2
        assert f"a node runs in {home} already (pid {node.process.pid})" in node.log.read_text()
        assert node.is_ready()


@pytest.mark.beside
def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with RunningNode(tmp_path / "home", http_port=port) as node:
            assert node.process.wait(20) == 2
        assert f"port {port} is in use" in node.log.read_text()
        assert not (tmp_path / "home" / "logs").exists()


@pytest.mark.beside
def test_a_port_shared_by_another_node_is_in_use_too() -> None:
    first = open_data_sockets("127.0.0.1", 0, 2)
    port = first[0].getsockname()[1]
    assert {opened.getsockname()[1] for opened in first} == {port}
    with pytest.raises(ConfigError, match=f"port {port} is in use"):
        open_data_sockets("127.0.0.1", port, 1)
    with pytest.raises(ConfigError, match=f"port {port} is in use"):
        open_admin_socket("127.0.0.1", port)
    for opened in first:
        opened.close()
    for opened in open_data_sockets("127.0.0.1", port, 1):
        opened.close()


@pytest.mark.beside
def test_a_host_that_is_not_of_this_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("'192.0.2.1'")):
        open_admin_socket("192.0.2.1", 0)


@pytest.mark.beside
def test_a_version_that_crashes_on_load_is_given_up_and_a_new_release_tries_again(home: Path) -> None:
    put_python(home, "bad", "1", 1.0, on_load="os._exit(7)")
    with RunningNode(home) as node:
        node.wait_ready()
        node.release("iris", "1")
        row = node.release("bad", "1")
        assert row.state is ReleaseState.FAILED and "while it was loaded" in row.reason
        assert node.answers("iris", 4.0)
        until(lambda: not node.pids("x-bad"), "the executor's end")
        starts = node.log.read_text().count('"name": "x-bad-1", "child"')
        again = node.release("bad", "1")
        assert again.state is ReleaseState.FAILED and "while it was loaded" in again.reason
        assert node.log.read_text().count('"name": "x-bad-1", "child"') > starts, "it was tried anew"
        ledger = Ledger(home / "ledger.db")
        given_up = [e for e in ledger.events("bad") if e.kind == "version.quarantined"]
        assert len(given_up) == 2 and "under release 3" in given_up[1].body["reason"]
        ledger.close()


@pytest.mark.beside
def test_a_version_that_crashes_on_a_request_is_given_up_and_the_others_serve_on(home: Path) -> None:
    with RunningNode(home) as node:
        node.wait_ready()
        node.release("iris", "1")
        node.release("slow", "1")

        def given_up() -> bool:
            status, message = node.infer("slow", 13.0)
            assert status != 200
            return status == 503 and "quarantined" in str(message)

        until(given_up, "the quarantine", 60.0)
        assert node.answers("iris", 4.0)
        status, body = node.get("/api/quarantine")
        assert status == 200 and b"slow/1@" in body
        assert node.release("slow", "1").state is ReleaseState.DONE
        until(lambda: node.answers("slow", 20.0), "the version after its new release")


FORKING = """__import__("subprocess").Popen(["sleep", "600"])
        __import__("multiprocessing").get_context("fork").Process(target=time.sleep, args=(600,)).start()"""


@pytest.mark.beside
def test_every_request_may_leave_a_line_with_its_id(home: Path) -> None:
    with RunningNode(home, access_log_every=1) as node:
        node.wait_ready()
        node.release("iris", "1")
        until(lambda: node.answers("iris", 4.0), "an answer")
        until(lambda: '"path": "/v2/models/iris/infer", "status": 200' in log_of(home, "worker-0"), "a line")
    line = [json.loads(text) for text in log_of(home, "worker-0").splitlines() if '"status": 200' in text][-1]
    assert line["logger"] == "interlock.access" and line["level"] == "info"
    assert parse_request_id(line["request_id"].encode()).release == 1
    assert line["peer"].startswith("127.0.0.1:") and line["bytes_in"] > 50 and line["duration_ms"] > 0


@pytest.mark.beside
def test_what_a_model_starts_dies_with_its_executor(home: Path) -> None:
    put_python(home, "forks", "1", 1.0, on_load=FORKING)
    with RunningNode(home) as node:
        node.wait_ready()
        assert node.release("forks", "1").state is ReleaseState.DONE

        def family() -> list[int]:
            pid = node.pids("x-forks")["x-forks-1"]
            return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]

        first = family()
        assert len(first) == 3
        node.kill("x-forks-1")
        until(lambda: not any(lives(pid) for pid in first), "the end of the killed one's children")
        until(lambda: node.answers("forks", 2.0), "its successor")
        second = family()
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(20) == 0
        assert not any(lives(pid) for pid in second)


def test_what_a_model_starts_dies_with_an_orphan(home: Path) -> None:
    put_python(home, "forks", "1", 1.0, on_load=FORKING)
    with RunningNode(home) as node:
        node.wait_ready()
        assert node.release("forks", "1").state is ReleaseState.DONE
        pid = node.pids("x-forks")["x-forks-1"]
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        node.process.kill()
        node.process.wait()
        until(lambda: not any(lives(pid) for pid in family), "orphans gone", 6.0)


def test_memory_that_the_model_cannot_be_refused_ends_its_process_and_nothing_else(home: Path) -> None:
    with RunningNode(home, executor_memory_bytes=256 * 2**20) as node:
        node.wait_ready()
        node.release("iris", "1")
        node.release("slow", "1")
        status, message = node.infer("slow", 14.0)
        assert status in (500, 503), message
        assert "bytes of memory, the limit is 335,544,320" in node.log.read_text()
        assert node.answers("iris", 4.0)
        until(lambda: node.answers("slow", 20.0), "the version after its restart")


@pytest.mark.beside
def test_an_app_file_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "app.toml").write_text("[node]\nport = 1\n")
    with RunningNode(home) as node:
        assert node.process.wait(20) == 2
    assert "unknown port" in node.log.read_text()


@pytest.mark.beside
def test_a_stopped_worker_is_replaced_because_its_heart_does_not_beat(home: Path) -> None:
    with RunningNode(home, workers=2) as node:
        node.wait_ready()
        node.release("iris", "1")
        before = node.pids("worker-0")["worker-0"]
        os.kill(before, signal.SIGSTOP)
        until(lambda: node.pids("worker-0").get("worker-0", before) != before, "a new worker-0")
        node.wait_ready()
        assert all(node.answers("iris", 4.0) for _ in range(20))
        assert "no heartbeat" in node.log.read_text()


@pytest.mark.beside
def test_no_request_fails_while_versions_are_swapped_and_the_node_drains_when_it_leaves(home: Path) -> None:
    with RunningNode(home) as node:
        node.wait_ready()
        node.release("iris", "1")
        failures: list[object] = []
        answered = {4.0: 0, 6.0: 0}
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                status, value = node.infer("iris")
                if status == 200:
                    answered[value] += 1
                else:
                    failures.append((status, value))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for number in "212121":
                assert node.release("iris", number).state is ReleaseState.DONE
        finally:
            stop.set()
            asking.join()
        assert failures == [] and min(answered.values()) > 0


@pytest.mark.beside
def test_ctrl_c_reaches_the_supervisor_alone_and_it_stops_in_order(home: Path) -> None:
    with RunningNode(home) as node:
        node.wait_ready()
        group = os.getpgid(node.process.pid)
        assert all(os.getpgid(pid) != group for pid in node.pids().values())
        node.process.send_signal(signal.SIGINT)
        try:
            assert node.process.wait(20) == 0
        except subprocess.TimeoutExpired:
            raise AssertionError(node.log.read_text()) from None
        assert "Traceback" not in node.log.read_text() + log_of(home, "worker-0") + log_of(home, "control")


@pytest.mark.beside
def test_the_token_is_on_no_command_line_and_in_no_log(home: Path) -> None:
    token = "a-token-that-nobody-guesses"
    folder = run_folder(home)
    folder.mkdir(mode=0o700, parents=True)
    (folder / "token").write_text(token)
    with RunningNode(home) as node:
        node.wait_ready()
        assert node.get("/api/status")[0] == 403
        for pid in [node.process.pid, *node.pids().values()]:
            assert token not in " ".join(psutil.Process(pid).cmdline())
        for path in (home / "logs").glob("*.log"):
            assert token not in path.read_text()
