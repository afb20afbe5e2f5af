"""Owns the processes that a benchmark starts: each pinned, in a group of its own, ended with its children."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

SERVER_CORE = 0
CLIENT_CORE = 1


def pinned(argv: Sequence[str], cores: str | int) -> list[str]:
    """The command line that runs `argv` on these cores only ("0", "0,1")."""
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(cores), *argv] if taskset else list(argv)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Started:
    """One program and its children, in a process group that only this object signals."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cores: str | int,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                pinned(argv, cores),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """The program and all its descendants that still live."""
        try:
            root = psutil.Process(self._popen.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def running(self) -> bool:
        return self._popen.poll() is None

    def tail(self, characters: int = 1500) -> str:
        """The end of what the program printed."""
        return self.log.read_text(errors="replace")[-characters:]

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM to the group, SIGKILL to whatever of it is left after `grace_s`."""
        members = self.processes()
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGTERM)
        _gone, alive = psutil.wait_procs(members, timeout=grace_s)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._popen.wait(timeout=grace_s)


def wait_until(ready: Callable[[], bool], server: Started, timeout_s: float = 90.0) -> None:
    """Poll `ready` until it is true.

    Raises: RuntimeError with the end of the server's output if it ends or `timeout_s` pass first.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if not server.running():
            raise RuntimeError(f"the server ended before it was ready; its output: {server.tail()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server was not ready after {timeout_s} s; its output: {server.tail()}")
        time.sleep(0.1)


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """User and system CPU seconds these processes have used; a process that ended counts 0."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def core_busy_s(cores: Sequence[int]) -> float:
    """CPU seconds that programs and the hypervisor took of these cores since boot; without interrupts."""
    busy_s = 0.0
    for core, times in enumerate(psutil.cpu_times(percpu=True)):
        if core in cores:
            busy_s += times.user + times.nice + times.system + times.steal
    return busy_s


def resident_mb(processes: Sequence[psutil.Process]) -> float:
    """Sum of resident sizes in MB (10^6 bytes); pages that processes share are counted once for each."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6
