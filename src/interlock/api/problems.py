"""Decides the status and the body of every answer of the admin API that is an error."""

import msgspec
from starlette.responses import Response

from interlock.core import errors
from interlock.core.errors import InterlockError

STATUSES: tuple[tuple[type[InterlockError], int], ...] = (
    (errors.RequestTooLarge, 413),
    (errors.InvalidRequest, 400),
    (errors.NotFound, 404),
    (errors.Forbidden, 403),
    (errors.Unsupported, 501),
    (errors.Unavailable, 503),
    (errors.ReleaseRefused, 409),
    (errors.ArtifactError, 422),
    (errors.ConfigError, 400),
    (errors.MissingExtra, 501),
    (errors.RegistryError, 502),
    (errors.LedgerError, 500),
)
"""The first class that an error is of decides; any other InterlockError is a 500."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """`code` is the error's class in interlock.core.errors, for programs; `message` is for people."""

    code: str
    message: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def status_of(error: InterlockError) -> int:
    """The HTTP status of an error.

    >>> status_of(errors.ModelNotFound("no model 'x'")), status_of(errors.ReleaseRefused("open"))
    (404, 409)
    """
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def problem(error: InterlockError) -> Response:
    """The answer that tells of an error."""
    headers = {}
    if isinstance(error, errors.Unavailable):
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return answer(status_of(error), type(error).__name__, error.message, headers)


def answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error that has no class of its own, such as a path that does not exist."""
    body = msgspec.json.encode(ErrorBody(ErrorDetail(code, message)))
    return Response(body, status, headers, media_type="application/json")
