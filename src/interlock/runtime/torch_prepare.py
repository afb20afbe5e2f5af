"""Decides how a PyTorch model is kept: as ONNX where that answers the same, faster; else as it came."""

import shutil
from pathlib import Path

import numpy as np

from interlock.core.model import Signature, Tensors, Version
from interlock.runtime.check_limit import rows_within
from interlock.runtime.convert import ENTRY, LEAST_ROWS, convert
from interlock.runtime.examples import fit, rows_of, stacked, take
from interlock.runtime.prepare import Begin, ConversionReport, Prepared, allowed
from interlock.runtime.table import OPTION, table_of, with_columns
from interlock.runtime.torch import TorchModel, open_program, torch_package
from interlock.runtime.torch_files import PROGRAM, checked_kind
from interlock.runtime.torch_program import conversions
from interlock.runtime.widen import ROWS, widened

FRAMEWORK = "PyTorch"
_COMPARED_BYTES = 64 * 1024**2


def prepare(
    folder: Path, draft: Version, data: Tensors | None, out: Path, begin: Begin = allowed
) -> Prepared:
    """See `prepare.Preparer`. Only programs (.pt2) are converted."""
    path = folder / draft.entry
    report = None
    if checked_kind(path, draft.options) == PROGRAM:
        if data is None:
            reason = "without reference data (--data) the conversion cannot be compared"
            report = ConversionReport(False, f"kept as {FRAMEWORK}: {reason}")
        else:
            report = _convert(path, draft, data, out, begin)
    if report is not None and report.converted:
        return Prepared("onnx", ENTRY, {k: v for k, v in draft.options.items() if k == OPTION}, report)
    shutil.copyfile(path, out / draft.entry)
    return Prepared("torch", draft.entry, draft.options, report)


def _convert(path: Path, draft: Version, data: Tensors, out: Path, begin: Begin) -> ConversionReport:
    torch_package().set_num_threads(1)  # as it is served
    program, call, signature = open_program(path, draft.options)
    if signature.batch_axis is None:
        reason = "its rows are fixed: it was exported without dynamic_shapes"
        return ConversionReport(False, f"kept as {FRAMEWORK}: {reason}")
    signature = with_columns(signature, table_of(draft.options))
    groups = {ROWS: _rows(signature, data, OPTION in draft.options)}
    kept = TorchModel(call, signature)
    if reason := begin():
        return ConversionReport(False, f"kept as {FRAMEWORK}: {reason}")
    return convert(conversions(program, signature), kept, groups, signature.columns, out, FRAMEWORK)


def _rows(signature: Signature, data: Tensors, is_table: bool) -> Tensors:
    """The reference rows, with their extremes and beyond where they are numbers in columns; else repeated."""
    rows = fit(signature, data, is_table)
    (name, matrix), *others = rows.items()
    if not others and matrix.ndim == 2 and matrix.dtype.kind == "f":
        columns = {str(index): column for index, column in enumerate(matrix.T)}
        wide = stacked(widened(columns, LEAST_ROWS)[ROWS])
        assert wide is not None
        return {name: np.asarray(wide, matrix.dtype)}
    return take(rows, 0, max(1, min(max(1000, rows_of(rows)), rows_within(rows, _COMPARED_BYTES))))
