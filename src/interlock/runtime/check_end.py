"""Owns how a checking process ends: with the process that started it, and with all that it started itself."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from interlock.runtime.child import end as end_group

MARK = "INTERLOCK_CHECK"
"""In the environment of a checking process, and so of all that it starts: which check they belong to."""

_PR_SET_PDEATHSIG = 1
_PATIENCE_S = 5.0


def end_with_parent(parent: int) -> None:
    """Let the system end this process when its parent does, however that ends. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1 != parent:
            os._exit(1)  # it had left before


def end(child: "subprocess.Popen[bytes]", mark: str) -> None:
    """The child and whatever it started, also what left its group: what has `mark` in its environment."""
    end_group(child)
    until = time.monotonic() + _PATIENCE_S
    while left := marked(mark):  # again, for what was started meanwhile
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return


def marked(mark: str) -> list[int]:
    """Processes that run with that mark in their environment; none where there is no /proc."""
    wanted = f"{MARK}={mark}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if wanted in (folder / "environ").read_bytes() + b"\0":
                found.append(int(folder.name))
    return found
