"""Decides which HTTP headers carry Interlock's own facts, and what their values may be.

| header | meaning |
|---|---|
| `x-request-timeout-ms` | how long the client waits, from the request's first byte on; above 0 |
| `x-interlock-unit` | who is asking; sticks to a version where the route is sticky; up to 256 bytes |
| `x-interlock-tenant`, `x-interlock-segment` | read into the Request, used by nothing yet; up to 256 bytes |
| `x-interlock-priority` | 0 is served before 1; the model's own by default |
| `traceparent` | W3C trace context; echoed on the answer |
| `interlock-request-id` | on every infer answer: the id that the server made |
| `interlock-error` | on every answer that is an error: its class in `core/errors.py` |
| `inference-header-content-length` | bytes of JSON before binary tensors (binary tensor data extension) |
"""

import re
from functools import lru_cache

from interlock.core.errors import DeadlineInvalid, InvalidRequest, MalformedMessage

TIMEOUT_MS = b"x-request-timeout-ms"
UNIT = b"x-interlock-unit"
TENANT = b"x-interlock-tenant"
SEGMENT = b"x-interlock-segment"
PRIORITY = b"x-interlock-priority"
TRACEPARENT = b"traceparent"
REQUEST_ID = b"interlock-request-id"
ERROR = b"interlock-error"
JSON_LENGTH = b"inference-header-content-length"

MOST_LABEL_BYTES = 256

_MILLISECONDS = re.compile(rb"\d{1,12}(\.\d{1,9})?")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{0,128})?")


@lru_cache(256)
def timeout_s(value: bytes) -> float:
    """The time-out header in seconds.

    Raises: DeadlineInvalid.
    >>> timeout_s(b"250")
    0.25
    """
    if not _MILLISECONDS.fullmatch(value) or float(value) <= 0:
        raise DeadlineInvalid(
            f"header x-request-timeout-ms is {_shown(value)}; want milliseconds above 0, e.g. 250"
        )
    return float(value) / 1000


@lru_cache(4096)
def json_length(value: bytes) -> int:
    """Raises: MalformedMessage if the header is not a length."""
    if not value.isdigit() or len(value) > 15:
        raise MalformedMessage(
            f"header Inference-Header-Content-Length is {_shown(value)}; want the bytes of JSON before the"
            f" tensors"
        )
    return int(value)


def priority(value: bytes) -> int:
    """Raises: InvalidRequest unless 0 or 1."""
    if value not in (b"0", b"1"):
        raise InvalidRequest(f"header x-interlock-priority is {_shown(value)}; want 0 (first) or 1")
    return int(value)


def label(headers: dict[bytes, bytes], name: bytes) -> bytes | None:
    """A unit, tenant or segment; None when absent or empty.

    Raises: InvalidRequest if it is longer than 256 bytes.
    """
    value = headers.get(name)
    if not value:
        return None
    if len(value) > MOST_LABEL_BYTES:
        raise InvalidRequest(
            f"header {name.decode()} has {len(value)} bytes; the limit is {MOST_LABEL_BYTES}"
        )
    return value


def trace_line(headers: dict[bytes, bytes]) -> bytes:
    """The line that passes a valid `traceparent` on, or b""; an invalid one is ignored, as W3C asks."""
    value = headers.get(TRACEPARENT)
    if value is None or not _TRACEPARENT.fullmatch(value):
        return b""
    return b"traceparent: %b\r\n" % value


def _shown(value: bytes) -> str:
    return repr(value[:80].decode("ascii", "backslashreplace"))
