"""Owns XGBoost models: its own files, read and run through its C API in one thread.

The Python package is not imported, only its shared library loaded: an import takes a second and brings SciPy
and pandas into the process. What is read are data, so a worker may run it.
"""

import ctypes
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.errors import LoadFailed, PredictFailed
from interlock.core.model import Array, Signature, Tensors, Version
from interlock.runtime import boosted, boosted_model, table
from interlock.runtime.boosted import Shape
from interlock.runtime.protocol import Loaded
from interlock.runtime.shared_library import one_thread, open_library
from interlock.runtime.table import Table

EXTRA = "xgboost"
_LARGEST_ANSWER = 1 << 40  # elements; more is no shape but a broken library

_Handle = ctypes.c_void_p
_Text = ctypes.c_char_p
_Long = ctypes.c_uint64
_ref = ctypes.byref


class Xgboost:
    """The runtime `xgboost`: `entry` is a .ubj or .json file.

    A file that a scikit-learn wrapper saved answers as that wrapper does: labels and probabilities of a
    classifier, and the best iteration of training that stopped early. Any other answers as `Booster.predict`.
    Options: `missing` (a value that stands for none; NaN), `table` (`table.py`), `onnx` and `onnx_rows`
    (`by_rows.py`).
    """

    name = "xgboost"

    def load(self, folder: Path, version: Version) -> Loaded:
        """Raises: LoadFailed with XGBoost's own words, MissingExtra."""
        return boosted_model.load(Booster(folder / version.entry, version.options), folder, version)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """What the file says of itself. Raises: LoadFailed, MissingExtra."""
        return boosted_model.inspect(Booster(folder / version.entry, version.options), version)

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Trees may be shared by threads; a linear model may not, says XGBoost. Raises: as `load`."""
        booster = Booster(folder / version.entry, version.options)
        try:
            return {} if booster.is_linear else {"thread_safe": True}
        finally:
            booster.close()


class Booster:
    """A model in XGBoost's memory: raw answers [rows, groups] of a float32 matrix [rows, width].

    Raises: LoadFailed, MissingExtra.
    """

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self._library = _library()
        self._handle = _Handle()
        if not path.is_file():
            raise LoadFailed(f"{path.name} is not in the artifact folder {path.parent}")
        self._load("XGBoosterCreate", None, _Long(0), _ref(self._handle))
        try:
            self._read(path, options)
        except BaseException:
            self.close()
            raise

    def predict(self, rows: Array) -> Array:
        """Raises: PredictFailed with XGBoost's own words."""
        if not len(rows):
            return np.empty((0, self.shape.groups), np.float32)
        answer = self._answer(rows, self._config)
        if not self._is_softmax:
            return answer
        # The wrapper's way to probabilities where the objective says labels only.
        powers = np.exp(answer - answer.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def as_json(self) -> bytes:
        """The whole model. Raises: LoadFailed."""
        size, data = _Long(), ctypes.POINTER(ctypes.c_char)()
        self._load("XGBoosterSaveModelToBuffer", self._handle, b'{"format":"json"}', _ref(size), _ref(data))
        return ctypes.string_at(data, size.value)

    def close(self) -> None:
        """Free it. Nothing is called afterwards."""
        if self._handle:
            self._library.XGBoosterFree(self._handle)
            self._handle = _Handle()

    def _read(self, path: Path, options: dict[str, Any]) -> None:
        self._load("XGBoosterSetParam", self._handle, b"nthread", b"1")
        with one_thread(self._library):
            self._load("XGBoosterLoadModel", self._handle, str(path).encode())
        # A file may bring a number of threads of its own.
        self._load("XGBoosterSetParam", self._handle, b"nthread", b"1")
        learner = json.loads(self._text("XGBoosterSaveJsonConfig"))["learner"]
        objective = learner["objective"]["name"]
        self.is_linear = learner["gradient_booster"]["name"] == "gblinear"
        wrapper = self._attribute("scikit_learn")
        is_classifier = wrapper is not None and json.loads(wrapper).get("_estimator_type") == "classifier"
        self._is_softmax = is_classifier and objective == "multi:softmax"
        self.iterations = 0  # all
        best = self._attribute("best_iteration")
        if wrapper is not None and best is not None and not self.is_linear:
            self.iterations = int(best) + 1
        self._missing = float(options.get("missing", "nan"))
        self._config = json.dumps(
            {
                "type": 1 if self._is_softmax else 0,
                "training": False,
                "iteration_begin": 0,
                "iteration_end": self.iterations,
                "missing": self._missing,
                "strict_shape": True,
                "cache_id": 0,
            }
        ).encode()
        width = _Long()
        self._load("XGBoosterGetNumFeature", self._handle, _ref(width))
        # The first call settles what later ones, in any number of threads, only read.
        try:
            groups = self._answer(np.zeros((1, width.value), np.float32), self._config).shape[1]
        except PredictFailed as error:
            raise LoadFailed(f"{path.name} does not predict: {error.message}") from error
        counts = learner["learner_model_param"]
        multilabel = is_classifier and int(counts.get("num_target", "1")) > 1
        classes = None
        if is_classifier:
            classes = tuple(range(2 if groups == 1 and not multilabel else groups))
        types = self._features(b"feature_type")
        self.shape = Shape(
            width.value,
            groups,
            "FP32",
            self._features(b"feature_name"),
            self._categories(options) if "c" in types else {},
            classes,
            multilabel,
        )

    def _answer(self, rows: Array, config: bytes) -> Array:
        # The C API takes an array as JSON (.5 us to write).
        place = b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}' % (
            rows.ctypes.data,
            rows.shape[0],
            rows.shape[1],
        )
        shape, dims = ctypes.POINTER(_Long)(), _Long()
        result = ctypes.POINTER(ctypes.c_float)()
        outs = (_ref(shape), _ref(dims), _ref(result))
        if self.is_linear:
            self._linear(place, config, outs)
        elif self._library.XGBoosterPredictFromDense(self._handle, place, config, None, *outs):
            raise PredictFailed(f"XGBoost: {self._words()}")
        found = tuple(shape[index] for index in range(dims.value))
        if len(found) != 2 or found[0] != len(rows) or found[1] > _LARGEST_ANSWER // len(rows):
            raise PredictFailed(f"XGBoost answered {list(found)} for {len(rows)} rows, want [rows, groups]")
        # Its memory is written to by this thread's next call.
        return np.ctypeslib.as_array(result, found).copy()

    def _linear(self, place: bytes, config: bytes, outs: tuple[Any, ...]) -> None:
        """A linear model answers to XGBoost's own copy of the rows only."""
        matrix = _Handle()
        how = json.dumps({"missing": self._missing, "nthread": 1}).encode()
        if self._library.XGDMatrixCreateFromDense(place, how, _ref(matrix)):
            raise PredictFailed(f"XGBoost: {self._words()}")
        try:
            if self._library.XGBoosterPredictFromDMatrix(self._handle, matrix, config, *outs):
                raise PredictFailed(f"XGBoost: {self._words()}")
        finally:
            self._library.XGDMatrixFree(matrix)

    def _features(self, field: bytes) -> tuple[str, ...]:
        count, texts = _Long(), ctypes.POINTER(_Text)()
        self._load("XGBoosterGetStrFeatureInfo", self._handle, field, _ref(count), _ref(texts))
        return tuple((texts[index] or b"").decode() for index in range(count.value))

    def _categories(self, options: dict[str, Any]) -> dict[int, tuple[boosted.Value, ...]]:
        """Of the columns that were categorical in a DataFrame; since 3.1 a file holds them."""
        known = table.table_of(options)
        names = self._features(b"feature_name") or (known.names if known is not None else ())
        model = json.loads(self.as_json())["learner"]["gradient_booster"]
        model = model.get("gbtree", model)["model"]
        found: dict[int, tuple[boosted.Value, ...]] = {}
        for index, coded in enumerate(model.get("cats", {}).get("enc", ())):
            values, offsets = coded["values"], coded.get("offsets")
            if not values:
                continue
            if not offsets:
                found[index] = tuple(values)
            elif min(values) >= 0:  # texts, one after the other in bytes
                pairs = zip(offsets, offsets[1:], strict=False)
                found[index] = tuple(bytes(values[start:end]).decode() for start, end in pairs)
            else:
                found[index] = _from_data(known, names, index, len(offsets) - 1)
        if not found and known is not None and known.categories:
            # Before 3.1 the codes were those of the DataFrame, and nothing of it in the file.
            return {
                index: known.categories[name] for index, name in enumerate(names) if name in known.categories
            }
        return found

    def _attribute(self, name: str) -> str | None:
        text, success = _Text(), ctypes.c_int()
        self._load("XGBoosterGetAttr", self._handle, name.encode(), _ref(text), _ref(success))
        return text.value.decode() if success.value and text.value is not None else None

    def _text(self, function: str) -> str:
        size, text = _Long(), _Text()
        self._load(function, self._handle, _ref(size), _ref(text))
        return (text.value or b"").decode()

    def _load(self, function: str, *arguments: Any) -> None:
        if getattr(self._library, function)(*arguments):
            raise LoadFailed(f"XGBoost cannot load the model: {self._words()}")

    def _words(self) -> str:
        """XGBoost's own, without its C++ stack."""
        said: bytes = self._library.XGBGetLastError() or b""
        text = said.decode(errors="replace").partition("Stack trace:")[0]
        return " ".join(text.split())[:500]


def _from_data(
    known: Table | None, names: tuple[str, ...], index: int, count: int
) -> tuple[boosted.Value, ...]:
    """The categories that a column of the training data has. XGBoost (3.2) takes lengths in letters for
    lengths in bytes, so a file does not hold those in which the two differ.

    Raises: LoadFailed.
    """
    if known is not None and index < len(names):
        values = known.categories.get(names[index], ())
        if len(values) == count:
            return values
    raise LoadFailed(
        f"column {index} has categories that are not ASCII, and XGBoost does not write those out: register "
        f"the model with its training data (--data, as Parquet with these {count} categories)"
    )


@functools.cache
def _library() -> ctypes.CDLL:
    library = open_library("xgboost", "libxgboost", EXTRA)
    text, handle, out = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p
    takes: dict[str, list[Any]] = {
        "XGBoosterCreate": [out, _Long, out],
        "XGBoosterFree": [handle],
        "XGBoosterSetParam": [handle, text, text],
        "XGBoosterLoadModel": [handle, text],
        "XGBoosterSaveJsonConfig": [handle, out, out],
        "XGBoosterSaveModelToBuffer": [handle, text, out, out],
        "XGBoosterGetNumFeature": [handle, out],
        "XGBoosterGetAttr": [handle, text, out, out],
        "XGBoosterGetStrFeatureInfo": [handle, text, out, out],
        "XGBoosterPredictFromDense": [handle, text, text, handle, out, out, out],
        "XGDMatrixCreateFromDense": [text, text, out],
        "XGBoosterPredictFromDMatrix": [handle, handle, text, out, out, out],
        "XGDMatrixFree": [handle],
    }
    try:
        for name, types in takes.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, ctypes.c_int
        library.XGBGetLastError.restype = ctypes.c_char_p
    except AttributeError as error:
        raise LoadFailed(f"the installed XGBoost is too old: {error}; want 1.6 or later") from None
    return library


runtime = Xgboost()
