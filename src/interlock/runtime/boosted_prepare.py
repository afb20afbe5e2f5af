"""Decides which backend runs a boosted model: its framework's, ONNX, or each where it is faster.

ONNX is taken only where it gives the same answers on all rows that are tried: the caller's and those around
them (`widen.py`), rows with gaps, and rows at and beside the thresholds of the trees, as 64-bit numbers where
the framework compares those.
"""

import shutil
from pathlib import Path

import msgspec
import numpy as np

from interlock.core.errors import CheckFailed, InterlockError, LoadFailed
from interlock.core.model import DATATYPES, Array, Signature, Tensors, Version
from interlock.runtime import examples, lightgbm, xgboost
from interlock.runtime.boosted import signature_of
from interlock.runtime.by_rows import ALL, MARGIN, MEASURED_ROWS, Rows, onnx_rows
from interlock.runtime.convert import ENTRY, LEAST_ROWS, TOLERANCE, race
from interlock.runtime.onnx import runtime as onnx
from interlock.runtime.prepare import Begin, ConversionReport, Prepared, allowed
from interlock.runtime.sklearn import INPUT
from interlock.runtime.table import OPTION, Table, as_fitted, table_of
from interlock.runtime.trees import Forest, Inconvertible, lightgbm_forest, xgboost_forest
from interlock.runtime.trees_onnx import to_onnx
from interlock.runtime.widen import widened

_NAMES = {"xgboost": "XGBoost", "lightgbm": "LightGBM"}
_TRIED = 1000
"""Rows with gaps, and rows at thresholds: so many of each."""
_ZERO = 1e-34
"""LightGBM's bounds of zero are +-1e-35, which it does not read back to the last bit."""


def prepare(
    folder: Path, draft: Version, data: Tensors | None, out: Path, begin: Begin = allowed
) -> Prepared:
    """See `prepare.Preparer`. `draft.options["table"]`: the columns of `data`."""
    name = _NAMES[draft.runtime]
    booster = _booster(folder, draft)
    try:
        table = as_fitted(table_of(draft.options), booster.shape.columns)
        options = {key: value for key, value in draft.options.items() if key != OPTION}
        if table is not None:
            options[OPTION] = msgspec.to_builtins(table)
        kept = msgspec.structs.replace(draft, options=options)
        report, chosen = ConversionReport(False, "without reference data (--data) it is not compared"), None
        if data is not None and (reason := begin()):
            report = ConversionReport(False, reason)
        elif data is not None:
            try:
                forest, signature, graph = _converted(booster, folder, kept)
                (out / ENTRY).write_bytes(graph)
                report, chosen = _judge(
                    folder,
                    kept,
                    np.concatenate(list(groups_of(data, signature, table).values())),
                    forest,
                    signature,
                    out,
                )
            except Inconvertible as error:
                report = ConversionReport(False, f"it cannot be converted to ONNX: {error}")
    finally:
        booster.close()
    if chosen == ALL:
        options = {OPTION: options[OPTION]} if OPTION in options else {}
        return Prepared("onnx", ENTRY, options, _said(report, "converted"))
    shutil.copyfile(folder / draft.entry, out / draft.entry)
    if chosen is None:
        (out / ENTRY).unlink(missing_ok=True)
        return Prepared(draft.runtime, draft.entry, options, _said(report, f"kept as {name}"))
    options.update({"onnx": ENTRY, "onnx_rows": list(chosen)})
    return Prepared(draft.runtime, draft.entry, options, _said(report, f"kept as {name} and as ONNX"))


def described(rows: Rows) -> str:
    """A range of rows in words.

    >>> described((1, 64)), described((8, None)), described((1, None))
    ('up to 64 rows', 'from 8 rows on', 'at all sizes')
    """
    least, most = rows
    if rows == ALL:
        return "at all sizes"
    if most is None:
        return f"from {least} rows on"
    return f"up to {most} rows" if least == 1 else f"from {least} to {most} rows"


def trials(rows: Array, forest: Forest, dtype: np.dtype[np.generic], seed: int = 0) -> Array:
    """The rows ([rows, columns], float64) as the model gets them, some of them with gaps, and some with one
    value at a threshold or next to it."""
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


def groups_of(data: Tensors, signature: Signature, table: Table | None) -> dict[str, Array]:
    """The reference rows and those around them (`widen.py`), [rows, columns] in float64.

    Raises: CheckFailed.
    """
    width = signature.inputs[0].shape[1]
    if table is not None:
        columns = {name: data[name] for name in table.names}
    else:
        given = next(iter(data.values()))
        if given.ndim != 2:
            raise CheckFailed(f"the reference data have shape {list(given.shape)}, want [rows, {width}]")
        columns = {str(index): column for index, column in enumerate(given.T)}
    texts = [name for name, values in columns.items() if values.dtype.kind not in "biuf"]
    if len(columns) != width or texts:
        words = f", of which {texts[:5]} are no numbers" if texts else ""
        raise CheckFailed(
            f"the reference data have {len(columns)} columns{words}; the model wants {width} of numbers"
        )
    numbers = {name: values.astype(np.float64) for name, values in columns.items()}
    groups = widened(numbers, LEAST_ROWS)
    return {name: np.column_stack(list(group.values())) for name, group in groups.items()}


def _judge(
    folder: Path, draft: Version, rows: Array, forest: Forest, signature: Signature, out: Path
) -> tuple[ConversionReport, Rows | None]:
    """Compare the graph in `out` with the model, and measure both; the batches that ONNX is for."""
    name = _NAMES[draft.runtime]
    tried: Tensors = {INPUT: trials(rows, forest, DATATYPES[signature.inputs[0].datatype])}
    count = len(tried[INPUT])
    try:
        converted = onnx.load(out, msgspec.structs.replace(draft, entry=ENTRY, signature=signature))
    except LoadFailed as error:
        return ConversionReport(False, f"the converted model does not load: {error.message[:300]}"), None
    native = _runtime(draft).load(folder, draft)
    try:
        gap = examples.difference(converted.predict(tried), native.predict(tried))
        if gap > TOLERANCE:
            how = "gives other answers" if np.isinf(gap) else f"differs by up to {gap:.2g}"
            return ConversionReport(False, f"ONNX {how}, the limit is {TOLERANCE:g}", count, gap), None
        native_s, onnx_s = race(native, converted, tried, lambda batch: batch, MEASURED_ROWS)
    finally:
        native.close()
        converted.close()
    chosen = onnx_rows(native_s, onnx_s)
    if chosen is None:
        reason = f"ONNX is at no size {MARGIN - 1:.0%} faster than {name}"
    else:
        same = f"ONNX gives the same answers on {count} rows (largest difference {gap:.2g})"
        reason = f"{same}, and is faster {described(chosen)}"
    return ConversionReport(chosen == ALL, reason, count, gap, native_s, onnx_s), chosen


def _converted(
    booster: xgboost.Booster | lightgbm.Booster, folder: Path, draft: Version
) -> tuple[Forest, Signature, bytes]:
    """Raises: Inconvertible, LoadFailed, MissingExtra."""
    shape = booster.shape
    if shape.categories:
        raise Inconvertible("it has columns of categories")
    if shape.multilabel:
        raise Inconvertible("it gives several labels a row")
    if not np.isnan(float(draft.options.get("missing", "nan"))):
        raise Inconvertible(f"it takes {draft.options['missing']:g} for a missing value")
    if isinstance(booster, xgboost.Booster):
        forest = xgboost_forest(booster.as_json(), booster.iterations)
    else:
        forest = lightgbm_forest(folder / draft.entry)
    signature = signature_of(shape, draft.options)
    try:
        return forest, signature, to_onnx(forest, signature, shape.classes)
    except InterlockError:
        raise
    except Exception as error:  # protobuf raises what it likes, for a graph above 2 GB for example
        raise Inconvertible(f"{type(error).__name__}: {str(error)[:200]}") from error


def _said(report: ConversionReport, prefix: str) -> ConversionReport:
    return msgspec.structs.replace(report, reason=f"{prefix}: {report.reason}")


def _booster(folder: Path, draft: Version) -> xgboost.Booster | lightgbm.Booster:
    if draft.runtime == "xgboost":
        return xgboost.Booster(folder / draft.entry, draft.options)
    return lightgbm.Booster(folder / draft.entry, draft.options)


def _runtime(draft: Version) -> xgboost.Xgboost | lightgbm.Lightgbm:
    return xgboost.runtime if draft.runtime == "xgboost" else lightgbm.runtime
