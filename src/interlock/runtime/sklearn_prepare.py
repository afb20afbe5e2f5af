"""Decides how a scikit-learn model is kept: which columns it gets, in which datatypes, and if as ONNX."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import CheckFailed, LoadFailed, said
from interlock.core.model import Array, Signature, Tensors, Version
from interlock.core.table import conform
from interlock.runtime import pickles
from interlock.runtime import table as tables
from interlock.runtime.convert import ENTRY, LEAST_ROWS, TOLERANCE, convert
from interlock.runtime.examples import beyond_floats
from interlock.runtime.prepare import Begin, ConversionReport, Prepared, allowed
from interlock.runtime.sklearn import (
    FAMILIES,
    INPUT,
    SklearnModel,
    load_file,
    signature_of,
    skops_io,
)
from interlock.runtime.sklearn_onnx import conversions
from interlock.runtime.table import OPTION, Table, as_fitted, table_of
from interlock.runtime.widen import widened

FRAMEWORK = "scikit-learn"
_COMPARED_ROWS = 1024
"""Rows on which it is tried whether the model wants 64-bit floats, and whether names."""


def prepare(
    folder: Path, draft: Version, data: Tensors | None, out: Path, begin: Begin = allowed
) -> Prepared:
    """See `prepare.Preparer`. `draft.options["table"]`: the columns of `data`."""
    warnings.filterwarnings("ignore", message="X does not have valid feature names", category=UserWarning)
    estimator = load_file(folder / draft.entry, draft.options)
    if not callable(getattr(estimator, "predict", None)):
        raise LoadFailed(f"{draft.entry} holds a {type(estimator).__name__}, which has no predict method")
    form = _form(estimator, draft, data)
    if data is None:
        reason = "without reference data (--data) the conversion cannot be compared"
        report = ConversionReport(False, f"kept as {FRAMEWORK}: {reason}")
    elif form.datatype == "FP64" and not form.by_column:
        reason = "it needs 64-bit floats (with 32-bit ones it refuses, or answers otherwise)"
        report = ConversionReport(False, f"kept as {FRAMEWORK}: {reason}")
    elif reason := begin():
        report = ConversionReport(False, f"kept as {FRAMEWORK}: {reason}")
    else:
        report = _convert(estimator, form, data, out)
    if report.converted:
        return Prepared("onnx", ENTRY, {} if form.table is None else {OPTION: form.table}, report)
    entry, kept = _keep(estimator, folder, draft, out)
    return Prepared("sklearn", entry, {**form.options(), **kept}, report)


class _Form(msgspec.Struct, frozen=True):
    """How a model gets its rows: as an array, or `named`, as a DataFrame. `datatype` is that of one tensor of
    floats, of 32 bits if that changes no answer; `table` its columns, if it has some, `rounded` to 32 bits.
    """

    datatype: str
    named: bool = False
    table: Table | None = None
    rounded: Table | None = None

    @property
    def by_column(self) -> bool:
        return self.table is not None and not self.table.is_numeric

    def options(self) -> dict[str, Any]:
        """Those of the runtime `sklearn`. A table stays as it was: nothing but ONNX gains by rounding."""
        if self.table is None:
            return {"input_datatype": self.datatype}
        return {"input_datatype": "FP64", OPTION: self.table, **({"named": True} if self.named else {})}


def _form(estimator: Any, draft: Version, data: Tensors | None) -> _Form:
    table = table_of(draft.options)
    if data is None:
        return _Form("FP32", table=table)
    if table is None:
        return _Form("FP32" if _same_in_float32(estimator, _matrix(data), None, False) else "FP64")
    table = as_fitted(table, tuple(map(str, getattr(estimator, "feature_names_in_", ()))))
    assert table is not None
    if table.is_numeric:
        matrix = np.column_stack([data[name].astype(np.float64) for name in table.names])
        named = _wants_names(estimator, table, matrix[:_COMPARED_ROWS])
        _check_whole_numbers(estimator, table, data, matrix)
        datatype = "FP32" if _same_in_float32(estimator, matrix, table, named) else "FP64"
        return _Form(datatype, named, table)
    narrow = _narrowed(table)
    exact = tables.frame(table, _few(data, table))
    rounded = tables.frame(narrow, conform(_columns(narrow), _few(data, table)))
    return _Form("FP64", True, table, narrow if _same(estimator, exact, rounded) else table)


def _wants_names(estimator: Any, table: Table, matrix: Array) -> bool:
    """Whether an array, without the names of its columns, is refused or answered otherwise."""
    try:
        bare = np.asarray(estimator.predict(matrix))
    except Exception:  # whatever a pipeline raises that looks for a column by its name
        return True
    return not _equal(bare, _answers(estimator, tables.frame_of_matrix(table, matrix)))


def _check_whole_numbers(estimator: Any, table: Table, data: Tensors, matrix: Array) -> None:
    """Raises: CheckFailed if the model tells whole numbers apart that one tensor of floats cannot."""
    for name in table.names:
        row = beyond_floats(data[name])
        if row is None:
            continue
        chosen = slice(row, row + 1)
        exact = tables.frame(table, {column: data[column][chosen] for column in table.names})
        rounded = tables.frame_of_matrix(table, matrix[chosen])
        if not _equal(_answers(estimator, exact), _answers(estimator, rounded)):
            raise CheckFailed(
                f"the model answers otherwise for {data[name][row]} in row {row} of column {name!r} than for"
                " the nearest 64-bit float, as which it would be served: leave it out, or make it text"
            )


def _answers(estimator: Any, rows: Any) -> Array:
    try:
        return np.asarray(estimator.predict(rows))
    except Exception as error:
        raise CheckFailed(f"the model raised on the reference data: {said(error)}") from error


def _same_in_float32(estimator: Any, matrix: Array, table: Table | None, named: bool) -> bool:
    """Whether a client that sends FP32 gets the same answers: equal labels, |difference| <= 1e-5."""
    sample = matrix[:_COMPARED_ROWS]
    rounded = sample.astype(np.float32)
    if named and table is not None:
        return _same(estimator, tables.frame_of_matrix(table, sample), tables.frame_of_matrix(table, rounded))
    return _same(estimator, sample, rounded)


def _same(estimator: Any, exact: Any, rounded: Any) -> bool:
    calls = [estimator.predict]
    if hasattr(estimator, "predict_proba"):
        calls.append(estimator.predict_proba)
    try:
        narrow = [np.asarray(call(rounded)) for call in calls]
    except (TypeError, ValueError):
        return False  # compiled for float64 only
    try:
        wide = [np.asarray(call(exact)) for call in calls]
    except Exception as error:
        raise CheckFailed(f"the model raised on the reference data: {said(error)}") from error
    return all(map(_equal, wide, narrow))


def _equal(wide: Array, narrow: Array) -> bool:
    if wide.dtype.kind != "f":
        return bool(np.array_equal(wide, narrow))
    return bool(np.allclose(wide, narrow, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


def _narrowed(table: Table) -> Table:
    columns = tuple(
        (name, "FP32" if datatype == "FP64" and name not in table.categories else datatype)
        for name, datatype in table.columns
    )
    return msgspec.structs.replace(table, columns=columns)


def _few(data: Tensors, table: Table) -> Tensors:
    return {name: data[name][:_COMPARED_ROWS] for name in table.names}


def _columns(table: Table) -> Signature:
    return Signature(tables.specs(table), (), 0, table.names)


def _convert(estimator: Any, form: _Form, data: Tensors, out: Path) -> ConversionReport:
    table, named = form.rounded or form.table, form.named
    signature = signature_of(estimator, data, "FP32", table, named)
    kept = SklearnModel(estimator, signature, table if named else None)
    if table is None:
        columns = {str(index): column for index, column in enumerate(_matrix(data).T)}
    else:
        columns = {name: data[name] for name in table.names}
    groups = {}
    for name, rows in widened(columns, LEAST_ROWS).items():
        if table is None:
            groups[name] = {INPUT: np.column_stack(list(rows.values())).astype(np.float32)}
        else:
            groups[name] = conform(signature, rows)
    width = signature.inputs[0].shape[1]
    made = conversions(estimator, width, table if named else None)
    return convert(made, kept, groups, signature.columns, out, FRAMEWORK)


def _matrix(data: Tensors) -> Array:
    if len(data) != 1:
        raise CheckFailed(f"a scikit-learn model has one input, the reference data {sorted(data)}")
    matrix = next(iter(data.values()))
    try:
        matrix = np.asarray(matrix, np.float64)
    except (TypeError, ValueError):
        raise CheckFailed(
            "the reference data hold values that are not numbers: give them as a table"
        ) from None
    if matrix.ndim != 2:
        raise CheckFailed(f"the reference data have shape {list(matrix.shape)}, want [rows, columns]")
    return matrix


def _keep(estimator: Any, folder: Path, draft: Version, out: Path) -> tuple[str, dict[str, Any]]:
    """Write the model as it is kept: as skops if that can hold it, else as the pickle that it came as."""
    source = folder / draft.entry
    if source.suffix not in pickles.SUFFIXES:
        shutil.copyfile(source, out / source.name)
        return source.name, _types(out / source.name, draft.options.get("trusted_types", ()))
    skops = skops_io()
    path = out / "model.skops"
    try:
        skops.dump(estimator, path)
        # Vouched for, as the pickle that held them was.
        return path.name, _types(path, list(skops.get_untrusted_types(file=path)))
    except Exception:  # skops has no root of its own; the pickle, which was read, is left then
        path.unlink(missing_ok=True)
        shutil.copyfile(source, out / source.name)
        return source.name, {pickles.DIGEST_OPTION: draft.options[pickles.DIGEST_OPTION]}


def _types(path: Path, trusted: Any) -> dict[str, Any]:
    found = sorted(skops_io().get_untrusted_types(file=path))
    return {
        "all_types": found,
        "trusted_types": sorted(name for name in trusted if not name.startswith(FAMILIES)),
    }
