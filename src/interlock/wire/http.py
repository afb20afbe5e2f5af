"""Owns the listening socket of the HTTP/1.1 data plane: who may connect, sweeping, draining.

It knows no model protocol: an `App` admits heads and handles exchanges. One server belongs to one event loop
(`new_loop`: uvloop, or asyncio's own where uvloop is missing).
"""

import asyncio
import errno
import logging
import socket
import ssl as tls
from email.utils import formatdate
from time import monotonic

from interlock.wire.access_log import AccessLog
from interlock.wire.http_connection import Connection
from interlock.wire.http_exchange import DONE, App, Exchange, ResponseStream, status_start
from interlock.wire.http_head import Head, HeadReader, Refusal
from interlock.wire.http_limits import Counts, HttpLimits

__all__ = [
    "AccessLog",
    "App",
    "Counts",
    "Exchange",
    "Head",
    "HttpLimits",
    "HttpServer",
    "Refusal",
    "ResponseStream",
    "new_loop",
]

_LOG = logging.getLogger("interlock.wire")
_DEFAULT_LIMITS = HttpLimits()
_SWEEP_S = 0.25
_BACKLOG = 1024
_ACCEPTS_PER_WAKE = 64
_MOST_LOOKS = 2
# Why nothing is accepted.
_BY_OWNER, _FULL, _STARVED, _LEAVING = 1, 2, 4, 8
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop for `asyncio.Runner(loop_factory=new_loop)`: uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class HttpServer:
    """Answers HTTP/1.0 and 1.1 on one listening socket for one application."""

    def __init__(
        self,
        app: App,
        limits: HttpLimits = _DEFAULT_LIMITS,
        *,
        server_header: bytes = b"interlock",
        access_log: AccessLog | None = None,
    ) -> None:
        self.app = app
        self.limits = limits
        self.counts = Counts()
        self.access_log = access_log or AccessLog()
        self.head_reader = HeadReader(limits)
        self.is_draining = False
        self.turn: list[Exchange] = []
        """Requests that are complete and not handled yet: those of this turn of the loop."""
        self._turn_before = 1
        self._looks = 0
        self.lines: dict[int, bytes] = {}
        """Start of an answer up to `content-length: ` by status, good for the current second.
        None for 500 and more: those take the way on which an answer may be logged."""
        self._server_header = server_header
        self._date = formatdate(usegmt=True).encode()
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._accept_hold = 0
        self._socket: socket.socket | None = None
        self._ssl: tls.SSLContext | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event = asyncio.Event()

    async def serve(self, sock: socket.socket, ssl: tls.SSLContext | None = None) -> None:
        """Listen on a bound socket and return. The socket stays the caller's: `drain` does not close it.

        Raises: OSError if the socket cannot listen.
        """
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Linux: accepted ones inherit it.
        sock.listen(_BACKLOG)
        self._socket = sock
        self._ssl = ssl
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_SWEEP_S, self._sweep)
        if not self._accept_hold:
            loop.add_reader(sock, self._accept)

    def pause_accept(self) -> None:
        """Leave new connections in the kernel's backlog; those that are open go on."""
        self._hold_accept(_BY_OWNER)

    def resume_accept(self) -> None:
        self._free_accept(_BY_OWNER)

    async def drain(self, timeout_s: float) -> None:
        """Leave: accept nothing, close idle connections, answer the rest with `Connection: close`.

        Returns when all connections are closed; after `timeout_s` those that are left are cut.
        """
        self._hold_accept(_LEAVING)
        self.is_draining = True
        # Two turns of the loop: requests that had already arrived are read, and not closed upon.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for connection in tuple(self._connections):
            connection.leave_soon()
        if self._connections or self._opening:
            self._emptied.clear()
            try:
                await asyncio.wait_for(self._emptied.wait(), timeout_s)
            except TimeoutError:
                _LOG.warning("drain: %d connections cut after %g s", len(self._connections), timeout_s)
                for task in tuple(self._opening):
                    task.cancel()
                for connection in tuple(self._connections):
                    connection.abort()
                await asyncio.gather(*self._opening, return_exceptions=True)
                if self._connections:
                    self._emptied.clear()
                    await self._emptied.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- called by connections ---

    def wake(self) -> None:
        """The first request of a turn has come."""
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Take the turn; but where several requests came, look at the sockets again first: while these were
        read their neighbours arrived, and the more share a batch the less it costs each of them."""
        came = len(self.turn)
        if self._turn_before < came and self._looks < _MOST_LOOKS:
            self._turn_before = came
            self._looks += 1
            self.wake()
            return
        self._turn_before = 1
        self._looks = 0
        self.take_turn()

    def take_turn(self) -> None:
        """Hand over what has come."""
        exchanges = self.turn.copy()
        self.turn.clear()
        try:
            self.app.handle(exchanges)
        except Exception:
            for exchange in exchanges:
                if exchange.state != DONE and exchange.on_gone is None:
                    exchange.link.failed(exchange)

    def line(self, status: int) -> bytes:
        """Status line, server and date; also makes the ready line for the fast path."""
        start = status_start(status, self._server_header, self._date)
        if status not in (204, 304) and status < 500:
            self.lines[status] = start + b"content-length: "
        return start

    def joined(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.counts.accepted += 1
        self.counts.connections += 1

    def left(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.counts.connections -= 1
        self._room_again()

    # --- accepting ---

    def _accept(self) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        for _ in range(_ACCEPTS_PER_WAKE):
            if self._accept_hold:
                return
            try:
                sock, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_RESOURCES:
                    raise
                _LOG.error("accepting pauses for %g s: %s", _SWEEP_S, error)
                self._hold_accept(_STARVED)
                return
            sock.setblocking(False)
            task = loop.create_task(self._open(sock))
            self._opening.add(task)
            task.add_done_callback(self._opened)
            if len(self._connections) + len(self._opening) >= self.limits.max_connections:
                self._hold_accept(_FULL)

    async def _open(self, sock: socket.socket) -> None:
        handshake_s = self.limits.header_timeout_s if self._ssl is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection, sock, ssl=self._ssl, ssl_handshake_timeout=handshake_s
            )
        except OSError:  # A broken handshake too: SSLError and ConnectionError are OSErrors.
            self.counts.protocol_errors += 1
            sock.close()

    def _connection(self) -> Connection:
        return Connection(self)

    def _opened(self, task: "asyncio.Task[None]") -> None:
        self._opening.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("a connection could not be opened", exc_info=task.exception())
        self._room_again()

    def _room_again(self) -> None:
        count = len(self._connections) + len(self._opening)
        if self._accept_hold & _FULL and count < self.limits.max_connections:
            self._free_accept(_FULL)
        if not count:
            self._emptied.set()

    def _hold_accept(self, reason: int) -> None:
        if not self._accept_hold and self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
        self._accept_hold |= reason

    def _free_accept(self, reason: int) -> None:
        if not self._accept_hold & reason:
            return
        self._accept_hold &= ~reason
        if not self._accept_hold and self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    # --- time ---

    def _sweep(self) -> None:
        now = monotonic()
        date = formatdate(usegmt=True).encode()
        if date != self._date:
            self._date = date
            self.lines.clear()
        self._free_accept(_STARVED)
        for connection in tuple(self._connections):
            try:
                connection.sweep(now)
            except Exception:
                _LOG.exception("sweeping a connection failed; it is cut")
                connection.abort()
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
