"""Owns one request and the one way to answer it: at once, later, or as a stream.

Everything here belongs to the loop of its connection: no call may come from another thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from interlock.wire.http_head import Head, Refusal

OPEN, STREAMING, DONE, GONE = range(4)
"""States of an Exchange: unanswered, being answered, answered, left by its client."""

KEEP, CLOSE, LINGER = range(3)
"""What becomes of the connection after an answer: kept, closed as the client asked, closed with patience."""

# Up to here one joined write is cheaper than a vectored one (measured on uvloop 0.23: break-even near 32 KB).
JOIN_BYTES = 32768
_SIZES = tuple(b"%d\r\n" % size for size in range(2048))


class Link(Protocol):
    """What an exchange needs of its connection."""

    lines: dict[int, bytes]
    queue: "list[Exchange]"
    """Unanswered requests, in the order in which they came."""
    hold: int
    """Why nothing is read; 0 if it is."""
    transport: asyncio.Transport
    high_water_bytes: int
    sampled: "Exchange | None"

    @property
    def is_write_full(self) -> bool: ...

    def line(self, status: int) -> bytes: ...
    def is_next(self, exchange: "Exchange") -> bool: ...
    def settle(self, exchange: "Exchange") -> None: ...
    def abort(self) -> None: ...
    def failed(self, exchange: "Exchange") -> None: ...
    def log(self, exchange: "Exchange", status: int, headers: bytes, size: int) -> None: ...


class Exchange(msgspec.Struct, eq=False):
    """One request whose body is complete. Call `respond` or `stream`, once, now or later.

    `on_gone` is called once if the client leaves before the answer is complete (a half-closed connection
    counts as left, as in nginx); what is answered afterwards is dropped. From `link` on, the fields are the
    transport's own.
    """

    head: Head
    body: bytes | memoryview
    on_gone: Callable[[], None] | None
    context: Any
    link: Link
    is_plain: bool
    after: int
    received_s: float
    """time.monotonic() when the first byte of the request was read."""
    state: int = OPEN
    held: list[bytes | memoryview] | None = None
    streamed: "ResponseStream | None" = None

    def respond(
        self,
        status: int,
        headers: bytes | tuple[bytes, ...],
        body: Sequence[bytes | memoryview] | bytes | memoryview,
    ) -> None:
        """Answer with a complete body. `headers`: whole lines, each ending in CRLF, in one or more pieces;
        content-length is added.

        Raises: RuntimeError if this exchange was answered before.
        """
        if self.state:
            if self.state == GONE:
                return
            raise RuntimeError(
                f"{self.head.method!r} {self.head.path!r} was answered already: answer it once"
            )
        link = self.link
        line = link.lines.get(status)
        if body.__class__ is bytes and line is not None and self.is_plain and len(body) < 2048:
            if isinstance(headers, tuple):
                data = b"".join((line, _SIZES[len(body)], *headers, b"\r\n", body))
            else:
                data = b"".join((line, _SIZES[len(body)], headers, b"\r\n", body))
            self.state = DONE
            queue = link.queue
            if not queue or queue[0] is not self:
                self.held = [data]
                return
            link.transport.write(data)
            if len(queue) == 1 and not link.hold:
                queue.clear()
            else:
                link.settle(self)
            return
        self._respond_any(status, b"".join(headers) if isinstance(headers, tuple) else headers, body)

    def _respond_any(
        self, status: int, headers: bytes, body: Sequence[bytes | memoryview] | bytes | memoryview
    ) -> None:
        parts = [body] if isinstance(body, (bytes, bytearray, memoryview)) else list(body)
        size = sum([part.nbytes if isinstance(part, memoryview) else len(part) for part in parts])
        # RFC 9110 8.6: no length in a 204; a 304 has none of its own, since it would be that of the 200.
        length = b"" if status in (204, 304) else b"content-length: %d\r\n" % size
        head = b"".join((self.link.line(status), length, headers, self._connection_header(), b"\r\n"))
        buffers: list[bytes | memoryview] = [head]
        if length and self.head.method != b"HEAD":
            buffers += parts
            if size < JOIN_BYTES:
                buffers = [b"".join(buffers)]
        self.state = DONE
        self._send(buffers)
        link = self.link
        if status >= 500 or link.sampled is self:
            link.log(self, status, headers, size)
        if link.is_next(self):
            link.settle(self)

    def stream(self, status: int, headers: bytes) -> "ResponseStream":
        """Answer with a body that is written piece by piece: chunked, or up to the close for HTTP/1.0.

        Raises: RuntimeError if this exchange was answered before.
        """
        if self.state == STREAMING or self.state == DONE:
            raise RuntimeError(
                f"{self.head.method!r} {self.head.path!r} was answered already: answer it once"
            )
        bodiless = self.head.method == b"HEAD" or status in (204, 304)
        chunked = self.head.http11 and not bodiless
        if not self.head.http11 and not bodiless and self.after == KEEP:
            self.after, self.is_plain = CLOSE, False
        self.streamed = ResponseStream(self, is_chunked=chunked, is_bodiless=bodiless)
        if self.state == OPEN:
            self.state = STREAMING
            framing = b"transfer-encoding: chunked\r\n" if chunked else b""
            self._send(
                [b"".join((self.link.line(status), framing, headers, self._connection_header(), b"\r\n"))]
            )
            if status >= 500 or self.link.sampled is self:
                self.link.log(self, status, headers, 0)  # its length is not known yet
        return self.streamed

    def _connection_header(self) -> bytes:
        if self.after:
            return b"connection: close\r\n"
        return b"" if self.head.http11 else b"connection: keep-alive\r\n"

    def _send(self, buffers: list[bytes | memoryview]) -> None:
        if not self.link.is_next(self):
            self.held = buffers if self.held is None else self.held + buffers
        elif len(buffers) == 1:
            self.link.transport.write(buffers[0])
        else:
            self.link.transport.writelines(buffers)


class ResponseStream:
    """The body of an answer under way. One task writes to it; `close` ends it, `abort` if it broke."""

    __slots__ = ("_exchange", "_held_bytes", "_is_bodiless", "_is_chunked", "_link", "_waiter")

    def __init__(self, exchange: Exchange, *, is_chunked: bool, is_bodiless: bool) -> None:
        self._exchange = exchange
        self._link = exchange.link
        self._is_chunked = is_chunked
        self._is_bodiless = is_bodiless
        self._held_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    def write(self, data: bytes) -> bool:
        """Send a piece; False when over `write_high_water_bytes` wait (then `drain`), or nobody is left.

        Raises: RuntimeError after `close`.
        """
        exchange = self._exchange
        if exchange.state != STREAMING:
            if exchange.state == GONE:
                return False
            raise RuntimeError(f"the answer to {exchange.head.path!r} is closed: write before close()")
        if data and not self._is_bodiless:
            piece = b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data
            if self._link.is_next(exchange):
                self._link.transport.write(piece)
            else:
                if exchange.held is None:
                    exchange.held = []
                exchange.held.append(piece)
                self._held_bytes += len(piece)
        return not self._is_full()

    async def drain(self) -> None:
        """Wait until there is room again.

        Raises: ConnectionResetError when the client has gone.
        """
        while self._exchange.state != GONE:
            if not self._is_full():
                return
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        raise ConnectionResetError(f"the client of {self._exchange.head.path!r} has gone")

    def close(self) -> None:
        """End the body; further calls of `close` do nothing."""
        exchange = self._exchange
        if exchange.state != STREAMING:
            return
        if self._is_chunked:
            self._exchange._send([b"0\r\n\r\n"])
        exchange.state = DONE
        if self._link.is_next(exchange):
            self._link.settle(exchange)

    def abort(self) -> None:
        """Cut the connection, so that the client sees that the body is incomplete."""
        if self._exchange.state == STREAMING:
            self._exchange.state = DONE
            self._link.abort()

    def wake(self) -> None:
        """The transport's own: there may be room again, or nobody is left."""
        if self._link.is_next(self._exchange):
            self._held_bytes = 0
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_full(self) -> bool:
        if self._link.is_next(self._exchange):
            # A transport that has failed drops what it gets until it says so: wait for that instead.
            return self._link.is_write_full or self._link.transport.is_closing()
        return self._held_bytes > self._link.high_water_bytes


class App(Protocol):
    """What stands behind the transport. Both methods run on the loop and must not block; `admit` must not
    keep what only `handle` would release, for a client may leave between the two."""

    def admit(self, head: Head, received_s: float) -> Refusal | object | None:
        """Decide before the body is read. A Refusal ends the request; all else becomes `Exchange.context`,
        also of later small requests with the very same head, for which this is not called again."""
        ...

    def even_at(self, context: Any) -> int:
        """Which byte of a large body shall lie on a boundary of 64 bytes: where its tensors begin."""
        ...

    def handle(self, exchanges: list[Exchange]) -> None:
        """Take the requests that became complete in one turn of the loop; answer each now or later. A client
        may have gone meanwhile (`state`)."""
        ...


def status_start(status: int, server_header: bytes, date: bytes) -> bytes:
    r"""The first lines of an answer.

    >>> status_start(200, b"x", b"Thu, 01 Jan 1970 00:00:00 GMT")
    b'HTTP/1.1 200 OK\r\nserver: x\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n'
    """
    try:
        phrase = HTTPStatus(status).phrase.encode()
    except ValueError:
        phrase = b"Status"
    return b"HTTP/1.1 %d %b\r\nserver: %b\r\ndate: %b\r\n" % (status, phrase, server_header, date)
