"""Decides who may speak to the admin API, before anything else looks at a request.

On loopback, Host must name this machine and Origin, where a browser sends one, too: a page that a browser of
this machine has open cannot reach the API by rebinding its own name to 127.0.0.1. Beyond loopback a token is
required, which no such page has. Bodies are bounded here as well.
"""

import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from interlock.api.problems import problem
from interlock.core.errors import Forbidden, InterlockError, MalformedMessage, RequestTooLarge
from interlock.core.settings import NodeConfig
from interlock.operations.access import check_access, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 64 * 1024
"""The longest body that the API takes: what it wants is a handful of words."""

OPEN_PATHS = ("/health/live", "/health/ready", "/api/webhooks/mlflow")
"""What answers without a token: an orchestrator's probes have none, and learn nothing but ready or not;
MLflow's webhooks have a signature instead."""


class Rules(msgspec.Struct, frozen=True):
    """`token` None: no token is asked. `loopback`: only names of this machine may stand in Host."""

    token: str | None
    loopback: bool


def rules(config: NodeConfig) -> Rules:
    """What a node's settings ask of every request.

    Raises: ConfigError, as `check_access`.
    """
    check_access(config.admin_host, config.token)
    return Rules(config.token, is_loopback(config.admin_host))


def judge(
    rules: Rules, path: str, host: str, origins: Iterable[str], authorization: Iterable[str]
) -> InterlockError | None:
    """Why a request is refused, from its path and headers; None if it may pass."""
    name = _host_of(host)
    if name is None:
        return MalformedMessage(f"Host {host[:200]!r} is not a host name")
    if rules.loopback and not is_loopback(name):
        return Forbidden(f"Host {host[:200]!r}: this API answers to localhost and 127.0.0.1 only")
    for origin in origins:
        if not _may_come_from(origin, host, rules):
            return Forbidden(f"Origin {origin[:200]!r}: pages of other sites may not use this API")
    if rules.token is None or path in OPEN_PATHS:
        return None
    given = list(authorization)
    if not given:
        return Forbidden("this API wants a token: send 'Authorization: Bearer TOKEN'")
    scheme, _, token = given[0].partition(" ")
    right = hmac.compare_digest(token.strip().encode("latin-1"), rules.token.encode())
    if len(given) > 1 or scheme.lower() != "bearer" or not right:
        return Forbidden("the token is wrong: see run/token in the node's home folder")
    return None


class Guard:
    """ASGI middleware: refuses what `judge` refuses and bodies beyond the bound; else hands on."""

    def __init__(self, app: App, rules: Rules, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._rules = rules
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here; the server refuses the handshake
        headers = _values(scope["headers"])
        hosts = headers.get(b"host", [])
        refused: InterlockError | None
        if len(hosts) != 1:
            refused = MalformedMessage(f"{len(hosts)} Host headers: want one")
        else:
            origins = headers.get(b"origin", [])
            refused = judge(self._rules, scope["path"], hosts[0], origins, headers.get(b"authorization", []))
        body = b""
        if refused is None:
            try:
                body = await self._read(receive)
            except RequestTooLarge as error:
                refused = error
        if refused is not None:
            await problem(refused)(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(chunks)
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise RequestTooLarge(f"the body is longer than {self._max_body_bytes} bytes")
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()  # waits for the client to leave
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _values(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[str]]:
    found: dict[bytes, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value.decode("latin-1"))
    return found


def _host_of(authority: str) -> str | None:
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _may_come_from(origin: str, host: str, rules: Rules) -> bool:
    try:
        parts = urlsplit(origin)
        name = parts.hostname
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not name:
        return False
    return is_loopback(name) if rules.loopback else parts.netloc.lower() == host.lower()
