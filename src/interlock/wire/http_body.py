"""Decides where a chunked body ends and what a compressed body holds; pure, strict and bounded.

A decoder of our own, since httptools does not tell how many bytes a message took, and the transport must
know to stop reading between two pipelined requests. Stricter than RFC 9112 7.1: no bare LF, no blanks around
the size, short extensions, valid trailers, no flood of tiny chunks.
"""

import re
import zlib

from interlock.wire.http_head import Refusal, refusal

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_MAX_SIZE_LINE_BYTES = 256
_MAX_TRAILER_BYTES = 8192
# 256 KB in chunks of one byte would hold the loop for tens of milliseconds; clients send kilobytes a chunk.
_FREE_CHUNKS = 4096
_MIN_MEAN_CHUNK_BYTES = 256

_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class ChunkedBody:
    """The body of one request with `Transfer-Encoding: chunked`. Trailers are checked and dropped."""

    __slots__ = ("_chunks", "_left", "_line", "_max_bytes", "_pieces", "_state", "_trailer_bytes", "size")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._state = _SIZE
        self._line = b""
        self._left = 0
        self._pieces: list[bytes] = []
        self._chunks = 0
        self._trailer_bytes = 0
        self.size = 0
        """Bytes of body announced so far."""

    @property
    def is_done(self) -> bool:
        return self._state == _DONE

    def body(self) -> bytes:
        return b"".join(self._pieces)

    def feed(self, data: bytes, at: int) -> int | Refusal:
        r"""Take bytes from position `at`; returns the position behind the last byte used.

        >>> body = ChunkedBody(100)
        >>> body.feed(b"2\r\nab\r\n0\r\n\r\nGET", 0), body.is_done, body.body()
        (12, True, b'ab')
        """
        end = len(data)
        while at < end and self._state != _DONE:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                self._pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
                if not self._left:
                    self._state = _DATA_END
                continue
            stop = data.find(b"\n", at, at + _MAX_TRAILER_BYTES + 2)
            line = self._line + (data[at:] if stop < 0 else data[at : stop + 1])
            limit = {_SIZE: _MAX_SIZE_LINE_BYTES, _DATA_END: 2, _TRAILER: _MAX_TRAILER_BYTES}[self._state]
            if len(line) > limit:
                return refusal(400, f"chunked body: a line of over {limit} bytes between chunks")
            if stop < 0:
                self._line = line
                return end
            self._line = b""
            at = stop + 1
            if not line.endswith(b"\r\n"):
                return refusal(400, "chunked body: a line ends in a bare LF: send CRLF")
            wrong = self._take(line[:-2])
            if wrong is not None:
                return wrong
        return at

    def _take(self, line: bytes) -> Refusal | None:
        """One line without its CRLF."""
        if self._state == _DATA_END:
            if line:
                return refusal(400, "chunked body: a chunk is longer than its size says")
            self._state = _SIZE
            return None
        if self._state == _TRAILER:
            if not line:
                self._state = _DONE
                return None
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > _MAX_TRAILER_BYTES:
                return refusal(431, f"trailers of over {_MAX_TRAILER_BYTES} bytes")
            return (
                None if _TRAILER_LINE.fullmatch(line) else refusal(400, "chunked body: a malformed trailer")
            )
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            return refusal(400, "chunked body: a malformed chunk size: send hexadecimal digits")
        self._left = int(match[1], 16)
        self.size += self._left
        self._chunks += 1
        if self.size > self._max_bytes:
            return refusal(413, f"the body has over {self._max_bytes} bytes, which is the limit")
        if self._chunks > _FREE_CHUNKS and self.size < (self._chunks - _FREE_CHUNKS) * _MIN_MEAN_CHUNK_BYTES:
            return refusal(
                400, f"chunked body: {self._chunks} chunks for {self.size} bytes: send larger ones"
            )
        self._state = _DATA if self._left else _TRAILER
        return None


def inflate(body: bytes | memoryview, encoding: bytes, max_bytes: int) -> bytes | Refusal:
    """Decompress a body: `gzip`, `x-gzip` (RFC 1952) or `deflate` (RFC 1950, or bare 1951 as some send).

    Never keeps more than `max_bytes` + 1 bytes of output; takes about 1 ms a megabyte of output.
    """
    if encoding == b"deflate":
        zlib_header = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        bits = zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS
    else:
        bits = zlib.MAX_WBITS | 16
    pieces: list[bytes] = []
    room = max_bytes + 1
    rest = body
    while rest or not pieces:
        member = zlib.decompressobj(bits)
        try:
            piece = member.decompress(rest, room)
        except zlib.error as error:
            return refusal(400, f"the body is not valid {encoding.decode()}: {error}")
        pieces.append(piece)
        room -= len(piece)
        if room <= 0:
            return refusal(413, f"the body has over {max_bytes} bytes once decompressed, which is the limit")
        if not member.eof:
            return refusal(400, f"the body is not valid {encoding.decode()}: it breaks off")
        rest = member.unused_data
        if rest and encoding == b"deflate":
            return refusal(400, f"the body has {len(rest)} bytes after its deflate stream")
        if len(pieces) > 64:
            return refusal(400, "the body has over 64 gzip members")
    return b"".join(pieces)
