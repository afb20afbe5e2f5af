"""Owns the life of an executor process: one version, no more. `executor.py` starts it."""

import io
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from interlock.app import logs
from interlock.app.pace import gently, promptly
from interlock.core.errors import DigestMismatch, InterlockError, LoadFailed
from interlock.core.letters import decode_desired, executor_socket
from interlock.core.model import Version, artifact_path, check_fault, digest_of
from interlock.core.settings import ProcessArgs, decode_args, run_folder
from interlock.runtime.catalog import runtime_of, with_fault
from interlock.runtime.protocol import Loaded
from interlock.serving.block import Block, block_path
from interlock.serving.executor_host import EXIT_LOAD_FAILED, Host, listen, reason_path
from interlock.serving.memory import want_memory
from interlock.serving.warm_up import warm_up

REFUSE_S = 2.0
"""How long an executor that could not load its version tells workers why, before it ends."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Pace(Protocol):
    """How heavy work is done: `gently` or `at_once` (`pace.py`)."""

    def __call__(self, work: Callable[[], T]) -> T:
        """The result of `work`. Raises: what `work` raises."""
        ...


def main(args: ProcessArgs, loading: Pace, reading: Pace) -> int:
    """Serve the version until SIGTERM or until the supervisor is gone; returns the exit code.

    `loading` is how the model is loaded, `reading` how its files are compared with their digest.
    """
    version = _version(args)
    path = executor_socket(args.config.home, version)
    # A process that began anew because it got no core: the block is its own, from before.
    block_path(run_folder(args.config.home), args.process, args.incarnation).unlink(missing_ok=True)
    block = Block.create(run_folder(args.config.home), args.process, args.incarnation, rows=1, most_rows=1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the supervisor's to act on
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel's timer against hangs must be able to kill
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Workers may connect from now on, and wait for the load without asking again and again.
    listener = listen(path)
    host = Host(listener, version, block, args.lifeline_fd, args.config.drain_s)
    try:
        return _serve(args, loading, reading, version, host, block, listener)
    finally:
        block.close()


def _serve(
    args: ProcessArgs,
    loading: Pace,
    reading: Pace,
    version: Version,
    host: Host,
    block: Block,
    listener: socket.socket,
) -> int:
    reason = reason_path(executor_socket(args.config.home, version))
    _limit_memory(version.memory_limit_bytes or args.config.executor_memory_bytes)
    try:
        loaded = _load(args, loading, reading, version, block)
    except BaseException as error:  # whatever a model's own code raises while it is loaded
        why = _why(error)
        _log.error("load failed", extra=logs.fields(version=version.key, reason=why), exc_info=error)
        with suppress(OSError):  # a full disk: workers are told, the log has it
            reason.write_text(why)
        block.idle()
        host.refuse(why, REFUSE_S)
        return EXIT_LOAD_FAILED
    reason.unlink(missing_ok=True)
    block.idle()
    # Until here SIGTERM ends the process at once: there was nothing to finish.
    signal.signal(signal.SIGTERM, host.leave)
    promptly()
    _log.info("ready", extra=logs.fields(version=version.key))
    host.serve(loaded)
    listener.close()
    if host.is_orphaned:
        # Not by the parent's pid: its end of the lifeline closes a moment before we get another parent.
        _end_family()
    elif loading is gently:
        # The exit itself could not be lowered: whoever waits for it would spin (see `pace.py:_core_s`).
        gently(loaded.close, starved=lambda: os._exit(0))
    return 0


def _end_family() -> None:
    """Nobody is left to end what the model's code has started; this process ends with it."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def _version(args: ProcessArgs) -> Version:
    path = run_folder(args.config.home) / "supervisor.desired.json"
    for model in decode_desired(path.read_bytes()).models:
        for version in model.versions:
            if version.key == args.version_key:
                return version
    raise LoadFailed(f"{args.version_key} is not in {path.name}: nothing to execute")


def _load(args: ProcessArgs, loading: Pace, reading: Pace, version: Version, block: Block) -> Loaded:
    block.loading(version.key)
    check_fault(version)
    want_memory(version)
    folder = artifact_path(args.config.home, version.digest)
    found = reading(lambda: digest_of(folder)) if folder.is_dir() else "no folder"
    if found != version.digest:
        raise DigestMismatch(f"artifact of {version.key}: {found}, registered as {version.digest}")

    def load() -> Loaded:
        loaded = runtime_of(version.runtime).load(folder, version)
        warm_up(loaded, version)
        return with_fault(loaded, version)

    return loading(load)


def _why(error: BaseException) -> str:
    if isinstance(error, InterlockError):
        return error.message[:2000]
    if isinstance(error, MemoryError):
        return f"no memory while loading: {error}"
    return f"{type(error).__name__} while loading: {str(error)[:1000]}"


def _limit_memory(most_bytes: int) -> None:
    # Private writable memory: what the model allocates counts, what is shared with workers does not.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def run(loading: Pace, reading: Pace) -> None:
    """The process: what the model prints goes to the log, line by line, and cannot break anything else."""
    args = decode_args(sys.argv[1])
    logs.set_up(args.process, args.config.log_level)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # an exit that nobody planned loses no line
    # Bytecode beside a model's source would be in the artifact folder, and change its digest.
    sys.dont_write_bytecode = True
    code = main(args, loading, reading)
    # A model's own threads and exit handlers cannot hold up the exit: memory comes back now.
    os._exit(code)
