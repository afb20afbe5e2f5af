"""Owns open-loop load: request k is meant to leave at a time fixed beforehand, whatever the server does.

Its latency counts from that time: a server that stalls is charged for every request due meanwhile. One
thread of one process, on Linux (epoll).
"""

from __future__ import annotations

import errno
import gc
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from urllib.parse import urlsplit

import httptools
import msgspec
import numpy as np

from interlock.operations.arrivals import Floats, Percentiles, percentiles


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, sent again and again; with `more` bodies, in turn with these."""

    url: str
    body: bytes = b""
    headers: dict[str, str] = {}
    method: str = "POST"
    more: tuple[bytes, ...] = ()

    def encode_all(self) -> list[bytes]:
        """Each request as it goes over the wire, one for each body."""
        bodies = (self.body, *self.more)
        return [msgspec.structs.replace(self, body=body, more=()).encode() for body in bodies]

    def encode(self) -> bytes:
        """The request as it goes over the wire."""
        at = urlsplit(self.url)
        target = (at.path or "/") + (f"?{at.query}" if at.query else "")
        headers = {"host": at.netloc, **self.headers, "content-length": str(len(self.body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{self.method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + self.body

    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        at = urlsplit(self.url)
        return at.hostname or "127.0.0.1", at.port or 80


class OpenLoopResult(msgspec.Struct, frozen=True):
    """What one open-loop run saw. `latency` is from the intended send time and of good answers only."""

    offered_per_s: float
    done_per_s: float
    sent: int
    ok: int
    failures: dict[str, int]  # {"status 503": 4, "closed": 1, "timeout": 0 ...}
    latency: Percentiles
    lag: Percentiles  # how late requests left that found a free connection: the generator's own noise
    waited: int  # requests that found no free connection when they were due
    reconnects: int

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


class _Connection:
    """One keep-alive connection with at most one request in flight; the parser calls back into it."""

    __slots__ = ("complete", "due", "fd", "keep", "left", "parser", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fd = self.socket.fileno()
        self.parser = httptools.HttpResponseParser(self)
        self.due = -1  # index of the request in flight
        self.left = memoryview(b"")  # of the request, what the socket has not taken yet
        self.complete = False
        self.keep = True  # the answer lets the connection live on

    def on_message_complete(self) -> None:
        self.complete = True
        self.keep = self.parser.should_keep_alive()


class _OpenLoop:
    """One run, single-threaded. It sleeps between events, and spins for the last `spin_s` before a send."""

    def __init__(
        self,
        request: Request,
        due_s: Floats,
        connections: int,
        timeout_s: float,
        spin_s: float,
        stopped: Callable[[], bool],
    ) -> None:
        self._stopped = stopped
        self._wires = [memoryview(wire) for wire in request.encode_all()]
        self._address = request.address()
        self._due_s = due_s
        self._timeout_s = timeout_s
        self._spin_s = spin_s
        self._epoll = select.epoll()
        self._live: dict[int, _Connection] = {}
        self.due_s = due_s
        self._free: list[_Connection] = []
        self._missing = 0  # connections that could not be opened again yet
        self._waiting: deque[int] = deque()
        self._sent_s = np.full(len(due_s), np.nan)
        self.done_s = np.full(len(due_s), np.nan)  # of good answers
        self.start_s = 0.0  # CLOCK_MONOTONIC, the same for all processes of the machine
        self.failures: Counter[str] = Counter()
        self.failed_due_s: list[float] = []
        self.waited = self.reconnects = self._sent = 0
        self._lag_s: list[float] = []
        for _ in range(connections):
            self._open()

    def _open(self) -> None:
        connection = _Connection(self._address)
        self._epoll.register(connection.fd, select.EPOLLIN)
        self._live[connection.fd] = connection
        self._free.append(connection)

    def _fail(self, index: int, reason: str) -> None:
        self.failures[reason] += 1
        self.failed_due_s.append(float(self._due_s[index]))

    def _drop(self, connection: _Connection, reason: str) -> None:
        """Close; a request in flight on it has failed for this reason. A new connection takes its place."""
        if connection.due >= 0:
            self._fail(connection.due, reason)
            connection.due = -1
        del self._live[connection.fd]
        if connection in self._free:
            self._free.remove(connection)
        connection.socket.close()
        self.reconnects += 1
        self._missing += 1
        self._replace()

    def _replace(self) -> None:
        while self._missing:
            try:
                self._open()
            except OSError:
                return  # tried again when a request is due
            self._missing -= 1

    def _send(self, connection: _Connection, index: int, now_s: float) -> None:
        connection.due = index
        self._sent_s[index] = now_s
        self._sent += 1
        connection.left = self._wires[index % len(self._wires)]
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        while connection.left:
            try:
                taken = connection.socket.send(connection.left)
            except BlockingIOError:
                self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)
                return
            except OSError as error:
                self._drop(connection, f"send {errno.errorcode.get(error.errno or 0, str(error.errno))}")
                return
            connection.left = connection.left[taken:]

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(262_144)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(connection, f"read {errno.errorcode.get(error.errno or 0, str(error.errno))}")
            return
        now_s = time.monotonic()
        if not data:
            self._drop(connection, "closed")
            return
        try:
            connection.parser.feed_data(data)
        except httptools.HttpParserError:
            self._drop(connection, "malformed answer")
            return
        if not connection.complete:
            return
        connection.complete = False
        index, connection.due = connection.due, -1
        status = connection.parser.get_status_code()
        if index < 0:
            self._drop(connection, "closed")  # an answer that nobody asked for, such as 408 before a close
            return
        if status == 200:
            self.done_s[index] = now_s
        else:
            self._fail(index, f"status {status}")
        if connection.left or not connection.keep:
            self._drop(connection, "closed")
            return
        connection.parser = httptools.HttpResponseParser(connection)
        self._free.append(connection)

    def _expire(self, now_s: float) -> None:
        """Fail what has been in flight, or has waited for a connection, longer than the time-out."""
        before_s = now_s - self.start_s - self._timeout_s
        for connection in list(self._live.values()):
            if connection.due >= 0 and self._due_s[connection.due] < before_s:
                self._drop(connection, "timeout")
        while self._waiting and self._due_s[self._waiting[0]] < before_s:
            self._fail(self._waiting.popleft(), "no connection free")

    def _wait(self, until_s: float) -> None:
        """Handle what is ready; return when something was, or at `until_s`."""
        pause_s = until_s - time.monotonic() - self._spin_s
        if pause_s > 0:
            # select() on the epoll descriptor: its time-out has microseconds, epoll's own has milliseconds.
            select.select([self._epoll], (), (), pause_s)
        for fd, event in self._epoll.poll(0):
            connection = self._live.get(fd)
            if connection is None:
                continue
            if event & select.EPOLLOUT and connection.left:
                self._epoll.modify(fd, select.EPOLLIN)
                self._write(connection)
            if event & ~select.EPOLLOUT and fd in self._live:
                self._read(connection)

    def run(self) -> None:
        """Send all requests, or those due until it is stopped; wait at most the time-out for answers."""
        self.start_s = start_s = time.monotonic() + 0.05
        count, following, check_s = len(self._due_s), 0, start_s
        due_s: list[float] = (self._due_s + start_s).tolist()
        while following < count or self._waiting or len(self._free) < len(self._live):
            now_s = time.monotonic()
            while following < count and due_s[following] <= now_s:
                if self._missing:
                    self._replace()
                if self._free and not self._waiting:
                    self._lag_s.append(now_s - due_s[following])
                    # The connection that rested longest: all are kept alive, as many clients would be.
                    self._send(self._free.pop(0), following, now_s)
                else:
                    self.waited += 1
                    self._waiting.append(following)
                following += 1
                now_s = time.monotonic()
            while self._waiting and self._free:
                self._send(self._free.pop(0), self._waiting.popleft(), time.monotonic())
            if now_s >= check_s:
                check_s = now_s + 0.1
                self._expire(now_s)
                if self._stopped() and following < count:
                    count = following
                if self._missing:
                    self._replace()
            self._wait(min(due_s[following], check_s) if following < count else check_s)
        for connection in self._live.values():
            connection.socket.close()
        self._epoll.close()
        self.due_s, self.done_s = self._due_s[:count], self.done_s[:count]

    def latency_ms(self) -> Floats:
        """From the intended send time; NaN for what failed."""
        return 1e3 * (self.done_s - (self.due_s + self.start_s))

    def result(self) -> OpenLoopResult:
        latency_ms = self.latency_ms()
        good = ~np.isnan(latency_ms)
        count = len(self.due_s)
        span_s = float(self.due_s[-1]) * count / (count - 1) if count > 1 else 1.0
        return OpenLoopResult(
            offered_per_s=round(count / span_s, 1),
            done_per_s=round(int(good.sum()) / span_s, 1),
            sent=self._sent,
            ok=int(good.sum()),
            failures=dict(self.failures),
            latency=percentiles(latency_ms[good]),
            lag=percentiles(1e3 * np.asarray(self._lag_s)),
            waited=self.waited,
            reconnects=self.reconnects,
        )


class Timeline(msgspec.Struct, frozen=True):
    """Request by request: when it was to leave (CLOCK_MONOTONIC, s), its latency (None: it failed)."""

    due_s: list[float]
    latency_ms: list[float | None]

    def between(self, start_s: float, end_s: float) -> Percentiles:
        """Latency of the good answers whose intended send time is in [start_s, end_s)."""
        return percentiles(
            [
                latency
                for due, latency in zip(self.due_s, self.latency_ms, strict=True)
                if latency is not None and start_s <= due < end_s
            ]
        )


def open_loop(
    request: Request,
    due_s: Floats,
    *,
    connections: int = 32,
    timeout_s: float = 10.0,
    spin_s: float = 1e-4,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[OpenLoopResult, Timeline]:
    """Send `request` at each of these times (seconds from the start, `schedule`) and return what came of it.

    `spin_s` is how long before a due time this thread stops sleeping: 1 (always spinning) for measurements on
    a core of its own, as waking up costs tens of microseconds; the default leaves the core to others.
    Once `stopped()` is true no further request leaves.

    Raises: OSError if the server cannot be connected to at the start.
    """
    if connections < 1:
        raise ValueError(f"connections is {connections}, at least 1 is wanted")
    run = _OpenLoop(request, due_s, connections, timeout_s, spin_s, stopped)
    gc.disable()  # a collection between two sends would be charged to the server
    try:
        run.run()
    finally:
        gc.enable()
    timeline = Timeline(
        (run.due_s + run.start_s).tolist(),
        [None if value != value else round(value, 4) for value in run.latency_ms().tolist()],
    )
    return run.result(), timeline
