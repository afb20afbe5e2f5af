"""Delivery: how the parts of one stream become answers of its call; checks each, and ends the call once."""

from collections.abc import Callable
from time import monotonic

from interlock.core.errors import InterlockError
from interlock.core.expected import Expected
from interlock.core.model import Tensors
from interlock.core.request import Outputs, Response
from interlock.serving.call import Call
from interlock.serving.placement import StreamPlace

Ended = Callable[[Tensors | InterlockError, float, float], None]
"""What the place said, the seconds that the model took for all parts, and those to the first part."""


class Delivery:
    """One call of a version that streams, from when its turn has come. For the event loop.

    `settled` is called when this answered the call; `ended` when the model is free again, whoever has been
    answered: what the place says for an error is the lane's to answer, if nobody has.
    """

    __slots__ = ("_call", "_ended", "_expected", "_first_s", "_settled", "_started_s")

    def __init__(
        self,
        call: Call,
        started_s: float,
        expected: Expected,
        settled: Callable[[Call], None],
        ended: Ended,
    ) -> None:
        self._call = call
        self._started_s = started_s
        self._first_s = 0.0
        self._expected = expected
        self._settled = settled
        self._ended = ended

    def start(self, place: StreamPlace, inputs: Tensors, kill_at_s: float) -> None:
        call = self._call
        call.flow = place.stream(inputs, call.request.outputs, kill_at_s, self._part, self._done)

    def _part(self, tensors: Tensors) -> None:
        call = self._call
        request = call.request
        self._first_s = self._first_s or monotonic() - self._started_s
        wrong = self._expected.wrong(tensors, request.outputs, call.rows)
        if wrong is None:
            version = call.lane.version
            call.sink.part(Response(call.request_id, version.model, version.number, Outputs(tensors)))
        else:
            call.gone = True
            call.fail(wrong, monotonic())  # which also stops the flow
            self._settled(call)

    def _done(self, result: Tensors | InterlockError, compute_s: float) -> None:
        call = self._call
        if not call.gone and not isinstance(result, InterlockError):
            call.gone = True
            call.done({}, monotonic(), self._started_s)
            self._settled(call)
        self._ended(result, compute_s, self._first_s or compute_s)
