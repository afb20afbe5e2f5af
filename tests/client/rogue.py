"""A server that answers as a test says: late, cut off, without end, or with what is no HTTP."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

X = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
Behave = Callable[["Rogue", socket.socket, int], None]
"""Answers the infer request of that number on a connection; what it leaves open takes the next request."""


def said(document: Any, status: str = "200 OK", *lines: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"content-length: {len(body)}", *lines))
    return head.encode() + b"\r\n" + body


ANSWER = said(
    {
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [7.0]}],
    }
)


class Rogue:
    """`requests` are the infer requests that came, heads and bodies; `closed` connections that it has closed
    after an answer; `ended` is set when the test is over."""

    def __init__(self, behave: Behave, side_effect_free: bool | None) -> None:
        self.requests: list[bytes] = []
        self.closed = 0
        self.ended = threading.Event()
        self._behave = behave
        parameters = {} if side_effect_free is None else {"side_effect_free": side_effect_free}
        self._metadata = said({"name": "m", "inputs": [X], "parameters": parameters})
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self._threads[0].start()

    def close(self) -> None:
        self.ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def drip(self, connection: socket.socket, text: bytes, each_s: float = 0.005) -> None:
        """A byte now and then, until the test or the client ends."""
        for byte in text:
            if self.ended.wait(each_s):
                return
            connection.sendall(bytes([byte]))

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while request := _request(connection):
                if request.startswith(b"GET"):
                    connection.sendall(self._metadata)
                else:
                    self.requests.append(request)
                    self._behave(self, connection, len(self.requests))


def _request(connection: socket.socket) -> bytes:
    text = b""
    while b"\r\n\r\n" not in text:
        more = connection.recv(65536)
        if not more:
            return b""
        text += more
    head = text.partition(b"\r\n\r\n")[0]
    lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    size = len(head) + 4 + (int(lines[0].split(b":")[1]) if lines else 0)
    while len(text) < size:
        more = connection.recv(65536)
        if not more:
            return b""
        text += more
    return text


@contextmanager
def rogue(behave: Behave, side_effect_free: bool | None = None) -> Iterator[Rogue]:
    server = Rogue(behave, side_effect_free)
    try:
        yield server
    finally:
        server.close()


def answers(*texts: bytes, then_closes: bool = False) -> Behave:
    """Each request gets the next of `texts`, and the last one again and again."""

    def behave(server: Rogue, connection: socket.socket, number: int) -> None:
        connection.sendall(texts[min(number, len(texts)) - 1])
        if then_closes:
            connection.shutdown(socket.SHUT_RDWR)
            server.closed += 1

    return behave
