"""The transport against h11: what h11 refuses is refused here, and what both accept means the same to both.

h11 (pure Python, and no relative of llhttp) is the oracle. Exceptions are listed, with the reason.
"""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thorough import examples
from tests.wire.http_rig import Peer

Request = tuple[bytes, bytes, dict[bytes, bytes], bytes]


def by_us(stream: bytes) -> tuple[list[Request], bool]:
    """The requests that the application saw, and whether the connection was ended by an error."""
    peer = Peer()
    peer.send(stream)
    seen = []
    for exchange in peer.stage.seen:
        head = exchange.head
        target = head.path + (b"?" + head.query if head.query else b"")
        headers = dict(head.headers)
        if b"transfer-encoding" in headers:
            headers[b"transfer-encoding"] = headers[b"transfer-encoding"].lower()  # as h11 does
        seen.append((head.method, target, headers, bytes(exchange.body)))
    return seen, any(status >= 400 for status in peer.statuses)


def by_h11(stream: bytes) -> tuple[list[Request], bool]:
    """The same from the oracle, except that one empty line before a request is skipped (tested below)."""
    seen: list[Request] = []
    while True:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=32768)
        connection.receive_data(stream.removeprefix(b"\r\n"))
        body = b""
        request: h11.Request | None = None
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    return seen, False
        except h11.RemoteProtocolError:
            return seen, True
        assert request is not None
        headers: dict[bytes, bytes] = {}
        for name, value in request.headers:
            glue = b"; " if name == b"cookie" else b", "
            headers[name] = headers[name] + glue + value if name in headers else value
        seen.append((request.method, request.target, headers, body))
        connection.send(h11.Response(status_code=404, headers=[(b"content-length", b"0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is h11.MUST_CLOSE:
            return seen, False
        stream = connection.trailing_data[0]


def get(*lines: bytes, line: bytes = b"GET / HTTP/1.1", end: bytes = b"\r\n") -> bytes:
    return end.join([line, *lines, b"", b""])


def post(*lines: bytes, body: bytes = b"", line: bytes = b"POST / HTTP/1.1") -> bytes:
    return get(b"Host: x", *lines, line=line) + body


CHUNKED = b"Transfer-Encoding: chunked"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"

SAME = {
    "get": get(b"Host: x") + NEXT,
    "query": get(b"Host: x", line=b"GET /a%20b/?c=d&e=%2f HTTP/1.1"),
    "post": post(b"Content-Length: 5", body=b"hello") + NEXT,
    "chunked": post(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n") + NEXT,
    "chunk extension": post(CHUNKED, body=b'5;a="b c"\r\nhello\r\n0;last\r\n\r\n') + NEXT,
    "upper case hex": post(CHUNKED, body=b"A\r\n0123456789\r\n00\r\n\r\n") + NEXT,
    "trailers": post(CHUNKED, body=b"1\r\na\r\n0\r\nX-T: 1\r\n\r\n") + NEXT,
    "CHUNKED": post(b"TRANSFER-ENCODING: CHUNKED", body=b"0\r\n\r\n"),
    "repeated header": get(b"Host: x", b"A: 1", b"a: 2", b"Cookie: a", b"Cookie: b"),
    "empty value": get(b"Host: x", b"A:", b"B: \t "),
    "blanks in a value": get(b"Host: x", b"A:  \tb c\td\t "),
    "obs-text": get(b"Host: x", b"A: \xe9\xff"),
    "options *": get(b"Host: x", line=b"OPTIONS * HTTP/1.1"),
    "HTTP/1.0": get(line=b"GET / HTTP/1.0"),
    "HTTP/1.0 keep": get(b"Connection: keep-alive", line=b"GET / HTTP/1.0"),
    "empty host": get(b"Host:"),
    "leading zeros": post(b"Content-Length: 005", body=b"hello"),
    "close": get(b"Host: x", b"Connection: close"),
    # Refused by both.
    "no host": get(b"A: b"),
    "two hosts": get(b"Host: x", b"Host: y"),
    "two equal hosts": get(b"Host: x", b"Host: x"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 bare LF": b"GET /\n\n",
    "no version": get(b"Host: x", line=b"GET / "),
    "two spaces": get(b"Host: x", line=b"GET  / HTTP/1.1"),
    "tab": get(b"Host: x", line=b"GET\t/ HTTP/1.1"),
    "space in target": get(b"Host: x", line=b"GET /a b HTTP/1.1"),
    "target not ASCII": get(b"Host: x", line=b"GET /\xe9 HTTP/1.1"),
    "NUL in target": get(b"Host: x", line=b"GET /\0 HTTP/1.1"),
    "trailing space": get(b"Host: x", line=b"GET / HTTP/1.1 "),
    "lower case protocol": get(b"Host: x", line=b"GET / http/1.1"),
    "RTSP": get(b"Host: x", line=b"DESCRIBE / RTSP/1.0"),
    "CL not a number": post(b"Content-Length: abc", body=b"hello"),
    "CL plus": post(b"Content-Length: +5", body=b"hello"),
    "CL minus": post(b"Content-Length: -5", body=b"hello"),
    "CL space inside": post(b"Content-Length: 5 5", body=b"hello"),
    "CL hex": post(b"Content-Length: 0x5", body=b"hello"),
    "CL empty": post(b"Content-Length:", body=b"hello"),
    "CL huge": post(b"Content-Length: " + b"9" * 30, body=b"hello"),
    "CL twice, different": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "CL list, different": post(b"Content-Length: 5, 6", body=b"hello!"),
    "CL underscore": post(b"Content-Length: 1_0", body=b"0123456789"),
    "TE xchunked": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "TE gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "TE chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "TE identity": post(b"Transfer-Encoding: identity", b"Content-Length: 1", body=b"a"),
    "TE twice": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "TE twice, other": post(CHUNKED, b"Transfer-Encoding: x", body=b"0\r\n\r\n"),
    "TE quoted": post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "TE vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "TE space before colon": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "space before colon": get(b"Host: x", b"A : b"),
    "no colon": get(b"Host: x", b"Ab"),
    "empty name": get(b"Host: x", b": b"),
    "name not a token": get(b"Host: x", b"A(b): c"),
    "NUL in value": get(b"Host: x", b"A: b\0c"),
    "NUL in name": get(b"Host: x", b"A\0: b"),
    "CR in value": get(b"Host: x", b"A: b\rc"),
    "chunk size overflow": post(CHUNKED, body=b"FFFFFFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n"),
    "chunk size empty": post(CHUNKED, body=b"\r\nhello\r\n0\r\n\r\n"),
    "chunk size minus": post(CHUNKED, body=b"-1\r\nhello\r\n0\r\n\r\n"),
    "chunk size plus": post(CHUNKED, body=b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size 0x": post(CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size underscore": post(CHUNKED, body=b"0_5\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than its size": post(CHUNKED, body=b"4\r\nhello\r\n0\r\n\r\n"),
    "chunk shorter than its size": post(CHUNKED, body=b"6\r\nhello\r\n0\r\n\r\n"),
    "chunk without CRLF": post(CHUNKED, body=b"5\r\nhelloXX0\r\n\r\n"),
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "chunk line bare LF": post(CHUNKED, body=b"5;\nhello\r\n0\r\n\r\n"),
    "trailer malformed": post(CHUNKED, body=b"0\r\nX T: 1\r\n\r\n") + NEXT,
}

STRICTER = {
    # name: (bytes, why we refuse what h11 takes)
    "CL and TE": (
        post(b"Content-Length: 3", CHUNKED, body=b"0\r\n\r\n"),
        "RFC 9112 6.1 lets TE win; an intermediary may let CL win: the classic smuggling case",
    ),
    "TE and CL": (post(CHUNKED, b"Content-Length: 3", body=b"0\r\n\r\n"), "the same, other order"),
    "TE on HTTP/1.0": (
        get(CHUNKED, line=b"POST / HTTP/1.0") + b"0\r\n\r\n",
        "RFC 9112 6.1: framing is then faulty",
    ),
    "CL twice, equal": (
        post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
        "RFC 9110 8.6 permits refusing; nobody needs it",
    ),
    "CL list, equal": (post(b"Content-Length: 5, 5", body=b"hello"), "the same"),
    "bare LF": (get(b"Host: x", end=b"\n"), "RFC 9112 2.2 permits it; peers disagree on it"),
    "bare LF in a head": (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", "the same"),
    "TE as an obs-fold": (
        post(b"\tTransfer-Encoding: chunked", body=b"0\r\n\r\n"),
        "RFC 9112 5.2: a server may refuse a folded line, which peers read in two ways",
    ),
    "obs-fold": (get(b"Host: x", b"A: b", b" c"), "RFC 9112 5.2: a server may refuse it"),
    "chunk size blanks": (
        post(CHUNKED, body=b"5 \r\nhello\r\n0\r\n\r\n"),
        "not in the grammar; h11 is lenient for old servers",
    ),
    "trailer bare LF": (post(CHUNKED, body=b"0\r\nX-T: 1\n\r\n"), "the same"),
    "unknown method": (get(b"Host: x", line=b"FROB / HTTP/1.1"), "501: llhttp knows the registered ones"),
    "lower case method": (get(b"Host: x", line=b"get / HTTP/1.1"), "the same"),
    "HTTP/1.2": (get(b"Host: x", line=b"GET / HTTP/1.2"), "no such protocol"),
    "HTTP/2.0": (get(b"Host: x", line=b"GET / HTTP/2.0"), "505"),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
    "CONNECT": (get(b"Host: x", line=b"CONNECT x:80 HTTP/1.1"), "no proxy"),
    "control in value": (get(b"Host: x", b"A: b\x01c"), "RFC 9110 5.5"),
    "DEL in value": (get(b"Host: x", b"A: b\x7fc"), "RFC 9110 5.5"),
    "target no path": (get(b"Host: x", line=b"GET x HTTP/1.1"), "RFC 9112 3.2"),
    "GET *": (get(b"Host: x", line=b"GET * HTTP/1.1"), "RFC 9112 3.2.4"),
    "fragment": (get(b"Host: x", line=b"GET /a#b HTTP/1.1"), "RFC 9112 3.2: not in the grammar"),
    "user in target": (get(b"Host: x", line=b"GET http://u@x/ HTTP/1.1"), "RFC 9110 4.2.4"),
    "expectation": (get(b"Host: x", b"Expect: 200-ok"), "417"),
    "content-encoding": (post(b"Content-Encoding: br", b"Content-Length: 1", body=b"a"), "415"),
    "authorization twice": (get(b"Host: x", b"Authorization: a", b"Authorization: b"), "who is asking?"),
}

LAXER = {
    # name: (bytes, why we take what h11 refuses)
    "trailers named as framing": (
        post(CHUNKED, body=b"0\r\nTransfer-Encoding: x\r\nContent-Length: 1, 2\r\n\r\n") + NEXT,
        "h11 judges trailers as headers; here they are checked for their form and dropped",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_both_understand_the_same(name: str) -> None:
    seen, refused = by_us(SAME[name])
    wanted, unwanted = by_h11(SAME[name])
    assert seen == wanted
    assert refused == unwanted
    assert seen or refused, "the case says nothing"


@pytest.mark.parametrize("name", STRICTER)
def test_refused_here_only(name: str) -> None:
    stream, _why = STRICTER[name]
    seen, refused = by_us(stream + NEXT)
    assert refused
    assert seen == [], "nothing that follows a refused request may be taken for one"
    assert by_h11(stream)[0], "h11 refuses it too: move it to SAME"


@pytest.mark.parametrize("name", LAXER)
def test_accepted_here_only(name: str) -> None:
    stream, _why = LAXER[name]
    assert by_us(stream)[0]
    assert by_h11(stream)[1], "h11 accepts it too: move it to SAME"


def test_one_empty_line_before_a_request_is_skipped() -> None:
    """h11 refuses it; RFC 9112 2.2: a server SHOULD ignore at least one."""
    assert by_us(b"\r\n" + NEXT + b"\r\n" + NEXT) == (by_h11(NEXT + NEXT)[0], False)


@pytest.mark.parametrize("first", [b"\r\n\r\n", b"\r\r", b"\n", b"\r", b" "])
def test_other_beginnings_are_refused(first: bytes) -> None:
    assert by_us(first + NEXT) == ([], True)


def test_an_absolute_target_is_reduced_and_names_the_host() -> None:
    seen, _ = by_us(get(b"Host: x", line=b"GET http://other:81/a?b HTTP/1.1"))
    assert seen == [(b"GET", b"/a?b", {b"host": b"other:81"}, b"")]


def test_an_upgrade_is_ignored() -> None:
    lines = (b"Connection: Upgrade", b"Upgrade: websocket")
    seen, refused = by_us(post(*lines, b"Content-Length: 2", body=b"hi") + NEXT)
    assert [(one[1], one[3]) for one in seen] == [(b"/", b"hi"), (b"/next", b"")]
    assert not refused


WELL_FORMED = [stream for name, stream in SAME.items() if by_h11(stream)[0] and not by_h11(stream)[1]]
SPICE = [bytes([byte]) for byte in b"\r\n \t\0:,;05A\x0b\x7f\xff"]
SPICE += [
    b"",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\nHost: y",
    b"\r\nContent-Length: 1",
    b"\r\nTransfer-Encoding: chunked",
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    stream = bytearray(draw(st.sampled_from(WELL_FORMED)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(stream)))
        gone = draw(st.integers(0, 2))
        stream[at : at + gone] = draw(st.sampled_from(SPICE))
    return bytes(stream)


@settings(max_examples=examples(500))
@given(mutated())
def test_no_mutation_gets_past_us_that_h11_refuses(stream: bytes) -> None:
    seen, _ = by_us(stream)
    wanted, refused = by_h11(stream)
    if len(seen) > len(wanted):
        # The one excuse: trailers whose names h11 judges (LAXER).
        assert refused
        assert seen[len(wanted)][2].get(b"transfer-encoding") == b"chunked"
        assert b":" in stream.rpartition(b"\r\n0")[2].partition(b"\r\n\r\n")[0]
    common = min(len(seen), len(wanted))
    assert seen[:common] == wanted[:common]
