"""Holds the process that answers offline: the model's own answers, whatever the rows do to the model."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from interlock.core.errors import (
    DigestMismatch,
    LoadFailed,
    MemoryExhausted,
    ModelCrashed,
    PredictFailed,
    Unsupported,
)
from interlock.core.fault import Fault
from interlock.core.model import Capabilities, Signature, Tensors, TensorSpec, Version, digest_of
from interlock.runtime import examples
from interlock.runtime.answer_process import Answerer, answers
from interlock.runtime.catalog import runtime_of
from interlock.runtime.check import check
from tests.runtime.models import MODELS

pytestmark = [pytest.mark.server, pytest.mark.beside]

BAD = """
import os, subprocess, sys, time
import numpy as np

class Model:
    signature = {
        "inputs": {"x": ("FP32", [-1, 2])},
        "outputs": {"y": ("FP32", [-1, 2]), "t": ("BYTES", [-1])},
    }
    max_batch_rows = 8
    seen = 0

    def load(self, folder):
        if (folder / "hang").exists():
            time.sleep(600)
        if (folder / "die").exists():
            print("I was told to")
            os._exit(9)
        if (folder / "child").exists():
            (folder / "child").write_text(str(subprocess.Popen(["sleep", "600"]).pid))

    def predict(self, inputs):
        x = inputs["x"]
        for cell in x[:, 0]:
            if cell == -1: raise ValueError("no negatives")
            if cell == -2: os._exit(13)
            if cell == -3: time.sleep(600)
            if cell == -4: np.ones(1 << 40)
            if cell == -5: sys.exit(0)
            if cell == -6: return {"y": x[:0], "t": np.array([], object)}
        self.seen += len(x)
        return {"y": x * 2, "t": np.array([f"row {cell:g}" for cell in x[:, 0]], object)}
"""


def written(folder: Path, **changes: Any) -> Version:
    """The model of BAD in `folder`, as a version."""
    (folder / "model.py").write_text(BAD)
    x, y = (TensorSpec(name, "FP32", (-1, 2)) for name in "xy")
    signature = Signature((x,), (y, TensorSpec("t", "BYTES", (-1,))))
    version = Version(
        "m", "1", digest_of(folder), "python", "model.py:Model", signature, Capabilities(max_batch_rows=8)
    )
    return msgspec.structs.replace(version, **changes)


def some_rows(count: int, **bad: float) -> Tensors:
    """Rows that count up; `r7=-1` makes the first cell of row 7 a -1."""
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    for name, cell in bad.items():
        x[int(name[1:]), 0] = cell
    return {"x": x}


COMPARED = ["iris logistic regression", "two inputs, two outputs", "strings", "BF16", "FP16", "plain Python"]
COMPARED += ["iris MLP with words", "fixed rows", "rows that see each other"]


@pytest.mark.parametrize("name", COMPARED)
def test_it_answers_as_the_model_does(name: str, tmp_path: Path) -> None:
    drawn = MODELS[name](tmp_path)
    report = check(tmp_path, drawn)
    version = msgspec.structs.replace(
        drawn,
        digest=digest_of(tmp_path),
        signature=report.signature,
        capabilities=msgspec.structs.replace(report.capabilities, max_batch_rows=16),
    )
    inputs = examples.generate(report.signature, 40)
    if report.signature.batch_axis is None:
        inputs = {spec.name: np.repeat(inputs[spec.name], 40, axis=0) for spec in report.signature.inputs}
    found = answers(tmp_path, version, inputs)
    loaded = runtime_of(version.runtime).load(tmp_path, version)
    alone = [loaded.predict(examples.take(inputs, row, 1)) for row in range(40)]
    assert found.keys() == {spec.name for spec in report.signature.outputs}
    assert examples.difference(found, examples.join(alone)) <= report.capabilities.tolerance
    assert all(found[name].dtype == alone[0][name].dtype for name in found)


def test_one_process_answers_any_number_of_times_and_no_rows_too(tmp_path: Path) -> None:
    version = written(tmp_path)
    with Answerer(tmp_path, version) as answerer:
        first = answerer.answer(some_rows(100))
        pid = answerer.pid
        assert first["y"].tolist() == (some_rows(100)["x"] * 2).tolist()
        assert first["t"].tolist()[:2] == ["row 0", "row 2"]
        nothing = answerer.answer(some_rows(0))
        assert (nothing["y"].shape, nothing["t"].shape) == ((0, 2), (0,))
        assert answerer.pid == pid


@pytest.mark.parametrize(
    ("cell", "kind", "words"),
    [
        (-1, PredictFailed, "ValueError: no negatives"),
        (-2, ModelCrashed, "exit code 13"),
        (-3, ModelCrashed, "no answer within 0.5 s"),
        (-4, MemoryExhausted, "4,096 MiB"),
        (-5, PredictFailed, "SystemExit"),
    ],
)
def test_only_the_row_that_is_to_blame_has_no_answer(
    cell: float, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    version = written(tmp_path)
    inputs = some_rows(60, r29=cell, r30=-1)
    with Answerer(tmp_path, version, call_s=0.5) as answerer:
        found = answerer.attempt(inputs)
        assert [failure.row for failure in found.failures] == [29, 30]
        assert isinstance(found.failures[0].error, kind) and words in found.failures[0].error.message
        good = [row for row in range(60) if row not in (29, 30)]
        assert found.groups[0]["y"].tolist() == (inputs["x"][good] * 2).tolist()
        with pytest.raises(kind, match="row 29: "):
            answerer.answer(inputs)
        assert len(answerer.answer(some_rows(3))["y"]) == 3


def test_a_wrong_number_of_rows_is_the_models_fault(tmp_path: Path) -> None:
    found = Answerer(tmp_path, written(tmp_path))
    with found, pytest.raises(Exception, match="the signature wants"):
        found.answer(some_rows(20, r4=-6, r5=-6))


def test_a_version_that_crashes_on_every_row_is_given_up(tmp_path: Path) -> None:
    with Answerer(tmp_path, written(tmp_path)) as answerer:
        with pytest.raises(ModelCrashed, match="exit code 13.*5, one after the other; it is given up"):
            answerer.attempt({"x": np.full((20, 2), -2, np.float32)})


def test_a_version_with_side_effects_is_never_asked_twice(tmp_path: Path) -> None:
    """What it counts is told by its last answer: rows that it saw before a crash are not asked again."""
    (tmp_path / "model.py").write_text(
        "import os\nclass Model:\n    def predict(self, inputs):\n"
        "        with open(os.environ['SEEN_ROWS'], 'a') as seen:\n"
        "            seen.write(''.join(f'{v:g}\\n' for v in inputs['x'][:, 0]))\n"
        "        if -2 in inputs['x']: os._exit(13)\n        return {'y': inputs['x']}\n"
    )
    version = written_like(tmp_path, Capabilities(max_batch_rows=8, side_effect_free=False))
    seen = tmp_path.parent / f"{tmp_path.name}-seen"
    with pytest.MonkeyPatch.context() as patch, Answerer(tmp_path, version) as answerer:
        patch.setenv("SEEN_ROWS", str(seen))
        found = answerer.attempt(some_rows(12, r5=-2))
    assert [failure.row for failure in found.failures] == [5]
    assert len(seen.read_text().split()) == len(set(seen.read_text().split())) == 12


def written_like(folder: Path, capabilities: Capabilities) -> Version:
    x, y = (TensorSpec(name, "FP32", (-1, 2)) for name in "xy")
    return Version(
        "m", "1", digest_of(folder), "python", "model.py:Model", Signature((x,), (y,)), capabilities
    )


@pytest.mark.parametrize(
    ("file", "words"), [("die", "exit code 9.*I was told to"), ("hang", "no answer within 1 s")]
)
def test_a_version_that_cannot_be_loaded_says_why(file: str, words: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    with Answerer(tmp_path, written(tmp_path), load_s=1.0) as answerer:
        with pytest.raises(LoadFailed, match=words):
            answerer.answer(some_rows(1))


def test_other_bytes_than_those_registered_are_not_loaded(tmp_path: Path) -> None:
    version = written(tmp_path)
    (tmp_path / "more.txt").write_text("not registered")
    with Answerer(tmp_path, version) as answerer, pytest.raises(DigestMismatch, match="registered as"):
        answerer.answer(some_rows(1))


def test_a_fault_on_purpose_is_only_for_a_self_tests_model(tmp_path: Path) -> None:
    version = written(tmp_path, fault=Fault("fail", 1.0))
    with Answerer(tmp_path, version) as answerer, pytest.raises(Exception, match="on purpose"):
        answerer.answer(some_rows(1))


def test_a_version_that_streams_is_refused(tmp_path: Path) -> None:
    version = msgspec.structs.replace(written(tmp_path), capabilities=Capabilities(streaming=True))
    with pytest.raises(Unsupported):
        Answerer(tmp_path, version)


@pytest.mark.parametrize("then", ["answerer.answer({'x': np.full((1, 2), -3, np.float32)})", "input()"])
def test_all_ends_with_the_parent_in_a_hung_call_and_between_two(tmp_path: Path, then: str) -> None:
    """kill -9 of whoever asks leaves neither the child nor what the model started."""
    (tmp_path / "child").touch()
    version = written(tmp_path)
    (tmp_path.parent / "version.json").write_bytes(msgspec.json.encode(version))
    code = (
        "import sys, msgspec, numpy as np\nfrom pathlib import Path\n"
        "from interlock.core.model import Version\nfrom interlock.runtime.answer_process import Answerer\n"
        "version = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=Version)\n"
        "answerer = Answerer(Path(sys.argv[1]), version)\n"
        "answerer._asked({'x': np.zeros((0, 2), np.float32)}, 1, False)\n"
        f"print(answerer.pid, flush=True)\n{then}\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path.parent / "version.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None and parent.stdout is not None
    child = int(parent.stdout.readline())
    grandchild = int((tmp_path / "child").read_text())
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    until_s = time.monotonic() + 10
    while (_lives(child) or _lives(grandchild)) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not _lives(child) and not _lives(grandchild)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_close_ends_the_process(tmp_path: Path) -> None:
    answerer = Answerer(tmp_path, written(tmp_path))
    answerer.answer(some_rows(1))
    pid = answerer.pid
    assert pid is not None
    answerer.close()
    until_s = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not _lives(pid)
    with pytest.raises(ModelCrashed, match="closed"):
        answerer.answer(some_rows(1))
