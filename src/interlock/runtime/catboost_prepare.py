"""Decides whether a CatBoost model runs as ONNX: if it takes numbers only, answers the same, and is faster.

The graph is CatBoost's own, with our names. Its classifiers end in a ZipMap, which makes a map of each row's
probabilities: that is cut off.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import MissingExtra
from interlock.core.model import Signature, Tensors, Version
from interlock.runtime.boosted_prepare import groups_of
from interlock.runtime.catboost import EXTRA, CatboostModel, open_model, signature_of
from interlock.runtime.convert import ENTRY, convert
from interlock.runtime.prepare import Begin, ConversionReport, Prepared, allowed
from interlock.runtime.sklearn import INPUT, LABEL, PREDICTION, PROBABILITIES
from interlock.runtime.table import OPTION, as_fitted, table_of
from interlock.runtime.trees import Inconvertible

FRAMEWORK = "CatBoost"


def prepare(
    folder: Path, draft: Version, data: Tensors | None, out: Path, begin: Begin = allowed
) -> Prepared:
    """See `prepare.Preparer`. `draft.options["table"]`: the columns of `data`."""
    model = open_model(folder / draft.entry, draft.options)
    signature = signature_of(model, draft.options)
    table = as_fitted(table_of(draft.options), signature.columns)
    if data is None:
        report = _kept("without reference data (--data) the conversion cannot be compared")
    elif tuple(spec.name for spec in signature.inputs) != (INPUT,):
        report = _kept("it has columns of categories")
    elif reason := begin():
        report = _kept(reason)
    else:
        groups = {
            name: {INPUT: rows.astype(np.float32)} for name, rows in groups_of(data, signature, table).items()
        }
        kept = CatboostModel(model, signature)
        report = convert(_graphs(model, signature), kept, groups, signature.columns, out, FRAMEWORK)
    if report.converted:
        return Prepared("onnx", ENTRY, {} if table is None else {OPTION: msgspec.to_builtins(table)}, report)
    shutil.copyfile(folder / draft.entry, out / draft.entry)
    return Prepared(draft.runtime, draft.entry, draft.options, report)


def _kept(reason: str) -> ConversionReport:
    return ConversionReport(False, f"kept as {FRAMEWORK}: {reason}")


def _graphs(model: Any, signature: Signature) -> Iterator[bytes]:
    """The one graph. Raises: MissingExtra; CatBoostError for what CatBoost does not write as ONNX."""
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        raise MissingExtra("onnx", EXTRA) from None
    with tempfile.TemporaryDirectory() as desk:
        path = Path(desk) / ENTRY
        model.save_model(str(path), format="onnx")
        made = onnx.load(path)
    graph = made.graph
    trees = graph.node[0]
    is_classifier = trees.op_type == "TreeEnsembleClassifier"
    if is_classifier != (signature.outputs[0].name == LABEL):  # it takes several targets for classes
        raise Inconvertible("CatBoost writes another kind of model")
    ends: list[tuple[str, int, list[int | None]]]
    if is_classifier:
        # Of the two outputs the label has its datatype already; the other one was the ZipMap's.
        label = graph.output[0].type.tensor_type.elem_type
        classes = signature.outputs[1].shape[1]
        ends = [(LABEL, label, [None]), (PROBABILITIES, TensorProto.FLOAT, [None, classes])]
    else:
        ends = [(PREDICTION, TensorProto.FLOAT, [None, 1])]
    trees.input[:] = [INPUT]
    trees.output[:] = [end[0] for end in ends]
    del graph.node[1:], graph.input[:], graph.output[:]
    width = signature.inputs[0].shape[1]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, width]))
    graph.output.extend(helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in ends)
    yield made.SerializeToString()
