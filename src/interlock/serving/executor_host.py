"""Owns the executor's side: one version, its workers' connections, and predict in the main thread.

No thread stands between the socket and the model: the main thread waits for a frame, runs predict, writes
the outputs and rings back. A second thread watches: it beats the heartbeat, ends the process when a batch
hangs, and sees when the supervisor is gone. Against a model that holds the interpreter's lock, so that not
even that thread can run, there is a timer of the kernel's.
"""

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from math import inf
from pathlib import Path

import msgspec

from interlock.core.errors import ConfigError, MalformedMessage
from interlock.core.model import Tensors, Version
from interlock.runtime.protocol import Loaded, Streams, streams_of
from interlock.serving.block import Block
from interlock.serving.executor_arena import (
    CANCEL,
    DONE,
    FAILED,
    HELLO,
    READY,
    REFUSED,
    RUN,
    SCHEMA,
    STREAM,
    TAKEN,
    Arena,
    Done,
    Hello,
    Peer,
    Received,
    Run,
    TooLarge,
    Trouble,
    layout,
    read,
    read_head,
    room,
    write,
)
from interlock.serving.executor_model import checked, close, exhausted, next_part, parts_of, trouble_of
from interlock.serving.executor_outlet import Outlet
from interlock.serving.streams import AHEAD

EXIT_LOAD_FAILED = 65
"""The version cannot be loaded; why is in the file beside the socket (`reason_path`)."""
EXIT_HUNG = 66
"""A batch took longer than its worker allowed."""
EXIT_ORPHANED = 67
"""The supervisor went away and a batch did not end within `ORPHAN_S`."""
ORPHAN_S = 5.0
BEAT_S = 0.1
_GIL_GRACE_S = 1.0
"""How much later than the watching thread the kernel's timer strikes (exit by SIGALRM)."""

_encoder = msgspec.msgpack.Encoder()
_hello = msgspec.msgpack.Decoder(Hello)
_run = msgspec.msgpack.Decoder(Run)
_log = logging.getLogger(__name__)


def reason_path(socket_path: Path) -> Path:
    """Where an executor that could not load its version leaves the reason, as text."""
    return socket_path.with_suffix(".reason")


def listen(path: Path) -> socket.socket:
    """The executor's socket, in the place of that of an incarnation before. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    hidden = path.with_suffix(f".{os.getpid()}")
    hidden.unlink(missing_ok=True)
    listener.bind(str(hidden))
    hidden.chmod(0o600)
    listener.listen(128)
    listener.setblocking(False)
    hidden.rename(path)
    return listener


class Watch:
    """The second thread. `kill_at_s` (monotonic; 0: none) is when the running batch counts as hung."""

    def __init__(self, block: Block, lifeline_fd: int, wake_fd: int) -> None:
        self.kill_at_s = 0.0
        self.orphaned = False
        self._block = block
        self._lifeline_fd = lifeline_fd
        self._wake_fd = wake_fd
        block.heartbeat(time.monotonic())
        threading.Thread(target=self._beat, name="watch", daemon=True).start()

    def _beat(self) -> None:
        lifeline = select.poll()
        if self._lifeline_fd >= 0:
            lifeline.register(self._lifeline_fd, select.POLLIN | select.POLLHUP)
        leave_by_s = 0.0
        while True:
            if lifeline.poll(BEAT_S * 1000) and os.read(self._lifeline_fd, 64) == b"":
                lifeline.unregister(self._lifeline_fd)
                leave_by_s = time.monotonic() + ORPHAN_S
                self.orphaned = True
                os.write(self._wake_fd, b"\0")
            now_s = time.monotonic()
            self._block.heartbeat(now_s)
            if 0.0 < self.kill_at_s < now_s:
                _die(EXIT_HUNG, "a batch took longer than its worker allowed")
            if 0.0 < leave_by_s < now_s:
                _die(EXIT_ORPHANED, "the supervisor is gone, and the running batch does not end")


class Host:
    """Serves one loaded version to every worker that connects, or tells each why it cannot."""

    def __init__(
        self,
        listener: socket.socket,
        version: Version,
        block: Block,
        lifeline_fd: int = -1,
        linger_s: float = 10.0,
    ) -> None:
        self._listener = listener
        self._version = version
        self._block = block
        self._loaded: Loaded | None = None
        self._streams: Streams | None = None
        self._refusal = ""
        self._linger_s = linger_s
        self._leave_by_s = inf
        self._peers: dict[int, _Worker] = {}
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        wake_in, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        self._wake_in = wake_in
        self._poll.register(wake_in, select.POLLIN)
        self._watch = Watch(block, lifeline_fd, self._wake_fd)
        # A child that the model forks must not keep the connections open when this process dies.
        os.register_at_fork(after_in_child=self._close_sockets)

    @property
    def is_orphaned(self) -> bool:
        """Whether the supervisor is gone."""
        return self._watch.orphaned

    def leave(self, *_: object) -> None:
        """Serve on until every worker has left, each when it has given the version up, at most for
        `linger_s`; then finish the running batch and return from `serve`. A signal handler may call this."""
        self._leave_by_s = min(self._leave_by_s, time.monotonic() + self._linger_s)
        try:
            os.write(self._wake_fd, b"\0")
        except OSError:
            pass  # full of wake-ups already

    def refuse(self, reason: str, for_s: float) -> None:
        """Tell every worker that asks within `for_s` seconds why the version cannot be served."""
        self._refusal = reason
        self._serve(time.monotonic() + for_s)

    def serve(self, loaded: Loaded) -> None:
        """Answer until `leave` is called or the supervisor is gone. Raises: LoadFailed."""
        self._loaded = loaded
        if self._version.capabilities.streaming:
            self._streams = streams_of(loaded, self._version)
        self._serve(inf)

    def _serve(self, until_s: float) -> None:
        poll, listener_fd = self._poll, self._listener.fileno()
        while (self._peers or self._leave_by_s == inf) and not self._watch.orphaned:
            events = poll.poll(0)
            if not events:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            wait_s = min(until_s, self._leave_by_s) - time.monotonic()
            if wait_s <= 0:
                return
            if not events:
                events = poll.poll(None if wait_s == inf else wait_s * 1000 + 1)
            for fd, event in events:
                if fd == listener_fd:
                    self._accept()
                elif fd == self._wake_in:
                    os.read(fd, 4096)
                elif event & select.POLLHUP:
                    self._drop(fd)  # nobody is there to take an answer
                elif fd in self._peers:
                    self._hear(fd)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            _log.warning("a worker could not be accepted: %s", error)
            return
        self._peers[sock.fileno()] = _Worker(sock)
        self._poll.register(sock, select.POLLIN)

    def _hear(self, fd: int) -> None:
        worker = self._peers[fd]
        try:
            frames = worker.peer.receive()
            if frames is None:
                return self._drop(fd)
            for kind, slot, sequence, at, size, arena in frames:
                if arena is not None:
                    worker.inputs[slot] = arena
                head = read_head(worker.inputs[slot], at, size)
                if kind == RUN and worker.welcome:
                    if time.monotonic() >= self._leave_by_s:
                        return  # not begun: the worker takes it to the next incarnation
                    self._run(worker, slot, sequence, _run.decode(head))
                elif kind == HELLO:
                    self._greet(worker, _hello.decode(head))
                elif kind == STREAM and worker.welcome and self._streams is not None:
                    if time.monotonic() >= self._leave_by_s:
                        return
                    # What arrives meanwhile and is not for the stream goes to the end of `frames`.
                    self._stream(worker, slot, sequence, _run.decode(head), self._streams, frames)
                elif kind not in (TAKEN, CANCEL):  # for a stream that was over before they came
                    raise MalformedMessage(f"frame of kind {kind}")
        except (MalformedMessage, msgspec.MsgspecError, KeyError, OSError) as error:
            _log.warning("a worker's connection is given up: %s: %s", type(error).__name__, error)
            self._drop(fd)

    def _greet(self, worker: "_Worker", hello: Hello) -> None:
        reason = self._refusal
        if hello.schema != SCHEMA:
            reason = f"the worker speaks schema {hello.schema}, this executor {SCHEMA}"
        elif hello.version_key != self._version.key:
            reason = f"this executor runs {self._version.key}, not {hello.version_key}"
        worker.owner = hello.owner
        worker.welcome = not reason
        kind = REFUSED if reason else READY
        self._answer(
            worker, 0, 0, kind, {}, Trouble("LoadFailed" if self._refusal else "ConfigError", reason)
        )

    def _run(self, worker: "_Worker", slot: int, sequence: int, run: Run) -> None:
        assert self._loaded is not None
        arena = worker.inputs[slot]
        arena.began = sequence
        trouble: Trouble | None = None
        inputs: Tensors = {}
        try:
            inputs = read(arena, run.pieces, copy=False)
        except MemoryError as error:
            trouble = exhausted("no memory for the inputs", error)
        started_s = time.monotonic()
        kill_at_s = started_s + run.kill_after_s
        self._block.running(self._version.key, run.requests, kill_at_s, worker.owner, sequence)
        self._watch.kill_at_s = kill_at_s
        signal.setitimer(signal.ITIMER_REAL, run.kill_after_s + _GIL_GRACE_S)
        outputs: Tensors = {}
        try:
            if trouble is None:
                outputs = checked(self._loaded.predict(inputs, run.outputs))
        except MemoryError as error:
            trouble = exhausted("the model wants more memory than it may have", error)
        except BaseException as error:  # SystemExit too: a model may not end the process that way
            trouble = trouble_of(error)
        elapsed_s = time.monotonic() - started_s
        self._watch.kill_at_s = 0.0
        try:
            if trouble is None:
                self._answer(worker, slot, sequence, DONE, outputs, Done((), elapsed_s))
        except TooLarge as error:
            trouble = Trouble("OutputMismatch", f"the outputs are too large: {error}")
        except ConfigError as error:
            trouble = Trouble("OutputMismatch", f"the outputs cannot be sent: {error}")
        except MemoryError as error:
            trouble = exhausted("no memory for the outputs", error)
        if trouble is not None:
            del outputs
            trouble = msgspec.structs.replace(trouble, elapsed_s=elapsed_s)
            self._answer(worker, slot, sequence, FAILED, {}, trouble)
        self._block.idle()

    def _stream(
        self, worker: "_Worker", slot: int, sequence: int, run: Run, model: Streams, frames: list[Received]
    ) -> None:
        arena = worker.inputs[slot]
        arena.began = sequence
        arenas = worker.parts.setdefault(slot, [None] * AHEAD)
        outlet = Outlet(worker.peer, arenas, slot, sequence, frames)
        parts = parts_of(model, arena, run)
        trouble: Trouble | None = None
        elapsed_s = 0.0
        try:
            while trouble is None and outlet.is_wanted():
                if outlet.is_full:
                    self._allow(worker, sequence, 0.0)  # a slow reader is no hung model
                    outlet.wait()
                    continue
                self._allow(worker, sequence, run.kill_after_s)
                started_s = time.monotonic()
                part, trouble = next_part(parts)
                elapsed_s += time.monotonic() - started_s
                if part is None:
                    break
                trouble = outlet.send(part, elapsed_s)
        finally:
            self._allow(worker, sequence, run.kill_after_s)
            close(parts)
            self._allow(worker, sequence, 0.0)
            self._block.idle()
        if trouble is None:
            self._answer(worker, slot, sequence, DONE, {}, Done((), elapsed_s))
        else:
            trouble = msgspec.structs.replace(trouble, elapsed_s=elapsed_s)
            self._answer(worker, slot, sequence, FAILED, {}, trouble)

    def _allow(self, worker: "_Worker", sequence: int, seconds: float) -> None:
        """The next part of a stream may take so long; 0: nothing of the model's runs."""
        kill_at_s = time.monotonic() + seconds if seconds else 0.0
        self._watch.kill_at_s = kill_at_s
        self._block.running(self._version.key, 1, kill_at_s, worker.owner, sequence)
        signal.setitimer(signal.ITIMER_REAL, seconds + _GIL_GRACE_S if seconds else 0.0)

    def _answer(
        self, worker: "_Worker", slot: int, sequence: int, kind: int, tensors: Tensors, head: Done | Trouble
    ) -> None:
        pieces, sources, end = layout(tensors)
        if isinstance(head, Done):
            head = Done(pieces, head.elapsed_s)
        packed = _encoder.encode(head)
        fresh = room(worker.outputs.get(slot), end + len(packed))
        if fresh is not None:
            worker.outputs[slot] = fresh
        arena = worker.outputs[slot]
        write(arena, pieces, sources, end, packed)
        worker.peer.send(kind, slot, sequence, end, len(packed), fresh.fd if fresh else -1)
        if fresh is not None:
            fresh.close()

    def _drop(self, fd: int) -> None:
        worker = self._peers.pop(fd, None)
        if worker is not None:
            self._poll.unregister(fd)
            worker.peer.close()

    def _close_sockets(self) -> None:
        for fd in [self._listener.fileno(), *self._peers]:
            try:
                os.close(fd)
            except OSError:
                continue


class _Worker:
    """One connection: its arenas, by slot; those of parts take turns."""

    __slots__ = ("inputs", "outputs", "owner", "parts", "peer", "welcome")

    def __init__(self, sock: socket.socket) -> None:
        self.peer = Peer(sock)
        self.inputs: dict[int, Arena] = {}
        self.outputs: dict[int, Arena] = {}
        self.parts: dict[int, list[Arena | None]] = {}
        self.owner = 0
        self.welcome = False


def _die(code: int, why: str) -> None:
    try:
        sys.stderr.write(f"executor leaves with code {code}: {why}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)
