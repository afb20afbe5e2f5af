"""Owns the one request that a benchmark sends again and again."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, sent again and again; with `more` bodies, in turn with these."""

    url: str
    body: bytes = b""
    headers: dict[str, str] = {}
    method: str = "POST"
    more: tuple[bytes, ...] = ()

    def encode_all(self) -> list[bytes]:
        """Each request as it goes over the wire, one for each body."""
        bodies = (self.body, *self.more)
        return [msgspec.structs.replace(self, body=body, more=()).encode() for body in bodies]

    def encode(self) -> bytes:
        """The request as it goes over the wire."""
        at = urlsplit(self.url)
        target = (at.path or "/") + (f"?{at.query}" if at.query else "")
        headers = {"host": at.netloc, **self.headers, "content-length": str(len(self.body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{self.method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + self.body

    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        at = urlsplit(self.url)
        return at.hostname or "127.0.0.1", at.port or 80
