"""Owns `interlock.Client`, the shell that blocks: `session.py` decides what it sends, and when again."""

import ssl
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpcore

from interlock.client.lost import TRANSPORT, lost
from interlock.client.message import Body, Reply
from interlock.client.prediction import Prediction
from interlock.client.session import Session
from interlock.client.steps import Ask, Lost, Send, Steps
from interlock.client.transport import DeadlineBackend
from interlock.client.views import Metadata, ModelStatus

T = TypeVar("T")
MAX_ANSWER_BYTES = 1 << 30
IDLE_S = 60.0
"""How long an unused connection is kept. A node closes it after 75 s: who closes first sends nothing into
it."""


class Client:
    """Asks models of one server that speaks the Open Inference Protocol (V2); thread-safe: share one.

    `url`: http(s)://HOST:PORT. `token` goes along as `Authorization: Bearer`, for a proxy before the node.
    `timeout_s`: how long a call may take, retries and all, unless it says otherwise. `retries`: most of one
    call; only requests are sent again that cannot have run or may run twice, and all calls share a budget
    (a tenth of the requests). `connections`: most at a time. `max_answer_bytes`: longer answers are refused.
    `ssl_context`: for https, e.g. with an own authority.

    Every method raises errors of `interlock.errors`: InvalidRequest's children (change the request),
    NotFound, Unavailable's (later, perhaps; DeadlineExceeded is one), ModelFailed's, NodeUnreachable. Their
    `request_id` is the server's, where it made one.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 3,
        connections: int = 100,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._session = Session(url, token=token, timeout_s=timeout_s, retries=retries)
        self._most_bytes = max_answer_bytes
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=connections,
            keepalive_expiry=IDLE_S,
            network_backend=DeadlineBackend(),
        )

    def predict(
        self,
        model: str,
        data: Any,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        unit: str | None = None,
        tenant: str | None = None,
        segment: str | None = None,
        id: str | None = None,
        priority: int | None = None,
        idempotent: bool | None = None,
    ) -> Prediction:
        """Ask a model.

        `data`: an array or a list of rows (a model with one input, or a table); columns or inputs by name, as
        a dict of arrays or lists or as a pandas DataFrame; a list of records. `version`: this one, whatever
        is live. `outputs`: only these. `unit`: who is asking; sticks to a version where the release says so.
        `id`: comes back as `client_id`. `priority`: 0 goes before 1. `idempotent`: whether the request may
        run twice, if an answer gets lost; None for what the model says of itself (`side_effect_free`).
        """
        ask = Ask(model, data, version, outputs, timeout_s, unit, tenant, segment, id, priority, idempotent)
        return self._run(self._session.predict(ask))

    def metadata(
        self, model: str, version: str | int | None = None, *, timeout_s: float | None = None
    ) -> Metadata:
        """What a model takes and gives."""
        return self._run(self._session.metadata(model, version, timeout_s))

    def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every version that the server has, or tries to have."""
        return self._run(self._session.models(timeout_s))

    def is_ready(
        self,
        model: str | None = None,
        version: str | int | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bool:
        """Whether the server, or one model of it, would answer now; False as well if nobody answers."""
        return self._run(self._session.is_ready(model, version, timeout_s))

    def feedback(self, request_id: str, name: str, value: float, *, timeout_s: float | None = None) -> None:
        """Say what became of a request: a click, a sale, the true label. `request_id` is `Prediction`'s."""
        self._run(self._session.feedback([(request_id, name, value)], timeout_s))

    def feedback_many(
        self, items: Iterable[tuple[str, str, float]], *, timeout_s: float | None = None
    ) -> int:
        """As `feedback` for many (request id, name, value), in as few messages as the server takes; returns
        how many were accepted. The items of one message are taken together or not at all."""
        return self._run(self._session.feedback(items, timeout_s))

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._session.address.url!r})"

    def _run(self, steps: Steps[T]) -> T:
        came: Reply | Lost | None = None
        try:
            while True:
                step = steps.send(came)
                if isinstance(step, Send):
                    came = self._send(step)
                else:
                    time.sleep(max(step.until_s - time.monotonic(), 0.0))
                    came = None
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, send: Send) -> Reply | Lost:
        address, body = self._session.address, Body(send.parts)
        deadline_s = send.deadline_s
        request = httpcore.Request(
            send.method,
            httpcore.URL(scheme=address.scheme, host=address.host, port=address.port, target=send.path),
            headers=send.headers,
            content=body,
            extensions={
                # Deadlines to our network; only the pool itself takes a time-out.
                "timeout": {
                    "connect": deadline_s,
                    "read": deadline_s,
                    "write": deadline_s,
                    "pool": max(deadline_s - time.monotonic(), 0.0),
                }
            },
        )
        try:
            response = self._pool.handle_request(request)
            try:
                reply = Reply(response.status, response.headers, self._most_bytes)
                for chunk in response.iter_stream():
                    reply.take(chunk)
            finally:
                response.close()
        except TRANSPORT as error:
            return lost(error, send, body, address.url)
        return reply
