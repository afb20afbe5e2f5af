"""Owns the demo's node: one home folder, and the `interlock` commands that a person would type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from interlock.operations.discovery import find_node
from interlock.registry.rows import ReleaseRow

# Of the caller's shell: with them the commands would talk to another node, or to another registry.
_NOT_OURS = ("INTERLOCK_URL", "INTERLOCK_TOKEN", "MLFLOW_TRACKING_URI")


STARTS_S = 5.0
"""How long a node may take from its first instruction until its home says that it is there."""


class CommandFailed(Exception):
    """An `interlock` command failed; the message holds the command and what it said."""


class Up(msgspec.Struct, frozen=True):
    """What `interlock up --json` prints."""

    pid: int
    http_url: str
    admin_url: str
    home: str
    logs: str


class Swap(msgspec.Struct, frozen=True):
    """One release that was carried out. `took_s`: from control's receipt of the request until every worker
    had acknowledged that it routes to the new version; `command_s`: of the command, with its own start."""

    number: str
    took_s: float
    command_s: float


class DemoNode:
    """The node of one home folder, driven by commands alone."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._is_starting = False
        self._environment = {key: value for key, value in os.environ.items() if key not in _NOT_OURS}

    def run(self, *words: str, timeout_s: float = 150.0, codes: tuple[int, ...] = (0,)) -> str:
        """Run `interlock WORDS… --home HOME`; its standard output. `codes`: those that it may leave with.

        Raises: CommandFailed.
        """
        # To files: a node that a command leaves running inherits the descriptors, and a pipe would not end.
        out, err = self.home.parent / "command.out", self.home.parent / "command.err"
        with out.open("wb") as to_out, err.open("wb") as to_err:
            try:
                done = subprocess.run(
                    [program(), *words, "--home", str(self.home)],
                    stdin=subprocess.DEVNULL,
                    stdout=to_out,
                    stderr=to_err,
                    timeout=timeout_s,
                    env=self._environment,
                )
            except subprocess.TimeoutExpired:
                raise CommandFailed(f"interlock {' '.join(words)} took longer than {timeout_s:g} s") from None
        if done.returncode not in codes:
            said = err.read_text(errors="replace").strip()
            raise CommandFailed(f"interlock {' '.join(words)} left with {done.returncode}: {said}")
        return out.read_text()

    def up(self) -> Up:
        """Start the node on free ports and wait until it answers. Raises: CommandFailed."""
        self._is_starting = True
        said = self.run("up", "--detach", "--http-port", "0", "--admin-port", "0", "--json")
        self._is_starting = False
        return msgspec.json.decode(said, type=Up)

    def release(self, name: str, number: str) -> Swap:
        """Put a version live and wait until it is. Raises: CommandFailed."""
        return self._swap("release", name, number, "--now")

    def rollback(self, name: str) -> Swap:
        """Go back to the version that was live before, and wait. Raises: CommandFailed."""
        return self._swap("rollback", name)

    def down(self) -> None:
        """Stop the node, if one runs. Raises: CommandFailed."""
        # A start that was broken off leaves a process behind that has not claimed the home yet.
        until_s = time.monotonic() + STARTS_S
        while self._is_starting and find_node(self.home) is None and time.monotonic() < until_s:
            time.sleep(0.05)
        if find_node(self.home) is not None:
            self.run("down", "--force")

    def _swap(self, *words: str) -> Swap:
        began_s = time.monotonic()
        row = msgspec.json.decode(self.run(*words, "--json"), type=ReleaseRow)
        command_s = time.monotonic() - began_s
        if row.finished_s is None or row.state != "done":
            raise CommandFailed(f"interlock {' '.join(words)}: the release is {row.state} {row.reason}")
        return Swap(row.number, row.finished_s - row.requested_s, command_s)


def program() -> str:
    """The `interlock` command of this environment.

    Raises: CommandFailed if there is none.
    """
    beside = Path(sys.executable).with_name("interlock")
    found = str(beside) if beside.exists() else shutil.which("interlock")
    if found is None:
        raise CommandFailed("there is no `interlock` command in this environment; run: make install")
    return found
