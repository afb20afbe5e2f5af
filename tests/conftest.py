"""Owns what tests of every folder share: a home of their own, and the foreign clients' interpreters."""

from pathlib import Path

import pytest
from hypothesis import settings

# No wall-clock deadline per example: on a busy machine it fails for the neighbour's sake. pytest's holds.
settings.register_profile("interlock", deadline=None, print_blob=True)
settings.load_profile("interlock")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def repository() -> Path:
    """The root of the checkout: README.md, docs/, src/."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def interlock_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder for each test, so that none ever touches the user's own."""
    home = tmp_path / "home"
    monkeypatch.setenv("INTERLOCK_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


@pytest.fixture(scope="session")
def kserve_python() -> Path:
    """The interpreter of the environment with KServe's SDK, whose dependencies clash with ours."""
    python = REPOSITORY / ".venv-kserve" / "bin" / "python"
    assert python.exists(), f"{python} does not exist; run: make clients"
    return python
