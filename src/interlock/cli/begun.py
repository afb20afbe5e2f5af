"""Owns a start that is not done yet: whatever ends the command by then ends the node that it has begun."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

import click

from interlock.core.errors import InterlockError
from interlock.core.settings import run_folder
from interlock.operations.discovery import is_locked, read_node_file

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MARGIN_S = 15.0
"""How much longer than its drain a node may take to leave before it is killed."""


class _Told(BaseException):
    """A signal came."""


def until_done(
    spawn: Callable[[], "subprocess.Popen[bytes]"],
    wait: Callable[["subprocess.Popen[bytes]"], T],
    home: Path,
    drain_s: float,
) -> T:
    """Start a node by `spawn` and return what `wait` makes of it.

    If `wait` raises, or SIGINT, SIGTERM or SIGHUP comes first, the node is stopped, and nothing that
    describes it stays in the home folder. A second signal lets it stop without its drain.
    Raises: what `wait` raises; Exit with 128 + the signal's number.
    """
    told: list[int] = []
    is_waiting = False
    child: subprocess.Popen[bytes] | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if is_waiting:
            raise _Told
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        child = spawn()
        try:
            is_waiting = True
            if told:
                raise _Told
            return wait(child)
        except BaseException:
            is_waiting = False
            _stop(child, home, drain_s)
            raise
        finally:
            is_waiting = False
    except _Told:
        raise click.exceptions.Exit(128 + told[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(child: "subprocess.Popen[bytes]", home: Path, drain_s: float) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(drain_s + MARGIN_S)
    except subprocess.TimeoutExpired:
        child.kill()  # its children leave when they see that it is gone
        child.wait()
    if is_locked(home):
        return  # somebody else's node was faster: what lies there is its
    (run_folder(home) / "token").unlink(missing_ok=True)
    try:
        node = read_node_file(home)
    except InterlockError:
        return  # of a newer Interlock: not ours
    if node is not None and node.pid == child.pid:
        (run_folder(home) / "node.json").unlink(missing_ok=True)
