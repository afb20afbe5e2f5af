"""Owns a node: opens its ports, starts its processes, watches and replaces them, takes them down in order.

The supervisor, `python -m interlock.app.node CONFIG-JSON`. It knows no model and answers no request; what it
does next is decided in `processes.py`. run/node.lock makes it the only one in its home.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import msgspec

from interlock.app import logs
from interlock.app.children import Child, end_of, executor_name, module_of, resident_bytes
from interlock.app.claim import clear_remains, take_lock
from interlock.app.link import LetterClient, write_atomically
from interlock.app.pace import ALL_GENTLY, DATA_GENTLY
from interlock.app.processes import (
    Doing,
    History,
    Kill,
    Kind,
    Limits,
    ProcessSpec,
    Quarantine,
    RunningView,
    Start,
    Stop,
    crashed,
    decide,
    forget,
    quarantine,
)
from interlock.app.quarantine import all_releases, read_quarantine, write_quarantine
from interlock.app.sockets import open_admin_socket, open_data_sockets
from interlock.core.errors import InterlockError
from interlock.core.feedback import newest_incarnation
from interlock.core.letters import ChildStatus, Desired, Report, executor_socket, letters_socket
from interlock.core.model import Placement, Version
from interlock.core.settings import NodeConfig, check_config, run_folder
from interlock.operations.discovery import NodeFile
from interlock.operations.settings_file import read_app_file
from interlock.serving.executor_host import EXIT_HUNG, EXIT_LOAD_FAILED, reason_path

log = logging.getLogger("interlock.node")

TICK_S = 0.1
MEMORY_EVERY_S = 0.25
STALL_S = 1.0
"""A tick later than this was the supervisor's own fault, or the machine's."""
EXECUTORS_LEAVE_S = 3.0
CONTROL_LEAVES_S = 5.0
MEMORY_MARGIN = 1.25
"""The executor's own limit counts private memory and lets the model see a MemoryError; this one is above it,
on all that is resident, and final."""


class Supervisor:
    """One node, from its open ports to its end. `module` names what each kind of process runs."""

    def __init__(
        self,
        config: NodeConfig,
        data: list[socket.socket],
        admin: socket.socket,
        module: Callable[[Kind], str] = module_of,
        limits: Limits | None = None,
    ) -> None:
        # A command line can be read by every user of the machine: the token is in run/token instead.
        self._config = msgspec.structs.replace(config, token=None)
        self._data = data
        self._admin = admin
        self._module = module
        self._limits = limits or Limits(stop_s=config.drain_s + 2.0)
        self._incarnation = max(time.time_ns(), newest_incarnation(config.home) + 1)
        self._lifeline, self._lifeline_end = os.pipe()
        self._children: dict[str, Child] = {}
        self._desired = Desired(config.node, -1)
        self._versions: dict[str, Version] = {}
        self._history = History(quarantined=read_quarantine(config.home))
        self._ended: dict[str, int] = {}
        """How often a process of this name ended by itself or was killed; of those that are wanted."""
        self._wake = asyncio.Event()
        self._signals = 0
        self._leaving = False
        run = run_folder(config.home)
        self._client = LetterClient(
            letters_socket(config.home), run / "supervisor.desired.json", self._report, self._take
        )

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; returns when all children have left."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._wake.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        last = self._client.load_last()
        if last is not None:
            self._take(last)
        letters = asyncio.create_task(self._client.run())
        try:
            await self._watch(letters)
        finally:
            self._leaving = True
            await self._leave()
            letters.cancel()
            await asyncio.gather(letters, return_exceptions=True)

    async def _watch(self, letters: asyncio.Task[None]) -> None:
        watched_since_s = last_s = time.monotonic()
        memory_s = 0.0
        announced = False
        while not self._signals and not letters.done():
            now_s = time.monotonic()
            if now_s - last_s > STALL_S:
                watched_since_s = now_s
            last_s = now_s
            with_memory = now_s - memory_s >= MEMORY_EVERY_S
            memory_s = now_s if with_memory else memory_s
            self._tick(now_s, watched_since_s, with_memory)
            if not announced:
                self._announce()
                announced = True
            await self._pause()
        if letters.done():
            letters.result()

    def _tick(self, now_s: float, watched_since_s: float, with_memory: bool) -> None:
        releases = all_releases(self._desired)
        self._reap(now_s, releases)
        before = self._history.quarantined
        self._history = forget(self._history, releases)
        views = {name: child.look(with_memory) for name, child in self._children.items()}
        for action in decide(
            now_s, self._wanted(), views, self._history, releases, self._limits, watched_since_s
        ):
            match action:
                case Start(spec):
                    self._start(spec)
                case Stop(name):
                    self._children[name].stop(now_s)
                case Kill(name, why):
                    self._kill(name, why, now_s, releases)
                case Quarantine(version_key, _, reason):
                    self._history = quarantine(self._history, action)
                    log.error("a version is given up", extra=logs.fields(version=version_key, reason=reason))
        if self._history.quarantined != before:
            self._save_quarantine()

    def _wanted(self) -> list[ProcessSpec]:
        releases = all_releases(self._desired)
        wanted = [ProcessSpec("control", Kind.CONTROL)]
        wanted += [ProcessSpec(f"worker-{n}", Kind.WORKER) for n in range(self._config.workers)]
        for version in self._versions.values():
            if version.placement is Placement.EXECUTOR:
                limit = version.memory_limit_bytes or self._config.executor_memory_bytes
                wanted.append(
                    ProcessSpec(
                        name=executor_name(version),
                        kind=Kind.EXECUTOR,
                        version_key=version.key,
                        release=releases[version.key],
                        memory_limit_bytes=int(limit * MEMORY_MARGIN),
                        # What a model's author wrote may want the main thread, or start threads that serve.
                        pace=ALL_GENTLY if version.runtime == "onnx" else DATA_GENTLY,
                    )
                )
        return wanted

    def _start(self, spec: ProcessSpec) -> None:
        listen = -1
        if spec.kind is Kind.CONTROL:
            listen = self._admin.fileno()
        elif spec.kind is Kind.WORKER:
            listen = self._data[int(spec.name.removeprefix("worker-"))].fileno()
        self._incarnation = max(self._incarnation + 1, time.time_ns())
        version, module = self._versions.get(spec.version_key), self._module(spec.kind)
        try:
            child = Child(spec, self._config, module, self._lifeline, listen, self._incarnation, version)
        except OSError as error:  # no memory or no process to be had: later, as after a crash
            log.error("a process cannot be started", extra=logs.fields(name=spec.name, error=str(error)))
            self._crashed(time.monotonic(), RunningView(spec, time.monotonic()), str(error), {})
            return
        self._children[spec.name] = child
        log.info("started", extra=logs.fields(name=spec.name, child=child.pid))
        self._client.send_soon()

    def _kill(self, name: str, why: str, now_s: float, releases: dict[str, int]) -> None:
        child = self._children[name]
        log.error("killed", extra=logs.fields(name=name, child=child.pid, reason=why))
        child.kill()
        if child.view.stopping_s is None:
            self._crashed(now_s, child.view, why, releases)
            # What follows is its end, which has been counted.
            child.view = msgspec.structs.replace(child.view, stopping_s=now_s)

    def _reap(self, now_s: float, releases: dict[str, int]) -> None:
        for name, child in list(self._children.items()):
            code = child.exit_code()
            if code is None:
                continue
            del self._children[name]
            planned = child.view.stopping_s is not None
            view = child.look(with_memory=False)
            if planned:
                log.info("left", extra=logs.fields(name=name, child=child.pid, code=code))
                continue
            view, why = self._post_mortem(view, code)
            self._crashed(now_s, view, why, releases)
            log.error(
                "ended by itself",
                extra=logs.fields(
                    name=name,
                    child=child.pid,
                    reason=why,
                    doing=view.doing,
                    version=view.doing_version,
                    requests=view.requests,
                ),
            )

    def _crashed(self, now_s: float, view: RunningView, why: str, releases: dict[str, int]) -> None:
        self._history = crashed(self._history, now_s, view, why, releases, self._limits)
        self._ended[view.spec.name] = self._ended.get(view.spec.name, 0) + 1

    def _post_mortem(self, view: RunningView, code: int) -> tuple[RunningView, str]:
        version = self._versions.get(view.spec.version_key)
        if view.spec.kind is Kind.EXECUTOR and code == EXIT_HUNG:
            return view, "a batch took longer than its worker allowed"
        if view.spec.kind is Kind.EXECUTOR and code == EXIT_LOAD_FAILED and version is not None:
            why = "it could not be loaded"
            with contextlib.suppress(OSError):
                path = reason_path(executor_socket(self._config.home, version))
                why = path.read_text(errors="replace")[:2000]
            return msgspec.structs.replace(view, doing=Doing.LOADING), why
        return view, end_of(code)

    def _save_quarantine(self) -> None:
        try:
            write_quarantine(self._config.home, self._history.quarantined)
        except OSError as error:
            log.error("the quarantine was not saved", extra=logs.fields(error=str(error)))
        self._client.send_soon()

    def _take(self, desired: Desired) -> None:
        self._desired = desired
        self._versions = {v.key: v for model in desired.models for v in model.versions}
        self._wake.set()

    def _report(self) -> Report:
        return Report(
            node=self._config.node,
            process="supervisor",
            incarnation=self._incarnation,
            pid=os.getpid(),
            seen_revision=self._desired.revision,
            revision=self._desired.revision,
            ready=not self._leaving,
            draining=self._leaving,
            quarantined={key: entry.reason for key, entry in self._history.quarantined.items()},
            resident_bytes=resident_bytes(os.getpid()),
            children=tuple(self._statuses()),
            crashes=self._history.crashes_of(all_releases(self._desired)),
        )

    def _statuses(self) -> Iterator[ChildStatus]:
        names = {spec.name for spec in self._wanted()} | set(self._children)
        self._ended = {name: count for name, count in self._ended.items() if name in names}
        for name in sorted(names):
            child = self._children.get(name)
            restarts = self._ended.get(name, 0)
            if child is None:
                yield ChildStatus(name, restarts=restarts)
                continue
            view = child.view
            yield ChildStatus(
                name,
                child.pid,
                child.incarnation,
                ready=view.heartbeat_s is not None and view.doing is not Doing.LOADING,
                leaving=view.stopping_s is not None,
                resident_bytes=view.resident_bytes,
                restarts=restarts,
            )

    def _announce(self) -> None:
        config = self._config
        node = NodeFile(
            node=config.node,
            pid=os.getpid(),
            host=config.host,
            http_port=config.http_port,
            admin_port=config.admin_port,
            workers=config.workers,
            started_s=time.time(),
            incarnation=self._incarnation,
            admin_host=config.admin_host,
        )
        write_atomically(run_folder(config.home) / "node.json", msgspec.json.encode(node))
        log.info("up", extra=logs.fields(http_port=config.http_port, admin_port=config.admin_port))

    def _on_signal(self) -> None:
        self._signals += 1
        self._wake.set()

    async def _leave(self) -> None:
        """Workers answer what they have, executors are there for them until then, control sees it all."""
        log.info("leaving")
        self._client.send_soon()
        for kind, within_s in (
            (Kind.WORKER, self._config.drain_s + 2.0),
            (Kind.EXECUTOR, EXECUTORS_LEAVE_S),
            (Kind.CONTROL, CONTROL_LEAVES_S),
        ):
            await self._end([c for c in self._children.values() if c.spec.kind is kind], within_s)
        (run_folder(self._config.home) / "node.json").unlink(missing_ok=True)
        os.close(self._lifeline_end)
        os.close(self._lifeline)
        log.info("down")

    async def _end(self, children: list[Child], within_s: float) -> None:
        until_s = time.monotonic() + within_s
        killed = False
        for child in children:
            child.stop(time.monotonic())
        while left := [child for child in children if child.exit_code() is None]:
            # A second Ctrl-C, or a second SIGTERM, is from somebody who does not want to wait.
            if not killed and (time.monotonic() > until_s or self._signals > 1):
                killed = True
                for child in left:
                    log.warning("killed", extra=logs.fields(name=child.spec.name, reason="did not leave"))
                    child.kill()
            await self._pause()

    async def _pause(self) -> None:
        """Until something happens, at most one tick."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._wake.wait()


def start(
    config: NodeConfig, module: Callable[[Kind], str] = module_of, limits: Limits | None = None
) -> None:
    """Be the node of a home folder until told to leave.

    Raises: ConfigError if another node is there, a port is in use, or a setting cannot be; SchemaTooNew.
    """
    check_config(config)
    # Control reads it, and would only come and go if it were wrong: better to refuse the start.
    read_app_file(config.home)
    lock = take_lock(config.home)
    try:
        clear_remains(config.home)
        data = open_data_sockets(config.host, config.http_port, config.workers)
        admin = open_admin_socket(config.admin_host, config.admin_port)
        opened = msgspec.structs.replace(
            config, http_port=data[0].getsockname()[1], admin_port=admin.getsockname()[1]
        )
        if config.token is not None:
            write_atomically(run_folder(config.home) / "token", config.token.encode())
        asyncio.run(_run(opened, data, admin, module, limits))
    finally:
        os.close(lock)


async def _run(
    config: NodeConfig,
    data: list[socket.socket],
    admin: socket.socket,
    module: Callable[[Kind], str],
    limits: Limits | None,
) -> None:
    await Supervisor(config, data, admin, module, limits).run()


def main(argument: str, module: Callable[[Kind], str] = module_of, limits: Limits | None = None) -> int:
    """The process; returns its exit code: 0 when it was told to leave, 2 for a setting that cannot be."""
    os.umask(0o077)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for what a model of plain Python imports in its executor
    config = msgspec.json.decode(argument, type=NodeConfig, dec_hook=lambda kind, value: kind(value))
    logs.set_up("supervisor", config.log_level, secrets=[config.token or ""])
    try:
        start(config, module, limits)
    except InterlockError as error:
        log.error(error.message)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
