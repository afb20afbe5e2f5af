"""Decides what an answer that is no success means: which error, and whether to send the request again.

The header `interlock-error` has the class that the error had over there. Servers that do not send it are
understood by their status.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from interlock.client.message import REQUEST_ID, Reply
from interlock.client.retry import Failure
from interlock.core import errors
from interlock.core.errors import InterlockError

ERROR = b"interlock-error"
RETRY_AFTER = b"retry-after"
_MOST_SHOWN = 2000
_BY_STATUS: dict[int, type[InterlockError]] = {
    401: errors.Forbidden,
    403: errors.Forbidden,
    404: errors.ModelNotFound,
    408: errors.DeadlineExceeded,
    413: errors.RequestTooLarge,
    429: errors.Overloaded,
    501: errors.Unsupported,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}


class _Body(msgspec.Struct):
    error: str


def error_of(reply: Reply, url: str, path: str, secret: str | None = None) -> InterlockError:
    """The error that a reply tells of, in the server's own words, with its request id. `secret` is taken out,
    if the server quotes it."""
    kind = _class_of(reply, path)
    words = _words(reply, url, kind)
    if secret:
        words = words.replace(secret, "***")
    request_id = reply.headers.get(REQUEST_ID, b"").decode("latin-1") or None
    if request_id is not None:
        words = f"{words} [request {request_id}]"
    if issubclass(kind, errors.Unavailable):
        error: InterlockError = kind(words, retry_after_s(reply, datetime.now(UTC)) or 1.0)
    else:
        error = kind(words)
    error.request_id = request_id
    return error


def failure_of(reply: Reply) -> Failure | None:
    """Whether it may be sent again; None for never. A server that asks to be asked later has not begun,
    unless it gave the request an id, which Interlock does when it hands it to a model."""
    if reply.status not in (429, 502, 503) or reply.headers.get(ERROR) == b"DeadlineExceeded":
        return None
    if reply.status == 429:
        return Failure.REFUSED
    begun = reply.status == 502 or REQUEST_ID in reply.headers or RETRY_AFTER not in reply.headers
    return Failure.MAYBE if begun else Failure.REFUSED


def retry_after_s(reply: Reply, now: datetime) -> float:
    """Seconds that the server asks to wait, 0.0 if it says nothing: a number of seconds, or a date (RFC
    9110).

    `now` is in UTC.
    """
    text = reply.headers.get(RETRY_AFTER, b"").decode("latin-1").strip()
    if text.isascii() and text.isdigit() and len(text) < 12:
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp(), 0.0)


def _class_of(reply: Reply, path: str) -> type[InterlockError]:
    status = reply.status
    named = getattr(errors, reply.headers.get(ERROR, b"").decode("latin-1"), None)
    if isinstance(named, type) and issubclass(named, InterlockError) and named is not errors.MissingExtra:
        return named
    if status == 404 and "/versions/" in path:
        return errors.VersionNotFound
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status < 500:
        return errors.InvalidRequest
    return errors.ModelFailed if status >= 500 else errors.NodeUnreachable


def _words(reply: Reply, url: str, kind: type[InterlockError]) -> str:
    if 300 <= reply.status < 400:
        place = reply.headers.get(b"location", b"nowhere").decode("latin-1")[:200]
        return (
            f"{url} answered {reply.status} and points to {place}: give the client that URL, it follows none"
        )
    try:
        return msgspec.json.decode(reply.body, type=_Body).error[:_MOST_SHOWN]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        shown = bytes(reply.body[:200]).decode(errors="replace")
        return f"{url} answered {reply.status}: {shown or kind.__name__}"
