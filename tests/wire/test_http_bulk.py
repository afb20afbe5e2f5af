"""Large bodies go straight into their place: the same requests, whatever the split, the loop or the hurry."""

import asyncio
import gzip
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from interlock.wire import http_connection
from interlock.wire.http import HttpLimits, new_loop
from interlock.wire.http_bulk import EVEN_BYTES, BulkBody
from tests.wire.http_rig import Peer, hear, serving
from tests.wire.test_http_split import GET, GOOD, pieces, said

ODD = bytes(range(251)) * 3000
SIZED = [one for one in GOOD if b"Content-Length" in one]
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def every_body_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "BULK_BYTES", 1)


@pytest.mark.usefixtures("every_body_is_large")
def test_any_split_gives_the_same_exchanges() -> None:
    began: list[BulkBody] = []
    begin = BulkBody.begin

    def seen(bulk: BulkBody) -> None:
        began.append(bulk)
        begin(bulk)

    @given(
        st.lists(st.sampled_from(GOOD + SIZED), min_size=1, max_size=8).map(b"".join),
        st.lists(st.integers(0, 5000), max_size=40),
        st.sampled_from([1, 3, 64]),
    )
    @example(SIZED[0], [len(SIZED[0]) - 3], 64)
    def check(stream: bytes, cuts: list[int], max_pipelined: int) -> None:
        whole, parts = Peer(), Peer(HttpLimits(max_pipelined=max_pipelined))
        whole.send(stream)
        parts.send(*pieces(stream, cuts))
        assert [said(one) for one in parts.stage.seen] == [said(one) for one in whole.stage.seen]
        assert parts.sent == whole.sent
        assert parts.transport.is_open == whole.transport.is_open

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BulkBody, "begin", seen)
        check()
    assert began


@pytest.mark.parametrize("even_at", [0, 1, 187, 700])
def test_the_tensors_lie_on_a_boundary(even_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer()
    monkeypatch.setattr(peer.stage, "even_at", lambda context: even_at)
    peer.send(POST % len(ODD), ODD[:300], ODD[300:])
    (exchange,) = peer.stage.seen
    address = np.frombuffer(exchange.body, np.uint8)[even_at:].ctypes.data
    assert address % EVEN_BYTES == 0 and bytes(exchange.body) == ODD


@pytest.mark.usefixtures("every_body_is_large")
def test_a_compressed_body_is_inflated() -> None:
    peer = Peer()
    data = gzip.compress(b"zipped")
    head = b"POST /gz HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    peer.send(head % len(data), data[:5], data[5:])
    assert peer.stage.seen[0].body == b"zipped"


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind() -> None:
    peer = Peer()
    peer.send(POST % len(ODD) + ODD[:300])
    bulk = peer.transport.protocol
    assert isinstance(bulk, BulkBody)
    bulk.connection_lost(None)
    assert peer.transport.protocol is peer.connection and peer.server.counts.connections == 0
    assert peer.stage.seen == []


def test_a_body_that_stays_out_is_given_up_and_the_rest_is_dropped() -> None:
    limits = HttpLimits()
    peer = Peer(limits)
    peer.send(POST % len(ODD) + ODD[:300])
    peer.connection.sweep(peer.connection._touched_s + limits.body_timeout_s + 1)
    assert peer.statuses == [408] and peer.transport.protocol is peer.connection
    peer.send(ODD[300:], GET)
    assert peer.stage.seen == [], "nothing that follows is taken for a request"


def test_what_trickles_in_keeps_its_time() -> None:
    peer = Peer()
    peer.send(POST % len(ODD) + ODD[:300])
    before_s = peer.connection._touched_s
    peer.send(ODD[300:400])
    assert peer.connection._touched_s > before_s and peer.connection._dropped_bytes == 400


def test_a_server_that_leaves_lets_the_body_arrive() -> None:
    peer = Peer()
    peer.send(POST % len(ODD) + ODD[:300])
    peer.connection.leave_soon()
    peer.send(ODD[300:])
    assert peer.statuses == [200] and peer.transport.has_eof


@pytest.mark.parametrize("factory", [new_loop, asyncio.new_event_loop])
def test_on_a_real_socket_between_small_requests(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with serving(loop_factory=factory) as rig, rig.connect() as connection:
        for _ in range(3):
            connection.sendall(GET + POST % len(ODD) + ODD + GET)
            answers = hear(connection, 3)
            assert [status for status, _, _ in answers] == [200] * 3
            assert zlib.crc32(answers[1][2]) == zlib.crc32(ODD)
        seen = rig.call(lambda: [type(exchange.body) for exchange in rig.stage.seen])
        assert seen.count(memoryview) == 3


def test_memory_of_what_is_only_announced_is_not_touched() -> None:
    limit = HttpLimits(max_body_bytes=1 << 34)
    before = resident_bytes()
    peers = []
    for _ in range(8):
        peer = Peer(limit)
        peer.send(POST % (1 << 30) + b"x")
        peers.append(peer)
    assert resident_bytes() - before < 64 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
