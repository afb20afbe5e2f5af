"""Owns what every child process that runs a model has in common: its environment, its end, its errors."""

import os
import signal
import subprocess
from pathlib import Path

from interlock.core import errors
from interlock.core.errors import InterlockError


def environment() -> dict[str, str]:
    """The parent's, with one thread for each library of linear algebra."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "ORT_DISABLE_TELEMETRY": "1",  # a model of plain Python may import it, too
    }


def end(child: "subprocess.Popen[bytes]") -> int:
    """Kill the child and whatever it started (it leads a group of its own); its exit code."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has left, and with it all of its group
    return child.wait()


def resident_bytes(pid: int) -> int:
    """What a process holds in memory; 0 where that cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def how_it_ended(code: int) -> str:
    """An exit code of `subprocess` in words.

    >>> how_it_ended(3), how_it_ended(-9)
    ('the process left with exit code 3', 'the process was killed by SIGKILL')
    """
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process left with exit code {code}"


def error_of(name: str, message: str, default: type[InterlockError]) -> InterlockError:
    """The error of that name in the tree, which came as a word from another process; else the default's.

    >>> error_of("LoadFailed", "no such file", InterlockError)
    LoadFailed('no such file')
    """
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, InterlockError)):
        kind = default
    error: InterlockError = kind.__new__(kind)
    Exception.__init__(error, message)
    return error
