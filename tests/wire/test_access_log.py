"""The access log: which requests leave a line, what is in it, and how much a flood may write."""

import json
import logging
from typing import Any

import pytest

from interlock.wire import access_log
from interlock.wire.access_log import LINES_PER_S, AccessLog
from tests.wire.http_rig import Peer

HEAD = b"host: x\r\ncontent-length: 3\r\n\r\nabc"


def asked(path: str) -> bytes:
    return b"POST %b HTTP/1.1\r\n%b" % (path.encode(), HEAD)


def lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record.fields for record in caplog.records if record.name == "interlock.access"]  # type: ignore[attr-defined]


@pytest.fixture
def peer(caplog: pytest.LogCaptureFixture) -> Peer:
    caplog.set_level(logging.INFO, "interlock.access")
    return a_peer(3)


def a_peer(every: int) -> Peer:
    peer = Peer(access_log=AccessLog(every))
    peer.transport.peername = ("192.0.2.7", 4711)
    return peer


def test_every_third_request_leaves_a_line(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(7):
        peer.send(asked("/echo"))
    assert peer.statuses == [200] * 7
    first, second = lines(caplog)
    assert {**first, "duration_ms": 0} == {
        "request_id": "", "method": "POST", "path": "/echo", "status": 200, "bytes_in": 3, "bytes_out": 3,
        "duration_ms": 0, "peer": "192.0.2.7:4711",
    }  # fmt: skip
    assert 0 <= first["duration_ms"] < 10_000 and second["status"] == 200


def test_the_answer_of_a_sampled_request_is_the_same(peer: Peer) -> None:
    for _ in range(3):
        peer.send(asked("/echo"))
    answers = peer.sent.split(b"HTTP/1.1 200 OK")[1:]
    assert len(set(answers)) == 1


def test_a_sampled_request_that_is_answered_later_or_never(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    peer.send(*[asked("/later")] * 3, asked("/echo"))
    for exchange in reversed(peer.stage.later):
        exchange.respond(200, b"interlock-request-id: 7-0-1\r\n", b"late")
    (line,) = lines(caplog)
    assert (line["path"], line["request_id"], line["bytes_out"]) == ("/later", "7-0-1", 4)
    peer.send(*[asked("/later")] * 3)
    peer.connection.connection_lost(None)
    assert len(lines(caplog)) == 1 and peer.connection.sampled is None


def test_none_is_sampled_at_0(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "interlock.access")
    peer = a_peer(0)
    for _ in range(300):
        peer.send(asked("/echo"))
    assert lines(caplog) == []


def test_failures_of_ours_are_told_while_there_is_room(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(access_log, "monotonic", lambda: now_s)
    peer = a_peer(0)
    for _ in range(5 * LINES_PER_S):
        peer.send(asked("/refuse"))
    assert peer.statuses == [503] * 5 * LINES_PER_S
    told = lines(caplog)
    assert len(told) == LINES_PER_S and {line["status"] for line in told} == {503}
    now_s += 0.5
    for _ in range(LINES_PER_S):
        peer.send(asked("/refuse"))
    assert len(lines(caplog)) == LINES_PER_S * 3 // 2
    assert lines(caplog)[LINES_PER_S]["untold"] == 4 * LINES_PER_S


def test_samples_are_bounded_too(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "interlock.access")
    monkeypatch.setattr(access_log, "monotonic", lambda: 100.0)
    peer = a_peer(1)
    for _ in range(10 * LINES_PER_S):
        peer.send(asked("/echo"))
    assert len(lines(caplog)) == LINES_PER_S


def test_a_fault_of_the_application_is_one_traceback_while_there_is_room(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "monotonic", lambda: 100.0)
    peer = a_peer(0)
    for _ in range(5 * LINES_PER_S):
        peer.send(asked("/boom"))
    assert peer.statuses == [500] * 5 * LINES_PER_S
    assert peer.server.counts.app_errors == 5 * LINES_PER_S
    assert sum(record.exc_info is not None for record in caplog.records) <= LINES_PER_S


def test_what_a_client_sends_cannot_break_a_line(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        peer.send(asked("/" + "a" * 5000 + "%0a\\x"))
    (line,) = lines(caplog)
    assert len(line["path"]) == 512
    assert "\n" not in json.dumps(line)
