"""Holds the runtimes of boosted models to the answers of the packages, and to plain words where they fail."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from interlock.core.errors import LoadFailed, MissingExtra, ShapeMismatch
from interlock.core.model import Placement, Profile, Tensors
from interlock.runtime import lightgbm, xgboost
from interlock.runtime.catalog import inspector_of, runtime_of
from interlock.runtime.check import check, choose_placement
from interlock.runtime.shared_library import open_library
from tests.runtime.boosters import CASES, Case
from tests.runtime.models import version


def take(inputs: Tensors, rows: slice) -> Tensors:
    return {name: array[rows] for name, array in inputs.items()}


def hold(found: Tensors, wanted: Tensors) -> None:
    """To the bit; whole numbers of another width are equal."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("name", CASES)
def test_a_model_answers_as_its_package_does(name: str, tmp_path: Path) -> None:
    case: Case = CASES[name](tmp_path)
    signature = inspector_of(case.version.runtime).inspect(tmp_path, case.version, None)
    assert {spec.name for spec in signature.inputs} == set(case.inputs)
    loaded = runtime_of(case.version.runtime).load(tmp_path, case.version)
    try:
        hold(loaded.predict(case.inputs), case.wanted)
        for row in range(8):
            one = slice(row, row + 1)
            hold(loaded.predict(take(case.inputs, one)), take(case.wanted, one))
        hold(loaded.predict(take(case.inputs, slice(0, 0))), take(case.wanted, slice(0, 0)))
        for output in case.wanted:
            assert list(loaded.predict(case.inputs, (output,))) == [output]
    finally:
        loaded.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["xgboost: three classes", "xgboost: categories", "lightgbm: three classes", "lightgbm: categories"],
)
def test_it_keeps_the_contract_of_a_runtime(name: str, tmp_path: Path) -> None:
    report = check(tmp_path, CASES[name](tmp_path).version)
    assert report.failures == ()
    assert report.capabilities.thread_safe and report.capabilities.batchable
    assert report.placement in (Placement.INLINE, Placement.THREAD)


def test_a_worker_may_run_them_and_no_worker_a_large_one() -> None:
    small, large = (
        Profile({1: 1e-5, 32: 5e-5}, artifact_bytes=10),
        Profile({32: 5e-5}, artifact_bytes=1 << 30),
    )
    for runtime in ("xgboost", "lightgbm"):
        assert choose_placement(runtime, small) is Placement.INLINE
        assert choose_placement(runtime, Profile({32: 1e-3})) is Placement.THREAD
        assert choose_placement(runtime, large) is Placement.EXECUTOR
    assert choose_placement("catboost", small) is Placement.EXECUTOR


@pytest.mark.parametrize("name", ["xgboost: two classes", "lightgbm: two classes"])
@pytest.mark.slow
def test_threads_may_share_a_booster(name: str, tmp_path: Path) -> None:
    case: Case = CASES[name](tmp_path)
    loaded = runtime_of(case.version.runtime).load(tmp_path, case.version)

    def ask(row: int) -> None:
        at = row % 390
        rows = slice(at, at + 1 + row % 3)
        hold(loaded.predict(take(case.inputs, rows)), take(case.wanted, rows))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(2000)))
    loaded.close()


@pytest.mark.parametrize("name", ["xgboost: categories", "lightgbm: categories"])
def test_a_category_that_training_did_not_know_counts_as_missing(name: str, tmp_path: Path) -> None:
    case: Case = CASES[name](tmp_path)
    loaded = runtime_of(case.version.runtime).load(tmp_path, case.version)
    some, unknown = take(case.inputs, slice(0, 20)), take(case.inputs, slice(0, 20))
    some["town"], unknown["town"] = np.full((20, 1), b"\xff", object), np.full((20, 1), b"nowhere", object)
    some["plan"], unknown["plan"] = np.full((20, 1), np.nan), np.full((20, 1), 31.0)
    hold(loaded.predict(unknown), loaded.predict(some))
    assert not np.array_equal(
        loaded.predict(some)["probabilities"],
        loaded.predict(take(case.inputs, slice(0, 20)))["probabilities"],
    )
    loaded.close()


def test_categories_that_the_file_does_not_hold_are_asked_for(tmp_path: Path) -> None:
    case: Case = CASES["xgboost: categories that are not ASCII"](tmp_path)
    with pytest.raises(LoadFailed, match="not ASCII.*--data"):
        xgboost.runtime.load(tmp_path, version("xgboost", case.version.entry))


@pytest.mark.parametrize("name", ["xgboost: two classes", "lightgbm: two classes"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 7), (3,), (3, 6, 1)])
def test_a_wrong_shape_never_reaches_the_library(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    case: Case = CASES[name](tmp_path)
    loaded = runtime_of(case.version.runtime).load(tmp_path, case.version)
    with pytest.raises(ShapeMismatch, match=r"want|wants"):
        loaded.predict({"input": np.zeros(shape)})
    loaded.close()


@pytest.mark.parametrize(
    ("runtime", "entry", "content", "words"),
    [
        ("xgboost", "model.ubj", b"\x00\x01\x02", "XGBoost cannot load the model: "),
        ("xgboost", "model.json", b'{"learner": {}}', "XGBoost cannot load the model: "),
        ("xgboost", "model.json", b"", "XGBoost cannot load the model: "),
        ("lightgbm", "model.txt", b"trees", "its first line is not 'tree'"),
        ("lightgbm", "model.txt", b"tree\nversion=v4\n", "LightGBM cannot load the model: "),
    ],
)
def test_a_file_that_is_no_model(
    runtime: str, entry: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / entry).write_bytes(content)
    with pytest.raises(LoadFailed) as caught:
        runtime_of(runtime).load(tmp_path, version(runtime, entry))
    assert words in caught.value.message and "Stack trace" not in caught.value.message
    with pytest.raises(LoadFailed, match="is not in the artifact folder"):
        runtime_of(runtime).load(tmp_path, version(runtime, "other"))


def test_classes_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    CASES["lightgbm: three classes"](tmp_path)
    for classes, words in ((["a", "b"], "3 classes apart, and 2 are named"), ([["a"]], "no list of labels")):
        with pytest.raises(LoadFailed, match=words):
            lightgbm.runtime.inspect(tmp_path, version("lightgbm", "model.txt", classes=classes), None)


def test_without_the_package_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, stem in (("xgboost", "libxgboost"), ("lightgbm", "lib_lightgbm")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtra, match=rf"interlock\[{package}\]"):
            open_library(package, stem, package)
    with pytest.raises(MissingExtra):
        open_library("interlock_no_such_package", "lib", "xgboost")


def test_a_package_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LoadFailed, match="the library of hollow does not load"):
        open_library("hollow", "libhollow", "xgboost")


IN_A_PROCESS = """
import os, sys, time
import numpy as np
from pathlib import Path
from interlock.runtime.onnx import runtime as _
from interlock.core.model import Signature, Version
from interlock.runtime.catalog import runtime_of
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
for name, entry in (("xgboost", "model.ubj"), ("lightgbm", "model.txt")):
    loaded = runtime_of(name).load(Path(sys.argv[1]), Version("m", "1", "", name, entry, Signature((), ())))
    for rows in (1, 300):
        loaded.predict({"input": np.zeros((rows, 6), "f4" if name == "xgboost" else "f8")})
used = time.process_time()
time.sleep(0.3)
print(threads() - before, time.process_time() - used < 0.1, *(m for m in
      ("xgboost", "lightgbm", "scipy", "pandas", "sklearn", "onnx") if m in sys.modules))
"""


def test_neither_brings_threads_nor_its_package_into_a_process(tmp_path: Path) -> None:
    CASES["xgboost: two classes"](tmp_path)
    CASES["lightgbm: regression"](tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split("\n")[-2] == "0 True", done.stdout + done.stderr
