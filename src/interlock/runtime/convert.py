"""Decides whether a model runs as ONNX: only if it answers the same, and faster."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

from interlock.core.errors import CheckFailed, InterlockError, said
from interlock.core.model import Signature, Tensors, Version
from interlock.core.table import conform
from interlock.runtime import onnx
from interlock.runtime.check_limit import rows_within
from interlock.runtime.examples import fit, join, rows_of, take
from interlock.runtime.prepare import ConversionReport
from interlock.runtime.protocol import Loaded
from interlock.runtime.widen import ROWS

TOLERANCE = 1e-5
"""The largest |difference| between the kept model's answers and ONNX's that still counts as the same."""
LEAST_ROWS = 4000
RACED_ROWS = (1, 32)
RACE_S = 1.0
"""For one number of rows, unless eight runs of each take longer."""
CALL_BYTES = 1024**2
"""Of the inputs of one call while answers are compared."""
ENTRY = "model.onnx"
LABEL = "label"


def convert(
    made: Iterator[bytes],
    kept: Loaded,
    groups: Mapping[str, Tensors],
    columns: tuple[str, ...],
    out: Path,
    framework: str,
    tolerance: float = TOLERANCE,
) -> ConversionReport:
    """Write the first of the conversions `made` that may stand for the kept model to `out / ENTRY`.

    `groups` are the kept model's inputs (`widen.py`); all but the first may be left out, which is said, where
    the kept model itself refuses them. The report is that of the last one tried.
    """
    kept_answers, refused = _answers(kept, groups)
    report = ConversionReport(False, f"kept as {framework}: it cannot be converted to ONNX")
    path = out / ENTRY
    while True:
        try:
            graph = next(made, None)
        except Exception as error:  # a converter has no root of its own, and lets much else through
            words = f"it cannot be converted to ONNX: {first_line(error)}"
            report = ConversionReport(False, f"kept as {framework}: {words}")
            break
        if graph is None:
            break
        path.write_bytes(graph)
        found = _judge(path, kept, groups, kept_answers, columns, framework, tolerance)
        said = f"; rows with {' and with '.join(refused)} it refuses itself" if refused else ""
        prefix = "converted" if found.converted else f"kept as {framework}"
        report = msgspec.structs.replace(found, reason=f"{prefix}: {found.reason}{said}")
        if report.converted:
            return report
    path.unlink(missing_ok=True)
    return report


def _answers(kept: Loaded, groups: Mapping[str, Tensors]) -> tuple[dict[str, Tensors], list[str]]:
    """What the kept model answers, and the names of the groups that it refuses.

    Raises: CheckFailed if it refuses the first, which are rows like those that it was registered with.
    """
    answers: dict[str, Tensors] = {}
    refused = []
    for name, rows in groups.items():
        try:
            answers[name] = _predicted(kept, rows)
        except Exception as error:
            if name == ROWS:
                raise CheckFailed(f"the model raised on the reference data: {said(error)}") from error
            refused.append(name)
    return answers, refused


def _judge(
    path: Path,
    kept: Loaded,
    groups: Mapping[str, Tensors],
    kept_answers: Mapping[str, Tensors],
    columns: tuple[str, ...],
    framework: str,
    tolerance: float,
) -> ConversionReport:
    draft = Version("converted", "new", "sha256:" + "0" * 64, "onnx", path.name, Signature((), ()))
    try:
        signature = onnx.runtime.inspect(path.parent, draft, None)
        signature = msgspec.structs.replace(signature, columns=columns)
        session = onnx.runtime.load(path.parent, msgspec.structs.replace(draft, signature=signature))
    except InterlockError as error:
        return ConversionReport(False, f"the converted model does not load: {first_line(error)}")
    try:
        return _compare(session, signature, kept, groups, kept_answers, framework, tolerance)
    finally:
        session.close()


def _compare(
    session: Loaded,
    signature: Signature,
    kept: Loaded,
    groups: Mapping[str, Tensors],
    kept_answers: Mapping[str, Tensors],
    framework: str,
    tolerance: float,
) -> ConversionReport:
    largest, rows = 0.0, 0
    for name, answer in kept_answers.items():
        try:
            converted = _predicted(session, _inputs(signature, groups[name]))
        except Exception as error:
            where = "" if name == ROWS else f" on rows with {name}"
            words = f"the converted model does not run{where}: {first_line(error)}"
            return ConversionReport(False, words, rows)
        gap, reason = _difference(answer, converted, framework, tolerance)
        largest, rows = max(largest, gap), rows + rows_of(groups[name])
        if reason:
            return ConversionReport(False, reason, rows, largest)
    kept_s, onnx_s = race(kept, session, groups[ROWS], lambda batch: _inputs(signature, batch))
    slower = [count for count in kept_s if onnx_s[count] >= kept_s[count]]
    if slower:
        return ConversionReport(
            False, f"ONNX is not faster at {slower[0]} rows", rows, largest, kept_s, onnx_s
        )
    reason = f"ONNX gives the same answers on {rows} rows (largest difference {largest:.2g}), and is faster"
    return ConversionReport(True, reason, rows, largest, kept_s, onnx_s)


def race(
    kept: Loaded,
    other: Loaded,
    rows: Tensors,
    as_other: Callable[[Tensors], Tensors],
    sizes: tuple[int, ...] = RACED_ROWS,
) -> tuple[dict[int, float], dict[int, float]]:
    """Median seconds a call of each by rows; `as_other` makes the other's inputs of the kept one's."""
    medians: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for count in sizes:
        batch = take(rows, 0, count)
        pairs: tuple[tuple[Loaded, Tensors, list[float]], ...] = (
            (kept, batch, []),
            (other, as_other(batch), []),
        )
        # In turns, so that a busy machine slows both alike.
        until = time.perf_counter() + RACE_S
        run = 0
        while run < 8 or (run < 32 and time.perf_counter() < until):
            for model, inputs, times in pairs:
                started = time.perf_counter()
                model.predict(inputs)
                times.append(time.perf_counter() - started)
            run += 1
        for found, (_, _, times) in zip(medians, pairs, strict=True):
            found[count] = statistics.median(times[2:])
    return medians


def _predicted(model: Loaded, rows: Tensors) -> Tensors:
    """The answers to all rows, in calls that memory can take: a thousand images at once would be too many."""
    count, most = rows_of(rows), rows_within(rows, CALL_BYTES)
    if count <= most:
        return model.predict(rows)
    return join([model.predict(take(rows, at, min(most, count - at))) for at in range(0, count, most)])


def _inputs(signature: Signature, rows: Tensors) -> Tensors:
    return conform(signature, rows) if signature.columns else fit(signature, rows)


def _difference(kept: Tensors, converted: Tensors, framework: str, tolerance: float) -> tuple[float, str]:
    """The largest |difference| of numbers, and why the two are not the same model ("" if they are)."""
    largest = 0.0
    for name, ours in kept.items():
        if name not in converted:
            return largest, f"ONNX has no output {name!r}"
        theirs = converted[name]
        if ours.shape != theirs.shape:
            return largest, f"ONNX answers {name} {list(theirs.shape)}, {framework} {list(ours.shape)}"
        if ours.dtype.kind != "f":
            wrong = int(np.sum(ours != theirs))
            if wrong:
                what = "another label" if name == LABEL else f"another {name}"
                return largest, f"ONNX gives {what} for {wrong} of {len(ours)} rows"
            continue
        gaps = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        gaps = np.where(np.isnan(ours.astype(np.float64)) & np.isnan(theirs.astype(np.float64)), 0.0, gaps)
        largest = max(largest, float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0.0)))
        if largest > tolerance:
            return largest, f"ONNX differs in {name} by up to {largest:.2g}, the limit is {tolerance:g}"
    return largest, ""


def first_line(error: Exception) -> str:
    """The beginning of what it says, with its type."""
    return (said(error, 200).splitlines() or [""])[0]
