"""The requests of one turn of the loop go to the application together; one that breaks it harms no other."""

import asyncio

from interlock.wire.http import Exchange, Head, HttpServer
from interlock.wire.http_connection import Connection
from interlock.wire.http_exchange import GONE
from tests.wire.http_rig import MemoryTransport

ASK = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


class Turns:
    """Remembers what came together, and answers it; raises where it meets the path /13."""

    def __init__(self) -> None:
        self.turns: list[list[bytes]] = []
        self.begun: list[Exchange] = []

    def admit(self, head: Head, received_s: float) -> None:
        return None

    def even_at(self, context: object) -> int:
        return 0

    def handle(self, exchanges: list[Exchange]) -> None:
        self.turns.append([exchange.head.path for exchange in exchanges])
        for exchange in exchanges:
            if exchange.head.path == b"/13":
                raise ZeroDivisionError
            if exchange.head.path == b"/7":
                exchange.on_gone = lambda: None
                self.begun.append(exchange)
            else:
                exchange.respond(200, b"", b"ok")


class Many:
    """A server, and connections to it in memory."""

    def __init__(self, count: int) -> None:
        self.app = Turns()
        self.server = HttpServer(self.app)
        self.ends: list[tuple[Connection, MemoryTransport]] = []
        for _ in range(count):
            end = Connection(self.server), MemoryTransport()
            end[0].connection_made(end[1])
            self.ends.append(end)

    def ask(self, number: int, path: int | None = None) -> None:
        self.ends[number][0].data_received(ASK % (number if path is None else path))

    def statuses(self) -> list[bytes]:
        return [bytes(transport.sent[9:12]) for _, transport in self.ends]


async def turn_until(many: Many, turns: int) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
        if len(many.app.turns) >= turns:
            return
    raise AssertionError(many.app.turns)


async def test_what_comes_while_others_are_read_is_taken_with_them() -> None:
    many = Many(4)
    many.ask(0)
    many.ask(1)
    await asyncio.sleep(0)
    assert many.app.turns == [], "the sockets are looked at again"
    many.ask(2)
    many.ask(3)
    await turn_until(many, 1)
    assert many.app.turns == [[b"/0", b"/1", b"/2", b"/3"]]
    assert many.statuses() == [b"200"] * 4


async def test_a_lone_request_waits_for_nobody() -> None:
    many = Many(1)
    many.ask(0)
    await asyncio.sleep(0)
    assert many.app.turns == [[b"/0"]]


async def test_a_steady_stream_cannot_put_the_turn_off() -> None:
    many = Many(30)
    many.ask(0)
    for number in range(1, 30):
        many.ask(number)
        await asyncio.sleep(0)
        if many.app.turns:
            break
    assert len(many.app.turns[0]) <= 4


async def test_a_request_that_breaks_the_application_fails_alone_among_those_begun_or_answered() -> None:
    many = Many(4)
    for number, path in enumerate((0, 7, 13, 3)):
        many.ask(number, path)
    await turn_until(many, 1)
    # Nobody had begun the last one when the application broke.
    assert many.statuses() == [b"200", b"", b"500", b"500"]
    (begun,) = many.app.begun
    begun.respond(200, b"", b"late")
    assert many.statuses()[1] == b"200"
    many.ask(3)
    await turn_until(many, 2)
    assert many.ends[3][1].sent.endswith(b"ok"), "the connection stays usable"


async def test_who_has_gone_before_the_turn_is_known_as_gone() -> None:
    many = Many(2)
    seen: list[int] = []
    many.app.handle = lambda exchanges: seen.extend(e.state for e in exchanges)  # type: ignore[method-assign]
    many.ask(0)
    many.ends[0][0].connection_lost(None)
    await asyncio.sleep(0)
    assert seen == [GONE]
