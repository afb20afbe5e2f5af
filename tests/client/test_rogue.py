"""Servers that are slow, broken or hostile: each call ends in time, with a clear error, and repeats
nothing."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from interlock.core import errors
from interlock.core.errors import DeadlineExceeded, InterlockError, NodeUnreachable
from tests.client.both import KINDS, client
from tests.client.rogue import ANSWER, Behave, Rogue, answers, rogue, said

TOKEN = "s3cret-token-0123"
SLACK_S = 2.0
"""What a busy machine may add to a deadline."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    made: str = request.param
    return made


def refuses(call: Callable[[], Any], wanted: type[InterlockError], within_s: float) -> str:
    """The message of the error, which must come in time."""
    started_s = time.monotonic()
    with pytest.raises(wanted) as caught:
        call()
    assert time.monotonic() - started_s < within_s
    assert TOKEN not in str(caught.value) and TOKEN not in repr(caught.value.__cause__)
    return caught.value.message


LONGER = ANSWER.replace(b"content-length: 1", b"content-length: 9")
BROKEN = {
    "garbage": answers(b"SSH-2.0-OpenSSH_9.6\r\n", then_closes=True),
    "cut off": answers(ANSWER[:-5], then_closes=True),
    "a length too large": answers(LONGER, then_closes=True),
    "nothing": answers(b"", then_closes=True),
    "half a head": answers(ANSWER[:20], then_closes=True),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_answer_that_is_none_is_an_error_and_the_request_is_not_repeated(kind: str, broken: str) -> None:
    with rogue(BROKEN[broken]) as server, client(kind, server.url, token=TOKEN) as asks:
        message = refuses(lambda: asks.predict("m", [1, 2]), NodeUnreachable, 10)
        assert "the request may have run" in message
        assert len(server.requests) == 1


def test_what_may_run_twice_is_repeated(kind: str) -> None:
    def once(server: Rogue, connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.shutdown(socket.SHUT_RDWR)
        else:
            connection.sendall(ANSWER)

    with rogue(once, side_effect_free=True) as server, client(kind, server.url) as asks:
        assert asks.predict("m", [1, 2]).array.tolist() == [7.0]
        assert len(server.requests) == 2
    with rogue(BROKEN["nothing"]) as server, client(kind, server.url, retries=2) as asks:
        refuses(lambda: asks.predict("m", [1, 2], idempotent=True), NodeUnreachable, 10)
        assert len(server.requests) == 3


def test_a_length_too_small_gives_no_wrong_answer_and_its_connection_is_left(kind: str) -> None:
    """What is left over spoils the next answer of that connection at most, which is then closed."""
    short = ANSWER.replace(b"content-length: 1", b"content-length: 0")
    with rogue(answers(short, ANSWER)) as server, client(kind, server.url) as asks:
        refuses(lambda: asks.predict("m", [1, 2]), NodeUnreachable, 10)
        with suppress(NodeUnreachable):
            assert asks.predict("m", [1, 2]).array.tolist() == [7.0]
        assert asks.predict("m", [1, 2]).array.tolist() == [7.0]


def test_a_redirect_is_an_error_and_nothing_goes_there(kind: str) -> None:
    with rogue(answers(ANSWER)) as other:
        moved = said({}, "307 Temporary Redirect", f"location: {other.url}/")
        with rogue(answers(moved)) as server, client(kind, server.url, token=TOKEN) as asks:
            message = refuses(lambda: asks.predict("m", [1, 2]), NodeUnreachable, 10)
            assert f"points to {other.url}/" in message
        assert other.requests == []


def test_a_server_that_quotes_the_token_does_not_get_it_into_messages(kind: str) -> None:
    for text in (said({"error": f"who is {TOKEN}?"}, "400 Bad"), said(f"<{TOKEN}>".encode(), "500 No")):
        with rogue(answers(text)) as server, client(kind, server.url, token=TOKEN) as asks:
            assert "***" in refuses(partial(asks.predict, "m", [1, 2]), InterlockError, 10)
            assert TOKEN.encode() in server.requests[0]
            assert TOKEN not in repr(asks)


def test_an_endless_body_ends_at_the_limit(kind: str) -> None:
    def endless(server: Rogue, connection: socket.socket, number: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not server.ended.is_set():
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")

    with rogue(endless) as server, client(kind, server.url, max_answer_bytes=1 << 20) as asks:
        assert "max_answer_bytes" in refuses(lambda: asks.predict("m", [1, 2]), NodeUnreachable, 10)
    announced = answers(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")
    with rogue(announced) as server, client(kind, server.url) as asks:
        assert "99999999999 bytes" in refuses(lambda: asks.predict("m", [1, 2]), NodeUnreachable, 10)


def _silent(server: Rogue, connection: socket.socket, number: int) -> None:
    server.ended.wait(30)


def _drips_head(server: Rogue, connection: socket.socket, number: int) -> None:
    server.drip(connection, b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 5000)


def _drips_body(server: Rogue, connection: socket.socket, number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    server.drip(connection, b" " * 100000)


def _floods(server: Rogue, connection: socket.socket, number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while not server.ended.is_set():
        connection.sendall(b"1\r\n \r\n" * 64)


@pytest.mark.parametrize("behave", [_silent, _drips_head, _drips_body, _floods])
def test_the_deadline_holds_whatever_the_server_does(kind: str, behave: Behave) -> None:
    with rogue(behave, side_effect_free=True) as server, client(kind, server.url) as asks:
        started_s = time.monotonic()
        refuses(lambda: asks.predict("m", [1, 2], timeout_s=0.3), DeadlineExceeded, 0.3 + SLACK_S)
        assert time.monotonic() - started_s >= 0.3
        assert len(server.requests) == 1
        told_ms = float(server.requests[0].partition(b"x-request-timeout-ms: ")[2].split(b"\r\n")[0])
        assert 200 <= told_ms < 300


@pytest.mark.slow
def test_retry_after_is_honoured(kind: str) -> None:
    full = said({"error": "full"}, "503 Busy", "retry-after: 1", "interlock-error: Overloaded")
    with rogue(answers(full, ANSWER)) as server, client(kind, server.url) as asks:
        started_s = time.monotonic()
        assert asks.predict("m", [1, 2]).array.tolist() == [7.0]
        assert 1.0 <= time.monotonic() - started_s < 1.0 + SLACK_S
        server.requests.clear()
    with rogue(answers(full)) as server, client(kind, server.url) as asks:
        message = refuses(lambda: asks.predict("m", [1, 2], timeout_s=0.9), errors.Overloaded, 0.9)
        assert message == "full" and len(server.requests) == 1


def test_a_connection_that_was_closed_while_idle_costs_nothing(kind: str) -> None:
    with rogue(answers(ANSWER, then_closes=True)) as server, client(kind, server.url, retries=0) as asks:
        for number in range(1, 4):
            assert asks.predict("m", [1, 2], idempotent=False).version == "1"
            until_s = time.monotonic() + 10
            while server.closed < number and time.monotonic() < until_s:
                time.sleep(0.005)
        assert len(server.requests) == server.closed == 3


def test_nobody_listens(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with client(kind, url, token=TOKEN) as asks:
        assert asks.is_ready() is False
        message = refuses(lambda: asks.predict("m", [1, 2], idempotent=False), NodeUnreachable, 5)
        assert message.startswith(f"no node answers at {url}")


@pytest.mark.slow
def test_who_waits_for_a_connection_waits_until_the_deadline() -> None:
    with rogue(_silent) as server, client("blocking", server.url, connections=1) as asks:
        asks.metadata("m")
        first = threading.Thread(
            target=lambda: refuses(lambda: asks.predict("m", [1, 2], timeout_s=1.5), DeadlineExceeded, 9)
        )
        first.start()
        while not server.requests:
            time.sleep(0.005)
        message = refuses(lambda: asks.predict("m", [1, 2], timeout_s=0.2), DeadlineExceeded, 0.2 + SLACK_S)
        assert "connections of the client were busy" in message
        first.join()
