"""Holds that a conversion which ends its process is given up and the model kept, and that a model which does
so by itself is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io

from interlock.core.errors import CheckFailed
from interlock.core.model import Signature, Version
from interlock.runtime.check_process import run_check, run_prepare
from interlock.runtime.prepare import Prepared

pytestmark = pytest.mark.slow

ROWS = np.arange(150, dtype=np.float64).reshape(50, 3) / 150
REASON = "kept as scikit-learn: its conversion was given up: "

SOURCE = """
import ctypes, os, sys, time
import numpy as np
from sklearn.base import BaseEstimator

def hang():
    while True:
        time.sleep(1)

WAYS = {
    "hang": hang,
    "grow": lambda: np.ones(2**33),
    "crash": lambda: (print("the compiler broke", file=sys.stderr, flush=True), ctypes.string_at(0)),
    "leave": lambda: sys.exit(3),
}

class Touchy(BaseEstimator):
    '''Ends its process once it gets more rows than it was made for, in one of the WAYS.'''

    def __init__(self, way="hang", most_rows=0):
        self.way, self.most_rows = way, most_rows
        self.n_features_in_ = 3

    def predict(self, X):
        if len(X) > self.most_rows:
            WAYS[self.way]()
        return np.asarray(X).sum(axis=1).round()

class Heavy(Touchy):
    def __setstate__(self, state):
        WAYS[state["way"]]()
"""


@pytest.fixture
def touchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "touchy_model.py").write_text(SOURCE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(str(tmp_path))
    import touchy_model  # type: ignore[import-not-found]

    yield touchy_model
    del sys.modules["touchy_model"]


def prepared(folder: Path, estimator: Any, time_s: float = 60.0) -> tuple[Prepared, Version, list[str]]:
    """Prepared in `folder / "out"`; its version; what was told meanwhile."""
    came, out = folder / "came", folder / "out"
    came.mkdir()
    out.mkdir()
    skops.io.dump(estimator, came / "model.skops")
    options = {"trusted_types": skops.io.get_untrusted_types(file=came / "model.skops")}
    draft = Version("m", "new", "", "sklearn", "model.skops", Signature((), ()), options=options)
    said: list[str] = []
    made = run_prepare(came, draft, {"*": ROWS}, out, time_s=time_s, memory_bytes=2**30, progress=said.append)
    kept = Version("m", "new", "", made.runtime, made.entry, Signature((), ()), options=made.options)
    return made, kept, said


@pytest.mark.parametrize(
    ("way", "time_s", "words"),
    [
        ("hang", 12.0, "it did not finish within 12 s"),
        ("grow", 60.0, "it asked for more than 1024 MiB of memory"),
        ("crash", 60.0, "the process was killed by SIGSEGV; it last said: the compiler broke"),
        ("leave", 60.0, "its code ended the process (sys.exit, code 3)"),
    ],
)
def test_the_model_is_kept(touchy: Any, tmp_path: Path, way: str, time_s: float, words: str) -> None:
    made, kept, said = prepared(tmp_path, touchy.Touchy(way, most_rows=1024), time_s)
    assert made.conversion is not None and not made.conversion.converted
    assert made.conversion.reason.startswith(REASON + words), made.conversion.reason
    assert (made.runtime, made.entry) == ("sklearn", "model.skops")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.skops"]
    assert any(line.startswith(f"the conversion is given up: {words}") for line in said), said
    if way == "crash":
        report = run_check(tmp_path / "out", kept, {"*": ROWS})
        assert not report.failures


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda touchy: touchy.Touchy("crash"), "SIGSEGV while it was loaded and tried"),
        (lambda touchy: touchy.Heavy("crash"), "SIGSEGV while it was loaded and tried"),
    ],
)
def test_what_the_model_does_by_itself_is_refused(touchy: Any, tmp_path: Path, make: Any, words: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        prepared(tmp_path, make(touchy))
    assert words in caught.value.message and "conversion" not in caught.value.message


def test_a_model_that_raises_on_its_rows_is_refused(touchy: Any, tmp_path: Path) -> None:
    """An error of the tree is the model's, also while it is compared."""
    touchy.WAYS["leave"] = None
    (tmp_path / "touchy_model.py").write_text(SOURCE.replace("lambda: sys.exit(3)", "None"))
    with pytest.raises(CheckFailed, match=r"the model raised on the reference data: TypeError"):
        prepared(tmp_path, touchy.Touchy("leave", most_rows=1024))
