"""Owns the claim on a home folder: one node at a time, and nothing left of one that died."""

import contextlib
import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from interlock.app import logs
from interlock.core.errors import ConfigError
from interlock.core.settings import run_folder
from interlock.serving.counters import block_files, owner_is_dead, read_block

log = logging.getLogger("interlock.node")

ORPHANS_S = 6.0
"""How long processes of a dead supervisor may take to leave before they are killed; they leave in 5 s."""


def take_lock(home: Path, within_s: float = 0.5) -> int:
    """The descriptor that makes this process the node of a home folder, for as long as it is open.

    Raises: ConfigError naming the process that has it. Tried for a moment: those who only look whether a
    node runs take the lock for an instant, too.
    """
    run = run_folder(home)
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(run / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until_s = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < until_s:
                time.sleep(0.01)
                continue
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise ConfigError(
                f"a node runs in {home} already (pid {holder}): stop it with interlock down, or choose "
                "another --home"
            ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def clear_remains(home: Path, within_s: float = ORPHANS_S) -> None:
    """Wait for the processes of a supervisor that died to leave, kill those that do not, and remove what
    only described that node. Called under the lock."""
    run = run_folder(home)
    (run / "node.json").unlink(missing_ok=True)
    until_s = time.monotonic() + within_s
    while (alive := _alive(run)) and time.monotonic() < until_s:
        time.sleep(0.02)
    for path in alive:
        view = read_block(path, counts=False)
        # Its lock is held: by the process that the block names, or by one that it has forked.
        if view is not None and not owner_is_dead(path):
            log.warning("an orphan is killed", extra=logs.fields(name=view.process, orphan=view.pid))
            _kill(view.pid)
    for path in _leftovers(run):
        path.unlink(missing_ok=True)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(pid, signal.SIGKILL)  # with what a model in it has started
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)


def _alive(run: Path) -> list[Path]:
    return [path for path in block_files(run) if not owner_is_dead(path)]


def _leftovers(run: Path) -> Iterable[Path]:
    yield from run.glob("*.part")
    yield from run.glob("x-*.sock")
    yield from run.glob("x-*.reason")
    yield from (run / "counters").glob("*.new")
