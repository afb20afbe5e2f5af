"""The open-loop generator against real sockets: it charges stalls to the server and loses no request."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from interlock.operations.arrivals import schedule
from interlock.operations.load import Request, Timeline, open_loop

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"


@contextmanager
def server(answer: Callable[[int], bytes | None]) -> Iterator[str]:
    """A server that answers request number n with `answer(n)`; None closes the connection instead."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    lock, seen, accepted = threading.Lock(), [0], list[socket.socket]()

    def converse(connection: socket.socket) -> None:
        data = b""
        with suppress(OSError), connection:
            while chunk := connection.recv(65536):
                data += chunk
                while b"\r\n\r\nbody" in data:
                    data = data.partition(b"\r\n\r\nbody")[2]
                    with lock:
                        number, seen[0] = seen[0], seen[0] + 1
                    reply = answer(number)
                    if reply is None:
                        return
                    connection.sendall(reply)
                    if reply is LAST:
                        return

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                accepted.append(connection)
                threads.append(threading.Thread(target=converse, args=(connection,)))
                threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        threads[0].join()
        listener.close()
        for connection in accepted:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def test_every_request_is_sent_and_answered() -> None:
    with server(lambda number: OK) as url:
        result, timeline = open_loop(Request(url, b"body"), schedule(500, 0.4), connections=4)
    assert (result.sent, result.ok, result.failures, result.reconnects) == (200, 200, {}, 0)
    assert result.offered_per_s == pytest.approx(500)
    assert None not in timeline.latency_ms and np.allclose(np.diff(timeline.due_s), 0.002)


def test_a_stall_is_charged_to_every_request_that_was_due_meanwhile() -> None:
    resumed = threading.Event()
    timer = threading.Timer(0.3, resumed.set)

    def answer(number: int) -> bytes:
        if number == 0:
            timer.start()
            assert resumed.wait(5)
        return OK

    with server(answer) as url:
        result, timeline = open_loop(Request(url, b"body"), schedule(100, 0.2), connections=1)
    timer.join()
    assert result.ok == 20 and result.waited == 19
    # Due at 0, 10, … 190 ms, and none could be answered before 300 ms.
    assert all(
        latency >= 299 - 10 * k for k, latency in enumerate(timeline.latency_ms) if latency is not None
    )


def test_bad_statuses_and_closed_connections_are_counted_apart_and_the_rest_goes_on() -> None:
    with server(lambda number: {3: BUSY, 7: None}.get(number, OK)) as url:
        result, timeline = open_loop(Request(url, b"body"), schedule(200, 0.1), connections=1)
    assert result.failures == {"status 503": 1, "closed": 1}
    assert (result.ok, result.failed, result.reconnects) == (18, 2, 1)
    assert timeline.latency_ms.count(None) == 2


def test_connection_close_is_obeyed_and_is_no_failure() -> None:
    with server(lambda number: LAST if number % 5 == 4 else OK) as url:
        result, _ = open_loop(Request(url, b"body"), schedule(200, 0.1), connections=1)
    assert (result.ok, result.failures, result.reconnects) == (20, {}, 4)


def test_a_request_without_an_answer_times_out() -> None:
    with server(lambda number: OK if number else b"") as url:
        result, _ = open_loop(Request(url, b"body"), schedule(10, 0.1), connections=1, timeout_s=0.2)
    assert result.failures == {"timeout": 1}


def test_a_body_larger_than_the_socket_buffers_arrives_whole() -> None:
    body = b"body" + bytes(4_000_000)
    with server(lambda number: OK) as url:
        result, _ = open_loop(Request(url, body), schedule(50, 0.1), connections=2)
    assert (result.ok, result.failures) == (5, {})


def test_it_stops_when_told_and_keeps_what_was_sent() -> None:
    answered: list[int] = []

    def answer(number: int) -> bytes:
        answered.append(number)
        return OK

    with server(answer) as url:
        result, timeline = open_loop(
            Request(url, b"body"), schedule(100, 3600), connections=2, stopped=lambda: len(answered) >= 10
        )
    assert result.ok == result.sent == len(timeline.due_s) >= 10
    assert result.offered_per_s == pytest.approx(100, rel=0.15)


def test_a_window_of_the_timeline_counts_only_what_was_due_in_it() -> None:
    timeline = Timeline([0.0, 1.0, 2.0, 3.0], [9.0, 1.0, None, 9.0])
    assert timeline.between(1.0, 3.0).max_ms == 1.0
    assert timeline.between(2.0, 3.0).max_ms is None
