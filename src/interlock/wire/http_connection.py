"""Owns one connection: cuts its bytes into requests, keeps the answers in order, and decides when it ends.

A head is parsed only when it is complete and there is room for its request; a body of known length is cut out
by arithmetic; answers leave in the order of their requests, whatever the order in which they come. Nothing
waits; `sweep`, called a few times a second by the server, stands for all timers.

Past 400 lines because it is one state machine: what comes in, what goes out and how it ends share all fields.
"""

import asyncio
import logging
from time import monotonic
from typing import Protocol, cast

from interlock.wire.access_log import AccessLog
from interlock.wire.http_body import ChunkedBody, inflate
from interlock.wire.http_bulk import BULK_BYTES, BulkBody
from interlock.wire.http_exchange import CLOSE, DONE, GONE, KEEP, LINGER, OPEN, App, Exchange
from interlock.wire.http_head import Head, HeadReader, Refusal, Scout, refusal
from interlock.wire.http_limits import Counts, HttpLimits, body_is_late, linger_is_over

_LOG = logging.getLogger("interlock.wire")

# What the next byte belongs to.
_HEAD, _BODY, _CHUNKED, _DROPPED, _LINGER, _CLOSED = range(6)
# Why nothing is read: too many unanswered requests, or too many unread answers.
_PIPELINE, _WRITE = 1, 2

_END_OF_HEAD = b"\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_HEAD = Head(b"", b"", b"", {}, 0, True, False, False, b"")
_FAILED = refusal(500, "internal error: the server's log has the details")
# Larger ones are decompressed in a thread: a bomb of 4 KiB holds the loop for at most about 5 ms.
_INLINE_INFLATE_BYTES = 4096
_MEMO_BYTES = 2048
# Up to here a body that came with its head costs less to decode than the first stage of admission could save.
_SMALL_BODY_BYTES = 4096


def _result(done: "asyncio.Future[bytes | Refusal]") -> bytes | Refusal:
    error = done.exception()
    if error is None:
        return done.result()
    _LOG.error("decompressing failed", exc_info=error)
    return _FAILED


class Owner(Protocol):
    """What a connection needs of its server."""

    app: App
    limits: HttpLimits
    counts: Counts
    head_reader: HeadReader
    lines: dict[int, bytes]
    is_draining: bool
    access_log: AccessLog
    turn: list[Exchange]

    def wake(self) -> None: ...
    def line(self, status: int) -> bytes: ...
    def joined(self, connection: "Connection") -> None: ...
    def left(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """One TCP or TLS connection of an HttpServer."""

    __slots__ = (
        "_access",
        "_app",
        "_body_left",
        "_bulk",
        "_chunks",
        "_counts",
        "_current",
        "_dropped_bytes",
        "_idle_from_s",
        "_is_dropping",
        "_is_feeding",
        "_is_reading",
        "_limits",
        "_linger_from_s",
        "_memo_bytes",
        "_memo_context",
        "_memo_head",
        "_memo_size",
        "_partial",
        "_phase",
        "_pieces",
        "_rest",
        "_scout",
        "_server",
        "_started_s",
        "_touched_s",
        "_turn",
        "_unsent_bytes",
        "_unsent_from_s",
        "high_water_bytes",
        "hold",
        "lines",
        "queue",
        "sampled",
        "transport",
    )

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._app = server.app
        self._limits = server.limits
        self._counts = server.counts
        self._access = server.access_log
        self._turn = server.turn
        self.sampled: Exchange | None = None
        self.lines = server.lines
        self.high_water_bytes = server.limits.write_high_water_bytes
        self.transport: asyncio.Transport
        # A list, not a deque: it holds one entry nearly always, and at most max_pipelined.
        self.queue: list[Exchange] = []
        self._phase = _HEAD
        self.hold = 0
        self._is_reading = True
        self._is_feeding = False
        self._partial = bytearray()
        self._scout: Scout | None = None
        self._rest = b""
        self._current: Exchange | None = None
        self._is_dropping = False
        self._body_left = 0
        self._bulk: BulkBody | None = None
        self._pieces: list[bytes] = []
        self._chunks: ChunkedBody | None = None
        self._dropped_bytes = 0
        self._memo_bytes = b""
        self._memo_head = _NO_HEAD
        self._memo_size = -1
        self._memo_context: object = None
        self._started_s = self._touched_s = self._idle_from_s = monotonic()
        self._linger_from_s = 0.0
        self._unsent_bytes = 0
        self._unsent_from_s = 0.0

    # --- called by the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop does not derive its own from it.
        self.transport.set_write_buffer_limits(high=self.high_water_bytes)
        self._server.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._server.left(self)

    def eof_received(self) -> bool:
        self._leave()
        return False

    def pause_writing(self) -> None:
        self.hold |= _WRITE
        self._unsent_from_s = monotonic()
        self._pause_reading()

    def resume_writing(self) -> None:
        self.hold &= ~_WRITE
        if self.queue and self.queue[0].streamed is not None:
            self.queue[0].streamed.wake()
        self._resume()

    def data_received(self, data: bytes) -> None:
        now_s = self._touched_s = monotonic()
        if len(data) == self._memo_size and self._phase == _HEAD and data.startswith(self._memo_bytes):
            # The usual case: one whole request in one piece, its head as before, and nothing else to mind.
            if not (self.queue or self.hold or self._partial or self._rest or self._server.is_draining):
                counts = self._counts
                number = counts.requests = counts.requests + 1
                body = data[len(self._memo_bytes) :]
                exchange = Exchange(self._memo_head, body, None, self._memo_context, self, True, KEEP, now_s)
                if number >= self._access.next_at:
                    self._sample(exchange, number)
                self.queue.append(exchange)
                turn = self._turn
                turn.append(exchange)
                if len(turn) == 1:
                    self._server.wake()
                return
        if self._rest:
            # TLS may hand over what it had decrypted before the reading stopped.
            self._rest += data
            return
        self._feed(data)

    # --- called by exchanges ---

    @property
    def is_write_full(self) -> bool:
        return self.hold & _WRITE != 0

    def line(self, status: int) -> bytes:
        return self._server.line(status)

    def is_next(self, exchange: Exchange) -> bool:
        queue = self.queue
        return bool(queue) and queue[0] is exchange

    def settle(self, exchange: Exchange) -> None:
        """The first of the queue is answered and written: let the next ones follow."""
        queue = self.queue
        while True:
            del queue[0]
            if exchange.after:
                self._finish(exchange.after)
                return
            if not queue:
                break
            exchange = queue[0]
            if exchange.held is not None:
                self.transport.writelines(exchange.held)
                exchange.held = None
            if exchange.state != DONE:
                if exchange.streamed is not None:
                    exchange.streamed.wake()
                elif exchange is self._current:
                    self._send_continue(exchange)
                break
        if self.hold & _PIPELINE and len(queue) < self._limits.max_pipelined:
            self.hold &= ~_PIPELINE
            self._resume()

    def abort(self) -> None:
        self._leave()
        self.transport.abort()

    # --- called by the server ---

    def leave_soon(self) -> None:
        """Say `Connection: close` in the last answer; leave at once when nothing is asked."""
        if self.queue:
            last = self.queue[-1]
            if last.after == KEEP:
                last.after, last.is_plain = LINGER, False
            if self._phase == _HEAD:
                # That answer is announced as the last one: begin nothing behind it.
                self._phase = _DROPPED
                self._partial = bytearray()
                self._rest = b""
        elif self._phase == _HEAD and not self._partial:
            self._finish(CLOSE)

    def sweep(self, now: float) -> None:
        """Give up what takes too long."""
        limits = self._limits
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent_bytes > 0:
            if now - self._unsent_from_s > limits.write_timeout_s:
                self.abort()
                return
        else:
            self._unsent_from_s = now
        self._unsent_bytes = unsent
        phase = self._phase
        if phase == _LINGER:
            if linger_is_over(now, self._linger_from_s, self._touched_s, limits):
                self._finish(CLOSE)
        elif phase == _HEAD:
            if self.hold or self._rest:
                self._started_s = now
            elif self._partial:
                if now - self._started_s > limits.header_timeout_s:
                    self._fail(refusal(408, f"the headers took over {limits.header_timeout_s:g} s"))
            elif self.queue or unsent:
                self._idle_from_s = now
            elif (
                self._server.is_draining
                or now - max(self._idle_from_s, self._touched_s) > limits.idle_timeout_s
            ):
                self._finish(CLOSE)
        elif phase in (_BODY, _CHUNKED):
            if self.hold:
                self._touched_s = self._started_s = now
            elif body_is_late(now, self._started_s, self._touched_s, self._dropped_bytes, limits):
                self._fail(
                    refusal(
                        408, f"the body came too slowly: silent for {limits.body_timeout_s:g} s, or a trickle"
                    )
                )

    # --- bytes to requests ---

    def _feed(self, data: bytes) -> None:
        self._is_feeding = True
        at = 0
        size = len(data)
        while at < size:
            phase = self._phase
            if phase == _HEAD:
                if self.hold or len(self.queue) >= self._limits.max_pipelined:
                    if len(self.queue) >= self._limits.max_pipelined:
                        self.hold |= _PIPELINE
                    self._rest = data[at:] if at else data
                    self._pause_reading()
                    break
                if self._partial:
                    at = self._feed_partial(data, at)
                    continue
                memo = self._memo_bytes
                if memo and data.startswith(memo, at):
                    # Clients repeat their heads byte for byte; finding and parsing one takes 4.5 us more.
                    at += len(memo)
                    self._begin(self._memo_head, self._touched_s, at < size)
                    continue
                end = data.find(_END_OF_HEAD, at)
                if end < 0:
                    self._started_s = self._touched_s
                    at = self._feed_partial(data, at)
                    continue
                end += 4
                raw = data if at == 0 and end == size else data[at:end]
                at = end
                self._parse(raw, self._touched_s, at < size)
            elif phase == _BODY:
                left = self._body_left
                if size - at >= left:
                    piece = data[at : at + left]
                    at += left
                    self._phase = _HEAD
                    if self._pieces:
                        self._pieces.append(piece)
                        piece = b"".join(self._pieces)
                        self._pieces = []
                    self._complete(piece)
                else:
                    if not self._is_dropping:
                        self._pieces.append(data[at:] if at else data)
                    self._body_left = left - (size - at)
                    self._dropped_bytes += size - at
                    if self._body_left >= BULK_BYTES and not self._is_dropping:
                        self._read_bulk()
                    break
            elif phase == _CHUNKED:
                assert self._chunks is not None
                used = self._chunks.feed(data, at)
                if isinstance(used, Refusal):
                    self._fail(used)
                    continue
                self._dropped_bytes += used - at
                at = used
                if self._chunks.is_done:
                    body = self._chunks.body()
                    self._chunks = None
                    self._phase = _HEAD
                    self._complete(body)
            else:
                self._drop(size - at)
                break
        self._is_feeding = False

    def _read_bulk(self) -> None:
        """Have the rest of the current body read into its place."""
        exchange = self._current
        assert exchange is not None and exchange.head.body_length is not None
        self._bulk = BulkBody(
            self.transport,
            self,
            exchange.head.body_length,
            self._app.even_at(exchange.context),
            self._pieces,
            self._progress,
            self._bulk_complete,
        )
        self._pieces = []
        self._bulk.begin()

    def _progress(self, size: int, now_s: float) -> None:
        self._touched_s = now_s
        self._dropped_bytes += size

    def _bulk_complete(self, body: memoryview) -> None:
        self._bulk = None
        self._phase = _HEAD
        self._complete(body)

    def _end_bulk(self) -> None:
        """The body will not be used: what else comes of it is dropped."""
        if self._bulk is not None:
            self._bulk.give_back()
            self._bulk = None

    def _feed_partial(self, data: bytes, at: int) -> int:
        """Collect a head that comes in pieces; returns the position behind the bytes used."""
        partial = self._partial
        before = len(partial)
        # Never keep more than a head may have: what comes behind it stays in `data`.
        partial += data[at : at + self._limits.max_header_bytes + 4 - before]
        end = partial.find(_END_OF_HEAD, max(0, before - 3))
        if end < 0:
            if len(partial) > self._limits.max_header_bytes:
                self._fail(self._too_long())
                return len(data)
            if self._scout is None:
                self._scout = Scout()
            doubt = self._scout.doubts(data[at:])
            if doubt is not None:
                self._fail(doubt)
            return len(data)
        end += 4
        head = bytes(partial[:end])
        self._partial = bytearray()
        self._scout = None
        at += end - before
        self._parse(head, self._started_s, at < len(data))
        return at

    def _parse(self, raw: bytes, received_s: float, has_more: bool) -> None:
        """Start the request of one complete head."""
        if len(raw) > self._limits.max_header_bytes:
            self._fail(self._too_long())
            return
        head = self._server.head_reader.read(raw)
        if isinstance(head, Refusal):
            self._fail(head)
            return
        if len(raw) <= _MEMO_BYTES:
            self._memo_bytes, self._memo_head = raw, head
            self._memo_size = -1
        self._begin(head, received_s, has_more)

    def _begin(self, head: Head, received_s: float, has_more: bool) -> None:
        counts = self._counts
        number = counts.requests = counts.requests + 1
        is_plain = head.keep_alive and head.http11 and head.method != b"HEAD"
        after = KEEP if head.keep_alive else CLOSE
        exchange = Exchange(head, b"", None, None, self, is_plain, after, received_s)
        if self._server.is_draining:
            exchange.is_plain, exchange.after = False, LINGER
        if number >= self._access.next_at:
            self._sample(exchange, number)
        self.queue.append(exchange)
        length = head.body_length
        if length is not None and length > self._limits.max_body_bytes:
            self._current = exchange
            limit = self._limits.max_body_bytes
            self._fail(refusal(413, f"the body has {length} bytes; the limit is {limit}"))
            return
        try:
            verdict = self._app.admit(head, received_s)
        except Exception:
            self._log_failure("admit", head)
            verdict = _FAILED
        if verdict.__class__ is Refusal:
            assert isinstance(verdict, Refusal)
            self._refuse(exchange, verdict)
            if self._phase != _HEAD or length == 0:
                return
        else:
            exchange.context = verdict
            if head is self._memo_head and self._memo_size < 0:
                self._memo_size = _whole_size(self._memo_bytes, head, self._limits)
                self._memo_context = verdict
            if length == 0:
                if exchange.after:
                    self._phase = _DROPPED
                self._handle(exchange)
                return
            self._is_dropping = False
        self._current = exchange
        self._started_s = self._touched_s
        self._dropped_bytes = 0
        if length is None:
            self._phase = _CHUNKED
            self._chunks = ChunkedBody(self._limits.max_body_bytes)
        else:
            self._phase = _BODY
            self._body_left = length
        if head.expects_continue and not has_more and self.queue[0] is exchange:
            self._send_continue(exchange)

    def _refuse(self, exchange: Exchange, verdict: Refusal) -> None:
        """Answer before the body is read; keep the connection where what is left of it is small."""
        if verdict is not _FAILED:
            self._counts.refused += 1
        head = exchange.head
        length = head.body_length
        if length == 0:
            if exchange.after:
                self._phase = _DROPPED
        elif length is None or length > self._limits.drain_bytes or head.expects_continue or exchange.after:
            exchange.is_plain, exchange.after = False, LINGER
            self._phase = _DROPPED
        else:
            self._is_dropping = True
        exchange.respond(verdict.status, verdict.headers, verdict.body)

    def _complete(self, body: bytes | memoryview) -> None:
        """The body of the current request is here."""
        exchange = self._current
        assert exchange is not None
        self._current = None
        if self._is_dropping:
            self._is_dropping = False
            return
        if exchange.after:
            self._phase = _DROPPED
        encoding = exchange.head.encoding
        if not encoding or not body:
            exchange.body = body
            self._handle(exchange)
        elif len(body) <= _INLINE_INFLATE_BYTES:
            self._inflated(exchange, inflate(body, encoding, self._limits.max_body_bytes))
        else:
            future = asyncio.get_running_loop().run_in_executor(
                None, inflate, body, encoding, self._limits.max_body_bytes
            )
            future.add_done_callback(lambda done: self._inflated(exchange, _result(done)))

    def _inflated(self, exchange: Exchange, body: bytes | Refusal) -> None:
        if exchange.state != OPEN:
            return
        if isinstance(body, Refusal):
            # The framing is intact, so the connection can stay.
            self._counts.protocol_errors += 1
            exchange.respond(body.status, body.headers, body.body)
            return
        exchange.body = body
        self._handle(exchange)

    def _handle(self, exchange: Exchange) -> None:
        self._turn.append(exchange)
        if len(self._turn) == 1:
            self._server.wake()

    def failed(self, exchange: Exchange) -> None:
        """The application raised while it handled this one."""
        self._log_failure("handle", exchange.head)
        if exchange.state == OPEN:
            exchange.respond(_FAILED.status, _FAILED.headers, _FAILED.body)
        elif exchange.streamed is not None:
            exchange.streamed.abort()

    def _send_continue(self, exchange: Exchange) -> None:
        if exchange.head.expects_continue and exchange.state == OPEN and not (self._pieces or self._bulk):
            self.transport.write(_CONTINUE)

    def _too_long(self) -> Refusal:
        return refusal(431, f"the request line and headers have over {self._limits.max_header_bytes} bytes")

    def _sample(self, exchange: Exchange, number: int) -> None:
        """Let this request be logged when it is answered: its answer takes the slow way, which looks."""
        if self._access.samples(number):
            exchange.is_plain = False
            self.sampled = exchange

    def log(self, exchange: Exchange, status: int, headers: bytes, size: int) -> None:
        head = exchange.head
        sampled = self.sampled is exchange
        if sampled:
            self.sampled = None
        sizes = (len(exchange.body) if head.body_length is None else head.body_length, size)
        peer = self.transport.get_extra_info("peername")
        self._access.write(exchange, status, headers, sizes, peer, sampled=sampled)

    def _log_failure(self, where: str, head: Head) -> None:
        self._counts.app_errors += 1
        if self._access.may_tell_failure():  # one a request would fill the disk
            method, path = (text[:512].decode("utf-8", "replace") for text in (head.method, head.path))
            _LOG.exception(
                "the application failed in %s", where, extra={"fields": {"method": method, "path": path}}
            )

    # --- the end ---

    def _fail(self, error: Refusal) -> None:
        """The transport's own refusal: what follows on this connection cannot be trusted to be a request."""
        self._counts.protocol_errors += 1
        self._phase = _DROPPED
        self._partial = bytearray()
        self._pieces = []
        self._end_bulk()
        self._chunks = None
        exchange = self._current
        self._current = None
        if exchange is not None and self._is_dropping:
            # It has its answer already, perhaps still behind others.
            if not self.queue:
                self._finish(LINGER)
            else:
                self.queue[-1].after, self.queue[-1].is_plain = LINGER, False
            return
        if exchange is None:
            exchange = Exchange(_NO_HEAD, b"", None, None, self, False, LINGER, self._touched_s)
            self.queue.append(exchange)
        exchange.after, exchange.is_plain = LINGER, False
        exchange.respond(error.status, error.headers, error.body)

    def _finish(self, after: int) -> None:
        """Close: at once, or (LINGER) only our side, reading on so that the client gets to its answer."""
        if self._phase == _CLOSED:
            return
        if after == LINGER and self._phase != _LINGER:
            self._phase = _LINGER
            self._linger_from_s = self._touched_s = monotonic()
            self._dropped_bytes = 0
            self._rest = b""
            self._tell_gone()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.hold &= ~_PIPELINE
            self._resume()
            return
        self._leave()
        self.transport.close()

    def _drop(self, size: int) -> None:
        self._dropped_bytes += size
        if self._phase == _LINGER:
            if self._dropped_bytes > self._limits.linger_bytes:
                self._finish(CLOSE)
        elif self._phase == _DROPPED and self._dropped_bytes > self._limits.drain_bytes:
            # Answers are still due; what comes meanwhile can wait in the kernel.
            self._pause_reading()

    def _leave(self) -> None:
        """Nobody listens any more: tell those who are still at work, once."""
        self._phase = _CLOSED
        self._rest = b""
        self._partial = bytearray()
        self._pieces = []
        self._end_bulk()
        self._chunks = None
        self._current = None
        self._tell_gone()

    def _tell_gone(self) -> None:
        queue, self.queue = self.queue, []
        self.sampled = None
        for exchange in queue:
            if exchange.state == DONE:
                continue
            exchange.state = GONE
            exchange.held = None
            told, exchange.on_gone = exchange.on_gone, None
            if exchange.streamed is not None:
                exchange.streamed.wake()
            if told is not None:
                try:
                    told()
                except Exception:
                    self._log_failure("on_gone", exchange.head)

    def _pause_reading(self) -> None:
        if self._is_reading and self._phase not in (_LINGER, _CLOSED):
            self._is_reading = False
            self.transport.pause_reading()

    def _resume(self) -> None:
        """Go on reading, if nothing else speaks against it: first what was set aside."""
        if self._is_feeding or self.hold or self._phase == _CLOSED:
            return
        if self._rest:
            rest, self._rest = self._rest, b""
            self._feed(rest)
        if not self._is_reading and not self.hold and self._phase != _CLOSED:
            self._is_reading = True
            self.transport.resume_reading()


def _whole_size(raw: bytes, head: Head, limits: HttpLimits) -> int:
    """The length of a request with this head and nothing unusual about it; -1 if there is."""
    length = head.body_length
    if length is None or length > limits.max_body_bytes or head.encoding or head.expects_continue:
        return -1
    if length > _SMALL_BODY_BYTES or not (head.keep_alive and head.http11) or head.method == b"HEAD":
        return -1
    return len(raw) + length
