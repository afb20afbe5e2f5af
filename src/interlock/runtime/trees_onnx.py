"""Decides how trees are written as an ONNX graph that answers as the framework does, names and datatypes too.

A TreeEnsembleRegressor (ai.onnx.ml 3) adds the leaves up; what follows is plain ONNX. Where the framework
compares 64-bit numbers, so does the graph: values rounded to 32 bits may take other branches.
"""

from typing import Any

import numpy as np

from interlock.core.errors import MissingExtra
from interlock.core.model import DATATYPES, Signature
from interlock.runtime.boosted import Value, label_array
from interlock.runtime.sklearn import INPUT, LABEL, PREDICTION, PROBABILITIES
from interlock.runtime.trees import LEAF, Forest

_OPSETS = (("", 18), ("ai.onnx.ml", 3))


def to_onnx(forest: Forest, signature: Signature, classes: tuple[Value, ...] | None) -> bytes:
    """The graph. `signature`: one input [-1, columns], and the outputs of a boosted model.

    Raises: MissingExtra without the package onnx.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise MissingExtra("onnx", "sklearn") from None
    nodes: list[Any] = []
    constants: list[Any] = []

    def node(kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    kinds = {
        spec.name: helper.np_dtype_to_tensor_dtype(DATATYPES[spec.datatype]) for spec in signature.outputs
    }
    sums = node("TreeEnsembleRegressor", [INPUT], "sums", "ai.onnx.ml", **_ensemble(forest))
    answers = _transformed(forest, sums, node, constant)
    if classes is None:
        node("Cast", [answers], PREDICTION, to=kinds[PREDICTION])
    else:
        if len(forest.base) == 1:
            other = node("Sub", [constant("one", np.array([1], np.float32)), answers], "other")
            shares = node("Concat", [other, answers], "shares", axis=1)
            is_second = node("Greater", [answers, constant("half", np.array([0.5], np.float32))], "is_second")
            column = node("Cast", [is_second], "chosen_column", to=onnx.TensorProto.INT64)
            chosen = node("Squeeze", [column, constant("columns", np.array([1], np.int64))], "chosen")
        else:
            shares = answers
            chosen = node("ArgMax", [answers], "chosen", axis=1, keepdims=0)
        node("Cast", [shares], PROBABILITIES, to=kinds[PROBABILITIES])
        labels = label_array(classes)
        node("Gather", [constant("classes", labels), chosen], LABEL)
        if labels.dtype.kind == "O":
            kinds[LABEL] = onnx.TensorProto.STRING
    given = signature.inputs[0]
    graph = helper.make_graph(
        nodes,
        "boosted trees",
        [
            helper.make_tensor_value_info(
                INPUT, helper.np_dtype_to_tensor_dtype(DATATYPES[given.datatype]), [None, given.shape[1]]
            )
        ],
        [
            helper.make_tensor_value_info(spec.name, kinds[spec.name], [None, *spec.shape[1:]])
            for spec in signature.outputs
        ],
        constants,
    )
    opsets = [helper.make_opsetid(domain, number) for domain, number in _OPSETS]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def _transformed(forest: Forest, sums: str, node: Any, constant: Any) -> str:
    if forest.transform == "softmax":
        return str(node("Softmax", [sums], "transformed", axis=1))
    if forest.transform == "exp":
        return str(node("Exp", [sums], "transformed"))
    if forest.transform == "sigmoid":
        if forest.scale != 1.0:
            sums = node("Mul", [sums, constant("scale", np.array([forest.scale], np.float32))], "scaled")
        return str(node("Sigmoid", [sums], "transformed"))
    return sums


def _ensemble(forest: Forest) -> dict[str, Any]:
    """The attributes of a TreeEnsembleRegressor."""
    from onnx import numpy_helper

    trees = forest.trees
    sizes = [len(tree.feature) for tree in trees]
    tree_ids = np.repeat(np.arange(len(trees)), sizes)
    node_ids = np.concatenate([np.arange(size) for size in sizes])
    feature = np.concatenate([tree.feature for tree in trees])
    value = np.concatenate([tree.value for tree in trees])
    leaf = feature == LEAF
    branch = "BRANCH_LEQ" if forest.inclusive else "BRANCH_LT"
    groups = np.repeat([tree.group for tree in trees], sizes)
    thresholds, weights = np.where(leaf, 0, value), value[leaf]
    made: dict[str, Any] = {
        "n_targets": len(forest.base),
        "nodes_treeids": tree_ids.tolist(),
        "nodes_nodeids": node_ids.tolist(),
        "nodes_featureids": np.where(leaf, 0, feature).tolist(),
        "nodes_modes": np.where(leaf, "LEAF", branch).tolist(),
        "nodes_truenodeids": np.where(leaf, 0, np.concatenate([tree.left for tree in trees])).tolist(),
        "nodes_falsenodeids": np.where(leaf, 0, np.concatenate([tree.right for tree in trees])).tolist(),
        "nodes_missing_value_tracks_true": np.concatenate([tree.missing_left for tree in trees])
        .astype(int)
        .tolist(),
        "target_treeids": tree_ids[leaf].tolist(),
        "target_nodeids": node_ids[leaf].tolist(),
        "target_ids": groups[leaf].tolist(),
    }
    if forest.datatype == "FP64":
        made["nodes_values_as_tensor"] = numpy_helper.from_array(thresholds.astype(np.float64), "thresholds")
        made["target_weights_as_tensor"] = numpy_helper.from_array(weights.astype(np.float64), "weights")
        made["base_values_as_tensor"] = numpy_helper.from_array(np.array(forest.base, np.float64), "base")
    else:
        made["nodes_values"] = thresholds.astype(np.float32).tolist()
        made["target_weights"] = weights.astype(np.float32).tolist()
        made["base_values"] = np.array(forest.base, np.float32).tolist()
    return made
