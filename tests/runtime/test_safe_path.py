"""Holds that the folder in which one happens to be lends no module to a process that runs a model."""

import ast
from pathlib import Path

import numpy as np
import pytest

from interlock.core.model import Signature, TensorSpec, Version, digest_of
from interlock.runtime.answer_process import answers
from interlock.runtime.check_process import run_check

ROWS = {"x": np.ones((4, 2))}
SOURCE = """
import numpy as np

class Model:
    signature = {"inputs": {"x": ("FP64", [-1, 2])}, "outputs": {"y": ("FP64", [-1])}}

    def predict(self, inputs):
        return {"y": np.sum(inputs["x"], axis=1)}
"""


def starts(source: str) -> list[tuple[int, list[object]]]:
    """Of each list that holds "-m", the line and its constants: command lines of modules."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List):
            words: list[object] = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            if "-m" in words:
                found.append((node.lineno, words))
    return found


def test_each_command_line_of_a_module_leaves_out_the_working_directory(repository: Path) -> None:
    found = {
        f"{path.name}:{line}": words[:2]
        for path in (repository / "src").rglob("*.py")
        for line, words in starts(path.read_text())
    }
    assert len(found) >= 6  # supervisor (2), its children, check, answers, pip
    assert [place for place, words in found.items() if words != ["-P", "-m"]] == []
    assert starts('run([python, "-m", "pip"])') == [(1, ["-m", "pip"])]


@pytest.mark.slow
def test_modules_of_the_working_directory_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("numpy", "typing", "msgspec", "interlock"):
        (here / f"{name}.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'w').write('{name}')\n1 / 0\n"
        )
    monkeypatch.chdir(here)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.py").write_text(SOURCE)
    signature = Signature((TensorSpec("x", "FP64", (-1, 2)),), (TensorSpec("y", "FP64", (-1,)),))
    version = Version("m", "1", digest_of(folder), "python", "model.py:Model", signature)
    assert run_check(folder, version, ROWS).failures == ()
    assert answers(folder, version, ROWS)["y"].tolist() == [2.0] * 4
    assert not (tmp_path / "imported").exists()
