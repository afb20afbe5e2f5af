"""Holds the public API: which names `import interlock` offers, and that none costs until it is used."""

import subprocess
import sys

import pytest

import interlock

# The one list. A name that leaves it breaks users: that takes a major version and a line in the changelog.
PUBLIC = ["AsyncClient", "Client", "abort", "errors", "look", "pause", "promote", "register", "release"]
PUBLIC += ["resume", "rollback"]

# What no bare `import interlock` may load: everything heavier than the standard library.
HEAVY = [
    "alembic",
    "anyio",
    "click",
    "fastapi",
    "httpcore",
    "httptools",
    "mlflow",
    "msgspec",
    "numpy",
    "onnxruntime",
    "pandas",
]
HEAVY += ["pydantic", "rich", "sklearn", "sqlalchemy", "starlette", "uvicorn", "uvloop"]


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(interlock.__all__) == PUBLIC
    assert sorted(interlock._EXPORTS) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_exists_and_says_what_it_is(name: str) -> None:
    assert getattr(interlock, name).__doc__
    assert name in dir(interlock)


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'regster'; it has .*errors"):
        _ = interlock.regster


def test_importing_the_package_loads_none_of_the_heavy_modules() -> None:
    code = f"import sys, interlock; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_version_is_the_one_that_is_installed() -> None:
    from importlib.metadata import version

    assert interlock.__version__ == version("interlock")
