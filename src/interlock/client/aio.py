"""Owns `interlock.AsyncClient`, the shell for asyncio: `session.py` decides what it sends, and when again."""

import asyncio
import ssl
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpcore

from interlock.client.blocking import IDLE_S, MAX_ANSWER_BYTES
from interlock.client.lost import TRANSPORT, lost
from interlock.client.message import Body, Reply
from interlock.client.prediction import Prediction
from interlock.client.session import Session
from interlock.client.steps import Ask, Lost, Send, Steps
from interlock.client.views import Metadata, ModelStatus

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio, with the same arguments, methods and errors; share one among the tasks of a loop.

    A task that is cancelled closes its connection, and the server gives up its request.
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
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context, max_connections=connections, keepalive_expiry=IDLE_S
        )

    async def predict(
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
        """As `Client.predict`."""
        ask = Ask(model, data, version, outputs, timeout_s, unit, tenant, segment, id, priority, idempotent)
        return await self._run(self._session.predict(ask))

    async def metadata(
        self, model: str, version: str | int | None = None, *, timeout_s: float | None = None
    ) -> Metadata:
        """As `Client.metadata`."""
        return await self._run(self._session.metadata(model, version, timeout_s))

    async def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """As `Client.models`."""
        return await self._run(self._session.models(timeout_s))

    async def is_ready(
        self,
        model: str | None = None,
        version: str | int | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bool:
        """As `Client.is_ready`."""
        return await self._run(self._session.is_ready(model, version, timeout_s))

    async def feedback(
        self, request_id: str, name: str, value: float, *, timeout_s: float | None = None
    ) -> None:
        """As `Client.feedback`."""
        await self._run(self._session.feedback([(request_id, name, value)], timeout_s))

    async def feedback_many(
        self, items: Iterable[tuple[str, str, float]], *, timeout_s: float | None = None
    ) -> int:
        """As `Client.feedback_many`."""
        return await self._run(self._session.feedback(items, timeout_s))

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._session.address.url!r})"

    async def _run(self, steps: Steps[T]) -> T:
        came: Reply | Lost | None = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as done:
                result: T = done.value
                return result
            if isinstance(step, Send):
                came = await self._send(step)
            else:
                await asyncio.sleep(max(step.until_s - time.monotonic(), 0.0))
                came = None

    async def _send(self, send: Send) -> Reply | Lost:
        address, body = self._session.address, Body(send.parts)
        request = httpcore.Request(
            send.method,
            httpcore.URL(scheme=address.scheme, host=address.host, port=address.port, target=send.path),
            headers=send.headers,
            content=body,
        )
        try:
            async with asyncio.timeout(send.deadline_s - time.monotonic()):
                response = await self._pool.handle_async_request(request)
                try:
                    reply = Reply(response.status, response.headers, self._most_bytes)
                    async for chunk in response.aiter_stream():
                        reply.take(chunk)
                finally:
                    await response.aclose()
        except TRANSPORT as error:
            return lost(error, send, body, address.url)
        return reply
