"""The transport's stream and a version's stream joined: chunked JSON lines, slowed and ended by the reader.

The App here is the smallest that can do it; what protocols put around parts is theirs.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from interlock.core.errors import InterlockError
from interlock.core.model import Capabilities, Model, ModelSettings, Signature, Tensors, TensorSpec, Version
from interlock.core.request import Request, Response, Ticket
from interlock.core.route import single
from interlock.core.state import ArmCounts
from interlock.serving.block import Block
from interlock.serving.counters import read_all
from interlock.serving.infer import Infer
from interlock.serving.lane import Lane
from interlock.serving.placement import Threaded
from interlock.serving.streams import AHEAD
from interlock.wire.http import Exchange, Head, HttpLimits, HttpServer, ResponseStream

pytestmark = pytest.mark.server

VERSION = Version(
    "s", "1", "sha256:" + "0" * 64, "onnx", "",
    Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, -1)),), None),
    Capabilities(streaming=True),
)  # fmt: skip


class Parts:
    """Streams x[0, 0] parts of x[0, 1] numbers; a negative count breaks after the third."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = 0

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        raise AssertionError("a streaming version is not asked to predict")

    def stream(
        self, inputs: Tensors, outputs: tuple[str, ...] | None = None
    ) -> Generator[Tensors, None, None]:
        count, size = (int(value) for value in inputs["x"][0])
        try:
            for number in range(abs(count)):
                if count < 0 and number == 3:
                    raise ValueError("broke")
                self.made += 1
                yield {"y": np.full((1, size), number, np.float32)}
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


class Lines:
    """The sink of one request: each part a line of JSON in a chunk; a full transport holds the stream."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.stream: ResponseStream | None = None
        self.ticket: Ticket | None = None
        self.drained: asyncio.Task[None] | None = None

    def part(self, response: Response) -> None:
        if self.stream is None:
            self.stream = self.exchange.stream(200, b"content-type: application/jsonl\r\n")
        line = {name: array.tolist() for name, array in response.outputs.items()}
        if not self.stream.write(msgspec.json.encode(line) + b"\n") and self.ticket is not None:
            self.ticket.hold()
            self.drained = asyncio.get_running_loop().create_task(self._resume(self.stream, self.ticket))

    async def _resume(self, stream: ResponseStream, ticket: Ticket) -> None:
        with contextlib.suppress(ConnectionResetError):  # `on_gone` has cancelled it
            await stream.drain()
            ticket.resume()

    def done(self, response: Response) -> None:
        if self.stream is None:
            self.exchange.respond(200, b"content-type: application/jsonl\r\n", b"")
        else:
            self.stream.close()

    def fail(self, error: InterlockError, request_id: bytes) -> None:
        if self.stream is None:
            self.exchange.respond(500, b"", error.message.encode())
        else:
            self.stream.write(msgspec.json.encode({"error": error.message}) + b"\n")
            self.stream.abort()  # the status has gone out: that the body ends early is the sign


class Streamer:
    """The App: the query `COUNT,SIZE` is the request."""

    def __init__(self, infer: Infer) -> None:
        self.infer = infer
        self.sinks: list[Lines] = []

    def admit(self, head: Head, received_s: float) -> None:
        return None

    def even_at(self, context: object) -> int:
        return 0

    def handle(self, exchanges: list[Exchange]) -> None:
        for exchange in exchanges:
            self.take(exchange)

    def take(self, exchange: Exchange) -> None:
        count, size = exchange.head.query.split(b",")
        now = time.monotonic()
        x = np.array([[int(count), int(size)]], np.float32)
        sink = Lines(exchange)
        self.sinks.append(sink)
        target = self.infer.choose("s", None, None)
        (sink.ticket,) = target.submit([(Request("s", {"x": x}, 1, now + 30, now), sink)])
        assert sink.ticket is not None
        exchange.on_gone = sink.ticket.cancel


class Node:
    """The App behind a real socket, and what it counts."""

    def __init__(self, port: int, app: Streamer, model: Parts, run: Path) -> None:
        self.port, self.app, self.model, self.run = port, app, model, run

    async def ask(self, count: int, size: int = 1) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=64 * 1024)
        writer.write(b"GET /s?%d,%d HTTP/1.1\r\nhost: x\r\n\r\n" % (count, size))
        return reader, writer

    def counts(self) -> ArmCounts:
        (counts,) = [counts for key, counts in read_all(self.run).items() if key.model == "s"]
        return counts


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    block = Block.create(tmp_path, "worker-0", 11)
    infer = Infer(block, 11, lambda: read_all(tmp_path))
    loaded = Parts()
    place = Threaded(loaded, "s")
    lane = Lane(VERSION, ModelSettings(), place)
    infer.swap(Model("s"), single("1", release=1), {"1": lane})
    app = Streamer(infer)
    server = HttpServer(app, HttpLimits(write_high_water_bytes=64 * 1024))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        await server.serve(sock)
        yield Node(sock.getsockname()[1], app, loaded, tmp_path)
        await server.drain(5)
    await place.close()
    block.close()
    assert server.counts.app_errors == 0 and lane.outstanding == 0


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The chunks of an answer, and nothing after the last. Raises: IncompleteReadError if it is cut."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"transfer-encoding: chunked" in head
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        data = await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
        if not size:
            return
        yield data


async def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        await asyncio.sleep(0.001)


async def test_each_part_is_a_chunk_and_the_connection_lives_on(node: Node) -> None:
    reader, writer = await node.ask(50)
    assert [json.loads(chunk)["y"] async for chunk in chunks(reader)] == [[[n]] for n in range(50)]
    writer.write(b"GET /s?2,3 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert [json.loads(chunk)["y"][0] async for chunk in chunks(reader)] == [[0, 0, 0], [1, 1, 1]]
    writer.close()
    await until(lambda: node.counts().ok == 2)


async def test_a_slow_reader_slows_the_model_and_gets_every_part(node: Node) -> None:
    size, count = 4000, 300  # 4000 numbers are 20 kB of text
    reader, writer = await node.ask(count, size)
    parts = chunks(reader)
    first = json.loads(await anext(parts))["y"][0]
    assert first == [0] * size
    await until(lambda: node.app.sinks[0].drained is not None)
    sent = -1

    def is_still() -> bool:
        nonlocal sent
        before, sent = sent, node.model.made
        return before == sent

    began_s = time.monotonic()
    await until(lambda: time.monotonic() > began_s + 0.2)
    await until(is_still)
    # What the sockets and this reader buffer, the mark of the transport, and what the model is ahead.
    assert sent < count / 3, f"{sent} of {count} parts were made for a reader that does not read"
    assert node.model.closed == 0
    numbers = [json.loads(part)["y"][0][0] async for part in parts]
    assert numbers == list(range(1, count)) and node.model.made == count
    writer.close()
    await until(lambda: node.counts().ok == 1)


async def test_a_client_that_leaves_ends_the_stream(node: Node) -> None:
    reader, writer = await node.ask(10**6, 100)
    parts = chunks(reader)
    for _ in range(3):
        await anext(parts)
    writer.transport.abort()
    left_s = time.monotonic()
    await until(lambda: node.model.closed == 1)
    assert time.monotonic() < left_s + 0.5
    made = node.model.made
    assert made < 10**6
    reader, writer = await node.ask(3)
    assert len([part async for part in chunks(reader)]) == 3
    assert node.model.made == made + 3
    writer.close()
    await until(lambda: (node.counts().cancelled, node.counts().ok) == (1, 1))


async def test_a_slow_client_that_leaves_frees_the_model_too(node: Node) -> None:
    reader, writer = await node.ask(10**6, 4000)
    await anext(chunks(reader))
    await until(lambda: node.app.sinks[0].drained is not None)
    writer.transport.abort()
    await until(lambda: node.model.closed == 1, 2.0)
    assert node.model.made < 500 + AHEAD
    await until(lambda: node.counts().cancelled == 1)


async def test_an_error_in_the_middle_follows_the_parts_and_cuts_the_body(node: Node) -> None:
    reader, writer = await node.ask(-10)
    got: list[object] = []
    with pytest.raises(asyncio.IncompleteReadError):
        async for chunk in chunks(reader):
            got.append(json.loads(chunk))
    assert got[:3] == [{"y": [[0]]}, {"y": [[1]]}, {"y": [[2]]}]
    writer.close()
    await until(lambda: node.counts().failed == 1)
