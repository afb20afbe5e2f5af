"""Holds the runtimes to saying which extra brings a package that is not installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime import models

pytestmark = pytest.mark.slow

BLOCKED = """
import sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(sys.argv[2].split(","))
sys.meta_path.insert(0, Blocker())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in BLOCKED else found(name, *rest)
from interlock.core.errors import MissingExtra
from interlock.core.model import Signature, Version
from interlock.runtime.catalog import runtime_of
_, folder, _, runtime, entry = sys.argv
try:
    runtime_of(runtime).load(Path(folder), Version("m", "1", "sha256:0", runtime, entry, Signature((), ())))
except MissingExtra as error:
    print(error.message)
"""


@pytest.mark.parametrize(
    ("model", "blocked", "said"),
    [
        ("plain Python", "tensorflow", "tensorflow is not installed.*\\[tensorflow\\]"),
        ("a PyTorch program", "torch", "torch is not installed; install it with: .*\\[torch\\]"),
        ("Keras with two inputs", "keras", "keras is not installed; .*'interlock\\[keras\\]'"),
        ("Keras with two inputs", "torch,tensorflow", "a backend for Keras is not installed.*\\[keras\\]"),
        ("a Hugging Face classifier", "tokenizers", "tokenizers is not installed.*\\[huggingface\\]"),
        ("a Hugging Face classifier", "transformers", "transformers is not installed.*\\[huggingface\\]"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    model: str, blocked: str, said: str, tmp_path: Path
) -> None:
    version = models.MODELS[model](tmp_path)
    runtime, entry = version.runtime, version.entry
    if blocked == "tensorflow":  # which `make check` does not have: it is asked for before the files are read
        (tmp_path / "saved_model.pb").touch()
        runtime, entry = "tensorflow", ""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path), blocked, runtime, entry],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout), (done.stdout, done.stderr)
