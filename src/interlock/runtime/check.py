"""Decides whether a loaded model keeps the contract of a runtime, what it can do, and where it should run.

The suite runs the model's own code: call it in a process that may die (`check_process`).
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import OutputMismatch, said
from interlock.core.model import (
    Capabilities,
    Placement,
    Profile,
    Signature,
    Tensors,
    TensorSpec,
    Version,
    with_true_batch_axis,
)
from interlock.runtime import child, examples
from interlock.runtime.catalog import DATA_ONLY, inspector_of, runtime_of
from interlock.runtime.check_answers import Gaps, check_names, hold
from interlock.runtime.check_limit import LIMIT_CALL_BYTES, first_rows, limit_of, rows_within
from interlock.runtime.check_stream import Broken, StreamChecks
from interlock.runtime.peak import peak_of
from interlock.runtime.protocol import Loaded, WithExample, streams_of
from interlock.runtime.table import OPTION, table_of, with_columns

MEASURED_ROWS = (1, 8, 32, 128)
ALL_ROWS_S = 5.0
"""Beyond one call, so long are further reference rows tried."""
INLINE_LIMIT_S = 300e-6
"""A batch of 32 that takes longer holds the worker's loop for too long."""
EXECUTOR_BYTES = 20_000_000
"""Above this, a session's destruction stalls its process and keeps its memory: a process of its own then."""

TOLERANCES = {"FP16": 1e-2, "BF16": 5e-2}
"""Per output datatype, relative above 1; 1e-5 for all others."""


class CheckResult(msgspec.Struct, frozen=True):
    """One named check: whether it held, and what was seen."""

    name: str
    passed: bool
    detail: str = ""


class CheckReport(msgspec.Struct, frozen=True):
    """All results, and what a Version record takes from them. `generated`: the rows were made up."""

    results: tuple[CheckResult, ...]
    signature: Signature
    capabilities: Capabilities
    placement: Placement
    profile: Profile
    generated: bool = False

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if not result.passed)


def check(
    folder: Path,
    version: Version,
    reference: Tensors | None = None,
    note: Callable[[str], object] = lambda words: None,
) -> CheckReport:
    """Load a version and hold it to the contract, on `reference` rows or on generated ones.

    `version.signature` may be empty: it is then found. Capabilities that the model declares must hold; the
    others are found by measurement. No call has more rows than a declared `max_batch_rows`. `note` is told,
    before each step, what to say should the process not survive it; then "".
    Raises: LoadFailed, MissingExtra, UntrustedArtifact when there is nothing to check; CheckFailed when
    what is declared cannot be.
    """
    inspector = inspector_of(version.runtime)
    if reference is None and isinstance(inspector, WithExample):
        reference = inspector.example(folder, version)
    reference = None if reference is None else examples.texts_as_bytes(reference)
    declared = inspector.declared(folder, version)
    limit = limit_of(declared)
    note("that was while it was loaded, and first called")
    if not version.signature.inputs:
        example = (
            reference if reference is None or declared.get("streaming") else first_rows(reference, limit)
        )
        version = msgspec.structs.replace(version, signature=inspector.inspect(folder, version, example))
        gc.collect()
    signature = with_columns(with_true_batch_axis(version.signature), table_of(version.options))
    check_names(signature)
    version = msgspec.structs.replace(version, signature=signature)
    before, started = child.resident_bytes(os.getpid()), time.perf_counter()
    loaded = runtime_of(version.runtime).load(folder, version)
    load_s = time.perf_counter() - started
    note("")
    try:
        return _Checks(folder, version, loaded, declared, reference, note).run(load_s, before)
    finally:
        loaded.close()


def choose_placement(runtime: str, profile: Profile) -> Placement:
    """Where a version should run, by what was measured.

    >>> choose_placement("onnx", Profile(batch_s={1: 5e-6, 32: 40e-6}, artifact_bytes=10_000)).value
    'inline'
    """
    if runtime not in DATA_ONLY or profile.artifact_bytes > EXECUTOR_BYTES:
        return Placement.EXECUTOR
    small = [rows for rows in profile.batch_s if rows <= 32]
    slowest_s = profile.batch_s[max(small)] if small else float("inf")
    return Placement.INLINE if slowest_s < INLINE_LIMIT_S else Placement.THREAD


class _Checks:
    """One run of the suite: the order of the checks, and what each leaves for the next."""

    def __init__(
        self,
        folder: Path,
        version: Version,
        loaded: Loaded,
        declared: dict[str, Any],
        reference: Tensors | None,
        note: Callable[[str], object],
    ) -> None:
        self.folder, self.version, self.loaded, self.declared = folder, version, loaded, declared
        self.note = note
        self.limit = limit_of(declared)
        self.signature = version.signature
        self.generated = reference is None
        self.results: list[CheckResult] = []
        self.found: dict[str, Any] = {"tolerance": _tolerance(self.signature), **declared}
        self.data = self._data(reference)

    def run(self, load_s: float, before_bytes: int) -> CheckReport:
        self.results.append(CheckResult("loads", True, f"{load_s * 1e3:.1f} ms"))
        batch_s: dict[int, float] = {}
        batch_bytes: dict[int, int] = {}
        resident_bytes = 0
        if self.declared.get("streaming"):
            batch_s = self._streams()
            resident_bytes = max(0, child.resident_bytes(os.getpid()) - before_bytes)
        elif self._try("one row", self._one_row):
            resident_bytes = max(0, child.resident_bytes(os.getpid()) - before_bytes)
            if "max_batch_rows" in self.declared:
                self._try("max_batch_rows", self._declared_limit)
            if self._try("many rows", self._many_rows) and self._try("deterministic", self._deterministic):
                self._try("batch of n equals n of one", self._batch)
                self._try("requested outputs only", self._requested)
                self._try("wrong shape raises", self._wrong_shape)
                self._try("thread-safe", self._threads)
            if all(result.passed for result in self.results):
                batch_s = self._measure()
                batch_bytes = self._memory(batch_s, before_bytes)
        artifact_bytes = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        profile = Profile(batch_s, load_s, resident_bytes, artifact_bytes, batch_bytes)
        return CheckReport(
            tuple(self.results),
            self.signature,
            Capabilities(**self.found),
            choose_placement(self.version.runtime, profile),
            profile,
            self.generated,
        )

    def _streams(self) -> dict[int, float]:
        leads = all(spec.shape and spec.shape[0] == -1 for spec in self.signature.inputs)
        one = examples.take(self.data, 0, 1) if leads else self.data
        self.signature = msgspec.structs.replace(self.signature, batch_axis=None)
        model = streams_of(self.loaded, self.version)
        checks = StreamChecks(model, self.signature, one, self.declared, self.found)
        if self._try("one request", checks.one_request):
            self._try("deterministic", checks.deterministic)
            self._try("requested outputs only", checks.requested)
            self._try("wrong shape raises", checks.wrong_shape)
            self._try("stops when closed", checks.stopped)
            if all(result.passed for result in self.results):
                return {1: checks.measure()}
        return {}

    def _data(self, reference: Tensors | None) -> Tensors:
        if reference is None:
            return examples.generate(self.signature, max(MEASURED_ROWS))
        return examples.fit(self.signature, reference, OPTION in self.version.options)

    def _try(self, name: str, body: Callable[[], str]) -> bool:
        self.note(f"that was in the check {name!r}")
        try:
            result = CheckResult(name, True, body())
        except MemoryError:
            raise  # the limit of the whole process, not of this check
        except Broken as broken:
            result = CheckResult(name, False, str(broken))
        except Exception as error:
            words = said(error)
            # What it answers wrongly, it does on any rows.
            is_theirs = self.generated and not isinstance(error, OutputMismatch)
            hint = "; the rows were generated: give reference data with --data" if is_theirs else ""
            result = CheckResult(
                name,
                False,
                f"{'stream' if self.declared.get('streaming') else 'predict'} raised {words}{hint}",
            )
        self.note("")
        self.results.append(result)
        return result.passed

    @property
    def _batched(self) -> bool:
        return self.signature.batch_axis == 0

    def _rows(self, count: int, start: int = 0) -> Tensors:
        return examples.take(self.data, start, count) if self._batched else self.data

    def _one_row(self) -> str:
        answer = self.loaded.predict(self._rows(1))
        self.signature = _with_observed(self.signature, answer, 1)
        self._hold_outputs(answer, 1)
        return _shapes(answer)

    def _declared_limit(self) -> str:
        """One call with as many rows as lanes may join.

        Not tried: what lies above LIMIT_CALL_BYTES of inputs (BYTES with their lengths; a row counts as 8
        bytes at least); calls between 128 rows and the limit; and, where nothing is declared, any above 128.
        """
        if not self._batched:
            return "the signature has no batch axis"
        count = min(self.limit, rows_within(self.data, LIMIT_CALL_BYTES))
        bounded = (
            f" (more would be above {LIMIT_CALL_BYTES >> 20} MiB of inputs)" if count < self.limit else ""
        )
        words = (
            f"it was called with {count} rows{bounded}, and declares max_batch_rows = {self.limit}: declare "
            "no more than it can take at once"
        )
        self.note(words)
        try:
            answer = self.loaded.predict(self._rows(count))
            self._hold_outputs(answer, count)
        except MemoryError as error:
            raise Broken(f"it asked for more memory than a check may have; {words}") from error
        except Broken as broken:
            raise Broken(f"{broken}; {words}") from broken
        except Exception as error:
            raise Broken(f"predict raised {said(error)}; {words}") from error
        return f"{count} rows{bounded}: {_shapes(answer)}"

    def _many_rows(self) -> str:
        """All reference rows, as far as ALL_ROWS_S goes; one call at least."""
        gaps = Gaps(self.signature)
        count = min(max(MEASURED_ROWS), self.limit) if self._batched else 1
        total = examples.rows_of(self.data) if self._batched else 1
        done, until = 0, time.perf_counter() + ALL_ROWS_S
        while not done or (done < total and time.perf_counter() < until):
            inputs = self._rows(min(count, total - done) if done else count, done)
            answer = self.loaded.predict(inputs)
            self._hold_outputs(answer, examples.rows_of(inputs))
            gaps.add(inputs, answer)
            done += count
        missing = "" if self.generated else gaps.judge()
        if not self._batched:
            return f"the signature has no batch axis{missing}"
        return f"{max(count, min(done, total))} rows, {count} a call{missing}"

    def _hold_outputs(self, answer: Tensors, rows: int) -> None:
        hold(self.signature, answer, rows)

    def _deterministic(self) -> str:
        rows = self._rows(min(8, self.limit))
        gap = examples.difference(self.loaded.predict(rows), self.loaded.predict(rows))
        same = gap == 0.0
        if not same and self.declared.get("deterministic"):
            raise Broken(
                f"declared deterministic, and two equal calls differ by {gap:.3g}: seed it, or do not"
                " declare it"
            )
        self.found.setdefault("deterministic", same)
        return (
            "two equal calls agree"
            if same
            else f"two equal calls differ by {gap:.3g}: found not deterministic"
        )

    def _batch(self) -> str:
        if not self._batched:
            if self.declared.get("batchable"):
                raise Broken("declared batchable, and the signature has no batch axis")
            self.found["batchable"] = False
            return "the signature has no batch axis"
        if not self.found["deterministic"]:
            self.found.setdefault("batchable", False)
            return "cannot be compared: the model is not deterministic"
        count = min(32, self.limit)
        batch = self.loaded.predict(self._rows(count))
        singles = examples.join([self.loaded.predict(self._rows(1, start)) for start in range(count)])
        gap = examples.difference(batch, singles)
        tolerance = float(self.found["tolerance"])
        said = f"largest difference {gap:.3g}, tolerance {tolerance:.3g}"
        if gap > tolerance and self.declared.get("batchable"):
            raise Broken(f"declared batchable: {said}")
        self.found.setdefault("batchable", gap <= tolerance)
        return said if gap <= tolerance else f"{said}: found not batchable"

    def _requested(self) -> str:
        for spec in self.signature.outputs:
            answer = self.loaded.predict(self._rows(1), (spec.name,))
            if list(answer) != [spec.name]:
                raise Broken(f"asked for {spec.name!r}, came {sorted(answer)}")
        return f"{len(self.signature.outputs)} outputs one by one"

    def _wrong_shape(self) -> str:
        for spec in self.signature.inputs:
            if not spec.shape:
                continue
            bad = dict(self._rows(1))
            bad[spec.name] = examples.misshapen(bad[spec.name], spec)
            try:
                self.loaded.predict(bad)
            except Exception as error:
                return f"{spec.name} {list(bad[spec.name].shape)}: {said(error, 120)}"
            raise Broken(
                f"input {spec.name!r} was accepted with shape {list(bad[spec.name].shape)}, "
                f"the signature says {list(spec.shape)}"
            )
        return "every input is a scalar"

    def _threads(self) -> str:
        if not self.found.setdefault("thread_safe", False):
            return "not declared"
        rows = self._rows(min(8, self.limit))
        alone = self.loaded.predict(rows)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: self.loaded.predict(rows), range(100)))
        gap = max(examples.difference(answer, alone) for answer in answers)
        if self.found["deterministic"] and gap > float(self.found["tolerance"]):
            raise Broken(f"declared thread-safe, and 4 threads' answers differ by {gap:.3g}")
        return "100 calls from 4 threads agree"

    def _measure(self) -> dict[int, float]:
        sizes = sorted({min(rows, self.limit) for rows in MEASURED_ROWS}) if self._batched else [1]
        return {count: _median_s(self.loaded, self._rows(count)) for count in sizes}

    def _memory(self, sizes: Iterable[int], before_bytes: int) -> dict[int, int]:
        found = {}
        for count in sizes:
            rows = self._rows(count)
            peak_bytes = peak_of(partial(self.loaded.predict, rows))
            if peak_bytes is not None:
                found[count] = max(0, peak_bytes - before_bytes)
        return found


def _median_s(loaded: Loaded, rows: Tensors, budget_s: float = 0.2) -> float:
    loaded.predict(rows)
    taken: list[float] = []
    until = time.perf_counter() + budget_s
    while len(taken) < 200 and (len(taken) < 3 or time.perf_counter() < until):
        started = time.perf_counter()
        loaded.predict(rows)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _with_observed(signature: Signature, answer: Tensors, rows: int) -> Signature:
    """Where the framework knew no output shape at all (rank 0 said, more seen), what was seen counts."""
    specs = []
    for spec in signature.outputs:
        seen = answer[spec.name].shape if spec.name in answer else ()
        if not spec.shape and seen:
            shape = (-1, *seen[1:]) if seen[0] == rows else seen
            spec = TensorSpec(spec.name, spec.datatype, shape)
        specs.append(spec)
    return msgspec.structs.replace(signature, outputs=tuple(specs))


def _tolerance(signature: Signature) -> float:
    return max((TOLERANCES.get(spec.datatype, 1e-5) for spec in signature.outputs), default=1e-5)


def _shapes(answer: Tensors) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in answer.items())
