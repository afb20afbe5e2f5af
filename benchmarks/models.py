"""Makes the models that benchmarks serve: iris, an image model that costs nothing, one of 2 ms.

Imports only numpy and scikit-learn at the top of its functions, so that a peer's environment can run
`python models.py --joblib FILE` and hold a model that its own scikit-learn fitted.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

# One row of each class: setosa, versicolor, virginica.
IRIS_ROWS: tuple[tuple[list[float], int], ...] = (
    ([5.1, 3.5, 1.4, 0.2], 0),
    ([5.7, 2.8, 4.1, 1.3], 1),
    ([6.3, 3.3, 6.0, 2.5], 2),
)
IMAGE_SHAPE = (3, 224, 224)  # [channels, height, width], FP32: 602,112 bytes


def train_iris() -> Any:
    """A fitted scikit-learn logistic regression of the iris data, always the same."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, labels = load_iris(return_X_y=True)
    return LogisticRegression(max_iter=1000, C=1.0).fit(rows, labels)


def write_iris_onnx(path: Path, model: Any = None) -> Path:
    """Write iris as ONNX: `x` FP32 [-1, 4] -> `label` INT64 [-1], `probabilities` FP32 [-1, 3]."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model = train_iris() if model is None else model
    proto = to_onnx(
        model,
        initial_types=[("x", FloatTensorType([None, 4]))],
        options={id(model): {"zipmap": False}},
        target_opset=17,
    )
    for old, new in zip([o.name for o in proto.graph.output], ["label", "probabilities"], strict=True):
        for node in proto.graph.node:
            node.output[:] = [new if name == old else name for name in node.output]
        next(o for o in proto.graph.output if o.name == old).name = new
    path.write_bytes(proto.SerializeToString())
    return path


def _write(path: Path, nodes: list[Any], inputs: Any, output: Any, constants: list[Any]) -> Path:
    from onnx import checker, helper

    graph = helper.make_graph(nodes, "benchmark", [inputs], [output], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def write_image_onnx(path: Path, reduce: bool = False) -> Path:
    """Write `image` FP32 [-1, 3, 224, 224] -> `value` FP32: the first pixel, or (`reduce`) the mean.

    The first pixel costs the runtime nothing whatever the size, so that the row measures the server's path.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", *IMAGE_SHAPE])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["rows", 1])
    if reduce:
        nodes = [
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "one"], ["value"]),
        ]
        constants = [numpy_helper.from_array(np.array([1]), "one")]
    else:
        nodes = [
            helper.make_node("Slice", ["image", "start", "stop", "axes"], ["pixel"]),
            helper.make_node("Reshape", ["pixel", "shape"], ["value"]),
        ]
        constants = [
            numpy_helper.from_array(np.array(data, dtype=np.int64), name)
            for name, data in (
                ("start", [0, 0, 0]),
                ("stop", [1, 1, 1]),
                ("axes", [1, 2, 3]),
                ("shape", [-1, 1]),
            )
        ]
    return _write(path, nodes, image, value, constants)


def write_busy_onnx(path: Path, target_ms: float = 2.0) -> Path:
    """Write `x` FP32 [1, 4096] -> `y` FP32 [1, 1], whose one run computes for about `target_ms` here.

    The first axis is fixed at 1: requests cannot be batched, each costs its own run. The work is a chain of
    sines over 16 KB, which stays in the first-level cache, so that two cores do not share a memory limit.
    The length of the chain is calibrated here, against a run on one thread.
    """
    length = 8
    for _attempt in range(6):
        _busy(path, length)
        per_node_ms = run_ms(path, {"x": (1, 4096)}) / length
        wanted = max(1, round(target_ms / per_node_ms))
        if abs(wanted - length) <= 0.05 * wanted:
            break
        length = wanted
    return _busy(path, length)


def _busy(path: Path, length: int) -> Path:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Sin", ["x" if i == 0 else f"s{i}"], [f"s{i + 1}"]) for i in range(length)]
    nodes.append(helper.make_node("ReduceMean", [f"s{length}"], ["y"], axes=[1], keepdims=1))
    return _write(
        path,
        nodes,
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4096]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1]),
        [],
    )


def write_large_onnx(path: Path, megabytes: int = 100, seed: int = 0) -> Path:
    """Write `x` FP32 [-1, 4] -> `y` FP32 [-1, 1] that carries `megabytes` of weights (an embedding table)."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(seed).standard_normal((megabytes * 250, 1000), dtype=np.float32)
    nodes = [
        helper.make_node("Slice", ["x", "first", "second", "columns"], ["key"]),
        helper.make_node("Cast", ["key"], ["row"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["row", "columns"], ["rows_at"]),
        helper.make_node("Gather", ["table", "rows_at"], ["embedding"], axis=0),
        helper.make_node("ReduceMean", ["embedding"], ["y"], axes=[1], keepdims=1),
    ]
    constants = [numpy_helper.from_array(table, "table")] + [
        numpy_helper.from_array(np.array([value]), name)
        for name, value in (("first", 0), ("second", 1), ("columns", 1))
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    return _write(path, nodes, x, y, constants)


def session(path: Path) -> Any:
    """An ONNX Runtime session on one thread, which is how a worker pinned to one core runs it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_ms(path: Path, shapes: dict[str, tuple[int, ...]], runs: int = 30) -> float:
    """Milliseconds of one `session.run` with ones: the least of `runs`, as other work only adds."""
    import numpy as np

    running = session(path)
    feed = {name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()}
    times_ms = []
    for _run in range(runs):
        start = time.perf_counter()
        running.run(None, feed)
        times_ms.append(1e3 * (time.perf_counter() - start))
    return min(times_ms)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--joblib", type=Path, required=True, help="where to write the fitted iris model")
    import joblib

    joblib.dump(train_iris(), arguments.parse_args().joblib)


if __name__ == "__main__":
    main()
