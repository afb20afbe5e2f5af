"""Decides what a client does, step by step: what to send, what the answer means, and what follows from it.

Each call is a generator that asks for steps, `Send` and `Wait`, and gets what came of them; it does no I/O,
so that the blocking client and that for asyncio share all of it. Thread-safe.
"""

import math
import random
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import quote

import msgspec

from interlock.client import failure, retry
from interlock.client.inputs import inputs_of
from interlock.client.message import JSON, Encoded, Headers, Part, Reply, decode, encode
from interlock.client.prediction import Prediction
from interlock.client.steps import Ask, Lost, Send, Steps, Wait, address_of
from interlock.client.views import Metadata, ModelStatus
from interlock.core.clock import Clock, monotonic
from interlock.core.errors import (
    ConfigError,
    DeadlineExceeded,
    DeadlineInvalid,
    InterlockError,
    InvalidRequest,
    NodeUnreachable,
    NotFound,
    Unavailable,
)
from interlock.core.feedback import MOST_BYTES, MOST_ITEMS

UNIT = b"x-interlock-unit"
TENANT = b"x-interlock-tenant"
SEGMENT = b"x-interlock-segment"
PRIORITY = b"x-interlock-priority"
TIMEOUT_MS = b"x-request-timeout-ms"

T = TypeVar("T")
_MOST_KNOWN = 1024


class _Known(msgspec.Struct, frozen=True):
    """What is remembered of a model, and the versions that have answered. `is_old`: one was new since."""

    metadata: Metadata
    versions: frozenset[str] = frozenset()
    is_old: bool = False


class Session:
    """What the calls of one client share: the budget of retries, and what is known of models."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        timeout_s: float,
        retries: int,
        clock: Clock = monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if not 0 <= retries <= 1000:
            raise ConfigError(f"retries = {retries}: want 0 to 1000")
        self.address = address_of(url)
        self._token = token
        self._timeout_s = _checked_s(timeout_s)
        self._policy = retry.Policy(retries=retries)
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._budget = retry.Budget(self._policy.most_tokens, clock())
        self._known: dict[tuple[str, str], _Known] = {}
        self._headers: Headers = [(b"host", self.address.authority), (b"accept", b"*/*")]
        if token is not None:
            if not token or not all(33 <= ord(letter) < 127 for letter in token):
                raise ConfigError("token: want printable ASCII without blanks")
            self._headers.append((b"authorization", b"Bearer " + token.encode()))

    def predict(self, ask: Ask) -> Steps[Prediction]:
        """Ask a model; data that is `Encoded` goes out as it is. What is remembered of the model is looked up
        anew when it does not fit any more."""
        deadline_s = self._deadline_s(ask.timeout_s)
        number = "" if ask.version is None else str(ask.version)
        path, key = _model_path(ask.model, number), (ask.model, number)
        labels = _labels(ask)
        known = self._known.get(key)
        is_fresh = known is None or known.is_old
        if known is None or known.is_old:
            known = yield from self._look(key, deadline_s)
        while True:
            try:
                data = ask.data
                if not isinstance(data, Encoded):
                    data = encode(inputs_of(data, known.metadata), ask.outputs, ask.id)
                may_repeat = known.metadata.side_effect_free if ask.idempotent is None else ask.idempotent
                reply = yield from self._exchange(
                    b"POST", f"{path}/infer", [*labels, *data.headers], data.parts, deadline_s, may_repeat
                )
                break
            except InvalidRequest:
                # It did not run. If the model has changed since it was looked up, that may be all that is
                # wrong.
                self._known.pop(key, None)
                if is_fresh:
                    raise
                before, known = known, (yield from self._look(key, deadline_s))
                if _same(known.metadata, before.metadata):
                    raise
                is_fresh = True
        answer = decode(reply)
        if answer.version not in known.versions:
            self._note(key, known, answer.version)
        return answer

    def metadata(self, model: str, version: str | int | None, timeout_s: float | None) -> Steps[Metadata]:
        """What a model takes and gives, asked anew."""
        key = (model, "" if version is None else str(version))
        known = yield from self._look(key, self._deadline_s(timeout_s))
        return known.metadata

    def models(self, timeout_s: float | None) -> Steps[list[ModelStatus]]:
        """Every version that the server has, or tries to have."""
        reply = yield from self._exchange(
            b"POST", "/v2/repository/index", [JSON], [b"{}"], self._deadline_s(timeout_s), True
        )
        return self._read(reply, list[ModelStatus])

    def is_ready(self, model: str | None, version: str | int | None, timeout_s: float | None) -> Steps[bool]:
        """Whether the server, or one model, would answer now; False as well where nobody answers."""
        path = "/v2/health/ready"
        if model is not None:
            path = f"{_model_path(model, '' if version is None else str(version))}/ready"
        reply = yield Send(b"GET", self.address.prefix + path, self._headers, (), self._deadline_s(timeout_s))
        if isinstance(reply, Reply):
            if reply.status == 200:
                return True
            error = self._error(reply, path)
        else:
            assert isinstance(reply, Lost)
            error = reply.error
        if isinstance(error, Unavailable | NotFound | NodeUnreachable):
            return False
        raise error

    def feedback(self, items: Iterable[tuple[str, str, float]], timeout_s: float | None) -> Steps[int]:
        """Say what became of requests; returns how many were taken. The server keeps the first value of each
        (request, name), so that it may hear it twice."""
        deadline_s, accepted = self._deadline_s(timeout_s), 0
        for body in _messages(items):
            reply = yield from self._exchange(b"POST", "/feedback", [JSON], [body], deadline_s, True)
            accepted += self._read(reply, _Accepted).accepted
        return accepted

    def _look(self, key: tuple[str, str], deadline_s: float) -> Steps[_Known]:
        reply = yield from self._exchange(b"GET", _model_path(*key), [], (), deadline_s, True)
        before = self._known.get(key)
        known = _Known(self._read(reply, Metadata), frozenset() if before is None else before.versions)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = known
        return known

    def _note(self, key: tuple[str, str], known: _Known, version: str) -> None:
        """Remember that a version answered. One that is new may take something else: so the model is looked
        up anew at the next call, and not at every call of a canary, where versions take turns."""
        self._known[key] = _Known(known.metadata, known.versions | {version}, bool(known.versions))

    def _exchange(
        self,
        method: bytes,
        path: str,
        headers: Headers,
        parts: Sequence[Part],
        deadline_s: float,
        may_repeat: bool,
    ) -> Steps[Reply]:
        """Send until an answer with 200 comes, or it must not be sent again.

        Raises: what the last answer said.
        """
        now = self._clock()
        with self._lock:
            self._budget = retry.earn(self._policy, self._budget, now)
        length = sum(map(len, parts))
        own = (
            [*self._headers, *headers, (b"content-length", b"%d" % length)]
            if method == b"POST"
            else self._headers
        )
        retried = 0
        while True:
            left_s = deadline_s - now
            if left_s <= 0:
                raise DeadlineExceeded(f"{self.address.url}{path}: no time is left to send it")
            told = [*own, (TIMEOUT_MS, told_ms(left_s))]
            came = yield Send(method, self.address.prefix + path, told, parts, deadline_s)
            if isinstance(came, Reply):
                if came.status == 200:
                    return came
                error, failed = self._error(came, path), failure.failure_of(came)
                asked_s = failure.retry_after_s(came, datetime.now(UTC))
            else:
                assert isinstance(came, Lost)
                error, failed, asked_s = came.error, came.failure, 0.0
            wait = None
            if failed is not None:
                wait = self._again(retry.Attempt(failed, retried, may_repeat, deadline_s, asked_s))
            if wait is None:
                raise error
            yield wait
            retried += 1
            now = self._clock()

    def _again(self, attempt: retry.Attempt) -> Wait | None:
        with self._lock:
            again = retry.next_try(self._policy, self._budget, attempt, self._clock(), self._chance())
            if again is None:
                return None
            self._budget = again.budget
        return Wait(again.at_s)

    def _deadline_s(self, timeout_s: float | None) -> float:
        return self._clock() + (self._timeout_s if timeout_s is None else _checked_s(timeout_s))

    def _error(self, reply: Reply, path: str) -> InterlockError:
        return failure.error_of(reply, self.address.url, path, self._token)

    def _read(self, reply: Reply, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NodeUnreachable(
                f"{self.address.url} answered with what is none of V2 ({error}): "
                f"{bytes(reply.body[:200]).decode(errors='replace')}"
            ) from None


class _Accepted(msgspec.Struct, frozen=True):
    accepted: int


def told_ms(left_s: float) -> bytes:
    """The time-out that a server is told: two digits of what is left, so that its answer comes in time, and
    that heads repeat, which the server reads faster.

    >>> told_ms(9.999), told_ms(0.01)
    (b'9900', b'9.9')
    """
    left_ms = left_s * 995
    step = 10.0 ** (math.floor(math.log10(left_ms)) - 1)
    return b"%.9g" % max(math.floor(left_ms / step) * step, 1e-6)


def _same(one: Metadata, other: Metadata) -> bool:
    """Whether two answers tell the same of what a model takes."""
    return (one.inputs, one.outputs) == (other.inputs, other.outputs)


def _checked_s(timeout_s: float) -> float:
    if not 0 < timeout_s < 1e8:
        raise DeadlineInvalid(f"timeout_s is {timeout_s}; want seconds above 0")
    return float(timeout_s)


def _model_path(model: str, number: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(number, safe='')}" if number else path


def _labels(ask: Ask) -> Headers:
    named = ((UNIT, "unit", ask.unit), (TENANT, "tenant", ask.tenant), (SEGMENT, "segment", ask.segment))
    headers = [(header, _label(name, value)) for header, name, value in named if value is not None]
    if ask.priority is not None:
        headers.append((PRIORITY, b"%d" % ask.priority))
    return headers


def _label(name: str, value: str) -> bytes:
    text = str(value).encode()
    if not text or text != text.strip() or min(text) < 32 or 127 in text:
        raise InvalidRequest(f"{name} is {value!r}: want text without control characters or blanks around it")
    return text


def _messages(items: Iterable[tuple[str, str, float]]) -> Generator[bytes]:
    """Feedback in messages that the server takes."""
    held: list[bytes] = []
    size = 2
    for id, name, value in items:
        item = msgspec.json.encode({"id": id, "name": name, "value": value})
        if held and (len(held) == MOST_ITEMS or size + len(item) + 1 > MOST_BYTES):
            yield b"[%b]" % b",".join(held)
            held, size = [], 2
        held.append(item)
        size += len(item) + 1
    if held:
        yield b"[%b]" % b",".join(held)
