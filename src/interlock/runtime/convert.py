"""Decides whether a scikit-learn model runs as ONNX: only if it answers the same, and faster."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import MissingExtra
from interlock.core.model import Array, Tensors
from interlock.runtime.ort import onnxruntime
from interlock.runtime.sklearn import INPUT, LABEL, PREDICTION, PROBABILITIES, answer

TOLERANCE = 1e-5
"""The largest |difference| between scikit-learn's answers and ONNX's that still counts as the same model."""
LEAST_ROWS = 1000


class Conversion(msgspec.Struct, frozen=True):
    """What came of it. `onnx` is the converted model, or None when it is not to be used; `reason` says why.

    `difference` is the largest |difference| seen, None if it never ran; `kept_s` and `onnx_s` are median
    seconds a call by rows, measured in turns.
    """

    onnx: bytes | None
    reason: str
    rows: int = 0
    difference: float | None = None
    kept_s: dict[int, float] = {}
    onnx_s: dict[int, float] = {}


def convert(estimator: Any, rows: Array) -> Conversion:
    """Convert an estimator and compare the two on `rows` ([>= 1000, columns], float32).

    Raises: MissingExtra.
    """
    try:
        made = _to_onnx(estimator, rows.shape[1])
        session = _session(made)
    except ImportError as error:
        raise MissingExtra(error.name or "skl2onnx", "sklearn") from None
    except Exception as error:  # skl2onnx has no root of its own, and lets much else through
        return Conversion(
            None, f"it cannot be converted to ONNX: {type(error).__name__}: {_first_line(error)}"
        )
    names = [node.name for node in session.get_outputs()]
    try:
        converted = dict(zip(names, session.run(names, {INPUT: rows}), strict=True))
    except Exception as error:
        return Conversion(
            None, f"the converted model does not run: {type(error).__name__}: {_first_line(error)}"
        )
    kept = {name: answer(estimator, name, rows) for name in names}
    gap, reason = _compare(kept, converted)
    if reason:
        return Conversion(None, reason, len(rows), gap)
    kept_s, onnx_s = _race(
        lambda batch: [answer(estimator, name, batch) for name in names],
        lambda batch: session.run(names, {INPUT: batch}),
        rows,
    )
    slower = [count for count in kept_s if onnx_s[count] >= kept_s[count]]
    if slower:
        return Conversion(None, f"ONNX is not faster at {slower[0]} rows", len(rows), gap, kept_s, onnx_s)
    reason = f"ONNX gives the same answers on {len(rows)} rows (largest difference {gap:.2g}), and is faster"
    return Conversion(made, reason, len(rows), gap, kept_s, onnx_s)


def _to_onnx(estimator: Any, width: int) -> bytes:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    classifier = hasattr(estimator, "classes_")
    model = to_onnx(
        estimator,
        initial_types=[(INPUT, FloatTensorType([None, width]))],
        options={"zipmap": False} if classifier and hasattr(estimator, "predict_proba") else None,
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    wanted = [LABEL, PROBABILITIES] if hasattr(estimator, "predict_proba") else [LABEL]
    if not classifier:
        wanted = [PREDICTION]
    graph = model.graph
    for node, name in zip(list(graph.output), wanted, strict=False):
        _rename(graph, node.name, name)
        node.name = name
    del graph.output[len(wanted) :]  # scores and the like, which the kept model does not answer either
    return bytes(model.SerializeToString())


def _rename(graph: Any, old: str, new: str) -> None:
    """The value `old` becomes `new`; a value that is already called `new` gives way."""
    if old == new:
        return
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in (old, new):
                    names[index] = new if name == old else f"{new}_inner"
    for value in graph.value_info:
        if value.name in (old, new):
            value.name = new if value.name == old else f"{new}_inner"


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _compare(kept: Tensors, converted: Tensors) -> tuple[float, str]:
    """The largest |difference| of numbers, and why the two are not the same model ("" if they are)."""
    largest = 0.0
    for name, ours in kept.items():
        theirs = converted[name]
        if ours.shape != theirs.shape:
            return largest, f"ONNX answers {name} {list(theirs.shape)}, scikit-learn {list(ours.shape)}"
        if name == LABEL:
            wrong = int(np.sum(ours != theirs))
            if wrong:
                return largest, f"ONNX gives another label for {wrong} of {len(ours)} rows"
            continue
        gaps = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        gaps = np.where(np.isnan(ours.astype(np.float64)) & np.isnan(theirs.astype(np.float64)), 0.0, gaps)
        largest = max(largest, float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0.0)))
        if largest > TOLERANCE:
            return largest, f"ONNX differs in {name} by up to {largest:.2g}, the limit is {TOLERANCE:g}"
    return largest, ""


def _race(
    kept: Callable[[Array], object], converted: Callable[[Array], object], rows: Array
) -> tuple[dict[int, float], dict[int, float]]:
    """Median seconds a call at 1 and at 32 rows, one run of each in turns."""
    # In turns, so that a busy machine slows both alike.
    medians: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for count in (1, 32):
        batch = np.ascontiguousarray(rows[:count])
        taken: tuple[list[float], list[float]] = ([], [])
        for run in range(32):
            for call, times in ((kept, taken[0]), (converted, taken[1])):
                started = time.perf_counter()
                call(batch)
                if run >= 2:
                    times.append(time.perf_counter() - started)
        for found, times in zip(medians, taken, strict=True):
            found[count] = statistics.median(times)
    return medians


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]
