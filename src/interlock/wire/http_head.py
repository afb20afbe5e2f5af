"""Decides whether the head of an HTTP/1.1 request is acceptable, and what it says: `Head`, or a `Refusal`.

Syntax is llhttp's (through httptools) in its strict mode; on top of it stand the rules that llhttp leaves to
its user: exactly one Host, one space between the parts of the request line, no Transfer-Encoding besides
`chunked`, no HTTP/0.9, no RTSP, no second copy of a header that may come once (RFC 9112, 3, 6 and 11.2).
"""

from typing import Any

import httptools
import msgspec

from interlock.wire.http_limits import HttpLimits

# A second copy of one of these is a sign of smuggling, or of two parties that disagree on who is asking.
_SINGLE = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"authorization",
        b"expect",
        b"inference-header-content-length",
        b"x-request-timeout-ms",
    )
)
_ENCODINGS = frozenset((b"", b"identity", b"gzip", b"x-gzip", b"deflate"))


class Refusal(msgspec.Struct, frozen=True):
    """An answer that ends a request before its body is read. `headers`: whole lines, each ending in CRLF."""

    status: int
    headers: bytes
    body: bytes


def _no_notes() -> list[Any]:
    return [None]


class Head(msgspec.Struct, eq=False, gc=False):
    """What is known of a request when its headers are complete. Read only: equal heads are one."""

    method: bytes
    path: bytes
    """Without the query, percent-escapes as sent; an absolute-form target is reduced to its path."""
    query: bytes
    """b"" when absent."""
    headers: dict[bytes, bytes]
    """Names in lower case; a repeated header joined with b", "."""
    body_length: int | None
    """Bytes as declared, before decompression; None = chunked; 0 = no body."""
    http11: bool
    keep_alive: bool
    expects_continue: bool
    encoding: bytes
    """Content-Encoding of the body, lower case; b"" when it is sent plain."""
    notes: list[Any] = msgspec.field(default_factory=_no_notes)
    """One place for what the application makes of the head alone; repeated heads share it."""


def refusal(status: int, message: str) -> Refusal:
    """A refusal as small JSON.

    >>> refusal(400, "no Host").body
    b'{"error":"no Host"}'
    """
    return Refusal(status, b"content-type: application/json\r\n", msgspec.json.encode({"error": message}))


class Scout:
    """Finds out early that bytes cannot become a head, so that their sender need not wait for a time-out."""

    __slots__ = ("_parser",)

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(object())

    def doubts(self, data: bytes) -> Refusal | None:
        """Feed the next bytes of a head that is not complete yet."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return None
        except httptools.HttpParserError as error:
            return _syntax(error)
        return None


class HeadReader:
    r"""Parses complete heads: bytes up to and including the first empty line. One a server; not thread-safe.

    llhttp gets C functions to call, so that no Python runs for a header (0.4 us of 4 for five lines).

    >>> reader = HeadReader(HttpLimits())
    >>> reader.read(b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n").query
    b'b'
    >>> reader.read(b"GET /a HTTP/1.1\r\n\r\n").status
    400
    """

    __slots__ = ("_awaited", "_fields", "_limits", "_targets", "on_header", "on_headers_complete", "on_url")

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._fields: dict[bytes, bytes] = {}
        self._targets: list[bytes] = []
        self._awaited: list[None] = []
        self.on_url = self._targets.append
        self.on_header = self._fields.__setitem__
        self.on_headers_complete = self._awaited.clear

    def read(self, head: bytes) -> Head | Refusal:
        eol = head.find(b"\r")  # llhttp lets CR and LF stand only together, at the end of a line.
        if not eol and head.startswith(b"\r\n"):
            # RFC 9112 2.2: ignore one empty line before a request (old clients send it after a POST).
            head = head[2:]
            eol = head.find(b"\r")
        http11 = head.startswith(b" HTTP/1.1", eol - 9)
        fields, targets, awaited = self._fields, self._targets, self._awaited
        fields.clear()
        targets.clear()
        awaited.append(None)
        # A parser for each head, since it would want to follow the body, too; making one takes 0.25 us.
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # Never switch: an Upgrade is ignored (RFC 9110 7.8), and CONNECT is refused below.
        except httptools.HttpParserError as error:
            awaited.clear()
            return _syntax(error)
        if not http11 and not head.startswith(b" HTTP/1.0", eol - 9):
            end = _shown(head[max(0, eol - 9) : eol])
            return refusal(505, f"the request line ends in {end}: send HTTP/1.1 or HTTP/1.0")
        method = parser.get_method()
        target = targets[0] if len(targets) == 1 else b"".join(targets)
        if awaited or eol != len(method) + len(target) + 10:
            return refusal(
                400, f"the request line {_shown(head[:eol])} is malformed: want 'METHOD TARGET VERSION'"
            )
        if len(target) > self._limits.max_url_bytes:
            return refusal(
                414, f"the request target has {len(target)} bytes; the limit is {self._limits.max_url_bytes}"
            )
        lines = head.count(b"\n") - 2
        if lines > self._limits.max_headers:
            return refusal(431, f"{lines} headers; the limit is {self._limits.max_headers}")
        # llhttp keeps blanks at the end of a value.
        headers = {name.lower(): value.rstrip() for name, value in fields.items()}
        if len(headers) != lines:
            joined = _joined(head)
            if isinstance(joined, Refusal):
                return joined
            headers = joined
        if http11 and b"host" not in headers:
            return refusal(400, "header 'host' is missing: HTTP/1.1 requires it")
        if not target.startswith(b"/"):
            reduced = _origin_form(method, target, headers)
            if isinstance(reduced, Refusal):
                return reduced
            target = reduced
        if 0x23 in target:  # '#'; asking for an int is 0.25 us faster than for bytes of length 1.
            return refusal(400, f"the request target {_shown(target)} has a fragment: leave out '#...'")
        length: int | None = 0
        if b"content-length" in headers or b"transfer-encoding" in headers:
            declared = _body_length(headers, http11)
            if isinstance(declared, Refusal):
                return declared
            length = declared
        expects_continue = False
        if b"expect" in headers and http11:
            if headers[b"expect"].lower() != b"100-continue":
                return refusal(
                    417, f"expectation {_shown(headers[b'expect'])} is unknown: only '100-continue' is met"
                )
            expects_continue = length != 0
        encoding = b""
        if b"content-encoding" in headers:
            encoding = headers[b"content-encoding"].lower()
            if encoding not in _ENCODINGS:
                return refusal(
                    415, f"content-encoding {_shown(encoding)} is unknown: send gzip, deflate or identity"
                )
            if encoding == b"identity":
                encoding = b""
        keep_alive = http11
        if b"connection" in headers:
            options = [option.strip() for option in headers[b"connection"].lower().split(b",")]
            keep_alive = b"close" not in options and (http11 or b"keep-alive" in options)
        path, query = target, b""
        if 0x3F in target:  # '?'
            path, _, query = target.partition(b"?")
        return Head(method, path, query, headers, length, http11, keep_alive, expects_continue, encoding)


def _joined(head: bytes) -> dict[bytes, bytes] | Refusal:
    """The headers of a head in which one is repeated."""
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n")[1:-2]:
        name, _, value = line.partition(b":")  # llhttp has passed it: a token, a colon, no folding.
        name, value = name.lower(), value.strip(b" \t")
        if name not in headers:
            headers[name] = value
        elif name in _SINGLE:
            return refusal(400, f"header {_shown(name)} is there twice: send it once")
        else:
            headers[name] = headers[name] + (b"; " if name == b"cookie" else b", ") + value
    return headers


def _body_length(headers: dict[bytes, bytes], http11: bool) -> int | None | Refusal:
    coding = headers.get(b"transfer-encoding")
    declared = headers.get(b"content-length")
    if coding is None:
        if declared is None:
            return 0
        if not declared.isdigit() or len(declared) > 18:
            return refusal(400, f"content-length {_shown(declared)} is not a length: send decimal digits")
        return int(declared)
    if declared is not None:
        return refusal(400, "both content-length and transfer-encoding are there: send one of them")
    if not http11:
        return refusal(400, "HTTP/1.0 has no transfer-encoding: send a content-length")
    if coding.lower() != b"chunked":
        return refusal(501, f"transfer-encoding {_shown(coding)} is not offered: send 'chunked' or a length")
    return None


def _origin_form(method: bytes, target: bytes, headers: dict[bytes, bytes]) -> bytes | Refusal:
    """Reduce an absolute-form target to its path, and let its authority be the Host (RFC 9112 3.2.2)."""
    if method == b"CONNECT":
        return refusal(501, "CONNECT is not offered: this is no proxy")
    if target == b"*" and method == b"OPTIONS":
        return target
    scheme, separator, rest = target.partition(b"://")
    authority, slash, path = rest.partition(b"/")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return refusal(400, f"the request target {_shown(target)} is not a path: begin it with '/'")
    if b"?" in authority:
        authority, slash, path = authority.partition(b"?")
        path = b"?" + path + (b"/" + rest.partition(b"/")[2] if b"/" in rest else b"")
    if not authority or b"@" in authority:
        return refusal(400, f"the request target {_shown(target)} names no plain host")
    headers[b"host"] = authority
    return b"/" + path


def _syntax(error: httptools.HttpParserError) -> Refusal:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return refusal(501, "the request does not begin with a method of HTTP (names are in upper case)")
    return refusal(400, f"the request is malformed: {error}")


def _shown(value: bytes) -> str:
    """A hostile value, cut and printable."""
    text = value[:80].decode("ascii", "backslashreplace")
    return repr(text + "..." if len(value) > 80 else text)
