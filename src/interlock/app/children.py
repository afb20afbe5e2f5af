"""Owns one child process of the supervisor: its start, what its mapped block says of it, and how it ended."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from interlock.app.pace import can_rise, idly
from interlock.app.processes import Doing, Kind, ProcessSpec, RunningView
from interlock.core.model import Version
from interlock.core.settings import NodeConfig, ProcessArgs, encode_args, run_folder
from interlock.runtime.environment import interpreter_of, variables_for
from interlock.serving.counters import BlockView, Phase, block_path, read_block

LOG_BYTES = 16 * 1024 * 1024
"""A child's log that is longer when the child starts is put aside as `.1`."""

NAME_BYTES = 120
"""The longest name of a process: files are named after it, and with their endings may have 255 bytes."""

_DOING = {Phase.IDLE: Doing.IDLE, Phase.LOADING: Doing.LOADING, Phase.RUNNING: Doing.RUNNING}
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Child:
    """A running child, an executor under the interpreter of its `version`. `stopping_s` is set by `stop`;
    `view` is the last look at it."""

    def __init__(
        self,
        spec: ProcessSpec,
        config: NodeConfig,
        module: str,
        lifeline_fd: int,
        listen_fd: int,
        incarnation: int,
        version: Version | None = None,
    ) -> None:
        args = ProcessArgs(config, spec.name, incarnation, lifeline_fd, listen_fd, spec.version_key)
        self.spec = spec
        self.incarnation = incarnation
        self._block = block_path(run_folder(config.home), spec.name, incarnation)
        self.view = RunningView(spec, time.monotonic())
        python = sys.executable if version is None else interpreter_of(config.home, version)
        passed = (lifeline_fd,) if listen_fd < 0 else (lifeline_fd, listen_fd)
        with _open_log(config.home / "logs" / f"{spec.name}.log") as log:
            self._process = subprocess.Popen(
                # -P: the folder in which one happens to be must not lend modules to a service.
                [python, "-P", "-m", module, encode_args(args), *([spec.pace] if spec.pace else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables_for(python, os.environ),
                pass_fds=passed,
                # Ctrl-C in a terminal reaches the supervisor alone, which then stops all in order.
                process_group=0,
            )
        if spec.pace and can_rise():
            with suppress(ProcessLookupError):
                idly(self.pid)  # until its first lines run: it rises by itself

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """The exit code (negative: the signal that ended it), or None while it runs.

        What it had started itself ends with it, unless that left the process group on purpose.
        """
        if self._process.returncode is None and _has_ended(self.pid):
            # Before its number is given back: until then no other group can have it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        return self._process.poll()

    def look(self, with_memory: bool) -> RunningView:
        """The child as it is now; the last view stands for what cannot be read."""
        block = read_block(self._block, counts=False)
        if block is not None:
            self.view = _seen(self.view, block)
        if with_memory:
            self.view = replace(self.view, resident_bytes=resident_bytes(self.pid))
        return self.view

    def stop(self, now_s: float) -> None:
        """Ask it to drain and leave."""
        self.view = replace(self.view, stopping_s=now_s)
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # Popen knows whether it has been reaped: a number that was given to another process is never hit.
        self._process.send_signal(number)


def executor_name(version: Version) -> str:
    """The name of the process that executes a version; a long one is cut, and told apart by its hash."""
    name = f"x-{version.model}-{version.number}"
    data = name.encode()
    if len(data) <= NAME_BYTES:
        return name
    return f"{data[: NAME_BYTES - 17].decode(errors='ignore')}~{hashlib.sha256(data).hexdigest()[:16]}"


def end_of(code: int) -> str:
    """How a child ended, in words.

    >>> end_of(-11), end_of(3)
    ('ended by SIGSEGV', 'ended with exit code 3')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM, what it shares included; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except FileNotFoundError:
        if Path("/proc/self/statm").exists():
            return 0
    except (OSError, IndexError, ValueError):
        return 0
    import psutil  # where there is no /proc

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def module_of(kind: Kind) -> str:
    """The module that a kind of process runs."""
    return f"interlock.app.{kind.value}"


def _has_ended(pid: int) -> bool:
    """Whether a child has ended that nobody has waited for yet."""
    if not hasattr(os, "waitid"):
        return False  # macOS before Python 3.13
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _seen(view: RunningView, block: BlockView) -> RunningView:
    return replace(
        view,
        heartbeat_s=block.heartbeat_s or None,
        doing=_DOING[block.phase],
        doing_version=block.version_key if block.phase is not Phase.IDLE else "",
        requests=block.requests,
        kill_at_s=block.kill_at_s,
        # Its own load came first, and the batch under way is not survived yet.
        survived=max(block.crumbs - 2, 0) if view.spec.kind is Kind.EXECUTOR else 0,
    )


def _open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")
