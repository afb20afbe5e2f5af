"""Runs the code of docs/add-a-runtime.md, joined in order, as a reader would write it."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from interlock.runtime import catalog


def test_the_guide_to_a_runtime_is_true(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repository / "docs" / "add-a-runtime.md").read_text()
    assert len(re.findall(r"^## [1-8]\. ", text, re.MULTILINE)) == 8
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    monkeypatch.setattr(catalog, "RUNTIMES", dict(catalog.RUNTIMES))
    module = ModuleType("guide_to_a_runtime")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "docs/add-a-runtime.md", "exec"), module.__dict__)
    assert module.report.results and not module.report.failures
