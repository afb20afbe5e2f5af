"""Starts Interlock the way its users do: register, release, up, down, each a command; pinned."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.peers import JSON, Target, ask, v2_body, v2_label
from benchmarks.process import SERVER_CORE, free_port, pinned
from interlock.operations.load import Request
from interlock.operations.wait import POLL_S

_MARK = "INTERLOCK_BENCHMARK_NODE"
_REST_S = 1.0
_REST_SHARE = 0.15
"""A node of which nobody asks anything uses less of a core than this (it looks at its counters)."""


class Node:
    """One node with a home folder of its own. Use as a context manager; it is taken down on exit."""

    def __init__(
        self,
        home: Path,
        *,
        workers: int = 1,
        cores: str | int = SERVER_CORE,
        options: tuple[str, ...] = (),
        python: str | Path = sys.executable,
    ) -> None:
        """`python`: the interpreter whose environment the node runs in."""
        self.home = home
        self.http_port, self.admin_port = free_port(), free_port()
        self._workers = workers
        self._cores = cores
        self._options = options
        self._program = (str(python), "-m", "interlock.cli.main")
        # Every process of the node inherits this variable, whoever becomes its parent.
        self._env = {**os.environ, _MARK: str(home)}

    def command(self, *words: str, timeout_s: float = 180.0, cores: str | int | None = None) -> str:
        """Run `interlock words… --home H`; its output.

        Raises: RuntimeError with the output, if it fails or takes longer than `timeout_s`.
        """
        argv = [*self._program, *words, "--home", str(self.home)]
        argv = argv if cores is None else pinned(argv, cores)
        # To a file: a detached node inherits the descriptors, and a pipe would never end.
        output = self.home.parent / f"{self.home.name}-{words[0]}.log"
        with output.open("wb") as out:
            ran = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                env=self._env,
                check=False,
            )
        said = output.read_text(errors="replace")
        if ran.returncode != 0:
            raise RuntimeError(f"`interlock {' '.join(words)}` ended with {ran.returncode}: {said[-2000:]}")
        return said

    def register(self, name: str, artifact: Path) -> None:
        """Register an artifact as the next version of `name`."""
        self.command("register", name, str(artifact))

    def release(self, name: str, *which: str) -> None:
        """Put a version (the newest without `which`) live at once."""
        self.command("release", name, *which, "--now")

    def up(self) -> None:
        """Start the node, detached, all of its processes on the given cores."""
        ports = ("--http-port", str(self.http_port), "--admin-port", str(self.admin_port))
        words = ("up", "--workers", str(self._workers), *ports, "--detach", *self._options)
        self.command(*words, cores=self._cores)

    def down(self) -> None:
        """Take the node down; what is left of it after that is killed."""
        try:
            self.command("down", timeout_s=60)
        finally:
            left = self.processes()
            _gone, alive = psutil.wait_procs(left, timeout=15)
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.processes():
            self.down()

    def processes(self) -> list[psutil.Process]:
        """All living processes of this node: supervisor, control, workers, executors."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if (
                    process.environ().get(_MARK) == str(self.home)
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"

    def wait_ready(self, name: str, timeout_s: float = 60.0) -> None:
        """Poll the model's V2 readiness.

        Raises: RuntimeError if it is not ready within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        seen = "no answer"
        while time.monotonic() < deadline_s:
            try:
                status, body = ask(Request(self.url(f"/v2/models/{name}/ready"), method="GET"), timeout_s=5)
            except (OSError, http.client.HTTPException) as error:
                seen = repr(error)
            else:
                if status == 200:
                    return
                seen = f"{status} {body[:300]!r}"
            time.sleep(0.1)
        raise RuntimeError(f"model {name!r} was not ready after {timeout_s} s; last: {seen}")

    def settle(self, timeout_s: float = 60.0) -> None:
        """Wait until the node is at rest: after a start, control reads in the registry's libraries for some
        seconds of a core that the workers share with it here.

        Raises: RuntimeError if it is still busy after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        used_s = _core_s(self.processes())
        while time.monotonic() < deadline_s:
            time.sleep(_REST_S)
            before_s, used_s = used_s, _core_s(self.processes())
            stayed = before_s.keys() == used_s.keys()
            if stayed and sum(used_s.values()) - sum(before_s.values()) < _REST_SHARE * _REST_S:
                return
        raise RuntimeError(
            f"the node was still busy after {timeout_s:g} s, with nobody asking anything of it"
        )

    def swap(self, name: str, number: str, timeout_s: float = 120.0) -> float:
        """Release version `number` through the admin API and wait until it is live; the seconds it took.

        Through the API and not the command, whose own start would use the cores that are being measured.
        Raises: RuntimeError if the release does not end as done within `timeout_s`.
        """
        admin = f"http://127.0.0.1:{self.admin_port}/api"
        began_s = time.monotonic()
        asked = Request(f"{admin}/models/{name}/release", json.dumps({"version": number}).encode(), JSON)
        status, body = ask(asked)
        row = json.loads(body)
        while status in (200, 202) and row["state"] not in ("done", "failed", "superseded"):
            if time.monotonic() - began_s > timeout_s:
                break
            time.sleep(POLL_S)
            status, body = ask(Request(f"{admin}/releases/{row['id']}", method="GET"))
            row = json.loads(body)
        if status not in (200, 202) or row["state"] != "done":
            raise RuntimeError(f"releasing version {number} of {name!r}: {status} {body[:500]!r}")
        return time.monotonic() - began_s

    def live_version(self, name: str) -> str:
        """The version that answers now, as the data port reports it."""
        status, body = ask(Request(self.url(f"/v2/models/{name}/infer"), v2_body([5.1, 3.5, 1.4, 0.2])))
        if status != 200:
            raise RuntimeError(f"model {name!r} answered {status}: {body[:300]!r}")
        return str(json.loads(body)["model_version"])

    def iris(self) -> Target:
        """How this node is asked for the class of an iris row."""
        return Target(self.url("/v2/models/iris/infer"), v2_body, v2_label)


def serve(node: Node, name: str, artifact: Path) -> None:
    """Register, release, start and wait until the model answers and the node is at rest."""
    node.register(name, artifact)
    node.release(name)
    node.up()
    node.wait_ready(name)
    node.settle()


def _core_s(processes: list[psutil.Process]) -> dict[int, float]:
    """Seconds of a core that each has used, by process."""
    used_s: dict[int, float] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used_s[process.pid] = times.user + times.system
    return used_s
