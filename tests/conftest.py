"""Owns what tests of every folder share: a home of their own, and the foreign clients' interpreters."""

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Two processes test on two cores: where each has a thread per core, they spin and wait for each other. Before
# the libraries are imported, which read it then. Children that run models have it from Interlock anyhow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `make test &` in a script ignores SIGINT, which all children inherit: none of ours could be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No wall-clock deadline per example: on a busy machine it fails for the neighbour's sake. pytest's holds.
# In CI the examples are the same each time, so that whether a change lands is not left to chance.
settings.register_profile("interlock", deadline=None, print_blob=True, derandomize="CI" in os.environ)
# `make check` asks for a fifth of the examples; `make test` runs them all.
settings.register_profile("quick", settings.get_profile("interlock"), max_examples=20)
settings.load_profile("interlock")

# Programs that tests run under another environment's interpreter: ours cannot import them.
collect_ignore_glob = ["clients/*_calls.py", "runtime/*_calls.py"]

ELSEWHERE = frozenset({"kserve_python", "models_python"})
"""The fixtures that are another environment's interpreter."""

REPOSITORY = Path(__file__).resolve().parents[1]


ALL_SLOW = re.compile(r"(?m)^pytestmark = .*pytest\.mark\.(slow|soak|server)\b")
"""Of a module of which `make check` runs no test."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the modules without a test of those that are asked for: to import them all, and what they
    import, takes longer than most tests."""
    if collection_path.suffix != ".py" or "tests" not in collection_path.parts:
        return None
    wanted = config.getoption("markexpr")
    if wanted.startswith("server"):
        text = collection_path.read_text()
        return None if any(word in text for word in ("mark.server", *ELSEWHERE)) else True
    if "not slow" in wanted:
        return True if ALL_SLOW.search(collection_path.read_text()) else None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count what needs another environment among the server tests: `make check` builds only ours. That of
    TensorFlow and of models with real weights has 1.4 GB: what needs it is for `make soak`.

    What takes longest begins, so that no file is left alone with a process at the end.
    """
    for item in items:
        wanted = ELSEWHERE & set(getattr(item, "fixturenames", ()))
        if wanted:
            item.add_marker(pytest.mark.server)
        if "models_python" in wanted:
            item.add_marker(pytest.mark.soak)
    items.sort(key=lambda item: (item.path.name != LONGEST, item.get_closest_marker("server") is None))


LONGEST = "test_readme.py"

MLFLOW_URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


@pytest.fixture
def repository() -> Path:
    """The root of the checkout: README.md, docs/, src/."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def interlock_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder for each test, not made yet, so that none ever touches the user's own.

    Its path is short (`tmp_path` is not): a Unix socket's may have 107 bytes at most.
    """
    with tempfile.TemporaryDirectory(prefix="il-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        monkeypatch.setenv("INTERLOCK_HOME", str(home))
        for name in MLFLOW_URIS:
            monkeypatch.delenv(name, raising=False)
        yield home
        for name in MLFLOW_URIS:  # MLflow's own setters leave them in the environment
            os.environ.pop(name, None)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: it takes seconds each time."""
    from interlock.operations.context import opened

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with opened(folder) as context:
            assert context.registry.models() == []
    return folder / "mlflow.db"


@pytest.fixture
def home_with_store(interlock_home: Path, empty_store: Path) -> Path:
    """The home of the test, with a registry in which nothing is registered."""
    interlock_home.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(empty_store, interlock_home / "mlflow.db")
    return interlock_home


@pytest.fixture(scope="session")
def kserve_python() -> Path:
    """The interpreter of the environment with KServe's SDK, whose dependencies clash with ours."""
    python = REPOSITORY / ".venv-kserve" / "bin" / "python"
    assert python.exists(), f"{python} does not exist; run: make clients"
    return python


@pytest.fixture(scope="session")
def models_python() -> Path:
    """The interpreter of the environment with TensorFlow and a model of real weights, beside all of ours."""
    python = REPOSITORY / ".venv-models" / "bin" / "python"
    assert python.exists(), f"{python} does not exist; run: make clients"
    return python
