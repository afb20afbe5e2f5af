"""Runs CatBoost's models where the package is installed: in .venv-models, by subprocess."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.beside, pytest.mark.slow]


@pytest.mark.parametrize("what", ["answers", "onnx", "served"])
def test_models_of_catboost(what: str, models_python: Path, repository: Path) -> None:
    script = Path(__file__).with_name("catboost_calls.py")
    path = os.pathsep.join((str(repository / "src"), str(repository)))
    # Not in `tmp_path`, whose name is too long for a node's sockets.
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        done = subprocess.run(
            [models_python, script, what, folder],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, timeout=110,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
