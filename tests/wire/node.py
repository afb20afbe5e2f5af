"""Owns a real HttpServer with V2 on a port of its own, in a thread, for clients that block."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from interlock.wire.http import HttpServer, new_loop
from interlock.wire.v2 import V2
from tests.wire.direct import DirectInfer


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        message = self.json["error"]
        assert isinstance(message, str)
        return message


class Node:
    def __init__(self, infer: DirectInfer, **options: Any) -> None:
        self.infer = infer
        self.app = V2(infer, "triton", "1.2.3", **options)
        self.port = 0
        self.loop: asyncio.AbstractEventLoop
        self._up = threading.Event()
        self._leave: asyncio.Event
        self._thread = threading.Thread(target=self._run, name="node")

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own; a body that comes in pieces is sent in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    def infer_json(self, message: Any, model: str = "iris", headers: dict[str, str] | None = None) -> Answer:
        return self.ask("POST", f"/v2/models/{model}/infer", json.dumps(message).encode(), headers)

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(20)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        server = HttpServer(self.app)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = sock.getsockname()[1]
            await server.serve(sock)
            self._up.set()
            await self._leave.wait()
            await self.app.close()
            await server.drain(5)
        assert server.counts.app_errors == 0


@contextmanager
def running(infer: DirectInfer, **options: Any) -> Iterator[Node]:
    node = Node(infer, **options)
    node.start()
    try:
        yield node
    finally:
        node.stop()
