"""Decides which backend runs a boosted model: its framework's, ONNX, or each for the batches it is faster for.

ONNX is taken only where it gives the same answers on all rows that are tried: the caller's, rows with gaps, and
rows at and beside the thresholds of the trees, as 64-bit numbers where the framework compares those.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from interlock.core.errors import InterlockError, LoadFailed
from interlock.core.model import DATATYPES, Array, Signature, Tensors, Version
from interlock.runtime import examples, lightgbm, trees, xgboost
from interlock.runtime.boosted import signature_of
from interlock.runtime.by_rows import MARGIN, MEASURED_ROWS, onnx_limit
from interlock.runtime.convert import TOLERANCE, Conversion, race
from interlock.runtime.onnx import runtime as onnx
from interlock.runtime.sklearn import INPUT
from interlock.runtime.trees import Forest, Inconvertible
from interlock.runtime.trees_onnx import to_onnx

NAMES = {"xgboost": "XGBoost", "lightgbm": "LightGBM"}
_TRIED = 1000
"""Rows with gaps, and rows at thresholds: so many of each."""
_ZERO = 1e-34
"""LightGBM's bounds of zero are +-1e-35, which it does not read back to the last bit."""


class Choice(msgspec.Struct, frozen=True):
    """What came of the comparison. `onnx_rows`: ONNX runs batches of up to so many rows, 0 for none, None for
    all; the conversion holds the graph unless it is 0."""

    conversion: Conversion
    onnx_rows: int | None


def choose(folder: Path, version: Version, rows: Array) -> Choice:
    """Convert the model in a folder, compare on `rows` ([>= 1000, columns], float64) and measure.

    It loads the model into this process: have it checked in another one before.
    Raises: LoadFailed, MissingExtra.
    """
    name = NAMES[version.runtime]
    try:
        graph, forest, signature = _converted(folder, version)
    except Inconvertible as error:
        return Choice(Conversion(None, f"it cannot be converted to ONNX: {error}"), 0)
    dtype = DATATYPES[signature.inputs[0].datatype]
    rows = _trials(np.asarray(rows, np.float64), forest, dtype)
    entry = "interlock-converted.onnx"
    (folder / entry).write_bytes(graph)
    try:
        native = _runtime(version).load(folder, version)
        try:
            converted = onnx.load(folder, msgspec.structs.replace(version, entry=entry, signature=signature))
        except BaseException:
            native.close()
            raise
    except LoadFailed as error:
        return Choice(Conversion(None, f"the converted model does not load: {error.message[:300]}"), 0)
    finally:
        (folder / entry).unlink()
    try:
        answer: Callable[[Tensors], Tensors] = native.predict
        gap = examples.difference(converted.predict({INPUT: rows}), answer({INPUT: rows}))
        if gap > TOLERANCE:
            words = "gives other labels" if np.isinf(gap) else f"differs by up to {gap:.2g}"
            reason = f"ONNX {words} than {name} on {len(rows)} rows (limit {TOLERANCE:g})"
            return Choice(Conversion(None, reason, len(rows), gap), 0)
        native_s, onnx_s = race(
            lambda batch: answer({INPUT: batch}),
            lambda batch: converted.predict({INPUT: batch}),
            rows,
            MEASURED_ROWS,
        )
    finally:
        native.close()
        converted.close()
    limit = onnx_limit(native_s, onnx_s)
    if limit == 0:
        reason = f"ONNX is not {MARGIN - 1:.0%} faster than {name} at {MEASURED_ROWS[0]} row"
        return Choice(Conversion(None, reason, len(rows), gap, native_s, onnx_s), 0)
    where = "at all sizes" if limit is None else f"up to {limit} rows"
    reason = (
        f"ONNX gives the same answers on {len(rows)} rows (largest difference {gap:.2g}), and is faster {where}"
    )
    return Choice(Conversion(graph, reason, len(rows), gap, native_s, onnx_s), limit)


def _converted(folder: Path, version: Version) -> tuple[bytes, Forest, Signature]:
    """The graph. Raises: Inconvertible, LoadFailed, MissingExtra."""
    path = folder / version.entry
    booster: xgboost.Booster | lightgbm.Booster
    if version.runtime == "xgboost":
        booster = xgboost.Booster(path, version.options)
    else:
        booster = lightgbm.Booster(path, version.options)
    try:
        shape = booster.shape
        if shape.categories:
            raise Inconvertible("it has columns of categories")
        if shape.multilabel:
            raise Inconvertible("it gives several labels a row")
        if not np.isnan(float(version.options.get("missing", "nan"))):
            raise Inconvertible(f"it takes {version.options['missing']:g} for a missing value")
        if isinstance(booster, xgboost.Booster):
            forest = trees.xgboost_forest(booster.as_json(), booster.iterations)
        else:
            forest = trees.lightgbm_forest(path)
        signature = signature_of(shape, version.options)
    finally:
        booster.close()
    try:
        return to_onnx(forest, signature, shape.classes), forest, signature
    except InterlockError:
        raise
    except Exception as error:  # onnx's protobuf raises what it likes, for a graph above 2 GB for example
        raise Inconvertible(f"{type(error).__name__}: {str(error)[:200]}") from error


def _runtime(version: Version) -> xgboost.Xgboost | lightgbm.Lightgbm:
    return xgboost.runtime if version.runtime == "xgboost" else lightgbm.runtime


def _trials(rows: Array, forest: Forest, dtype: np.dtype[np.generic], seed: int = 0) -> Array:
    """The rows, some of them with gaps, and some with one value at a threshold or next to it."""
    random = np.random.default_rng(seed)
    gaps = rows[random.integers(0, len(rows), _TRIED)].copy()
    gaps[random.random(gaps.shape) < 0.2] = np.nan
    parts = [rows.astype(dtype), gaps.astype(dtype)]
    pairs = forest.thresholds()
    pairs = pairs[np.abs(pairs[:, 1]) > _ZERO]
    if len(pairs):
        picked = pairs[random.integers(0, len(pairs), _TRIED)]
        at = rows[random.integers(0, len(rows), _TRIED)].astype(dtype)
        values = picked[:, 1].astype(dtype)
        towards = random.choice([-np.inf, np.nan, np.inf], _TRIED).astype(dtype)
        values = np.where(np.isnan(towards), values, np.nextafter(values, towards))
        at[np.arange(_TRIED), picked[:, 0].astype(np.int64)] = values
        parts.append(at)
    return np.concatenate(parts)

