"""Owns the Open Inference Protocol (V2 REST) over the transport, with Triton's extensions: binary tensors,
repository, statistics, configuration.

The infer path has no coroutine: `handle` reads the messages and submits them; a `v2_call.Call` is the sink of
each, and answers it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, Literal

import msgspec

from interlock.codec.v2infer import Codec
from interlock.codec.v2json import parse
from interlock.codec.v2unit import unit_field
from interlock.core.errors import (
    InterlockError,
    InvalidRequest,
    MalformedMessage,
    NotFound,
    RequestTooLarge,
    Unavailable,
    Unsupported,
)
from interlock.core.letters import VersionState
from interlock.core.request import Request, deadline
from interlock.wire import v2_views as views
from interlock.wire.failure import JSON, answer_failure, failure
from interlock.wire.feedback import feedback_of
from interlock.wire.headers import (
    JSON_LENGTH,
    PRIORITY,
    SEGMENT,
    TENANT,
    TIMEOUT_MS,
    UNIT,
    json_length,
    label,
    priority,
    timeout_s,
    trace_line,
)
from interlock.wire.http import Exchange, Head, Refusal
from interlock.wire.v2_call import Call, schedule
from interlock.wire.v2_paths import POSTS, READS, Action, Ask, understand
from interlock.wire.v2_serving import Infer, Target

_LOG = logging.getLogger("interlock.wire")
_encode = msgspec.json.Encoder().encode
_MOST_PATHS = 1024
_MOST_CODECS = 256


class V2:
    """An `App` of the transport. `close` waits for loads and unloads that are under way."""

    def __init__(
        self,
        infer: Infer,
        server_name: str = "interlock",
        server_version: str = "",
        max_json_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self._infer = infer
        # A megabyte of JSON holds the loop for 5 to 50 ms (bad JSON: to 200); one of binary numbers does not.
        self._max_json_bytes = max_json_bytes
        self._server = {"name": server_name, "version": server_version, "extensions": views.EXTENSIONS}
        # By path as sent. Cleared when full: a client that invents paths costs 3 us each, and no memory.
        self._asks: dict[bytes, Ask] = {}
        # Equal facts of all connections are one object.
        self._facts: dict[_Facts, _Facts] = {}
        # By version key: each letter from control brings Versions and Targets anew, with equal keys.
        self._codecs: dict[str, Codec] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def admit(self, head: Head, received_s: float) -> Refusal | object | None:
        """Stage one, on the head alone: the path, the method, the time-out, and whether there is room."""
        facts: _Facts | None = head.notes[0]
        try:
            if facts is None:
                verdict = self._read(head)
                if not isinstance(verdict, _Facts):
                    return verdict
                facts = head.notes[0] = verdict
            refused = self._infer.admit(facts.model, facts.number, facts.wait_s, received_s, facts.urgency)
        except InterlockError as error:
            return failure(error)
        return facts if refused is None else failure(refused)

    def _read(self, head: Head) -> "_Facts | Refusal | Ask":
        """What a head asks for, with its rules. Clients repeat heads, so that `admit` does it rarely.

        Raises: InvalidRequest's children.
        """
        ask = self._asks.get(head.path) or self._understand(head.path)
        if ask is None:
            return failure(NotFound(f"no such path: {_shown(head.path)}; want /v2/… or /feedback"))
        if ask.is_infer and head.method == b"POST":
            headers = head.headers
            header_length = json_length(headers[JSON_LENGTH]) if JSON_LENGTH in headers else None
            self._check_json(head.body_length if header_length is None else header_length)
            facts = _Facts(
                ask.model,
                ask.number,
                label(headers, UNIT),
                label(headers, TENANT),
                label(headers, SEGMENT),
                header_length,
                priority(headers[PRIORITY]) if PRIORITY in headers else None,
                timeout_s(headers[TIMEOUT_MS]) if TIMEOUT_MS in headers else None,
                trace_line(headers),
                header_length is None and (head.body_length is None or head.encoding != b""),
            )
            if len(self._facts) >= _MOST_PATHS:
                self._facts.clear()
            return self._facts.setdefault(facts, facts)
        if ask.action is Action.UNSUPPORTED:
            return failure(Unsupported(f"{_shown(head.path)} is known to the protocol, but not offered here"))
        allowed = (b"POST",) if ask.action in POSTS else READS
        if head.method not in allowed:
            methods = b", ".join(allowed)
            message = f"method {_shown(head.method)} on {_shown(head.path)}: want {methods.decode()}"
            return Refusal(405, JSON + b"allow: %b\r\n" % methods, _encode({"error": message}))
        return ask

    def _check_json(self, length: int | None) -> None:
        """Raises: RequestTooLarge. None: how much there is will be known when it has come."""
        if length is not None and length > self._max_json_bytes:
            raise RequestTooLarge(
                f"{length} bytes of JSON; the limit is {self._max_json_bytes}: send the tensors as binary"
                f" data (Inference-Header-Content-Length), or start the node with a larger --max-json-bytes"
            )

    def even_at(self, context: Any) -> int:
        """Where the binary tensors of an infer request begin."""
        return (context.header_length or 0) if context.__class__ is _Facts else 0

    def handle(self, exchanges: list[Exchange]) -> None:
        """Answer admitted requests, now or when the model has. Those for one version go to it together."""
        choose = self._infer.choose
        jobs: list[tuple[Request, Call]] = []
        by_target: dict[Target, list[tuple[Request, Call]]] = {}
        known: _Facts | None = None
        unit: bytes | None = None
        for exchange in exchanges:
            if exchange.state:
                continue  # its client has gone
            facts = exchange.context
            try:
                if facts is not known:
                    if facts.__class__ is not _Facts:
                        self._handle_other(exchange, facts)
                        continue
                    known = None
                    if facts.may_grow:
                        self._check_json(len(exchange.body))
                    target = choose(facts.model, facts.number, facts.unit)
                    unit = facts.unit
                    if target.unit_field is not None:
                        field = unit_field(target.unit_field)
                        unit = field.read(exchange.body, facts.header_length)
                        target = choose(facts.model, facts.number, unit)
                    codec = target.codec or self._codec(target)
                    settings = target.settings
                    jobs = by_target.get(target) or by_target.setdefault(target, [])
                    if target.fixed and not facts.may_grow:
                        known = facts
                try:
                    inputs, rows, answer, client_id, parameters = codec.decode(
                        exchange.body, facts.header_length
                    )
                    wait_s, urgency = facts.wait_s, facts.urgency
                    if parameters is not None:
                        wait_s, urgency = schedule(parameters, wait_s, urgency)
                    received_s = exchange.received_s
                    if wait_s is None:
                        deadline_s = received_s + settings.default_timeout_s
                    else:
                        deadline_s = deadline(received_s, wait_s, settings)
                except InvalidRequest:
                    target.invalid(exchange.received_s)
                    raise
            except InterlockError as error:
                answer_failure(exchange, error, b"", facts.trace)
                continue
            except Exception:
                exchange.link.failed(exchange)
                continue
            request = Request(
                facts.model,
                inputs,
                rows,
                deadline_s,
                received_s,
                facts.number,
                answer.names,
                client_id,
                unit,
                facts.tenant,
                facts.segment,
                settings.priority if urgency is None else urgency,
            )
            jobs.append((request, Call(exchange, target, answer, client_id, facts.trace)))
        for target, jobs in by_target.items():
            tickets = target.submit(jobs) if jobs else ()
            if not tickets:
                continue  # all are answered
            for ticket, (_, call) in zip(tickets, jobs, strict=True):
                if ticket is not None and call.exchange is not None:
                    call.exchange.on_gone = ticket.cancel

    async def close(self) -> None:
        """Wait for what `handle` began and has not answered."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- infer ---

    def _codec(self, target: Target) -> Codec:
        version = target.version
        if version.capabilities.streaming:
            raise Unsupported(
                f"model '{version.model}' version {version.number} answers in a stream, which V2 infer"
                f" cannot carry"
            )
        key = version.key
        codec = self._codecs.get(key)
        if codec is None:
            codec = Codec(version.model, version.number, version.signature)
            _make_room(self._codecs)
            self._codecs[key] = codec
        target.codec = codec
        return codec

    def _understand(self, path: bytes) -> Ask | None:
        ask = understand(path)
        if ask is not None:
            if len(self._asks) >= _MOST_PATHS:
                self._asks.clear()
            self._asks[path] = ask
        return ask

    # --- the rest ---

    def _handle_other(self, exchange: Exchange, ask: Ask) -> None:
        try:
            self._answer_other(exchange, ask)
        except InterlockError as error:
            answer_failure(exchange, error)

    def _answer_other(self, exchange: Exchange, ask: Ask) -> None:
        infer = self._infer
        self._check_json(len(exchange.body))
        match ask.action:
            case Action.SERVER:
                _answer(exchange, self._server)
            case Action.LIVE:
                live = infer.live
                _answer(exchange, {"live": live, "ready": infer.ready}, 200 if live else 503)
            case Action.READY:
                ready = infer.ready
                _answer(exchange, {"live": infer.live, "ready": ready}, 200 if ready else 503)
            case Action.MODEL_READY:
                ready = infer.model_ready(ask.model, ask.number)
                view = {"live": infer.live, "ready": ready, "name": ask.model}
                _answer(exchange, view, 200 if ready else 503)
            case Action.METADATA:
                version = infer.version(ask.model, ask.number)
                numbers = {
                    status.number
                    for status in infer.index()
                    if status.model == ask.model and status.state is VersionState.READY
                }
                _answer(exchange, views.metadata(version, numbers if ask.number is None else {ask.number}))
            case Action.CONFIG:
                version = infer.version(ask.model, ask.number)
                _answer(exchange, views.config(version, infer.settings(ask.model)))
            case Action.STATISTICS:
                if ask.model:
                    infer.version(ask.model, ask.number)  # raises for what is unknown, instead of no counts
                self._later(exchange, self._statistics(exchange, ask), "statistics")
            case Action.INDEX:
                _answer(exchange, views.index(infer.index(), _only_ready(bytes(exchange.body))))
            case Action.FEEDBACK:
                self._take_feedback(exchange)
            case _:
                self._handle_repository(exchange, ask)

    def _take_feedback(self, exchange: Exchange) -> None:
        items = feedback_of(bytes(exchange.body))
        self._infer.feedback(items)
        _answer(exchange, {"accepted": len(items)})

    def _handle_repository(self, exchange: Exchange, ask: Ask) -> None:
        body = _object(bytes(exchange.body))
        parameters = body.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise MalformedMessage("'parameters' is no object; leave it out")
        if ask.action is Action.LOAD and parameters:
            raise Unsupported(
                f"parameters {sorted(parameters)[:8]} of load: a model and its settings come from the"
                f" registry"
            )
        action: Literal["load", "unload"] = "load" if ask.action is Action.LOAD else "unload"
        self._later(exchange, self._repository(exchange, self._infer.repository(action, ask.model)), action)

    async def _repository(self, exchange: Exchange, work: Awaitable[None]) -> None:
        await work
        exchange.respond(200, JSON, b"")

    async def _statistics(self, exchange: Exchange, ask: Ask) -> None:
        # The counts lie in files: 54 ms for 1,000 arms, for which no request shall wait.
        counts = await asyncio.to_thread(self._infer.stats, ask.model or None, ask.number)
        _answer(exchange, views.statistics(counts))

    def _later(self, exchange: Exchange, work: Coroutine[Any, Any, None], what: str) -> None:
        """Answer when `work` has; the transport keeps the answers of a connection in order."""
        task = asyncio.ensure_future(_answered(exchange, work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Facts(msgspec.Struct, frozen=True):
    """What the head of an infer request says."""

    model: str
    number: str | None
    unit: bytes | None
    tenant: bytes | None
    segment: bytes | None
    header_length: int | None
    urgency: int | None
    wait_s: float | None
    trace: bytes
    may_grow: bool
    """All of the body is JSON, and how long that is the head does not tell: chunks, or compressed."""


def _make_room(kept: dict[Any, Any]) -> None:
    """Drop the oldest entry of a cache that is full."""
    if len(kept) >= _MOST_CODECS:
        del kept[next(iter(kept))]


async def _answered(exchange: Exchange, work: Coroutine[Any, Any, None], what: str) -> None:
    try:
        await work
    except InterlockError as error:
        answer_failure(exchange, error)
    except BaseException:
        answer_failure(exchange, Unavailable(f"the {what} broke off; ask again"))
        raise


def _answer(exchange: Exchange, view: Any, status: int = 200) -> None:
    exchange.respond(status, JSON, _encode(view))


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    document = parse(body)
    if not isinstance(document, dict):
        raise MalformedMessage("the body is no JSON object; send one, or nothing")
    return document


def _only_ready(body: bytes) -> bool:
    only_ready = _object(body).get("ready", False)
    if not isinstance(only_ready, bool):
        raise MalformedMessage("'ready' is no boolean; want true for the ready versions only")
    return only_ready


def _shown(value: bytes) -> str:
    return repr(value[:120].decode("ascii", "backslashreplace"))
