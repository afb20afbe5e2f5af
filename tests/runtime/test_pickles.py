"""Holds which pickles are read, and that what can run anything is not, however it is wrapped."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from interlock.core.errors import LoadFailed, UntrustedArtifact
from interlock.runtime import pickles

MODEL = LinearRegression().fit(np.eye(3), np.arange(3.0))


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def write(path: Path, thing: Any) -> Path:
    """In the way that the name says."""
    if path.suffix != ".joblib":
        path.write_bytes(pickle.dumps(thing))
    elif path.stem.startswith("plain"):
        joblib.dump(thing, path)
    else:
        joblib.dump(thing, path, compress=(path.stem, 3))
    return path


def loaded(path: Path) -> Any:
    return pickles.load(path, {pickles.DIGEST_OPTION: pickles.sha256_of(path)})


NAMES = ["model.pkl", "plain.joblib", "zlib.joblib", "gzip.joblib", "bz2.joblib", "lzma.joblib", "xz.joblib"]


@pytest.mark.parametrize("name", NAMES)
def test_models_are_read_and_harm_is_not(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, MODEL)
    assert np.array_equal(loaded(path).coef_, MODEL.coef_)
    with pytest.raises(UntrustedArtifact, match="SHA-256"):
        pickles.load(path, {pickles.DIGEST_OPTION: "0" * 64})
    touched = tmp_path / "touched"
    # Behind an array, and inside of one of objects, where a look at the file alone sees nothing.
    for thing in (Evil(touched), [np.zeros(1000), Evil(touched)], np.array([Evil(touched), 1], object)):
        with pytest.raises(UntrustedArtifact, match=r"names posix\.system"):
            loaded(write(path, thing))
        assert not touched.exists()


class Through:
    """Reaches a function through another module, or a module's attribute."""

    def __init__(self, module: bytes, name: bytes) -> None:
        self.data = (
            b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93."
        )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (b"os", b"path.os.system"),
        (b"joblib.numpy_pickle", b"os.system"),
        (b"joblib.numpy_pickle", b"os"),
        (b"shutil", b"os.popen"),
        (b"builtins", b"eval"),
        (b"pickle", b"loads"),
        (b"joblib", b"load"),
        (b"pandas", b"read_pickle"),
    ],
)
def test_no_way_around(module: bytes, name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(Through(module, name).data)
    with pytest.raises(UntrustedArtifact):
        loaded(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[: len(data) // 2], "cannot be unpickled"),
        (lambda data: b"", "cannot be unpickled"),
        (
            lambda data: b"cabsent_package\nModel\n.",
            "needs the package 'absent_package', which is not installed",
        ),
        (lambda data: b"c__main__\nMyModel\n.", "put the class in a module that the node can import"),
    ],
)
def test_what_cannot_be_read_says_why(spoil: Callable[[bytes], bytes], words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(spoil(pickle.dumps(MODEL)))
    with pytest.raises(LoadFailed, match=words):
        loaded(path)
