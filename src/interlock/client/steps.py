"""What a session asks of its shell, what comes back, and where the server is."""

from collections.abc import Generator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from interlock.client.message import Headers, Part, Reply
from interlock.client.retry import Failure
from interlock.core.errors import ConfigError, InterlockError

T = TypeVar("T")


class Send(msgspec.Struct, frozen=True):
    """Send a request, and wait for all of its answer until `deadline_s` (monotonic)."""

    method: bytes
    path: str
    headers: Headers
    parts: Sequence[Part]
    deadline_s: float


class Wait(msgspec.Struct, frozen=True):
    """Do nothing until `until_s` (monotonic)."""

    until_s: float


class Lost(msgspec.Struct, frozen=True):
    """No answer came: what to raise, and whether the request may be sent again (None: never)."""

    error: InterlockError
    failure: Failure | None


Steps = Generator[Send | Wait, Reply | Lost | None, T]


class Ask(msgspec.Struct, frozen=True):
    """One prediction that is wanted, as `predict` of both clients takes it."""

    model: str
    data: Any
    version: str | int | None = None
    outputs: Sequence[str] | None = None
    timeout_s: float | None = None
    unit: str | None = None
    tenant: str | None = None
    segment: str | None = None
    id: str | None = None
    priority: int | None = None
    idempotent: bool | None = None


class Address(msgspec.Struct, frozen=True):
    """Where a server listens. `prefix` goes before every path; `port` is None for the scheme's own."""

    url: str
    scheme: str
    host: str
    port: int | None
    prefix: str

    @property
    def authority(self) -> bytes:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port is None else f"{host}:{self.port}").encode(
            "idna" if not host.isascii() else "ascii"
        )


def address_of(url: str) -> Address:
    """Raises: ConfigError; its message does not repeat what could be a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the URL of the client: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the URL of the client has a user or a password in it; give token= instead")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"URL {url!r}: want http://HOST:PORT or https://HOST:PORT")
    return Address(url, parts.scheme, parts.hostname, port, parts.path.rstrip("/"))
