"""Owns LightGBM models: its text files, read and run through its C API in one thread.

The Python package is not imported, only its shared library loaded: an import takes a second and brings SciPy
and pandas into the process. What is read are data, so a worker may run it.
"""

import ctypes
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import LoadFailed, PredictFailed
from interlock.core.model import Array, Signature, Tensors, Version
from interlock.runtime import boosted, boosted_model, table
from interlock.runtime.boosted import Shape, Value
from interlock.runtime.protocol import Loaded
from interlock.runtime.shared_library import one_thread, open_library

EXTRA = "lightgbm"
_HOW = b"num_threads=1 verbosity=-1"
_NORMAL, _FLOAT64, _ROW_MAJOR = 0, 1, 1  # C_API_PREDICT_NORMAL, C_API_DTYPE_FLOAT64
_TAIL_BYTES = 1 << 20

_Handle = ctypes.c_void_p
_ref = ctypes.byref


class Lightgbm:
    """The runtime `lightgbm`: `entry` is a text model. It takes FP64: the thresholds are 64-bit, and a value
    rounded to 32 bits may be on the other side of one.

    Options: `classes` (the labels of a scikit-learn wrapper, which the file does not hold; without them it
    answers as `Booster.predict`), `table` (`table.py`), `onnx` and `onnx_rows` (`by_rows.py`).
    """

    name = "lightgbm"

    def load(self, folder: Path, version: Version) -> Loaded:
        """Raises: LoadFailed with LightGBM's own words, MissingExtra."""
        return boosted_model.load(Booster(folder / version.entry, version.options), folder, version)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """What the file says of itself. Raises: LoadFailed, MissingExtra."""
        return boosted_model.inspect(Booster(folder / version.entry, version.options), version)

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """A booster may be shared by threads; the rest is found by measurement."""
        return {"thread_safe": True}


class Booster:
    """A model in LightGBM's memory: raw answers [rows, groups] of a float64 matrix [rows, width].

    Raises: LoadFailed, MissingExtra.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self._library = library = _library()
        self._handle, self._fast = _Handle(), _Handle()
        if not path.is_file():
            raise LoadFailed(f"{path.name} is not in the artifact folder {path.parent}")
        header, categories = read_text(path)
        try:
            self._open(path)
            width, groups = ctypes.c_int(), ctypes.c_int64()
            self._load("LGBM_BoosterGetNumFeature", self._handle, _ref(width))
            self._load("LGBM_BoosterCalcNumPredict", self._handle, 1, _NORMAL, 0, -1, _ref(groups))
            self.shape = _shape(header, categories, width.value, groups.value, options)
            self._load(
                "LGBM_BoosterPredictForMatSingleRowFastInit",
                *(self._handle, _NORMAL, 0, -1, _FLOAT64, width.value, _HOW, _ref(self._fast)),
            )
        except BaseException:
            self.close()
            raise
        self._width, self._groups = width.value, groups.value
        self._one = library.LGBM_BoosterPredictForMatSingleRowFast
        self._many = library.LGBM_BoosterPredictForMat

    def predict(self, rows: Array) -> Array:
        """Raises: PredictFailed with LightGBM's own words."""
        count = len(rows)
        made = np.empty((count, self._groups), np.float64)
        written = ctypes.c_int64()
        if count == 1:
            # LightGBM's configuration is not parsed again: half the time, benchmarks/bench_boosters.py.
            failed = self._one(self._fast, rows.ctypes.data, _ref(written), made.ctypes.data)
        elif count:
            failed = self._many(
                self._handle,
                rows.ctypes.data,
                _FLOAT64,
                count,
                self._width,
                _ROW_MAJOR,
                _NORMAL,
                0,
                -1,
                _HOW,
                _ref(written),
                made.ctypes.data,
            )
        else:
            return made
        if failed:
            raise PredictFailed(f"LightGBM: {self._words()}")
        if written.value != made.size:
            raise PredictFailed(f"LightGBM answered {written.value} numbers, want {made.size}")
        return made

    def close(self) -> None:
        """Free it. Nothing is called afterwards."""
        if self._fast:
            self._library.LGBM_FastConfigFree(self._fast)
        if self._handle:
            self._library.LGBM_BoosterFree(self._handle)
        self._handle, self._fast = _Handle(), _Handle()

    def _open(self, path: Path) -> None:
        iterations = ctypes.c_int()
        with one_thread(self._library):
            self._load(
                "LGBM_BoosterCreateFromModelfile", str(path).encode(), _ref(iterations), _ref(self._handle)
            )

    def _load(self, function: str, *arguments: Any) -> None:
        if getattr(self._library, function)(*arguments):
            raise LoadFailed(f"LightGBM cannot load the model: {self._words()}")

    def _words(self) -> str:
        said: bytes = self._library.LGBM_GetLastError() or b""
        return " ".join(said.decode(errors="replace").split())[:500]


def read_text(path: Path) -> tuple[dict[str, str], list[list[Value]]]:
    """The head of a text model, and the categories of the DataFrame that it was trained on, column by column.

    Raises: LoadFailed for a file that is none.
    """
    header: dict[str, str] = {}
    with path.open("rb") as file:
        if file.readline().strip() != b"tree":
            raise LoadFailed(f"{path.name} is no text model of LightGBM: its first line is not 'tree'")
        for line in file:
            if line.startswith(b"Tree="):
                break
            name, _, text = line.decode(errors="replace").strip().partition("=")
            header[name] = text
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        tail = file.read()
    _, found, text_of_categories = tail.rpartition(b"\npandas_categorical:")
    try:
        categories = msgspec.json.decode(text_of_categories, type=list[list[Value]] | None) if found else None
    except msgspec.MsgspecError as error:
        raise LoadFailed(f"the categories at the end of {path.name} cannot be read: {error}") from None
    return header, categories or []


def _shape(
    header: Mapping[str, str],
    categories: list[list[Value]],
    width: int,
    groups: int,
    options: Mapping[str, Any],
) -> Shape:
    names = tuple(header.get("feature_names", "").split(" "))
    if len(names) != width or all(re.fullmatch(r"Column_\d+", name) for name in names):
        names = ()
    known = table.table_of(options)
    if known is not None:
        # LightGBM writes names with an underscore for each blank.
        written = {re.sub(r"\s", "_", name): name for name in known.names}
        names = tuple(written.get(name, name) for name in names)
    coded: dict[int, tuple[Value, ...]] = {}
    if categories:
        # The file says which values, and not of which columns.
        infos = header.get("feature_infos", "").split(" ")
        places = [index for index, info in enumerate(infos) if re.fullmatch(r"-?\d+(:-?\d+)*", info)]
        if known is not None and len(known.categories) == len(categories):
            places = [index for index, name in enumerate(names or known.names) if name in known.categories]
        if len(places) != len(categories) or any(place >= width for place in places):
            raise LoadFailed(
                f"{len(categories)} columns of the model's training data were categorical, and the file does"
                " not say which: register it with those data (--data, as Parquet with these categories)"
            )
        coded = {place: tuple(values) for place, values in zip(places, categories, strict=True)}
    return Shape(width, groups, "FP64", names, coded, boosted.classes_option(options))


@functools.cache
def _library() -> ctypes.CDLL:
    library = open_library("lightgbm", "lib_lightgbm", EXTRA)
    number, text = ctypes.c_int, ctypes.c_char_p
    handle, out = ctypes.c_void_p, ctypes.c_void_p
    takes: dict[str, list[Any]] = {
        "LGBM_BoosterCreateFromModelfile": [text, out, out],
        "LGBM_BoosterFree": [handle],
        "LGBM_BoosterGetNumFeature": [handle, out],
        "LGBM_BoosterCalcNumPredict": [handle, number, number, number, number, out],
        "LGBM_BoosterPredictForMat": [handle, out, number, ctypes.c_int32, ctypes.c_int32]
        + [number, number, number, number, text, out, out],
        "LGBM_BoosterPredictForMatSingleRowFastInit": [handle, number, number, number, number]
        + [ctypes.c_int32, text, out],
        "LGBM_BoosterPredictForMatSingleRowFast": [handle, out, out, out],
        "LGBM_FastConfigFree": [handle],
    }
    try:
        for name, types in takes.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, ctypes.c_int
        library.LGBM_GetLastError.restype = ctypes.c_char_p
    except AttributeError as error:
        raise LoadFailed(f"the installed LightGBM is too old: {error}; want 4.4 or later") from None
    return library


runtime = Lightgbm()
