"""Holds the package to its floors, and plants each kind of bad import to see that the checker bites."""

import shutil
from pathlib import Path

import pytest

from tests.floors import FLOORS, untidy, violations

PACKAGE_FOLDER = Path(__file__).resolve().parents[1] / "src" / "interlock"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package's real tree, in a folder of its own, so that something bad can be planted in it."""
    return shutil.copytree(
        PACKAGE_FOLDER, tmp_path / "interlock", ignore=shutil.ignore_patterns("__pycache__")
    )


def test_imports_go_down_the_floors_only() -> None:
    assert violations(PACKAGE_FOLDER) == []


def test_modules_say_what_they_own_and_stay_short() -> None:
    assert untidy(PACKAGE_FOLDER) == []


def test_each_folder_is_on_one_floor() -> None:
    folders = [folder for floor in FLOORS for folder in floor]
    assert len(folders) == len(set(folders))


BAD = {
    "up": ("core/planted.py", "from interlock.serving.batcher import Batcher", "up from floor 0 to 2"),
    "up, plain import": (
        "runtime/planted.py",
        "import interlock.registry.ledger as l",
        "up from floor 1 to 2",
    ),
    "second of two names": ("codec/planted.py", "import json, interlock.wire", "up from floor 1 to 3"),
    "across": ("serving/planted.py", "from interlock.registry import artifacts", "across floor 2"),
    "to the wiring": ("cli/planted.py", "from interlock.app import node", "across floor 5"),
    "across at the top": ("api/planted.py", "from interlock.export import prometheus", "across floor 5"),
    "the wiring to the command line": ("app/planted.py", "import interlock.cli.main", "across floor 5"),
    "star": ("codec/planted.py", "from interlock.runtime import *", "across floor 1"),
    "relative": ("core/planted.py", "from ..wire import http", "up from floor 0 to 3"),
    "relative to the package": ("core/planted.py", "from .. import wire", "up from floor 0 to 3"),
    "relative, deeper": ("wire/v2/planted.py", "from ...operations import register", "up from floor 3 to 4"),
    "in a function": (
        "wire/planted.py",
        "def f():\n    from interlock import operations",
        "up from floor 3 to 4",
    ),
    "for types only": (
        "evidence/planted.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from interlock.sketch import quantiles",
        "across floor 1",
    ),
    "by name": (
        "serving/planted.py",
        "import importlib\nimportlib.import_module('interlock.registry.ledger')",
        "across floor 2",
    ),
    "by __import__": ("core/planted.py", "__import__('interlock.client')", "up from floor 0 to 2"),
    "through the public face": ("cli/planted.py", "from interlock import register", "on no floor"),
    "the package itself": ("core/planted.py", "import interlock", "import the module that you mean"),
    "a folder nobody knows": ("helpers/planted.py", "import json", "'helpers' is on no floor"),
    "from a folder nobody knows": ("core/planted.py", "from interlock.helpers import x", "on no floor"),
    "a file beside the floors": ("planted.py", "import json", "belongs to no folder"),
}


@pytest.mark.parametrize(("place", "source", "said"), BAD.values(), ids=BAD.keys())
def test_a_planted_violation_is_caught(copied: Path, place: str, source: str, said: str) -> None:
    before = violations(copied)
    planted = copied / place
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(f'"""Planted."""\n{source}\n')
    new = [line for line in violations(copied) if line not in before]
    assert len(new) == 1, new
    assert new[0].startswith(place) and said in new[0]


def test_the_package_file_may_not_import_eagerly(copied: Path) -> None:
    with (copied / "__init__.py").open("a") as file:
        file.write("\nfrom interlock.core import errors\n")
    assert any(line.startswith("__init__.py") and "at once" in line for line in violations(copied))


GOOD = (
    ("wire/planted.py", "from ..core.errors import InterlockError"),
    (
        "serving/planted.py",
        "from . import lane\nfrom .lane import Lane\nfrom interlock.serving.lane import Lane",
    ),
    ("app/planted.py", "from interlock import operations, __version__"),
    ("app/planted.py", "from interlock.api import guard\nfrom interlock.export import prometheus"),
    ("core/planted.py", "import interlocking.serving\nfrom json import loads\nloads('interlock.serving')"),
)


@pytest.mark.parametrize(("place", "source"), GOOD)
def test_what_goes_down_or_stays_in_its_folder_is_let_through(copied: Path, place: str, source: str) -> None:
    before = violations(copied)
    planted = copied / place
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(f'"""Planted."""\n{source}\n')
    assert violations(copied) == before


def test_a_module_without_a_docstring_is_caught(copied: Path) -> None:
    (copied / "core" / "planted.py").write_text("X = 1\n")
    assert any(line.startswith("core/planted.py: no docstring") for line in untidy(copied))


@pytest.mark.parametrize(
    ("docstring", "caught"),
    [
        ("Owns much.", True),
        ("Owns much.\n\nPast 400 lines because the grammar is one\ntable.", False),
        ("Owns much.\n\nPast 400 lines\nbecause the grammar is one table.", False),
    ],
)
def test_a_long_module_needs_a_reason(copied: Path, docstring: str, caught: bool) -> None:
    (copied / "core" / "planted.py").write_text(f'"""{docstring}"""\n' + "X = 1\n" * 400)
    assert any("planted.py: 40" in line for line in untidy(copied)) is caught
