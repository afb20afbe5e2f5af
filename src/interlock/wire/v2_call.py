"""Owns the answer to one infer request of V2, and what its own parameters say of when it is wanted."""

import logging
from typing import Protocol

import msgspec

from interlock.codec.v2answer import Answer
from interlock.codec.v2json import Parameters
from interlock.core.errors import DeadlineInvalid, InterlockError, InvalidRequest, ModelFailed
from interlock.core.request import PRIORITY_HIGH, PRIORITY_NORMAL, Response
from interlock.wire.failure import JSON, answer_failure
from interlock.wire.headers import JSON_LENGTH, REQUEST_ID
from interlock.wire.http import Exchange

_LOG = logging.getLogger("interlock.wire")
_ID = REQUEST_ID + b": "
_JSON_AND_ID = JSON + _ID
_BINARY = b"content-type: application/octet-stream\r\n" + JSON_LENGTH + b": "


class Accounts(Protocol):
    """Where the wire tells what the lane cannot see."""

    def unsent(self, received_s: float) -> bool:
        """Outputs that the lane took for good could not be sent: count that, and say whether it is the first
        time for this version. `received_s`: when the request came (monotonic)."""
        ...


class Call(msgspec.Struct, eq=False):
    """The sink of one infer request. `exchange` is None once it is answered, which also parts the two.

    A struct because that is made in 0.1 us, and a class with `__init__` in 0.3.
    """

    exchange: Exchange | None
    target: Accounts
    answer: Answer
    client_id: str | None
    trace: bytes
    """Header lines that go back as they came."""

    def part(self, response: Response) -> None:
        """Versions that stream are refused before they start: this one broke its word."""
        self.fail(
            ModelFailed(f"model '{response.model}' answered in parts, against its capabilities"),
            response.request_id,
        )

    def done(self, response: Response) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        self.exchange = None
        rows = response.batch.texts.get(self.answer)
        if rows is not None and self.client_id is None:  # encoded with its batch: 0.1 us less than by a call
            exchange.respond(
                200, (_JSON_AND_ID, response.request_id, b"\r\n", self.trace), rows[response.start]
            )
            return
        try:
            text, binary = self.answer.answer(response, self.client_id)
        except Exception as error:
            # Whatever a model put into its outputs, this request gets an answer, and its batch goes on.
            self._fail_unsent(exchange, response, error)
            return
        if binary is None:
            exchange.respond(200, (_JSON_AND_ID, response.request_id, b"\r\n", self.trace), text)
        else:
            exchange.respond(
                200,
                b"".join((_BINARY, b"%d\r\n" % len(text), _ID, response.request_id, b"\r\n", self.trace)),
                [text, *binary],
            )

    def fail(self, error: InterlockError, request_id: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        self.exchange = None
        answer_failure(exchange, error, request_id, self.trace)

    def _fail_unsent(self, exchange: Exchange, response: Response, error: Exception) -> None:
        fields = {
            "model": response.model,
            "version": response.version,
            "request_id": response.request_id.decode("ascii", "replace"),
        }
        if self.target.unsent(exchange.received_s):  # it would be one traceback a request
            _LOG.error("outputs could not be encoded", exc_info=error, extra={"fields": fields})
        if not isinstance(error, InterlockError):
            error = ModelFailed(
                f"the outputs of model '{response.model}' cannot be encoded: {type(error).__name__}"
            )
        answer_failure(exchange, error, response.request_id, self.trace)


def schedule(
    parameters: Parameters, wait_s: float | None, urgency: int | None
) -> tuple[float | None, int | None]:
    """Time-out and priority of a message joined with those of its headers: the shorter time-out, and the
    header's priority. As in Triton, `timeout` 0 and `priority` 0 mean the model's own."""
    timeout_us = parameters.timeout
    if timeout_us:
        if timeout_us < 0:
            raise DeadlineInvalid(f"parameter timeout is {timeout_us}; want microseconds above 0")
        if timeout_us < 2**63 and (wait_s is None or timeout_us < wait_s * 1e6):
            wait_s = timeout_us / 1e6
    level = parameters.priority
    if level:
        if level < 0:
            raise InvalidRequest(f"parameter priority is {level}; want 0 (default), 1 (highest) or more")
        if urgency is None:
            urgency = PRIORITY_HIGH if level == 1 else PRIORITY_NORMAL
    return wait_s, urgency
