"""Owns the conversion of scikit-learn models to ONNX graphs with our names of inputs and outputs."""

from collections.abc import Iterator, Mapping
from typing import Any

from interlock.core.errors import MissingExtra
from interlock.runtime.sklearn import INPUT, LABEL, PREDICTION, PROBABILITIES
from interlock.runtime.table import Table

_OPSETS = {"": 18, "ai.onnx.ml": 3}
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL")


def conversions(estimator: Any, width: int, table: Table | None) -> Iterator[bytes]:
    """Graphs that may answer as the estimator does, the most promising first.

    Without a `table` one input [-1, width] of floats. With one: each column an input, then, if all are
    numbers, joined into one again. Whole numbers stay whole at first, for models that count them as
    categories; converters that cannot take them get floats.
    Raises: MissingExtra; whatever skl2onnx raises.
    """
    try:
        from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
    except ImportError as error:
        raise MissingExtra(error.name or "skl2onnx", "sklearn") from None
    if table is None:
        yield _graph(estimator, [(INPUT, FloatTensorType([None, width]))]).SerializeToString()
        return
    failure: Exception | None = None
    for whole in (Int64TensorType, FloatTensorType):
        types = []
        for name, datatype in table.columns:
            kind = (
                StringTensorType
                if datatype == "BYTES"
                else whole
                if datatype in _INTEGERS
                else FloatTensorType
            )
            types.append((name, kind([None, 1])))
        try:
            model = _graph(estimator, types)
            _named_again(model.graph, table.names)
            if table.is_numeric:
                model = _joined(model, table.names)
        except Exception as error:
            failure = failure or error
        else:
            failure = None
            yield model.SerializeToString()
        if not any(kind is Int64TensorType for _, kind in ((n, type(t)) for n, t in types)):
            break
    if failure is not None:
        raise failure


def _graph(estimator: Any, types: list[tuple[str, Any]]) -> Any:
    from skl2onnx import to_onnx

    classifier = hasattr(estimator, "classes_")
    probable = classifier and hasattr(estimator, "predict_proba")
    model = to_onnx(
        estimator,
        initial_types=types,
        options={"zipmap": False} if probable else None,
        target_opset=_OPSETS,
    )
    wanted = [PREDICTION] if not classifier else [LABEL, PROBABILITIES] if probable else [LABEL]
    graph = model.graph
    for node, name in zip(list(graph.output), wanted, strict=False):
        _rename(graph, node.name, name)
        node.name = name
    del graph.output[len(wanted) :]  # scores and the like, which the kept model does not answer either
    return model


def _named_again(graph: Any, names: tuple[str, ...]) -> None:
    """Inputs under the names of their columns: the converter writes `_` for most signs in them."""
    if len(graph.input) == len(names):
        for value, name in zip(graph.input, names, strict=True):
            _rename(graph, value.name, name)
            value.name = name


def _joined(model: Any, names: tuple[str, ...]) -> Any:
    """The same graph with one input [-1, columns] of floats, cut into what were its inputs.

    A column is one input less to check, copy and name for every request: with ten of them a row takes half of
    the time.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    parts = [f"interlock_column_{index}" for index in range(len(names))]
    nodes = [helper.make_node("Split", [INPUT], parts, axis=1, num_outputs=len(names))]
    for part, name in zip(parts, names, strict=True):
        if name in kinds:
            nodes.append(helper.make_node("Cast", [part], [name], to=kinds[name]))
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *body])
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, len(names)]))
    if INPUT in names:
        _rename(graph, INPUT, "interlock_column_input", from_node=1)
    return model


def _rename(graph: Any, old: str, new: str, from_node: int = 0) -> None:
    """The value `old` becomes `new`, from one node on; a value that is already called `new` gives way."""
    if old == new:
        return
    names: Mapping[str, str] = {old: new, new: f"{new}_inner"}
    for node in list(graph.node)[from_node:]:
        for ends in (node.input, node.output):
            for index, name in enumerate(ends):
                if name in names:
                    ends[index] = names[name]
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
