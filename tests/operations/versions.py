"""Records real versions in a home without a registry: what gates are tried on."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from interlock.core.model import (
    Array,
    Capabilities,
    Placement,
    Signature,
    TensorSpec,
    Version,
    artifact_path,
    digest_of,
)
from interlock.core.settings import run_folder
from interlock.registry.ledger import Ledger

SLOW = b"""
import time
class Model:
    def predict(self, inputs):
        time.sleep(0.25)
        return {"y": inputs["x"]}
"""
PAIR = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))


def put(home: Path, model: str, number: str, file: str, content: bytes, **fields: Any) -> Version:
    """Record a version whose artifact is one file."""
    run_folder(home).mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = home / "artifacts" / f"new-{model}-{number}"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)
    digest = digest_of(folder)
    place = artifact_path(home, digest)
    if not place.exists():
        folder.rename(place)
    ledger = Ledger(home / "ledger.db")
    version = Version(**{"model": model, "number": number, "digest": digest, "entry": file, **fields})
    ledger.put_version(version, time.time())
    ledger.close()
    return version


def put_sklearn(home: Path, model: str, number: str, estimator: Any, X: Array, **fields: Any) -> Version:
    """Record a fitted classifier or regressor as ONNX, as registration converts it."""
    from skl2onnx import to_onnx
    from sklearn.base import is_classifier

    is_class = is_classifier(estimator)
    options = {"zipmap": False} if is_class else None
    proto = to_onnx(
        estimator, X[:1].astype(np.float32), options={id(estimator): options} if options else None
    )
    outputs = (
        (
            TensorSpec("label", "INT64", (-1,)),
            TensorSpec("probabilities", "FP32", (-1, len(estimator.classes_))),
        )
        if is_class
        else (TensorSpec("variable", "FP32", (-1, 1)),)
    )
    signature = Signature((TensorSpec("X", "FP32", (-1, X.shape[1])),), outputs)
    return put(
        home,
        model,
        number,
        "model.onnx",
        proto.SerializeToString(),
        **{"runtime": "onnx", "signature": signature, **fields},
    )


def put_slow(home: Path, model: str, number: str) -> Version:
    """Record a Python model that takes a quarter of a second for a row."""
    return put(
        home,
        model,
        number,
        "model.py",
        SLOW,
        entry="model.py:Model",
        runtime="python",
        signature=PAIR,
        capabilities=Capabilities(max_batch_rows=1),
        placement=Placement.EXECUTOR,
    )
