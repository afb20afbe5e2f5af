"""Decides whether a model that streams keeps the contract: parts as the signature says, an end when told."""

import itertools
import statistics
import time
from typing import Any

from interlock.core.model import DATATYPES, Signature, Tensors
from interlock.runtime import examples
from interlock.runtime.protocol import Streams

MOST_PARTS = 1000
"""A stream that goes on is closed after so many; it may be one without an end."""
STOP_LIMIT_S = 0.5
"""What the model may take to end once nobody wants the rest: so long it keeps the next request waiting."""


class Broken(Exception):
    """A check did not hold."""


class StreamChecks:
    """The checks of one loaded model; `found` holds its capabilities and is added to. `one`: one request."""

    def __init__(
        self,
        model: Streams,
        signature: Signature,
        one: Tensors,
        declared: dict[str, Any],
        found: dict[str, Any],
    ) -> None:
        self.model, self.signature, self.one = model, signature, one
        self.declared, self.found = declared, found

    def one_request(self) -> str:
        if self.declared.get("batchable"):
            raise Broken("declared batchable, and a version that streams runs one request at a time")
        self.found.update(batchable=False, thread_safe=bool(self.declared.get("thread_safe")))
        parts = self._parts()
        if not parts:
            raise Broken("the stream had no part; want at least one")
        for number, part in enumerate(parts):
            self._hold(part, number, {spec.name for spec in self.signature.outputs})
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in parts[0].items())
        return f"{len(parts)} parts{' and going on' * (len(parts) == MOST_PARTS)}, the first {shapes}"

    def deterministic(self) -> str:
        first, second = self._parts(), self._parts()
        gap = float("inf")
        if len(first) == len(second):
            gap = max(examples.difference(a, b) for a, b in zip(first, second, strict=True))
        if gap and self.declared.get("deterministic"):
            raise Broken(f"declared deterministic, and two equal requests differ by {gap:.3g}")
        self.found.setdefault("deterministic", gap == 0.0)
        return "two equal requests agree" if not gap else f"two equal requests differ by {gap:.3g}"

    def requested(self) -> str:
        for spec in self.signature.outputs:
            for number, part in enumerate(self._parts((spec.name,))):
                self._hold(part, number, {spec.name})
        return f"{len(self.signature.outputs)} outputs one by one"

    def stopped(self) -> str:
        for _ in range(3):
            parts = self.model.stream(self.one)
            if next(parts, None) is None:
                raise Broken("the stream had no part after another one was closed")
            started_s = time.perf_counter()
            try:
                parts.close()
            except Exception as error:
                raise Broken(f"close raised {type(error).__name__}: {str(error)[:300]}") from error
            took_s = time.perf_counter() - started_s
            if took_s > STOP_LIMIT_S:
                raise Broken(f"the generator took {took_s:.1f} s to close, the limit is {STOP_LIMIT_S} s")
        return "closed after its first part, three times"

    def wrong_shape(self) -> str:
        for spec in self.signature.inputs:
            if spec.shape:
                bad = {**self.one, spec.name: examples.misshapen(self.one[spec.name], spec)}
                parts = self.model.stream(bad)
                try:
                    next(parts, None)
                except Exception as error:
                    return f"{spec.name} {list(bad[spec.name].shape)}: {type(error).__name__}"
                finally:
                    parts.close()
                raise Broken(
                    f"input {spec.name!r} was accepted with shape {list(bad[spec.name].shape)}, "
                    f"the signature says {list(spec.shape)}"
                )
        return "every input is a scalar"

    def measure(self, budget_s: float = 1.0) -> float:
        """The median seconds of a whole stream."""
        taken: list[float] = []
        until_s = time.perf_counter() + budget_s
        while not taken or (len(taken) < 50 and time.perf_counter() < until_s):
            started_s = time.perf_counter()
            self._parts()
            taken.append(time.perf_counter() - started_s)
        return statistics.median(taken)

    def _parts(self, outputs: tuple[str, ...] | None = None) -> list[Tensors]:
        parts = self.model.stream(self.one, outputs)
        try:
            return list(itertools.islice(parts, MOST_PARTS))
        finally:
            parts.close()

    def _hold(self, part: Tensors, number: int, names: set[str]) -> None:
        if part.keys() != names:
            raise Broken(f"part {number} has outputs {sorted(part)}, want {sorted(names)}")
        for spec in self.signature.outputs:
            if spec.name not in names:
                continue
            array = part[spec.name]
            fits = len(array.shape) == len(spec.shape) and all(
                want in (-1, got) for got, want in zip(array.shape, spec.shape, strict=True)
            )
            if not fits or array.dtype != DATATYPES[spec.datatype]:
                raise Broken(
                    f"output {spec.name!r} of part {number} is {array.dtype} {list(array.shape)}, "
                    f"the signature says {spec.datatype} {list(spec.shape)}"
                )
