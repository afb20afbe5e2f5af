"""Starts the admin API on a real server and a free port, in a thread of the test."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import uvicorn

from interlock.api.app import AdminDeps, create_app
from interlock.api.rollouts import Looked
from interlock.core.settings import NodeConfig
from interlock.operations.context import Context
from interlock.operations.status import NodeStatus


class Served(msgspec.Struct):
    """An API that answers, the node that it tells of, and how often it woke the rollout loop."""

    node: NodeStatus
    port: int = 0
    pokes: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """The status and the JSON (or bytes) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            data = answer.read()
            is_json = (answer.getheader("content-type") or "").startswith("application/json")
            return answer.status, json.loads(data) if is_json else data
        finally:
            connection.close()


@contextmanager
def served(
    ctx: Context,
    node: NodeStatus,
    config: NodeConfig | None = None,
    looked: Looked = lambda: {},
    hint: Callable[[], None] = lambda: None,
) -> Iterator[Served]:
    found = Served(node)

    def poke() -> None:
        found.pokes += 1

    settings_of_node = config or NodeConfig(home=ctx.home)
    deps = AdminDeps(ctx, settings_of_node, lambda: found.node, lambda: b"up 1\n", poke, looked, hint)
    settings = uvicorn.Config(
        create_app(deps), host="127.0.0.1", port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(settings)
    socket = settings.bind_socket()
    socket.listen()  # what connects before the server has started waits
    found.port = socket.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield found
    finally:
        server.should_exit = True
        thread.join(20)
        socket.close()
        assert not thread.is_alive()
