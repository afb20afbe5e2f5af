"""Decides what the HTTP/1.1 transport tolerates: sizes, counts, and its patience with a slow client."""

import msgspec

BODY_MIN_BYTES_PER_S = 240
"""Once `body_timeout_s` is over, a body slower than this on average is cut off (Kestrel's default rate)."""


class HttpLimits(msgspec.Struct, frozen=True):
    """Bounds of one server. Times are in seconds, sizes in bytes; every one is enforced per connection."""

    max_header_bytes: int = 32768
    """Request line and headers together, the empty line included (431)."""
    max_url_bytes: int = 8192
    """The request target (414)."""
    max_headers: int = 100
    """Header lines of one request (431)."""
    max_body_bytes: int = 64 * 1024 * 1024
    """A body as it is sent, and again once it is decompressed (413)."""
    header_timeout_s: float = 10.0
    """From the first byte of a request until its headers are complete (408); also the TLS handshake."""
    body_timeout_s: float = 60.0
    """Longest silence within a body, and how long a body may stay below `BODY_MIN_BYTES_PER_S` (408)."""
    write_timeout_s: float = 60.0
    """Longest time in which a client with unread answers reads nothing at all; it is then cut off."""
    idle_timeout_s: float = 75.0
    """Between requests; the connection is then closed without a word."""
    max_connections: int = 4096
    """Open at once; further ones wait in the kernel's backlog."""
    max_pipelined: int = 64
    """Requests of one connection without an answer; its further bytes wait in the kernel."""
    drain_bytes: int = 1024 * 1024
    """A refused request with a body up to this size keeps its connection: the body is read and dropped."""
    linger_s: float = 1.0
    """Silence after which a connection that was refused is closed for good."""
    linger_total_s: float = 30.0
    """How long at most a refused client may go on sending."""
    linger_bytes: int = 64 * 1024 * 1024
    """How much at most a refused client may go on sending."""
    write_high_water_bytes: int = 256 * 1024
    """Unsent answers above this stop the reading from a connection, and make `ResponseStream.write` False."""


class Counts:
    """What one server has seen, as plain integers that only its own loop writes."""

    __slots__ = ("accepted", "app_errors", "connections", "protocol_errors", "refused", "requests")

    def __init__(self) -> None:
        self.connections = 0
        """Open now."""
        self.accepted = 0
        """Opened since the start."""
        self.requests = 0
        """Heads that were well-formed."""
        self.refused = 0
        """Requests that `App.admit` refused."""
        self.protocol_errors = 0
        """Requests, and TLS handshakes, that the transport itself refused or gave up."""
        self.app_errors = 0
        """Exceptions that came out of the application's callbacks."""


def body_is_late(
    now: float, started_s: float, touched_s: float, received_bytes: int, limits: HttpLimits
) -> bool:
    """Whether to give up a body: silent for `body_timeout_s`, or after that time slower than the least rate.

    >>> body_is_late(61.0, started_s=0.0, touched_s=0.5, received_bytes=10**6, limits=HttpLimits())
    True
    >>> body_is_late(61.0, started_s=0.0, touched_s=60.9, received_bytes=10**6, limits=HttpLimits())
    False
    >>> body_is_late(61.0, started_s=0.0, touched_s=60.9, received_bytes=61, limits=HttpLimits())
    True
    """
    if now - touched_s > limits.body_timeout_s:
        return True
    age_s = now - started_s
    return age_s > limits.body_timeout_s and received_bytes < age_s * BODY_MIN_BYTES_PER_S


def linger_is_over(now: float, started_s: float, touched_s: float, limits: HttpLimits) -> bool:
    """Whether a refused client has had its chance to read the answer."""
    return now - touched_s > limits.linger_s or now - started_s > limits.linger_total_s
