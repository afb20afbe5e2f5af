"""Both clients under one face that blocks, so that one test holds them to the same."""

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from interlock.client.aio import AsyncClient
from interlock.client.blocking import Client

KINDS = ("blocking", "asyncio")


class _Awaited:
    """An AsyncClient whose every method is run to its end."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner, self._client = runner, client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        @functools.wraps(getattr(self._client, name))
        def call(*args: Any, **options: Any) -> Any:
            return self._runner.run(getattr(self._client, name)(*args, **options))

        return call


@contextmanager
def client(kind: str, url: str, **options: Any) -> Iterator[Any]:
    if kind == "blocking":
        with Client(url, **options) as blocking:
            yield blocking
        return
    with asyncio.Runner() as runner:
        awaited = AsyncClient(url, **options)
        try:
            yield _Awaited(runner, awaited)
        finally:
            runner.run(awaited.close())
