"""What answers that are no success mean: an error of the tree, in the server's words, and another try."""

from datetime import UTC, datetime

import pytest

from interlock.client.failure import error_of, failure_of, retry_after_s
from interlock.client.message import Reply
from interlock.client.retry import Failure
from interlock.core import errors
from interlock.core.errors import InterlockError
from interlock.wire.failure import failure

URL = "http://node:8000"
NOW = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)


def reply(status: int, body: bytes = b"", **headers: str) -> Reply:
    made = Reply(
        status, [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()], 10**6
    )
    made.take(body)
    return made


def leaves() -> list[type[InterlockError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, InterlockError) and kind is not errors.MissingExtra]


@pytest.mark.parametrize("kind", leaves())
def test_every_error_of_the_tree_comes_over_the_wire_as_itself(kind: type[InterlockError]) -> None:
    said = failure(kind("the queue is full"), b"1-2-3")
    lines = [line.split(b": ") for line in said.headers.split(b"\r\n") if line]
    came = Reply(said.status, [(line[0], line[1]) for line in lines], 10**6)
    came.take(bytes(said.body))
    error = error_of(came, URL, "/v2/models/m/infer")
    assert type(error) is kind
    assert error.message == "the queue is full [request 1-2-3]"
    assert error.request_id == "1-2-3"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, errors.NodeUnreachable),
        (204, errors.NodeUnreachable),
        (400, errors.InvalidRequest),
        (401, errors.Forbidden),
        (404, errors.ModelNotFound),
        (413, errors.RequestTooLarge),
        (422, errors.InvalidRequest),
        (429, errors.Overloaded),
        (500, errors.ModelFailed),
        (501, errors.Unsupported),
        (502, errors.Unavailable),
        (503, errors.Unavailable),
        (504, errors.DeadlineExceeded),
        (599, errors.ModelFailed),
    ],
)
def test_other_servers_are_understood_by_their_status(status: int, kind: type[InterlockError]) -> None:
    error = error_of(reply(status, b'{"error": "no"}'), URL, "/v2/models/m/infer")
    assert type(error) is kind and error.request_id is None
    if status != 302:
        assert error.message == "no"


def test_a_version_that_is_missing_is_no_missing_model() -> None:
    assert type(error_of(reply(404), URL, "/v2/models/m/versions/9/infer")) is errors.VersionNotFound


def test_a_class_that_is_no_error_of_ours_is_not_made() -> None:
    for name in ("Exception", "MissingExtra", "__doc__", "InterlockErrors", ""):
        assert type(error_of(reply(400, interlock_error=name), URL, "/")) is errors.InvalidRequest


def test_words_that_are_no_json_are_shown_cut_and_without_the_secret() -> None:
    message = error_of(reply(500, b"<html>you sent s3cret" + b"x" * 999), URL, "/", "s3cret").message
    assert message.startswith("http://node:8000 answered 500: <html>you sent ***xxx") and len(message) < 300


def test_a_redirect_is_not_followed() -> None:
    message = error_of(reply(307, location="http://other:1/"), URL, "/").message
    assert "points to http://other:1/" in message


@pytest.mark.parametrize(
    ("came", "failed"),
    [
        (reply(400), None),
        (reply(500), None),
        (reply(504), None),
        (reply(429), Failure.REFUSED),
        (reply(503, retry_after="1"), Failure.REFUSED),
        (reply(503, retry_after="1", interlock_request_id="1-2"), Failure.MAYBE),
        (reply(503), Failure.MAYBE),
        (reply(502, retry_after="1"), Failure.MAYBE),
        (reply(503, retry_after="1", interlock_error="DeadlineExceeded"), None),
    ],
)
def test_only_a_server_that_says_so_has_not_begun(came: Reply, failed: Failure | None) -> None:
    assert failure_of(came) is failed


@pytest.mark.parametrize(
    ("text", "wanted_s"),
    [
        ("7", 7.0),
        ("Fri, 27 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 27 Nov 2026 11:00:00 GMT", 0.0),
        ("-1", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("9" * 40, 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, wanted_s: float) -> None:
    assert retry_after_s(reply(503, retry_after=text), NOW) == wanted_s
