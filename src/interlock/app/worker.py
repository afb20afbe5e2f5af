"""Wires a worker, `python -m interlock.app.worker ARGS`: socket, protocol, infer path, letters, heartbeat."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version as package_version
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from interlock.app import logs
from interlock.app.link import LetterClient
from interlock.app.pace import patiently, promptly
from interlock.app.quarantine import quarantine_file, read_quarantine, reason_against
from interlock.app.repository import ask_control
from interlock.core.garbage import seldom
from interlock.core.letters import Desired, Report, VersionState, letters_socket
from interlock.core.settings import NodeConfig, ProcessArgs, decode_args, run_folder
from interlock.serving.block import Block
from interlock.serving.counters import read_all
from interlock.serving.inbox import Inbox
from interlock.serving.infer import Infer
from interlock.serving.loader import Loader
from interlock.wire.http import AccessLog, HttpLimits, HttpServer, new_loop
from interlock.wire.v2 import V2

HEARTBEAT_S = 0.25
_BESIDES = 4
FIRST_LOAD_S = 5.0
"""A restarted worker lets its backlog wait this long for the versions that it had, instead of refusing."""

_log = logging.getLogger(__name__)


class Worker:
    """One worker process. Made on its event loop."""

    def __init__(self, args: ProcessArgs) -> None:
        config = args.config
        run = run_folder(config.home)
        self._args = args
        self._block = Block.create(run, args.process, args.incarnation)
        self._inbox = Inbox(config.home, args.process, args.incarnation)
        self._infer = Infer(
            self._block,
            args.incarnation & 0xFFFFFFFF,
            lambda: read_all(run),
            self._repository if config.allow_repository_control else None,
            self._inbox.keep,
        )
        # What loads beside the loop is not to keep requests waiting.
        beside = ThreadPoolExecutor(_BESIDES, thread_name_prefix="beside", initializer=patiently)
        self._loader = Loader(config.home, self._infer, self._block, args.incarnation, self._changed, beside)
        self._link = LetterClient(
            letters_socket(config.home),
            run / f"{args.process}.desired.json",
            self._report,
            self._on_desired,
        )
        version = package_version("interlock")
        self._v2 = V2(self._infer, config.server_name, version, config.max_json_bytes)
        limits = HttpLimits(max_body_bytes=config.max_body_bytes)
        self._server = HttpServer(
            self._v2,
            limits,
            server_header=config.server_name.encode(),
            access_log=AccessLog(config.access_log_every),
        )
        self._desired: Desired | None = None
        self._quarantine_stamp = 0
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or until the supervisor is gone; then drain.

        Raises: whatever its heartbeat or its line to control dies of, after the drain: one that is deaf would
        go on with what it was told last for ever; the supervisor starts another.
        """
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the supervisor's to act on
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_reader(self._args.lifeline_fd, self._stop.set)
        beat = asyncio.create_task(self._beat())
        last = self._link.load_last()
        if last is not None:
            self._on_desired(last)
        link = asyncio.create_task(self._link.run())
        if last is not None:
            await self._first_load()
        await self._server.serve(socket.socket(fileno=self._args.listen_fd))
        _log.info("serving", extra=logs.fields(pid=os.getpid()))
        stop = asyncio.create_task(self._stop.wait())
        parts: tuple[asyncio.Task[Any], ...] = (stop, link, beat)
        ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(self._args.lifeline_fd)
        await self._leave()
        for task in parts:
            task.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        await self._loader.close()
        self._inbox.close()
        self._block.close()
        for task in ended:
            task.result()

    async def _first_load(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), FIRST_LOAD_S)

    async def _leave(self) -> None:
        self._infer.leaving = True
        self._infer.ready = False
        self._link.send_soon()
        # Connections in flight are answered; `choose` refuses what is new only once those are done.
        orphan = os.getppid() == 1
        await self._server.drain(min(self._args.config.drain_s, 4.0) if orphan else self._args.config.drain_s)
        self._infer.draining = True
        await self._v2.close()

    async def _beat(self) -> None:
        while True:
            self._block.heartbeat(monotonic())
            self._look_at_quarantine()
            await asyncio.sleep(HEARTBEAT_S)

    def _look_at_quarantine(self) -> None:
        try:
            stamp = quarantine_file(self._args.config.home).stat().st_mtime_ns
        except OSError:
            stamp = 0
        if stamp != self._quarantine_stamp:
            self._quarantine_stamp = stamp
            if self._desired is not None:
                self._loader.quarantine(self._quarantined(self._desired))

    def _on_desired(self, desired: Desired) -> None:
        self._desired = desired
        self._loader.apply(desired, self._quarantined(desired))

    def _quarantined(self, desired: Desired) -> Mapping[str, str]:
        given_up = read_quarantine(self._args.config.home)
        if not given_up:
            return {}
        reasons = {
            version.key: reason_against(model, version.key, given_up)
            for model in desired.models
            for version in model.versions
        }
        return {key: reason for key, reason in reasons.items() if reason is not None}

    def _changed(self) -> None:
        # What failed or was given up holds up nobody: a later letter may bring it back.
        under_way = (VersionState.PENDING, VersionState.LOADING)
        if self._infer.ready or all(one.state not in under_way for one in self._loader.statuses()):
            self._ready.set()
        self._link.send_soon()

    def _report(self) -> Report:
        return Report(
            node=self._args.config.node,
            process=self._args.process,
            incarnation=self._args.incarnation,
            pid=os.getpid(),
            seen_revision=self._loader.seen_revision,
            revision=self._loader.done_revision,
            ready=self._infer.ready,
            draining=self._stop.is_set(),
            versions=self._loader.statuses(),
            resident_bytes=_resident_bytes(),
        )

    async def _repository(self, action: Literal["load", "unload"], model: str) -> None:
        await ask_control(self._args.config, action, model)


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def main(argv: list[str]) -> int:
    """Entry of the process; `argv` holds one JSON argument."""
    args = decode_args(argv[0])
    config: NodeConfig = args.config
    logs.set_up(args.process, config.log_level, secrets=[config.token or ""])

    seldom()
    # What was imported stays: frozen, no collection walks it again.
    gc.collect()
    gc.freeze()
    promptly()

    async def serve() -> None:
        await Worker(args).run()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
