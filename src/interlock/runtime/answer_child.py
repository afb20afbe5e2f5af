"""Owns the child's side of `answer_process`: it loads one version and answers rows until its parent has left.

`python -m interlock.runtime.answer_child SOCKET CELL`, two inherited descriptors.
"""

import mmap
import os
import resource
import select
import signal
import socket
import sys
import threading
from pathlib import Path

from interlock.core.errors import (
    DigestMismatch,
    InterlockError,
    LoadFailed,
    MalformedMessage,
    MemoryExhausted,
    OutputMismatch,
    PredictFailed,
)
from interlock.core.expected import Expected
from interlock.core.model import Tensors, Version, check_fault, digest_of
from interlock.runtime.answer_rows import as_asked, calls, separate
from interlock.runtime.answer_wire import CELL, Ask, Piece, Reply, Start, Trouble, pack, receive, send, unpack
from interlock.runtime.catalog import runtime_of, with_fault
from interlock.runtime.examples import joined_where_equal
from interlock.runtime.protocol import Loaded

_GRACE_S = 5.0
"""How much later than its parent the kernel's timer ends a call that hangs: for when the parent is gone."""


class _Model:
    """A loaded version; every call is told in the cell, bounded in time, and held to the signature."""

    def __init__(self, loaded: Loaded, version: Version, cell: mmap.mmap, call_s: float) -> None:
        self._loaded = loaded
        self._version = version
        self._expected = Expected(as_asked(version.signature))
        self._cell = cell
        self._call_s = call_s
        self._begun = 0

    def answer(
        self, inputs: Tensors, most_rows: int, first_only: bool
    ) -> tuple[list[Tensors], list[Trouble]]:
        """The answers in order, and what became of the rows that have none."""
        found: list[Tensors] = []
        troubles: list[Trouble] = []
        rows = len(next(iter(inputs.values())))

        def ask(start: int, stop: int) -> Tensors | InterlockError:
            return self._call({name: array[start:stop] for name, array in inputs.items()}, start, stop)

        for begin, end in calls(rows, most_rows):
            for start, _, result in separate(ask, begin, end):
                if not isinstance(result, InterlockError):
                    found.append(result)
                    continue
                troubles.append(Trouble(start, type(result).__name__, result.message))
                if first_only:
                    return found, troubles
        return found, troubles

    def _call(self, inputs: Tensors, start: int, stop: int) -> Tensors | InterlockError:
        self._begun += 1
        CELL.pack_into(self._cell, 0, self._begun, start, stop)
        signal.setitimer(signal.ITIMER_REAL, self._call_s + _GRACE_S)
        try:
            outputs = self._loaded.predict(inputs)
            if not isinstance(outputs, dict):
                return OutputMismatch(f"predict returned {type(outputs).__name__}, want a dict of arrays")
            wrong = self._expected.wrong(outputs, None, stop - start)
            # A model may answer with views of memory that it writes to in its next call, or of its inputs.
            return wrong or {spec.name: outputs[spec.name].copy() for spec in self._version.signature.outputs}
        except MemoryError as error:
            return _exhausted(str(error))
        except InterlockError as error:
            return error
        except BaseException as error:  # SystemExit too: a model may not end the process that way
            return PredictFailed(f"the model raised {type(error).__name__}: {str(error)[:500]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


def main(sock: socket.socket, cell: mmap.mmap) -> None:
    """Load, and answer until the parent has left."""
    first = receive(Start, lambda buffer: _read(sock, buffer))
    if first is None:
        return
    start = first[0]
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = start.memory_bytes if hard == resource.RLIM_INFINITY else min(start.memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True  # beside a model's source it would change the digest of the artifact
    try:
        loaded = _load(Path(start.folder), start.version)
    except InterlockError as error:
        return send(sock, Reply(troubles=(Trouble(0, type(error).__name__, error.message),)), [])
    except MemoryError as error:
        words = f"{start.version.key}: {_exhausted(str(error)).message}"
        return send(sock, Reply(troubles=(Trouble(0, LoadFailed.__name__, words),)), [])
    except BaseException as error:  # whatever a model's own code raises while it is loaded
        words = f"{start.version.key}: {type(error).__name__} while loading: {str(error)[:500]}"
        return send(sock, Reply(troubles=(Trouble(0, LoadFailed.__name__, words),)), [])
    send(sock, Reply(), [])
    model = _Model(loaded, start.version, cell, start.call_s)
    while (asked := receive(Ask, lambda buffer: _read(sock, buffer))) is not None:
        ask, body = asked
        found, troubles = model.answer(unpack(ask.pieces, body), ask.most_rows, ask.first_only)
        _reply(sock, found, troubles)


def _reply(sock: socket.socket, found: list[Tensors], troubles: list[Trouble]) -> None:
    groups: list[tuple[Piece, ...]] = []
    body: list[memoryview] = []
    for group in joined_where_equal(found):
        pieces, parts = pack(group)
        groups.append(pieces)
        body += parts
    send(sock, Reply(tuple(groups), tuple(troubles)), body)


def _load(folder: Path, version: Version) -> Loaded:
    """Raises: DigestMismatch; what the runtime raises."""
    check_fault(version)
    found = digest_of(folder) if folder.is_dir() else "no folder"
    if found != version.digest:
        raise DigestMismatch(f"artifact of {version.key}: {found}, registered as {version.digest}")
    return with_fault(runtime_of(version.runtime).load(folder, version), version)


def _exhausted(words: str) -> MemoryExhausted:
    most_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
    said = f" ({words[:500]})" if words else ""
    return MemoryExhausted(f"the model wants more memory than the {most_bytes >> 20:,} MiB it may have{said}")


def _read(sock: socket.socket, buffer: memoryview) -> bool:
    while buffer:
        count = sock.recv_into(buffer)
        if not count:
            return False
        buffer = buffer[count:]
    return True


def _leave_with_parent(fd: int) -> None:
    """A parent that was killed closes its end: this process ends with what it started, busy or not."""
    end = select.poll()
    end.register(fd, 0)  # POLLHUP alone
    end.poll()
    _leave()


def _leave() -> None:
    """At once, and with it whatever the model started: its threads and destructors have no say in it."""
    os.killpg(0, signal.SIGKILL) if os.getpgrp() == os.getpid() else os._exit(0)


def _child(socket_fd: int, cell_fd: int) -> None:
    sock = socket.socket(fileno=socket_fd)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # must be able to kill
    threading.Thread(target=_leave_with_parent, args=(socket_fd,), daemon=True).start()
    try:
        main(sock, mmap.mmap(cell_fd, CELL.size))
    except (OSError, MalformedMessage) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        sys.stdout.flush()
        _leave()  # also where the parent was killed between two questions


if __name__ == "__main__":
    _child(int(sys.argv[1]), int(sys.argv[2]))
