"""Decides which requests leave a line in the log: every Nth, and those that failed for a fault of ours.

Both are bounded by the second: a flood must not become a flood of lines, each of which takes the loop 30 us.
"""

import logging
import sys
from time import monotonic
from typing import Any

from interlock.wire.headers import REQUEST_ID
from interlock.wire.http_exchange import Exchange

_LOG = logging.getLogger("interlock.access")
_ID = REQUEST_ID + b": "
_MOST_PATH_BYTES = 512

LINES_PER_S = 20
"""Sampled requests, and those that failed, each have this much room."""


class AccessLog:
    """What one server logs of its requests. `every` 0 logs only failures. For the server's own loop.

    `next_at` is the number of the request that is sampled next; the transport counts up to it.
    """

    __slots__ = ("_every", "_failed_left", "_left", "_refilled_s", "next_at", "untold")

    def __init__(self, every: int = 0) -> None:
        self._every = every
        self.next_at = every or sys.maxsize
        self._left = self._failed_left = float(LINES_PER_S)
        self._refilled_s = monotonic()
        self.untold = 0
        """Failures since the last line of one that had no room."""

    def samples(self, request: int) -> bool:
        """Whether request number `request`, at or past `next_at`, is logged when it is answered."""
        self.next_at = request + self._every
        self._refill()
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def may_tell_failure(self) -> bool:
        """Whether there is room for one more line of a failure; counts it in `untold` if not."""
        self._refill()
        if self._failed_left < 1.0:
            self.untold += 1
            return False
        self._failed_left -= 1.0
        return True

    def write(
        self,
        exchange: Exchange,
        status: int,
        headers: bytes,
        sizes: tuple[int, int],
        peer: Any,
        sampled: bool,
    ) -> None:
        """One line of an answered request. `sizes`: bytes of the body in, as sent, and out.

        An answer of 500 and more is logged though it is not sampled, while there is room.
        """
        head = exchange.head
        failed = status >= 500
        if failed and not sampled and not self.may_tell_failure():
            return
        if not _LOG.isEnabledFor(logging.WARNING if failed else logging.INFO):
            return
        fields: dict[str, Any] = {
            "request_id": _request_id(headers),
            "method": head.method.decode("ascii", "replace"),
            "path": head.path[:_MOST_PATH_BYTES].decode("utf-8", "replace"),
            "status": status,
            "bytes_in": sizes[0],
            "bytes_out": sizes[1],
            "duration_ms": round((monotonic() - exchange.received_s) * 1e3, 3),
            "peer": _name(peer),
        }
        if failed and self.untold:
            fields["untold"] = self.untold
            self.untold = 0
        _LOG.log(logging.WARNING if failed else logging.INFO, "request", extra={"fields": fields})

    def _refill(self) -> None:
        now_s = monotonic()
        more = (now_s - self._refilled_s) * LINES_PER_S
        self._refilled_s = now_s
        self._left = min(self._left + more, LINES_PER_S)
        self._failed_left = min(self._failed_left + more, LINES_PER_S)


def _request_id(headers: bytes) -> str:
    at = headers.find(_ID)
    if at < 0:
        return ""
    start = at + len(_ID)
    return headers[start : headers.find(b"\r\n", start)].decode("ascii", "replace")


def _name(peer: Any) -> str:
    """`1.2.3.4:5` of a socket's address; "" where there is none.

    >>> _name(("::1", 80, 0, 0)), _name(None)
    ('[::1]:80', '')
    """
    if not isinstance(peer, tuple) or len(peer) < 2:
        return str(peer or "")
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
