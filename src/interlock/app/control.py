"""Owns the control process, `python -m interlock.app.control ARGS`: letters, the rollout loop, the admin API.

It may be killed at any moment: all that it decides is in the ledger before anybody hears of it, and workers
serve on without it. MLflow is imported when somebody first asks the registry, in that request's thread: it
takes seconds, and more memory than all the rest. The ledger is asked meanwhile, so what changes how
SQLAlchemy builds a query is imported before, by `sqlalchemy.orm`: while MLflow imported it, it was half there
for some milliseconds, and a query failed.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy.orm  # noqa: F401  see the docstring
import uvicorn

from interlock.api.app import AdminDeps, create_app
from interlock.app import logs
from interlock.app.children import resident_bytes
from interlock.app.follow import Follower
from interlock.app.intake import open_feedback, take_feedback
from interlock.app.link import LetterServer
from interlock.app.memory import process_memory
from interlock.core.appfile import AppFile, model_settings
from interlock.core.errors import InterlockError, NodeUnreachable
from interlock.core.garbage import seldom
from interlock.core.letters import Desired, Report, letters_socket
from interlock.core.model import Version
from interlock.core.settings import ProcessArgs, decode_args, run_folder
from interlock.export.prometheus import render
from interlock.operations.certificate import leave_certificate
from interlock.operations.context import Context, open_context
from interlock.operations.discovery import read_node_file, read_token, url_of
from interlock.operations.selftest_model import tidy
from interlock.operations.settings_file import read_app_file
from interlock.operations.status import NodeStatus, ProcessStatus, join_children
from interlock.registry.feedback import FeedbackStore
from interlock.registry.rows import ReleaseRow
from interlock.rollout.loop import Node, RolloutLoop
from interlock.rollout.memory import Process
from interlock.rollout.plan import COMPARED
from interlock.serving.counters import Block, abandoned, fold, read_all

NICE = 10
"""Lower than the workers, and than what loads in them; still a tenth of a core of which they want all. The
nearer they are, the sooner has who serves had more than its share, and waits for a turn of control's (at 5,
one request in a hundred for 4 ms while control is busy)."""

log = logging.getLogger("interlock.control")

HEARTBEAT_S = 0.25
FOLD_EVERY_S = 1.0
TIDY_EVERY_S = 5.0
FOLD_AFTER_S = 2.0
"""How long the block of a dead process stays: the supervisor and the workers read its breadcrumb first."""
TIMED_RELEASES = 1000
"""How many of the newest releases the metrics hold."""
CERTIFIED_RELEASES = 20
"""How many of the newest releases a control that starts looks at for certificates that are missing."""


class Control:
    """One control process. Its methods run on the event loop unless they say otherwise."""

    def __init__(
        self,
        args: ProcessArgs,
        context: Context,
        app: AppFile,
        block: Block,
        feedback: FeedbackStore | None,
    ) -> None:
        config = args.config
        self._args = args
        self._config = config
        self._context = context
        self._block = block
        self._feedback = feedback
        self._run_folder = run_folder(config.home)
        self._started_s = time.time()
        # Replaced as a whole at every change: other threads read them.
        self._reports: dict[str, Report] = {}
        self._heard: dict[str, tuple[Report, float, bool]] = {}
        self._quarantined: dict[str, str] = {}
        self._dead_since: dict[Path, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = LetterServer(letters_socket(config.home), self._on_report, self._on_gone)
        workers = tuple(f"worker-{number}" for number in range(config.workers))
        self._event_loop = asyncio.get_running_loop()
        self._rollouts = RolloutLoop(
            context.ledger,
            Node(config.node, workers),
            reports=lambda: self._reports,
            publish=self._publish_soon,
            settle=lambda model: model_settings(app, model.name, model.settings),
            counts=lambda: read_all(self._run_folder),
            crashes=self._crashes,
            on_end=self._certify,
            memory=self._memory,
            feedback=feedback,
        )
        self._follower = Follower(
            context, app.follows, lambda: self._event_loop.call_soon_threadsafe(self._rollouts.poke)
        )
        self._leave = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or until the supervisor is gone.

        Raises: whatever one of its parts dies of; the supervisor then starts another.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            # Ctrl-C is for the supervisor, which then tells us.
            handler = self._leave.set if number == signal.SIGTERM else lambda: None
            self._event_loop.add_signal_handler(number, handler)
        self._event_loop.add_reader(self._args.lifeline_fd, self._on_lifeline)
        await self._server.start()
        admin = self._admin()
        parts = [
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self._rollouts.run(), name="rollouts"),
            asyncio.create_task(self._fold(), name="fold"),
            asyncio.create_task(self._tidy(), name="tidy"),
            asyncio.create_task(admin.serve([socket.socket(fileno=self._args.listen_fd)]), name="admin"),
            asyncio.create_task(self._leave.wait(), name="leave"),
            asyncio.create_task(take_feedback(self._feedback), name="feedback"),
        ]
        self._tasks.add(asyncio.create_task(asyncio.to_thread(self.certify_missed)))
        self._follower.start()
        log.info("up", extra=logs.fields(admin_port=self._config.admin_port))
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            log.info("leaving")
            admin.should_exit = True
            await asyncio.wait([part for part in parts if part.get_name() == "admin"], timeout=2.0)
            for part in [*parts, *self._tasks]:
                part.cancel()
            await asyncio.gather(*parts, *self._tasks, return_exceptions=True)
            await self._server.close()

    def _admin(self) -> uvicorn.Server:
        deps = AdminDeps(
            context=self._context,
            config=self._config,
            node_status=self.node_status,
            metrics_text=self.metrics_text,
            poke=self._rollouts.poke,
            looked=lambda: self._rollouts.looked,
            hint=self._follower.wake,
        )
        return _AdminServer(
            uvicorn.Config(
                create_app(deps),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=2,
                loop="none",
            )
        )

    def node_status(self) -> NodeStatus:
        """The node as control sees it. May be called from any thread."""
        now_s = time.monotonic()
        desired = self._rollouts.desired
        heard = self._heard
        config = self._config
        processes = join_children(
            [
                *(ProcessStatus(report, now_s - at_s, up) for report, at_s, up in heard.values()),
                ProcessStatus(self._own_report(desired), 0.0),
            ]
        )
        return NodeStatus(
            node=config.node,
            workers=config.workers,
            http_url=url_of(config.host, config.http_port),
            admin_url=url_of(config.admin_host, config.admin_port),
            started_s=self._node_started_s(),
            revision=-1 if desired is None else desired.revision,
            processes=processes,
        )

    def metrics_text(self) -> bytes:
        """The metrics of the whole node. May be called from any thread. Raises: LedgerError."""
        releases = self._context.ledger.releases(limit=TIMED_RELEASES)
        return render(read_all(self._run_folder), self.node_status(), releases)

    def _crashes(self, version: Version) -> int:
        """How often a version ended its process lately. From the thread of the rollout loop."""
        supervisor = self._reports.get("supervisor")
        return 0 if supervisor is None else supervisor.crashes.get(version.key, 0)

    def _memory(self, version: Version | None) -> Process | None:
        """What a version's executor, or (None) the workers, hold. From the thread of the rollout loop."""
        return process_memory(self._reports.get("supervisor"), version, self._config.executor_memory_bytes)

    def _certify(self, row: ReleaseRow) -> None:
        """From the thread of the rollout loop."""
        try:
            leave_certificate(self._context, row)
        except Exception:
            # Whatever is in the log of a release, the next ones must go on.
            log.exception("no certificate was left", extra=logs.fields(release=row.id, model=row.model))

    def certify_missed(self) -> None:
        """Leave the certificates that a control before this one was killed over."""
        for row in self._context.ledger.releases(limit=CERTIFIED_RELEASES):
            if row.state.finished and row.strategy in COMPARED:
                self._certify(row)

    def _own_report(self, desired: Desired | None) -> Report:
        revision = -1 if desired is None else desired.revision
        return Report(
            node=self._config.node,
            process="control",
            incarnation=self._args.incarnation,
            pid=os.getpid(),
            seen_revision=revision,
            revision=revision,
            ready=desired is not None,
            draining=self._leave.is_set(),
            resident_bytes=resident_bytes(os.getpid()),
        )

    def _node_started_s(self) -> float:
        try:
            node = read_node_file(self._config.home)
        except (NodeUnreachable, InterlockError):
            node = None
        return self._started_s if node is None else node.started_s

    def _publish_soon(self, desired: Desired) -> None:
        """From the thread of the rollout loop."""
        self._event_loop.call_soon_threadsafe(self._publish, desired)

    def _publish(self, desired: Desired) -> None:
        log.info("desired", extra=logs.fields(revision=desired.revision, models=len(desired.models)))
        self._server.publish(desired)

    def _on_report(self, report: Report) -> None:
        self._reports = {**self._reports, report.process: report}
        self._heard = {**self._heard, report.process: (report, time.monotonic(), True)}
        if report.process == "supervisor" and report.quarantined != self._quarantined:
            self._on_quarantine(report.quarantined)
        if self._rollouts.is_busy:
            self._rollouts.poke()

    def _on_gone(self, process: str) -> None:
        self._reports = {name: report for name, report in self._reports.items() if name != process}
        if process in self._heard:
            report, at_s, _ = self._heard[process]
            self._heard = {**self._heard, process: (report, at_s, False)}
        log.warning("a process is gone", extra=logs.fields(name=process))

    def _on_quarantine(self, quarantined: dict[str, str]) -> None:
        fresh = {key: why for key, why in quarantined.items() if self._quarantined.get(key) != why}
        self._quarantined = quarantined
        if fresh:
            task = asyncio.create_task(asyncio.to_thread(self._record_quarantine, fresh))
            self._tasks.add(task)
            task.add_done_callback(self._recorded)
        # Workers look at the quarantine whenever they read a Desired.
        self._rollouts.send_anew()

    def _record_quarantine(self, fresh: dict[str, str]) -> None:
        ledger = self._context.ledger
        known = {
            (event.body.get("version_key"), event.body.get("reason"))
            for event in ledger.latest_events(limit=1000)
            if event.kind == "version.quarantined"
        }
        for key, reason in fresh.items():
            if (key, reason) not in known:  # else a control before this one has written it down
                body = {"version_key": key, "reason": reason}
                ledger.append_event(
                    "version.quarantined", body, model=key.split("/", 1)[0], time_s=self._context.now_s()
                )

    def _recorded(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a quarantine was not written down", extra=logs.fields(error=str(error)))

    def _on_lifeline(self) -> None:
        if os.read(self._args.lifeline_fd, 64) == b"":
            self._event_loop.remove_reader(self._args.lifeline_fd)
            log.warning("the supervisor is gone")
            self._leave.set()

    async def _beat(self) -> None:
        while True:
            self._block.heartbeat(time.monotonic())
            await asyncio.sleep(HEARTBEAT_S)

    async def _fold(self) -> None:
        """Take the counts of dead processes into the totals, a while after they died."""
        while True:
            try:
                await asyncio.to_thread(self._fold_due, time.monotonic())
            except (OSError, InterlockError) as error:
                log.error("a dead process's counts were not folded", extra=logs.fields(error=str(error)))
            await asyncio.sleep(FOLD_EVERY_S)

    async def _tidy(self) -> None:
        """Take away what self-tests left whose command was killed."""
        while True:
            try:
                await asyncio.to_thread(tidy, self._context)
            except (OSError, InterlockError) as error:
                log.error("what a self-test left is still there", extra=logs.fields(error=str(error)))
            await asyncio.sleep(TIDY_EVERY_S)

    def _fold_due(self, now_s: float) -> None:
        dead = abandoned(self._run_folder)
        self._dead_since = {path: self._dead_since.get(path, now_s) for path in dead}
        for path, since_s in self._dead_since.items():
            if now_s - since_s >= FOLD_AFTER_S:
                fold(self._run_folder, path)


class _AdminServer(uvicorn.Server):
    """uvicorn without its own signal handlers: it would leave before letters are closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(
    args: ProcessArgs, context: Context, app: AppFile, block: Block, feedback: FeedbackStore | None
) -> None:
    await Control(args, context, app, block, feedback).run()


def main(argument: str) -> int:
    """The process; returns its exit code."""
    os.umask(0o077)
    # Where cores are few, answers go before releases, metrics and the registry's work.
    os.nice(NICE)
    seldom()
    args = decode_args(argument)
    config = args.config
    logs.set_up(args.process, config.log_level, secrets=[read_token(config.home) or ""])
    block = Block.create(run_folder(config.home), args.process, args.incarnation, rows=1, most_rows=1)
    block.heartbeat(time.monotonic())
    try:
        context = open_context(config.home)
        try:
            feedback = open_feedback(context)
            try:
                asyncio.run(_run(args, context, read_app_file(config.home), block, feedback))
            finally:
                if feedback is not None:
                    feedback.close()
        finally:
            context.close()
    except InterlockError as error:
        log.error(error.message)
        return 2
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    logging.shutdown()
    # A thread may be in the middle of importing the registry: nobody waits for that.
    os._exit(code)
