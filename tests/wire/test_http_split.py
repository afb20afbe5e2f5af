"""Bytes to requests, in memory: any split of the stream gives the same requests; answers keep their order."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.wire.http import Exchange, HttpLimits
from tests.wire.http_rig import REFUSED, Peer

GET = b"GET /a/b?c=d HTTP/1.1\r\nHost: x\r\nX-Unit: 1\r\n\r\n"
GOOD = [
    GET,
    b"HEAD /h HTTP/1.1\r\nhost:x\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello\r\n\r\nwo",
    b"POST /z HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\n\r\n!\r\n"
    b"0\r\nHost: evil\r\nX-Unit: 2\r\n\r\n",
    b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd",
    b"GET /refuse HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\nGET /after-empty-line HTTP/1.1\r\nHost: x\r\nA: 1\r\na: 2\r\nTrail: v \t\r\n\r\n",
    b"GET /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"POST /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
    b"GET http://other:80?q=/x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
    b"GET /empty HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /boom HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1",
    b"GET /boom-admit HTTP/1.1\r\nHost: x\r\n\r\n",
]
GOOD += [
    b"POST /gz HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
    % (len(data), data)
    for data in (gzip.compress(b"zipped"), gzip.compress(b"two") + gzip.compress(b" members"))
]
BAD = [
    b"GARBAGE\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\n",
]


def said(exchange: Exchange) -> tuple[object, ...]:
    head = exchange.head
    body = bytes(exchange.body)
    return head.method, head.path, head.query, head.headers, head.body_length, body, exchange.context


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return [stream[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]


streams = st.builds(
    lambda good, bad: b"".join(good) + bad,
    st.lists(st.sampled_from(GOOD), min_size=1, max_size=8),
    st.sampled_from([b"", *BAD]),
)


@given(streams, st.lists(st.integers(0, 5000), max_size=40), st.sampled_from([1, 3, 64]))
def test_any_split_gives_the_same_exchanges(stream: bytes, cuts: list[int], max_pipelined: int) -> None:
    whole, parts = Peer(), Peer(HttpLimits(max_pipelined=max_pipelined))
    whole.send(stream)
    parts.send(*pieces(stream, cuts))
    assert [said(one) for one in parts.stage.seen] == [said(one) for one in whole.stage.seen]
    assert parts.sent == whole.sent
    assert parts.transport.is_open == whole.transport.is_open
    assert parts.transport.has_eof == whole.transport.has_eof


def test_one_byte_at_a_time() -> None:
    stream = b"".join(GOOD)
    whole, drip = Peer(), Peer()
    whole.send(stream)
    drip.send(*[bytes([byte]) for byte in stream])
    assert len(whole.stage.seen) == len(GOOD) - 3
    assert [said(one) for one in drip.stage.seen] == [said(one) for one in whole.stage.seen]
    assert drip.sent == whole.sent


def test_trailers_do_not_reach_the_headers() -> None:
    peer = Peer()
    peer.send(GOOD[4])
    assert peer.stage.seen[0].head.headers == {b"host": b"x", b"transfer-encoding": b"chunked"}
    assert peer.stage.seen[0].body == b"hello\r\n!"


def test_repeated_headers_are_joined_and_blanks_are_stripped() -> None:
    peer = Peer()
    peer.send(GOOD[7])
    assert peer.stage.seen[0].head.headers == {b"host": b"x", b"a": b"1, 2", b"trail": b"v"}


@given(st.permutations(range(5)), st.booleans())
def test_answers_keep_the_order_of_requests(order: list[int], streamed: bool) -> None:
    peer = Peer()
    peer.send(*[b"GET /later/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(5)])
    for number in order:
        exchange = peer.stage.later[number]
        if streamed:
            stream = exchange.stream(200, b"")
            assert stream.write(b"<%d" % number)
            stream.write(b">")
            stream.close()
        else:
            exchange.respond(200, b"", b"<%d>" % number)
    if streamed:
        places = [peer.sent.index(b"<%d" % number) for number in range(5)]
        assert places == sorted(places)
    else:
        assert [part[:3] for part in peer.sent.split(b"\r\n\r\n")[1:]] == [b"<%d>" % n for n in range(5)]


@given(st.integers(1, 5), st.integers(1, 30), st.lists(st.integers(0, 1000), max_size=20))
def test_pipelined_requests_are_bounded(limit: int, count: int, cuts: list[int]) -> None:
    peer = Peer(HttpLimits(max_pipelined=limit))
    stream = b"".join(
        b"POST /later/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" % n for n in range(count)
    )
    peer.send(*pieces(stream, cuts))
    answered = 0
    while answered < count:
        assert len(peer.stage.later) - answered <= limit
        assert peer.transport.is_paused or len(peer.stage.later) == count
        peer.stage.later[answered].respond(200, b"", b"%d" % answered)
        answered += 1
        peer.pump()
    assert [one.head.path for one in peer.stage.seen] == [b"/later/%d" % n for n in range(count)]
    assert peer.statuses == [200] * count


def test_a_second_answer_raises() -> None:
    peer = Peer()
    peer.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
    exchange = peer.stage.later[0]
    exchange.respond(200, b"", b"once")
    for again in (lambda: exchange.respond(200, b"", b"twice"), lambda: exchange.stream(200, b"")):
        with pytest.raises(RuntimeError, match="answered already"):
            again()
    assert peer.statuses == [200]


def test_a_failing_application_answers_500_and_stays_usable() -> None:
    peer = Peer()
    peer.send(b"GET /boom HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /boom-admit HTTP/1.1\r\nHost: x\r\n\r\n", GET)
    assert peer.statuses == [500, 500, 200]
    assert peer.server.counts.app_errors == 2
    assert b"ZeroDivision" not in peer.sent


def test_a_small_refused_body_keeps_the_connection() -> None:
    peer = Peer(HttpLimits(drain_bytes=4))
    peer.send(GOOD[5], GET)
    assert peer.statuses == [503, 200]
    assert REFUSED in peer.sent
    assert [one.head.path for one in peer.stage.seen] == [b"/a/b"]


def test_a_large_refused_body_ends_the_connection() -> None:
    peer = Peer(HttpLimits(drain_bytes=3))
    peer.send(GOOD[5], GET)
    assert peer.statuses == [503]
    assert b"connection: close" in peer.sent
    assert peer.transport.has_eof


def test_continue_only_when_admitted_and_in_order() -> None:
    expects = b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    peer = Peer()
    peer.send(b"POST /a HTTP/1.1\r\nHost: x\r\n" + expects)
    assert peer.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.send(b"ab")
    assert peer.statuses == [100, 200]
    peer.send(b"POST /refuse HTTP/1.1\r\nHost: x\r\n" + expects)
    assert peer.statuses == [100, 200, 503]

    behind = Peer()
    behind.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /a HTTP/1.1\r\nHost: x\r\n" + expects)
    assert behind.sent == b""
    behind.stage.later[0].respond(200, b"", b"")
    assert behind.statuses == [200, 100]
    behind.send(b"ok")
    assert behind.statuses == [200, 100, 200]


def test_no_continue_when_the_body_is_already_here() -> None:
    peer = Peer()
    peer.send(b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab")
    assert peer.statuses == [200]


@pytest.mark.parametrize(
    "encode", [gzip.compress, zlib.compress, lambda data: zlib.compress(data, wbits=-15)]
)
@pytest.mark.parametrize("name", [b"gzip", b"deflate"])
def test_decompressed_size_is_bounded(encode: Callable[[bytes], bytes], name: bytes) -> None:
    fits = (encode is gzip.compress) == (name == b"gzip")
    for size, status in ((1000, 200), (1001, 413)):
        data = encode(b"a" * size)
        peer = Peer(HttpLimits(max_body_bytes=1000))
        peer.send(
            b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (name, len(data), data),
            GET,
        )
        assert peer.statuses == [status if fits else 400, 200]


@pytest.mark.parametrize("cut", [0, 1, 5, -1, -9])
def test_a_broken_stream_is_400(cut: int) -> None:
    data = gzip.compress(b"hello world")[:cut] or b"\x1f"
    peer = Peer()
    peer.send(
        b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data),
        data,
    )
    assert peer.statuses == [400]


def test_a_client_that_leaves_is_told_once_to_each_unanswered_exchange() -> None:
    peer = Peer()
    peer.send(*[b"GET /later/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(3)])
    peer.stage.later[1].respond(200, b"", b"kept, and never sent")
    assert peer.connection.eof_received() is False
    peer.connection.connection_lost(None)
    assert peer.stage.gone == [b"/later/0", b"/later/2"]
    for exchange in (peer.stage.later[0], peer.stage.later[2]):
        exchange.respond(200, b"", b"dropped")
        exchange.respond(200, b"", b"dropped again")
    assert peer.sent == b""


def test_no_answer_leaves_after_the_first_error() -> None:
    peer = Peer()
    peer.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n" + BAD[1] + GET)
    assert peer.sent == b""
    peer.stage.later[0].respond(200, b"", b"")
    assert peer.statuses == [200, 400]
    assert peer.transport.has_eof
    assert len(peer.stage.seen) == 1


@pytest.mark.parametrize("follow", [b"", GET, GET[:9], b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_nothing_begins_behind_the_answer_that_was_announced_as_the_last(follow: bytes) -> None:
    peer = Peer()
    peer.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    peer.server.is_draining = True
    peer.connection.leave_soon()
    peer.send(follow)
    for exchange in peer.stage.later:
        exchange.respond(200, b"", b"")
    assert peer.statuses == [200, 200]
    assert peer.sent.count(b"connection: close") == 1
    assert peer.transport.has_eof
    assert len(peer.stage.seen) == 2


def test_a_drain_lets_a_body_under_way_arrive() -> None:
    peer = Peer()
    peer.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
    peer.server.is_draining = True
    peer.connection.leave_soon()
    peer.send(b"cd" + GET)
    assert peer.statuses == [200]
    assert b"connection: close" in peer.sent
    assert [one.body for one in peer.stage.seen] == [b"abcd"]
