"""Owns the stage on which the transport is tested: an application, in memory or behind a real socket."""

import asyncio
import contextlib
import re
import socket
import ssl as tls
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from interlock.wire.http import AccessLog, Exchange, Head, HttpLimits, HttpServer, Refusal, new_loop
from interlock.wire.http_connection import Connection

T = TypeVar("T")
REFUSED = b'{"error":"busy"}'


class Stage:
    """Answers by path: /refuse, /boom-admit, /boom, /later, /stream?N, /big?N; anything else is an echo."""

    def __init__(self) -> None:
        self.seen: list[Exchange] = []
        self.later: list[Exchange] = []
        self.gone: list[bytes] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.high_bytes = 0
        self.admitted = 0

    def admit(self, head: Head, received_s: float) -> Refusal | object | None:
        self.admitted += 1
        if head.path == b"/refuse":
            return Refusal(503, b"retry-after: 1\r\ncontent-type: application/json\r\n", REFUSED)
        if head.path == b"/boom-admit":
            raise ZeroDivisionError("admit")
        return ("admitted", head.path)

    def even_at(self, context: object) -> int:
        return 0

    def handle(self, exchanges: list[Exchange]) -> None:
        for exchange in exchanges:
            try:
                self.take(exchange)
            except Exception:
                exchange.link.failed(exchange)

    def take(self, exchange: Exchange) -> None:
        self.seen.append(exchange)
        path = exchange.head.path
        exchange.on_gone = lambda: self.gone.append(path)
        if path == b"/boom":
            raise ZeroDivisionError("handle")
        if path.startswith(b"/later"):
            self.later.append(exchange)
        elif path == b"/stream":
            self.tasks.append(asyncio.get_running_loop().create_task(self._stream(exchange)))
        elif path == b"/big":
            exchange.respond(200, b"", [b"x" * int(exchange.head.query), memoryview(b"end")])
        elif path == b"/empty":
            exchange.respond(204, b"", b"")
        else:
            exchange.respond(200, b"x-path: %b\r\n" % path, exchange.body)

    async def _stream(self, exchange: Exchange) -> None:
        stream = exchange.stream(200, b"content-type: text/plain\r\n")
        transport = exchange.link.transport
        for number in range(int(exchange.head.query)):
            room = stream.write(b"%08d" % number * 1024)
            self.high_bytes = max(self.high_bytes, transport.get_write_buffer_size())
            if not room:
                try:
                    await stream.drain()
                except ConnectionResetError:
                    return
        stream.close()


class MemoryTransport(asyncio.Transport):
    """What a Connection writes, kept; a peer that reads at once unless told to be `slow`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.is_open = True
        self.has_eof = False
        self.is_paused = False
        self.peername: tuple[str, int] | None = None
        self.protocol: asyncio.BaseProtocol | None = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.peername if name == "peername" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        assert self.is_open and not self.has_eof, "written after the end"
        self.sent += data

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        self.is_open = False

    def is_closing(self) -> bool:
        return not self.is_open

    def abort(self) -> None:
        self.is_open = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class AtOnce(HttpServer):
    """Takes each request as it comes, for there is no loop to turn, at a time of its own."""

    def line(self, status: int) -> bytes:
        self._date = b"Thu, 01 Jan 1970 00:00:00 GMT"
        return super().line(status)

    def wake(self) -> None:
        self.take_turn()


class Peer:
    """The other end of one Connection in memory."""

    def __init__(
        self,
        limits: HttpLimits = HttpLimits(),  # noqa: B008
        access_log: AccessLog | None = None,
    ) -> None:
        self.stage = Stage()
        self.server = AtOnce(self.stage, limits, access_log=access_log)
        self.transport = MemoryTransport()
        self.connection = Connection(self.server)
        self.connection.connection_made(self.transport)
        self._kernel = b""

    def send(self, *pieces: bytes) -> bytes:
        """Deliver each piece as one read would; what comes while reading is paused waits."""
        for piece in pieces:
            self._kernel += piece
            self.pump()
        return self.sent

    def pump(self) -> None:
        while self._kernel and self.transport.is_open and not self.transport.is_paused:
            protocol = self.transport.protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                room: Any = protocol.get_buffer(-1)
                size = min(len(room), len(self._kernel))
                room[:size], self._kernel = self._kernel[:size], self._kernel[size:]
                protocol.buffer_updated(size)
            else:
                data, self._kernel = self._kernel, b""
                self.connection.data_received(data)

    @property
    def sent(self) -> bytes:
        return bytes(self.transport.sent)

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.sent)]


Answer = tuple[int, bytes, bytes]


def hear(connection: socket.socket, count: int = 1) -> list[Answer]:
    """Read `count` answers from a blocking socket: status, header block, body."""
    answers: list[Answer] = []
    held = b""
    while len(answers) < count:
        while b"\r\n\r\n" not in held:
            more = connection.recv(65536)
            if not more:
                raise EOFError(f"the server closed after {len(answers)} of {count} answers and {held!r}")
            held += more
        head, _, held = held.partition(b"\r\n\r\n")
        lowered = head.lower()
        size = 0
        if b"\r\ncontent-length: " in lowered:
            size = int(lowered.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
        while len(held) < size:
            more = connection.recv(65536)
            if not more:
                raise EOFError("the server closed within a body")
            held += more
        answers.append((int(head[9:12]), head, held[:size]))
        held = held[size:]
    assert not held, held
    return answers


def hear_all(connection: socket.socket) -> bytes:
    """Everything up to the server's end of the connection."""
    data = b""
    while more := connection.recv(65536):
        data += more
    return data


class Rig:
    """A real server on a real port, its loop in a thread of its own."""

    def __init__(
        self,
        limits: HttpLimits,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        ssl: tls.SSLContext | None,
    ) -> None:
        self.stage = Stage()
        self.server = HttpServer(self.stage, limits)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._loop = loop_factory()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.wait(self.server.serve(self._socket, ssl))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def call(self, function: Callable[[], T]) -> T:
        """Run on the server's loop."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(20)

    def until(self, condition: Callable[[], bool], within_s: float = 10.0) -> None:
        """Poll on the server's loop, with a bound."""
        end = time.monotonic() + within_s
        while not self.call(condition):
            assert time.monotonic() < end, "the condition did not come true"
            time.sleep(0.002)  # the loop is asked often enough, and is not what keeps the machine busy

    def connect(self, timeout_s: float = 10.0) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        self.wait(self.server.drain(0.2))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._socket.close()


@contextlib.contextmanager
def serving(
    limits: HttpLimits = HttpLimits(),  # noqa: B008
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = new_loop,
    ssl: tls.SSLContext | None = None,
) -> Iterator[Rig]:
    rig = Rig(limits, loop_factory, ssl)
    try:
        yield rig
    finally:
        rig.close()
