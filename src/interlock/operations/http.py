"""Speaks HTTP to a node with the standard library, and turns its errors back into Interlock's own."""

import http.client
import socket
import ssl
from urllib.parse import urlsplit

import msgspec

from interlock.core import errors
from interlock.core.errors import ConfigError, InterlockError, NodeUnreachable

TIMEOUT_S = 90.0
"""How long an answer may take; listing a large registry takes a while."""

MAX_ANSWER_BYTES = 1 << 30


class Answer(msgspec.Struct, frozen=True):
    """What came back. `headers` has lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes


def call(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    token: str | None = None,
    timeout_s: float = TIMEOUT_S,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request to `url` + `path`; any status is an answer.

    Raises: ConfigError if the URL is none; NodeUnreachable if nothing answers.
    """
    connection, prefix = _connect(url, timeout_s)
    sent = {"accept": "application/json", **(headers or {})}
    if body is not None:
        sent.setdefault("content-type", "application/json")
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    try:
        connection.request(method, prefix + path, body=body, headers=sent)
        answer = connection.getresponse()
        data = answer.read(MAX_ANSWER_BYTES)
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, data)
    except TimeoutError:
        raise NodeUnreachable(f"{url} did not answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NodeUnreachable(f"no node answers at {url}: {reason or type(error).__name__}") from None
    finally:
        connection.close()


def error_of(url: str, answer: Answer) -> InterlockError:
    """The error that an answer of the admin API tells of, as the class it had over there."""
    try:
        detail = msgspec.json.decode(answer.body)["error"]
        code, message = str(detail["code"]), str(detail["message"])
    except (msgspec.DecodeError, LookupError, TypeError):
        return NodeUnreachable(
            f"{url} answered {answer.status} and is no admin API of Interlock, which listens on the admin "
            f"port (8002 by default): {answer.body[:200]!r}"
        )
    kind = getattr(errors, code, InterlockError)
    if not (isinstance(kind, type) and issubclass(kind, InterlockError)) or kind is errors.MissingExtra:
        kind = InterlockError  # of a newer Interlock, or one that takes other arguments
    return kind(message)


def _connect(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"URL {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"URL {url!r}: want http://HOST:PORT or https://HOST:PORT")
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(
            parts.hostname, port, timeout=timeout_s, context=context
        ), parts.path
    return _Plain(parts.hostname, port, timeout=timeout_s), parts.path.rstrip("/")


class _Plain(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
