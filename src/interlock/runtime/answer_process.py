"""Owns the process in which a version answers offline: bounded in time and memory, it may crash or hang.

`answer_child` is what runs there; `Answerer` starts it and asks it.
"""

import mmap
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from interlock.core.errors import (
    InputMismatch,
    InterlockError,
    LoadFailed,
    MalformedMessage,
    ModelCrashed,
    OutputMismatch,
    PredictFailed,
)
from interlock.core.model import DATATYPES, Tensors, Version
from interlock.runtime.answer_rows import check_by_rows, rows_a_call
from interlock.runtime.answer_wire import CELL, Ask, Reply, Start, pack, receive, send, unpack
from interlock.runtime.check_process import DEFAULT_MEMORY_BYTES, DEFAULT_TIME_S
from interlock.runtime.child import end, environment, error_of, how_it_ended, resident_bytes
from interlock.runtime.environment import interpreter_of, variables_for
from interlock.runtime.examples import joined_where_equal

DEFAULT_CALL_S = 60.0
"""What one call of the model may take before it counts as hung."""
LOOK_S = 0.1
MOST_CRASHES = 5
"""So many rows in a row that each end the process: the version is given up, as a node would do."""
_MOST_SAID_BYTES = 1024**2


class Failure(msgspec.Struct, frozen=True):
    """A row without an answer, and why."""

    row: int
    error: InterlockError


class Answers(msgspec.Struct, frozen=True):
    """`groups`: the answers of all rows but those in `failures`, in order; more than one group where their
    shapes differ."""

    groups: tuple[Tensors, ...]
    failures: tuple[Failure, ...]


class Answerer:
    """One version in a process of its own, which begins with the first question, and anew after a crash.

    For one thread at a time; only `close` may be called by another. `folder` is the artifact's; its digest is
    verified before the load. `memory_bytes` bounds what the child may have, `load_s` its start, `call_s` each
    call of the model.
    """

    def __init__(
        self,
        folder: Path,
        version: Version,
        *,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        load_s: float = DEFAULT_TIME_S,
        call_s: float = DEFAULT_CALL_S,
    ) -> None:
        """Raises: Unsupported: a version that does not give one answer for each row."""
        check_by_rows(version)
        self.version = version
        self._start = Start(str(folder), version, memory_bytes, call_s)
        self._load_s = load_s
        self._call_s = call_s
        self._child: _Child | None = None
        self._closed = False
        self._asking = threading.Lock()
        self._crashes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's, None while there is none."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Begin now, not with the first question. Raises: LoadFailed, DigestMismatch … from the load."""
        with self._asking:
            self._running()

    def answer(self, inputs: Tensors) -> Tensors:
        """The outputs for inputs [rows, ...], in calls as a lane would make them.

        Raises: as `attempt`; the error of the first row that has no answer, with its number; OutputMismatch
        if the rows' answers have different shapes.
        """
        found = self.attempt(inputs, first_only=True)
        for failure in found.failures:
            raise error_of(
                type(failure.error).__name__, f"row {failure.row}: {failure.error.message}", PredictFailed
            )
        if len(found.groups) == 1:
            return found.groups[0]
        if not found.groups:
            return _nothing(self.version)
        raise OutputMismatch(f"{self.version.key}: the answers have different shapes and cannot be joined")

    def attempt(self, inputs: Tensors, *, first_only: bool = False) -> Answers:
        """The outputs for inputs [rows, ...], and the rows that have none. `first_only`: stop at the first.

        A call that fails is tried again in halves, one that ends the process row by row.
        Raises: LoadFailed, DigestMismatch, MissingExtra, UntrustedArtifact … from the load; ModelCrashed if
        MOST_CRASHES rows in a row crash; InputMismatch.
        """
        lengths = {len(array) for array in inputs.values()}
        if len(lengths) != 1:
            raise InputMismatch(f"inputs with {sorted(lengths)} rows: want the same number for each")
        most_rows = rows_a_call(self.version)
        retry = self.version.capabilities.side_effect_free
        spans = deque([(0, lengths.pop(), most_rows)])
        groups: list[Tensors] = []
        failures: list[Failure] = []
        while spans and not (first_only and failures):
            start, stop, step = spans.popleft()
            if start == stop:
                continue
            if not retry and stop - start > 1:  # what was answered before a crash must not be asked again
                spans.appendleft((start + 1, stop, step))
                stop = start + 1
            found = self._asked({name: array[start:stop] for name, array in inputs.items()}, step, first_only)
            if isinstance(found, Answers):
                self._crashes = 0 if found.groups else self._crashes
                groups += found.groups
                failures += [Failure(start + each.row, each.error) for each in found.failures]
                continue
            begun, ended = start + found.start, start + found.stop
            spans.appendleft((ended, stop, step))
            if ended - begun > step:  # no call is to blame
                middle = (begun + ended) // 2
                spans.extendleft([(middle, ended, step), (begun, middle, step)])
            elif ended - begun > 1:
                spans.appendleft((begun, ended, 1))
            else:
                self._crashes += 1
                if self._crashes >= MOST_CRASHES:
                    words = f"rows that ended it: {self._crashes}, one after the other; it is given up"
                    raise ModelCrashed(f"{found.error.message}; {words}")
                failures.append(Failure(begun, found.error))
            spans.appendleft((start, begun, step))
        failures.sort(key=lambda each: each.row)
        return Answers(tuple(joined_where_equal(groups)), tuple(failures))

    def close(self) -> None:
        """End the process; whoever waits for it hears that it crashed."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._asking:  # whoever asked has heard of it by now
            self._forget()

    def _asked(self, inputs: Tensors, most_rows: int, first_only: bool) -> "Answers | _Crash":
        with self._asking:
            found = self._running().ask(inputs, most_rows, first_only, self._call_s)
            if isinstance(found, _Crash):
                self._forget()
            return found

    def _running(self) -> "_Child":
        if self._closed:
            raise ModelCrashed(f"{self.version.key}: its process was closed")
        if self._child is None:
            self._child = _Child(self._start)
            if self._closed:  # meanwhile, by another thread
                self._child.kill()
            try:
                self._child.load(self._start, self._load_s)
            except BaseException:
                self._forget()
                raise
        return self._child

    def _forget(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


def answers(folder: Path, version: Version, inputs: Tensors, *, call_s: float = DEFAULT_CALL_S) -> Tensors:
    """The outputs of a version for inputs [rows, ...], in one call. Raises: as `Answerer.answer`."""
    with Answerer(folder, version, call_s=call_s) as answerer:
        return answerer.answer(inputs)


class _Crash(msgspec.Struct, frozen=True):
    """The process ended in the call with the rows [start, stop) of what was asked."""

    start: int
    stop: int
    error: InterlockError


class _Child:
    """The running process, seen from its parent."""

    def __init__(self, start: Start) -> None:
        self._key = start.version.key
        self._memory_bytes = start.memory_bytes
        python = interpreter_of(Path(start.folder).parents[1], start.version)  # HOME/artifacts/DIGEST
        self._said = tempfile.TemporaryFile(mode="ab+", buffering=0)
        with tempfile.TemporaryFile() as file:
            file.truncate(CELL.size)
            self._cell = mmap.mmap(file.fileno(), CELL.size)
            self._sock, theirs = socket.socketpair()
            with theirs:
                # Not of this process's group: Ctrl-C is its parent's to act on, and all that it starts ends
                # with it.
                self._popen = subprocess.Popen(
                    [python, "-P", "-m", "interlock.runtime.answer_child"]
                    + [str(theirs.fileno()), str(file.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=self._said,
                    stderr=self._said,
                    env=variables_for(python, environment()),
                    pass_fds=[theirs.fileno(), file.fileno()],
                    start_new_session=True,
                    umask=0o077,
                )
        self._begun, self._allowed_s, self._until_s = 0, 0.0, 0.0

    def load(self, start: Start, load_s: float) -> None:
        """Wait until it has loaded its version. Raises: InterlockError if it cannot."""
        self._allowed_s, self._until_s = load_s, time.monotonic() + load_s
        try:
            self._sock.settimeout(load_s)
            send(self._sock, start, [])
            found = receive(Reply, self._read)
        except _Bound as bound:
            raise self._not_loaded(bound.words) from None
        except (OSError, MalformedMessage):
            found = None
        if found is None:
            raise self._not_loaded("")
        for trouble in found[0].troubles:
            raise error_of(trouble.error, trouble.message, LoadFailed)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ask(self, inputs: Tensors, most_rows: int, first_only: bool, call_s: float) -> Answers | _Crash:
        """Ask, and wait for the answers. `call_s` bounds each call."""
        pieces, body = pack(inputs)
        rows = len(next(iter(inputs.values())))
        self._begun = before = CELL.unpack(self._cell)[0]
        self._allowed_s, self._until_s = call_s, time.monotonic() + call_s
        words, kind = "", "ModelCrashed"
        try:
            self._sock.settimeout(call_s)
            send(self._sock, Ask(pieces, most_rows, first_only), body)
            found = receive(Reply, self._read)
            if found is not None:
                self._forget()
                return _answers(*found, rows)
        except _Bound as bound:
            words, kind = bound.words, bound.kind
        except MalformedMessage as error:
            words = f"it sent what cannot be understood: {error.message}"
        except OSError as error:
            words = "" if isinstance(error, (ConnectionError, BrokenPipeError)) else str(error)
        begun, start, stop = CELL.unpack(self._cell)
        if begun == before or not start < stop <= rows:
            start, stop = 0, rows  # it ended outside of any call
        words = words or f"{how_it_ended(end(self._popen))} while it answered"
        said = f"{self._key}: {words}{self._last_said()}"
        return _Crash(start, stop, error_of(kind, said, ModelCrashed))

    def kill(self) -> None:
        """End the child and whatever it started."""
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has left, and with it all of its group

    def end(self) -> None:
        """End it, and give back what it took here."""
        end(self._popen)
        self._sock.close()
        self._cell.close()
        self._said.close()

    def _read(self, buffer: memoryview) -> bool:
        """Fill a buffer; False at the end. Raises: _Bound: too slow, or too large."""
        self._sock.settimeout(LOOK_S)
        while buffer:
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                self._look()
                continue
            if not count:
                return False
            buffer = buffer[count:]
        return True

    def _look(self) -> None:
        if resident_bytes(self._popen.pid) > self._memory_bytes:
            limit = self._memory_bytes >> 20
            raise _Bound("MemoryExhausted", f"it asked for more than {limit} MiB of memory")
        if self._popen.poll() is not None:  # what it forked may hold the socket open
            raise ConnectionResetError
        begun = CELL.unpack(self._cell)[0]
        now_s = time.monotonic()
        if begun != self._begun:
            self._begun, self._until_s = begun, now_s + self._allowed_s
        elif now_s > self._until_s:
            raise _Bound("ModelCrashed", f"it gave no answer within {self._allowed_s:g} s and was killed")

    def _not_loaded(self, words: str) -> LoadFailed:
        words = words or f"{how_it_ended(end(self._popen))} while it was loaded"
        return LoadFailed(f"{self._key}: {words}{self._last_said()}")

    def _last_said(self) -> str:
        size = os.fstat(self._said.fileno()).st_size
        text = os.pread(self._said.fileno(), 800, max(0, size - 800)).decode(errors="replace").strip()
        return f"; it last said: {text}" if text else ""

    def _forget(self) -> None:
        """A model that prints for each row must not fill the disk."""
        if os.fstat(self._said.fileno()).st_size > _MOST_SAID_BYTES:
            self._said.truncate(0)


class _Bound(Exception):
    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind
        self.words = words


def _answers(reply: Reply, body: memoryview, rows: int) -> Answers:
    """Raises: MalformedMessage if the rows do not add up."""
    groups: list[Tensors] = []
    at = 0
    for pieces in reply.groups:
        size = sum(piece.size for piece in pieces)
        groups.append(unpack(pieces, body[at : at + size]))
        at += size
    failures = tuple(
        Failure(each.row, error_of(each.error, each.message, PredictFailed)) for each in reply.troubles
    )
    answered = 0
    for group in groups:
        lengths = {array.shape[:1] for array in group.values()}
        if len(lengths) != 1 or lengths == {()}:
            raise MalformedMessage(f"outputs with {sorted(lengths)} rows")
        answered += int(lengths.pop()[0])
    asked = answered + len(failures)
    if asked > rows or (asked < rows and not failures):
        raise MalformedMessage(f"{answered} answers and {len(failures)} failures for {rows} rows")
    return Answers(tuple(groups), failures)


def _nothing(version: Version) -> Tensors:
    return {
        spec.name: np.empty((0, *(max(0, length) for length in spec.shape[1:])), DATATYPES[spec.datatype])
        for spec in version.signature.outputs
    }
