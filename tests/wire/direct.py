"""Owns the smallest real serving side: each request runs at once and alone; for tests of the wire."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from interlock.core.errors import (
    Cancelled,
    Forbidden,
    InterlockError,
    ModelNotFound,
    Overloaded,
    PredictFailed,
    Unavailable,
    VersionNotFound,
)
from interlock.core.feedback import Feedback
from interlock.core.letters import VersionState, VersionStatus
from interlock.core.model import DATATYPES, ModelSettings, Signature, Tensors, TensorSpec, Version
from interlock.core.request import Outputs, Request, RequestId, Response, Sink, Ticket
from interlock.core.state import BUCKETS, ArmCounts, ArmKey, Histogram
from interlock.serving.batch import join

Predict = Callable[[Tensors], Tensors]

IRIS = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 4)),),
    outputs=(TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 3))),
)


def iris(inputs: Tensors) -> Tensors:
    """A softmax over three of the four measures: deterministic, and every output depends on the row."""
    x = inputs["x"].astype(np.float64)[:, :3]
    odds = np.exp(x - x.max(axis=1, keepdims=True))
    shares = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    return {"label": shares.argmax(axis=1), "probabilities": shares}


class Settled:
    """The ticket of a request that is over."""

    def cancel(self) -> None:
        pass

    def hold(self) -> None:
        pass

    def resume(self) -> None:
        pass


class Held:
    """The ticket of a request that waits until the test releases it."""

    def __init__(self, target: "DirectTarget", request: Request, sink: Sink) -> None:
        self._work = (target, request, sink)
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def hold(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def release(self) -> None:
        target, request, sink = self._work
        if not self.is_cancelled:
            target.run(request, sink)


SPENT = Histogram((1, *[0] * (BUCKETS - 1)), 1.5e-6)
QUEUED = Histogram((1, *[0] * (BUCKETS - 1)), 0.5e-6)


class DirectTarget:
    def __init__(self, owner: "DirectInfer", version: Version, predict: Predict) -> None:
        self.model = version.model
        self.number = version.number
        self.version = version
        self.settings = owner.model_settings
        self.predict = predict
        self._owner = owner
        self.codec: Any = None
        self.fixed = True
        self.unit_field: str | None = None
        self._dtypes = {spec.name: DATATYPES[spec.datatype] for spec in version.signature.inputs}
        self._sequence = 0

    def submit(self, jobs: Sequence[tuple[Request, Sink]]) -> Sequence[Ticket | None]:
        return [self._begin(request, sink) for request, sink in jobs]

    def _begin(self, request: Request, sink: Sink) -> Ticket:
        self._owner.requests.append(request)
        if self._owner.holds:
            held = Held(self, request, sink)
            self._owner.held.append(held)
            return held
        self.run(request, sink)
        return Settled()

    def invalid(self, received_s: float) -> None:
        self._owner.invalid.append(self.version.key)

    def unsent(self, received_s: float) -> bool:
        self._owner.unsent.append(self.version.key)
        return self._owner.unsent.count(self.version.key) == 1

    def run(self, request: Request, sink: Sink) -> None:
        self._sequence += 1
        request_id = RequestId(1, 0, 0, 7, 1_700_000_000_000, self._sequence).encode()
        try:
            outputs = self.predict(join([request.inputs], self._dtypes))
        except InterlockError as error:
            sink.fail(error, request_id)
        except Exception as error:
            sink.fail(PredictFailed(f"the model raised {type(error).__name__}: {error}"), request_id)
        else:
            self._owner.count(self.version, request.rows)
            sink.done(Response(request_id, self.model, self.number, Outputs(outputs)))


class DirectInfer:
    """Fulfils `wire.v2.Infer`. `holds` keeps requests until `Held.release`; `full` refuses them early."""

    def __init__(self) -> None:
        self.live = True
        self.ready = True
        self.holds = False
        self.full = False
        self.allows_repository = False
        self.model_settings = ModelSettings()
        self.requests: list[Request] = []
        self.held: list[Held] = []
        self.invalid: list[str] = []
        self.unsent: list[str] = []
        self.kept: list[Feedback] = []
        self.repository_calls: list[tuple[str, str]] = []
        self._targets: dict[tuple[str, str], DirectTarget] = {}
        self._counts: dict[ArmKey, ArmCounts] = {}

    def add(self, version: Version, predict: Predict) -> None:
        self._targets[version.model, version.number] = DirectTarget(self, version, predict)

    def count(self, version: Version, rows: int) -> None:
        key = ArmKey(version.model, version.number, 1, 0, 0)
        one = ArmCounts(dispatched=1, ok=1, rows=rows, batches=1, total=SPENT, queue=QUEUED)
        self._counts[key] = self._counts.get(key, ArmCounts()).merge(one)

    def choose(self, model: str, number: str | None, unit: bytes | None) -> DirectTarget:
        known = [target for (name, _), target in self._targets.items() if name == model]
        if not known:
            raise ModelNotFound(f"model '{model}' is unknown")
        if number is None:
            return known[-1]
        target = self._targets.get((model, number))
        if target is None:
            raise VersionNotFound(f"model '{model}' has no version {number}")
        return target

    def admit(
        self,
        model: str,
        number: str | None,
        timeout_s: float | None,
        received_s: float,
        urgency: int | None = None,
    ) -> Unavailable | None:
        return Overloaded("the queue is full; try again", retry_after_s=1.2) if self.full else None

    def feedback(self, items: Sequence[Feedback]) -> None:
        if self.full:
            raise Unavailable("the disk is full")
        self.kept += items

    def settings(self, model: str) -> ModelSettings:
        return self.choose(model, None, None).settings

    def model_ready(self, model: str, number: str | None) -> bool:
        self.choose(model, number, None)
        return self.ready

    def index(self) -> list[VersionStatus]:
        found = [
            VersionStatus(version.model, version.number, version.digest, VersionState.READY)
            for version in (target.version for target in self._targets.values())
        ]
        return [*found, VersionStatus("broken", "1", "sha256:00", VersionState.FAILED, "the file is cut off")]

    def version(self, model: str, number: str | None) -> Version:
        return self.choose(model, number, None).version

    def stats(self, model: str | None, number: str | None) -> list[tuple[ArmKey, ArmCounts]]:
        return [
            (key, counts)
            for key, counts in self._counts.items()
            if model in (None, key.model) and number in (None, key.version)
        ]

    async def repository(self, action: Literal["load", "unload"], model: str) -> None:
        if not self.allows_repository:
            raise Forbidden(f"{action} is switched off; start the node with --allow-repository-control")
        self.choose(model, None, None)
        self.repository_calls.append((action, model))


def version(model: str, number: str = "1", signature: Signature = IRIS) -> Version:
    return Version(model, number, "sha256:" + "ab" * 32, "onnx", "model.onnx", signature)


def serving() -> DirectInfer:
    """Two versions of iris, `my model` with a blank in its name, and models that fail in their own ways."""

    def breaks(inputs: Tensors) -> Tensors:
        raise ValueError("no")

    def leaves(inputs: Tensors) -> Tensors:
        raise Cancelled("the caller left")

    infer = DirectInfer()
    infer.add(version("iris", "1"), iris)
    infer.add(version("iris", "2"), iris)
    infer.add(version("my model"), iris)
    infer.add(version("breaks"), breaks)
    infer.add(version("leaves"), leaves)
    infer.add(version("lies"), lambda inputs: {"label": np.zeros(1, np.int8), "probabilities": np.zeros(1)})
    infer.add(version("forgets"), lambda inputs: {"label": np.zeros(1, np.int64)})
    return infer
