"""Owns the real models that the runtimes' tests load: from onnx, scikit-learn and plain Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from interlock.core.model import Signature, Version
from interlock.runtime.sklearn import skops_io

X, Y = load_iris(return_X_y=True)
WORDS = np.array(["setosa", "versicolor", "virginica"])


def version(runtime: str, entry: str, **options: Any) -> Version:
    return Version("m", "1", "sha256:" + "0" * 64, runtime, entry, Signature((), ()), options=options)


def onnx_model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any] | None = None
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def value(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def identity(kind: int, shape: list[Any]) -> bytes:
    return onnx_model(
        [helper.make_node("Identity", ["x"], ["y"])], [value("x", kind, shape)], [value("y", kind, shape)]
    )


def two_by_two() -> bytes:
    """sum = a + b, gap = a - b; both [N, 3]."""
    kind = TensorProto.FLOAT
    return onnx_model(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["gap"])],
        [value("a", kind, ["N", 3]), value("b", kind, ["N", 3])],
        [value("sum", kind, ["N", 3]), value("gap", kind, ["N", 3])],
    )


def half() -> bytes:
    """y = x * w in FP16, [N, 4]."""
    weights = helper.make_tensor("w", TensorProto.FLOAT16, [4], np.arange(4, dtype=np.float16))
    kind = TensorProto.FLOAT16
    return onnx_model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [value("x", kind, ["N", 4])],
        [value("y", kind, ["N", 4])],
        [weights],
    )


def shared_table() -> bytes:
    """y = x + table: x and y are [N, 3], the table [1, 3] belongs to all rows of its request."""
    kind = TensorProto.FLOAT
    return onnx_model(
        [helper.make_node("Add", ["x", "table"], ["y"])],
        [value("x", kind, ["N", 3]), value("table", kind, [1, 3])],
        [value("y", kind, ["N", 3])],
    )


def row_mean() -> bytes:
    """A model whose rows are not independent: y = x - mean over all rows."""
    kind = TensorProto.FLOAT
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    return onnx_model(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [value("x", kind, ["N", 2])],
        [value("y", kind, ["N", 2])],
        [axes],
    )


PYTHON = """
import numpy as np

class Doubler:
    thread_safe = True
    signature = {"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1, 2]), "s": ("FP32", [-1])}}

    def load(self, folder):
        self.factor = np.float32((folder / "factor.txt").read_text())

    def predict(self, inputs):
        x = inputs["x"]
        return {"y": x * self.factor, "s": x.sum(axis=1), "extra": x}
"""


def _skops(estimator: Any, target: Any) -> Callable[[Path], Version]:
    def write(folder: Path) -> Version:
        skops_io().dump(estimator.fit(X, target), folder / "model.skops")
        return version("sklearn", "model.skops")

    return write


def _onnx(data: Callable[[], bytes]) -> Callable[[Path], Version]:
    def write(folder: Path) -> Version:
        (folder / "model.onnx").write_bytes(data())
        return version("onnx", "model.onnx")

    return write


def _python(folder: Path) -> Version:
    (folder / "model.py").write_text(PYTHON)
    (folder / "factor.txt").write_text("2.0")
    return version("python", "model.py:Doubler")


def _torch(folder: Path) -> Version:
    from interlock.runtime import torch_program

    program = torch_program.export(torch_mlp(), {"*": X.astype(np.float32)})
    (folder / "model.pt2").write_bytes(torch_program.saved(program))
    return version("torch", "model.pt2")


def torch_mlp() -> Any:
    """Two layers and a normalisation, seeded; as it comes out of training."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)]
    return torch.nn.Sequential(*layers)


def _keras(folder: Path) -> Version:
    from interlock.runtime.keras import keras_package

    keras = keras_package()
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    hidden = keras.layers.Dense(8, activation="relu")(keras.layers.Concatenate()([left, right]))
    ends = {"scores": keras.layers.Dense(3)(hidden), "size": keras.layers.Dense(1)(hidden)}
    keras.Model({"right": right, "left": left}, ends).save(folder / "model.keras")
    return version("keras", "model.keras")


def _huggingface(folder: Path) -> Version:
    """A classifier of two layers, its weights random; the words are those of the generated rows."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "spam", "räksmörgås"]
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    tokenizer.save_pretrained(folder)
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
        id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return version("huggingface", "")


MODELS: dict[str, Callable[[Path], Version]] = {
    "iris logistic regression": _skops(LogisticRegression(max_iter=500), Y),
    "iris gradient boosting": _skops(GradientBoostingClassifier(n_estimators=5), Y),
    "iris MLP with words": _skops(MLPClassifier(max_iter=300, random_state=0), WORDS[Y]),
    "a regressor": _skops(GradientBoostingRegressor(n_estimators=5), X[:, 0]),
    "two inputs, two outputs": _onnx(two_by_two),
    "strings": _onnx(lambda: identity(TensorProto.STRING, ["N", 2])),
    "FP16": _onnx(half),
    "BF16": _onnx(lambda: identity(TensorProto.BFLOAT16, ["N", 2])),
    "BOOL": _onnx(lambda: identity(TensorProto.BOOL, ["N", 2])),
    "UINT8": _onnx(lambda: identity(TensorProto.UINT8, ["N", 2])),
    "INT64": _onnx(lambda: identity(TensorProto.INT64, ["N", 2])),
    "FP64": _onnx(lambda: identity(TensorProto.DOUBLE, ["N", 2])),
    "fixed rows": _onnx(lambda: identity(TensorProto.FLOAT, [1, 2])),
    "rows that see each other": _onnx(row_mean),
    "plain Python": _python,
    "a PyTorch program": _torch,
    "Keras with two inputs": _keras,
    "a Hugging Face classifier": _huggingface,
}

LARGE = frozenset(
    [
        *("iris logistic regression", "iris gradient boosting", "iris MLP with words", "a regressor"),
        *("a PyTorch program", "Keras with two inputs", "a Hugging Face classifier"),
    ]
)
"""Those whose packages take seconds to import."""
