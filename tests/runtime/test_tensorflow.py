"""Runs the contract suite where TensorFlow and real weights are installed: in .venv-models, by subprocess."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.beside, pytest.mark.slow]


@pytest.mark.parametrize("what", ["keras_and_saved_model", "saved_models_of_tensorflow", "real_embeddings"])
def test_models_of_the_large_frameworks(
    what: str, models_python: Path, repository: Path, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("tensorflow_calls.py")
    done = subprocess.run(
        [models_python, script, what, tmp_path],
        env={**os.environ, "PYTHONPATH": str(repository / "src")},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
