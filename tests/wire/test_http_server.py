"""A real server on a real socket: slow and rude clients, refusals that are read, drain, streams, TLS."""

import asyncio
import gzip
import random
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock.wire.http import HttpLimits, new_loop
from tests.wire.http_rig import REFUSED, Rig, hear, hear_all, serving

GET = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
LATER = b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = HttpLimits(
    header_timeout_s=0.2, body_timeout_s=0.2, idle_timeout_s=0.2, linger_s=0.3, write_timeout_s=0.5
)


@pytest.fixture(params=[new_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with serving(loop_factory=request.param) as made:
        yield made


def post(path: bytes, size: int, *headers: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n" % (path, size, b"".join(headers))


def test_keep_alive_and_head(rig: Rig) -> None:
    with rig.connect() as client:
        for _ in range(3):
            client.sendall(post(b"/echo", 2) + b"hi")
            [(status, head, body)] = hear(client)
            assert (status, body) == (200, b"hi")
            assert b"x-path: /echo" in head
            assert re.search(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", head + b"\r\n")
        client.sendall(b"HEAD /big?1000 HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        status, head = hear_head(client)
        assert status == 200
        assert b"content-length: 1003" in head
    rig.until(lambda: rig.server.counts.connections == 0)
    assert rig.server.counts.requests == 5


def hear_head(client: socket.socket) -> tuple[int, bytes]:
    """The answer to a HEAD, and the one to the GET that was sent with it."""
    data = b""
    while data.count(b"\r\n\r\n") < 2:
        data += client.recv(65536)
    first, second, rest = data.split(b"\r\n\r\n")
    assert (second[9:12], rest) == (b"200", b"")
    return int(first[9:12]), first


def test_http_1_0(rig: Rig) -> None:
    with rig.connect() as client:
        client.sendall(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        [(status, head, _)] = hear(client)
        assert status == 200
        assert b"connection: keep-alive" in head
        client.sendall(b"GET /stream?3 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = hear_all(client).partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert b"chunked" not in head
        assert len(body) == 3 * 8192


def test_connection_close_is_obeyed(rig: Rig) -> None:
    with rig.connect() as client:
        client.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = hear_all(client)
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nconnection: close\r\n" in data


def test_large_bodies_both_ways(rig: Rig) -> None:
    size = 3_000_000
    with rig.connect() as client:
        client.sendall(post(b"/echo", size) + b"y" * size)
        [(status, _, body)] = hear(client)
        assert (status, body) == (200, b"y" * size)
        client.sendall(b"GET /big?%d HTTP/1.1\r\nHost: x\r\n\r\n" % size)
        assert hear(client)[0][2] == b"x" * size + b"end"


@pytest.mark.parametrize("size", [600_000, 5_000_000])
def test_a_refused_client_that_is_still_sending_reads_its_503(rig: Rig, size: int) -> None:
    body = b"z" * size
    for _ in range(20):
        with rig.connect() as client:
            client.sendall(post(b"/refuse", size))
            client.sendall(body)
            [(status, _, answer)] = hear(client)
            assert (status, answer) == (503, REFUSED)
    assert rig.server.counts.refused == 20
    assert not rig.stage.seen


def test_a_body_over_the_limit_is_413_and_is_read() -> None:
    with serving(HttpLimits(max_body_bytes=1000)) as rig:
        for _ in range(5):
            with rig.connect() as client:
                client.sendall(post(b"/echo", 2_000_000) + b"z" * 2_000_000)
                assert hear(client)[0][0] == 413
        with rig.connect() as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3E9\r\n")
            assert hear(client)[0][0] == 413
        assert rig.call(lambda: rig.stage.admitted) == 1


def test_expect_continue(rig: Rig) -> None:
    expect = b"Expect: 100-continue\r\n"
    with rig.connect() as client:
        client.sendall(post(b"/echo", 2, expect))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"ok")
        assert hear(client)[0][2] == b"ok"
        client.sendall(post(b"/refuse", 10_000_000, expect))
        assert hear(client)[0][0] == 503


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"G", 408),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", 408),
        (post(b"/echo", 10) + b"12345", 408),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 408),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 40000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\na", 415),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"\x16\x03\x01\x02\x00\x01\x00", 501),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    ],
)
def test_bad_and_slow_clients_get_their_status_and_the_end(sent: bytes, status: int) -> None:
    with serving(QUICK) as rig, rig.connect() as client:
        client.sendall(sent)
        data = hear_all(client)
        assert data.startswith(b"HTTP/1.1 %d " % status), data
        assert b"connection: close\r\n" in data
        assert re.fullmatch(rb'\{"error":".+"\}', data.partition(b"\r\n\r\n")[2])
        assert rig.server.counts.protocol_errors == 1
        client.close()  # else the server lingers, for the sake of those who still send
        rig.until(lambda: rig.server.counts.connections == 0)


def test_a_trickling_body_is_cut_off() -> None:
    with serving(QUICK) as rig, rig.connect() as client:
        client.sendall(post(b"/echo", 1000))
        client.settimeout(0.02)
        end = time.monotonic() + 5
        data = b""
        while not data and time.monotonic() < end:
            client.sendall(b"a")
            try:
                data = client.recv(1000)
            except TimeoutError:
                continue
        assert data.startswith(b"HTTP/1.1 408 ")


def test_idle_connections_are_closed_without_a_word() -> None:
    with serving(QUICK) as rig, rig.connect() as fresh, rig.connect() as used:
        used.sendall(GET)
        hear(used)
        assert hear_all(fresh) == b""
        assert hear_all(used) == b""


def test_a_connection_that_waits_for_its_answer_is_not_idle() -> None:
    with serving(QUICK) as rig, rig.connect() as busy, rig.connect() as idle:
        busy.sendall(LATER)
        assert hear_all(idle) == b""
        rig.call(lambda: rig.stage.later[0].respond(200, b"", b"late"))
        assert hear(busy)[0][2] == b"late"


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_cut_off() -> None:
    with serving(QUICK) as rig, rig.connect() as client:
        client.sendall(b"GET /big?30000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        rig.until(lambda: rig.server.counts.accepted == 1)
        rig.until(lambda: rig.server.counts.connections == 0)


def test_a_disconnect_is_told_once(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(LATER)
    rig.until(lambda: bool(rig.stage.later))
    client.close()
    rig.until(lambda: bool(rig.stage.gone))
    rig.until(lambda: rig.server.counts.connections == 0)
    rig.call(lambda: rig.stage.later[0].respond(200, b"", b"nobody"))
    assert rig.stage.gone == [b"/later"]


def test_a_stream_to_a_slow_reader_keeps_memory_bounded(rig: Rig) -> None:
    pieces = 4000  # 32 MB
    with rig.connect() as client:
        client.sendall(b"GET /stream?%d HTTP/1.1\r\nHost: x\r\n\r\n" % pieces)
        rig.until(lambda: rig.stage.high_bytes > 0)
        data = bytearray()
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data += client.recv(1 << 20)
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"".join(body.split(b"2000\r\n")).count(b"%08d" % (pieces - 1)) == 1024
    assert len(body) > pieces * 8192
    limit = rig.server.limits.write_high_water_bytes
    assert 0 < rig.stage.high_bytes <= limit + 2 * 8200


def test_a_stream_whose_client_leaves_ends(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(b"GET /stream?100000 HTTP/1.1\r\nHost: x\r\n\r\n")
    client.recv(1000)
    client.close()
    rig.until(lambda: bool(rig.stage.tasks) and rig.stage.tasks[0].done())
    assert rig.call(lambda: rig.stage.tasks[0].exception()) is None
    assert rig.stage.gone == [b"/stream"]


def test_reading_stops_while_answers_are_unread() -> None:
    with serving(HttpLimits(write_high_water_bytes=1000)) as rig, rig.connect() as client:
        client.setblocking(False)
        request = b"GET /big?100000 HTTP/1.1\r\nHost: x\r\n\r\n"
        sent = 0
        end = time.monotonic() + 20
        try:
            while time.monotonic() < end:
                sent += client.send(request * 100)
        except BlockingIOError:
            pass
        assert time.monotonic() < end
        rig.until(lambda: rig.server.counts.requests > 0)
        # The kernel's buffers hold a few MB of answers at most; then the server stops taking requests.
        assert rig.call(lambda: rig.server.counts.requests) < sent / len(request) / 2


def test_drain_answers_what_is_in_flight_and_closes_the_rest() -> None:
    with serving() as rig, rig.connect() as idle, rig.connect() as busy:
        busy.sendall(LATER)
        idle.sendall(GET)
        hear(idle)
        rig.until(lambda: bool(rig.stage.later))
        future = asyncio.run_coroutine_threadsafe(rig.server.drain(10), rig.call(asyncio.get_running_loop))
        assert hear_all(idle) == b""
        assert not future.done()
        rig.call(lambda: rig.stage.later[0].respond(200, b"", b"last"))
        data = hear_all(busy)
        assert data.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in data
        busy.close()
        future.result(10)
        assert rig.server.counts.connections == 0


def test_drain_cuts_what_takes_too_long() -> None:
    with serving() as rig, rig.connect() as busy:
        busy.sendall(LATER)
        rig.until(lambda: bool(rig.stage.later))
        started = time.monotonic()
        rig.wait(rig.server.drain(0.1))
        assert time.monotonic() - started < 5
        assert rig.stage.gone == [b"/later"]


def test_connections_over_the_limit_wait_in_the_backlog() -> None:
    with serving(HttpLimits(max_connections=2)) as rig:
        first, second, third = rig.connect(), rig.connect(), rig.connect()
        with first, second, third:
            for client in (first, second):
                client.sendall(GET)
                hear(client)
            third.sendall(GET)
            third.settimeout(0.1)
            with pytest.raises(TimeoutError):
                third.recv(1)
            assert rig.server.counts.connections == 2
            first.close()
            third.settimeout(10)
            assert hear(third)[0][0] == 200


def test_accepting_pauses_and_resumes(rig: Rig) -> None:
    rig.call(rig.server.pause_accept)
    with rig.connect() as client:
        client.sendall(GET)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        rig.call(rig.server.resume_accept)
        client.settimeout(10)
        assert hear(client)[0][0] == 200


def test_a_large_compressed_body(rig: Rig) -> None:
    plain = random.Random(7).randbytes(100_000) + b"0" * 3_000_000
    data = gzip.compress(plain, 1)
    with rig.connect() as client:
        client.sendall(post(b"/echo", len(data), b"Content-Encoding: gzip\r\n") + data + GET)
        answers = hear(client, 2)
        assert answers[0][2] == plain
        assert answers[1][0] == 200


def test_tls(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        + ["-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=str(cert))
    for factory in (new_loop, asyncio.new_event_loop):
        with serving(loop_factory=factory, ssl=context) as rig:
            with trusting.wrap_socket(rig.connect(), server_hostname="localhost") as client:
                client.sendall(post(b"/echo", 500_000) + b"t" * 500_000 + GET)
                assert [body for _, _, body in hear(client, 2)] == [b"t" * 500_000, b""]
                client.sendall(b"GET /stream?5 HTTP/1.1\r\nHost: x\r\n\r\n")
                data = b""
                while not data.endswith(b"\r\n0\r\n\r\n"):
                    data += client.recv(65536)
            with trusting.wrap_socket(rig.connect(), server_hostname="localhost") as client:
                client.sendall(post(b"/refuse", 600_000) + b"t" * 600_000)
                assert hear(client)[0][0] == 503
            with rig.connect() as plain:
                plain.sendall(GET)
                plain.settimeout(10)
                try:
                    answer = plain.recv(100)
                except ConnectionResetError:
                    answer = b""
                assert not answer.startswith(b"HTTP/")
