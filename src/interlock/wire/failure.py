"""Decides how an error of the core leaves over HTTP: status, headers, and the body `{"error": …}` of V2."""

import math

import msgspec

from interlock.core.errors import (
    Forbidden,
    InterlockError,
    InvalidRequest,
    NotFound,
    RequestTooLarge,
    Unavailable,
    Unsupported,
)
from interlock.wire.headers import ERROR, REQUEST_ID
from interlock.wire.http import Exchange, Refusal

JSON = b"content-type: application/json\r\n"

_encode = msgspec.json.Encoder().encode

# The first that fits wins. What is not here is the server's or the model's fault: 500.
_STATUS: tuple[tuple[type[InterlockError], int], ...] = (
    (RequestTooLarge, 413),
    (InvalidRequest, 400),
    (NotFound, 404),
    (Forbidden, 403),
    (Unsupported, 501),
    (Unavailable, 503),
)


def status_of(error: InterlockError) -> int:
    """The HTTP status, as Triton gives it.

    >>> from interlock.core.errors import ModelNotFound, Overloaded
    >>> status_of(ModelNotFound("m")), status_of(Overloaded("m"))
    (404, 503)
    """
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def failure(error: InterlockError, request_id: bytes = b"", lines: bytes = b"") -> Refusal:
    """The whole answer to a request that failed; `lines` are further headers.

    `Retry-After` is in whole seconds, at least 1: HTTP has no fractions there.
    """
    headers = JSON + b"%b: %b\r\n" % (ERROR, type(error).__name__.encode())
    if isinstance(error, Unavailable):
        headers += b"retry-after: %d\r\n" % max(1, math.ceil(error.retry_after_s))
    if request_id:
        headers += b"%b: %b\r\n" % (REQUEST_ID, request_id)
    return Refusal(status_of(error), headers + lines, _encode({"error": error.message}))


def answer_failure(
    exchange: Exchange, error: InterlockError, request_id: bytes = b"", lines: bytes = b""
) -> None:
    """Answer an exchange with what `failure` says."""
    said = failure(error, request_id, lines)
    exchange.respond(said.status, said.headers, said.body)
