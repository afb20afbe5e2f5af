"""Who goes first: loads are lowered, answers are not, and a load that gets no core begins anew in a hurry."""

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from interlock.app.pace import (
    ALL_GENTLY,
    DATA_GENTLY,
    PATIENT_NICE,
    TURN_S,
    can_rise,
    gently,
    rise,
)
from interlock.core.model import Placement
from interlock.registry.rows import ReleaseState
from tests.app.nodes import RunningNode, put_onnx, put_python, until

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(180),
]

STARVED = """
import os, sys, time
from interlock.app import pace

print("begun", os.getpid(), *sys.argv[1:], flush=True)
if sys.argv[-1] == pace.ALL_GENTLY:
    pace.PATIENCE_S = 0.3
    forever = lambda: [None for _ in iter(int, 1)]
    pace.gently(forever)
print("policy", os.sched_getscheduler(0), flush=True)
"""


@contextmanager
def busy(core: int) -> Iterator[None]:
    """A program on this core that never rests."""
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(hog.pid, {core})
        yield
    finally:
        hog.kill()
        hog.wait()


def policies(pid: int) -> set[int]:
    """The scheduling policies of all threads of a process."""
    return {os.sched_getscheduler(thread.id) for thread in psutil.Process(pid).threads()}


def test_gentle_work_is_lowered_and_its_caller_is_not() -> None:
    seen = gently(lambda: (os.sched_getscheduler(0), threading.current_thread().name))
    assert seen == (os.SCHED_IDLE, "gently")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_gentle_work_raises_what_it_raises() -> None:
    with pytest.raises(SystemExit, match="of the model"):
        gently(lambda: sys.exit("of the model"))


def test_what_starves_is_told_so_and_only_then() -> None:
    core = min(os.sched_getaffinity(0))
    told: list[float] = []
    stop = threading.Event()

    def starved() -> None:
        told.append(time.monotonic())
        stop.set()

    def work() -> int:
        os.sched_setaffinity(0, {core})
        rounds = 0
        while not stop.is_set() and rounds < 2_000:
            rounds += 1
            sum(range(20_000))  # about 0.2 ms: 0.4 s in all
        return rounds

    assert gently(work, starved) == 2_000 and told == []
    with pytest.MonkeyPatch.context() as patch, busy(core):
        patch.setattr("interlock.app.pace.PATIENCE_S", 0.3)
        assert gently(work, starved) < 2_000 and len(told) >= 1


def test_a_process_whose_start_starves_begins_anew_at_once_as_itself(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(STARVED)
    core = min(os.sched_getaffinity(0))
    with busy(core):
        process = subprocess.Popen(
            [sys.executable, "-P", str(program), "ARGS", ALL_GENTLY],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.sched_setaffinity(process.pid, {core})
        said, complained = process.communicate(timeout=120)
    pid = process.pid
    assert said.splitlines() == [
        f"begun {pid} ARGS {ALL_GENTLY}",
        f"begun {pid} ARGS",
        f"policy {os.SCHED_OTHER}",
    ]
    assert "begins anew" in complained


def test_short_turns_are_what_the_kernel_then_says() -> None:
    code = f"""
import ctypes, struct
from interlock.app.pace import promptly
granted = promptly()
attributes = ctypes.create_string_buffer(56)
ctypes.CDLL(None).syscall({ {"x86_64": 315, "aarch64": 275}[platform.machine()] }, 0, attributes, 56, 0)
print(granted, struct.unpack("=IIQiIQQQ", attributes.raw[:48])[5])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    granted, turn_ns = said.split()
    assert granted == "True"
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    if release >= (6, 12):
        assert int(turn_ns) == round(TURN_S * 1e9)


def test_who_is_patient_is_lower_than_its_process_and_takes_usual_turns() -> None:
    code = f"""
import ctypes, os, struct, threading
from interlock.app.pace import patiently, promptly
def turn_ns():
    attributes = ctypes.create_string_buffer(56)
    ctypes.CDLL(None).syscall({ {"x86_64": 315, "aarch64": 275}[platform.machine()] }, 0, attributes, 56, 0)
    return struct.unpack("=IIQiIQQQ", attributes.raw[:48])[5]
def beside():
    granted = patiently()
    print(granted, os.getpriority(os.PRIO_PROCESS, 0) - nice, turn_ns() > mine)
promptly()
nice, mine = os.getpriority(os.PRIO_PROCESS, 0), turn_ns()
thread = threading.Thread(target=beside)
thread.start()
thread.join()
print(os.getpriority(os.PRIO_PROCESS, 0) == nice, turn_ns() == mine)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    granted, lower, longer, *unchanged = said.split()
    assert (granted, unchanged) == ("True", ["True", "True"])
    assert int(lower) == min(PATIENT_NICE, 19 - os.getpriority(os.PRIO_PROCESS, 0))
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    if release >= (6, 12):
        assert longer == "True"


def test_whether_one_can_rise_is_what_happens() -> None:
    code = "from interlock.app.pace import can_rise, idly, rise\nimport os\n"
    code += "could = can_rise(); idly(); print(could, rise(), os.sched_getscheduler(0))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    policy = os.SCHED_OTHER if can_rise() else os.SCHED_IDLE
    assert said.split() == [str(can_rise()), str(can_rise()), str(policy)]
    assert rise()  # nothing to do


def test_executors_begin_gently_and_no_thread_of_theirs_serves_lowered(tmp_path: Path) -> None:
    home = tmp_path / "home"
    put_onnx(home, "data", "1", 2.0, Placement.EXECUTOR)
    put_python(home, "code", "1", 3.0)
    with RunningNode(home) as node:
        node.wait_ready()
        for model, factor, word in (("data", 2.0, ALL_GENTLY), ("code", 3.0, DATA_GENTLY)):
            assert node.release(model, "1").state is ReleaseState.DONE
            assert node.answers(model, 2.0 * factor)
            pid = node.pids(f"x-{model}-1")[f"x-{model}-1"]
            assert psutil.Process(pid).cmdline()[-1] == word
            assert policies(pid) == {os.SCHED_OTHER}
        worker = node.pids("worker-0")["worker-0"]
        assert policies(worker) == {os.SCHED_OTHER}
        # What was unloaded leaves soon, its memory given back before.
        data = node.pids("x-data-1")["x-data-1"]
        put_onnx(home, "data", "2", 5.0, Placement.EXECUTOR)
        assert node.release("data", "2").state is ReleaseState.DONE
        assert until(lambda: not psutil.pid_exists(data), "the old executor's end") < 10
        assert node.answers("data", 10.0)


@pytest.mark.slow
def test_an_executor_that_gets_no_core_serves_in_the_end(tmp_path: Path) -> None:
    home = tmp_path / "home"
    put_onnx(home, "data", "1", 2.0, Placement.EXECUTOR)
    core = min(os.sched_getaffinity(0))
    with RunningNode(home) as node:
        node.wait_ready()
        for process in psutil.Process(node.process.pid).children(recursive=True):
            os.sched_setaffinity(process.pid, {core})
        os.sched_setaffinity(node.process.pid, {core})
        with busy(core):
            assert node.release("data", "1").state is ReleaseState.DONE
            assert node.answers("data", 4.0)
            name = "x-data-1"
            pid = node.pids(name)[name]
            assert policies(pid) == {os.SCHED_OTHER}
        status = node.get("/api/status")[1].decode()
        assert '"quarantined":{}' in status.replace(" ", "")
        assert [line for line in (home / "logs" / f"{name}.log").read_text().splitlines() if "anew" in line]
        assert psutil.Process(pid).cmdline()[-1] != ALL_GENTLY
