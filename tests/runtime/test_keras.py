"""Holds the runtime `keras` to models with several ends, and to refusing the code that a file may bring."""

from pathlib import Path

import numpy as np
import pytest

from interlock.core.errors import InputMismatch, LoadFailed, ShapeMismatch, UntrustedArtifact
from interlock.core.model import TensorSpec
from interlock.runtime.check import check
from interlock.runtime.keras import Keras, keras_package
from interlock.runtime.pickles import sha256_of
from tests.runtime import models

pytestmark = pytest.mark.slow


def test_inputs_and_outputs_have_the_models_own_names(tmp_path: Path) -> None:
    version = models.MODELS["Keras with two inputs"](tmp_path)
    report = check(tmp_path, version)
    assert report.failures == ()
    assert report.signature.inputs == (
        TensorSpec("left", "FP32", (-1, 4)),
        TensorSpec("right", "FP32", (-1, 2)),
    )
    assert report.signature.outputs == (
        TensorSpec("scores", "FP32", (-1, 3)),
        TensorSpec("size", "FP32", (-1, 1)),
    )
    keras = keras_package()
    inputs = {"right": np.ones((5, 2), np.float32), "left": models.X[:5].astype(np.float32)}
    wanted = keras.models.load_model(tmp_path / version.entry).predict(inputs, verbose=0)
    loaded = Keras().load(tmp_path, version)
    answer = loaded.predict(inputs)
    np.testing.assert_allclose(answer["scores"], wanted["scores"], atol=1e-6)
    assert list(loaded.predict(inputs, ("size",))) == ["size"]
    with pytest.raises(InputMismatch, match="input 'right' is missing"):
        loaded.predict({"left": inputs["left"]})
    with pytest.raises(ShapeMismatch, match=r"input 'left': got \[5, 2\]"):
        loaded.predict({"left": inputs["right"], "right": inputs["right"]})


def test_a_sequential_model_answers_output(tmp_path: Path) -> None:
    keras = keras_package()
    keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)]).save(tmp_path / "model.keras")
    report = check(tmp_path, models.version("keras", "model.keras"))
    assert report.failures == ()
    assert [spec.name for spec in (*report.signature.inputs, *report.signature.outputs)] == ["x", "output"]


def test_a_lambda_is_code_and_needs_trust(tmp_path: Path) -> None:
    keras = keras_package()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(UntrustedArtifact, match="Lambda layer.*--trust"):
        check(tmp_path, models.version("keras", "model.keras"))
    digest = sha256_of(tmp_path / "model.keras")
    assert check(tmp_path, models.version("keras", "model.keras", trusted_sha256=digest)).failures == ()


def test_a_file_that_cannot_be_loaded_is_refused_in_keras_words(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"PK")
    with pytest.raises(LoadFailed, match=r"Keras cannot load model\.keras: ValueError"):
        check(tmp_path, models.version("keras", "model.keras"))
    with pytest.raises(LoadFailed, match="is not in the artifact folder"):
        check(tmp_path, models.version("keras", "other.keras"))
