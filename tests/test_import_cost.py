"""Holds what a worker's imports cost: no registry, database or web framework, and little time.

A worker that is killed must be back at once, and many of them share one node's memory. Control and the
command line may import what they like.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What the data plane imports. Until the worker itself is in the tree, the nouns stand for it.
WORKER = "interlock.app.worker"
DATA_PLANE = WORKER if importlib.util.find_spec(WORKER) else "interlock.core.model"

CONTROL_ONLY = ["alembic", "click", "fastapi", "httpcore", "mlflow", "pandas", "pydantic", "requests", "rich"]
CONTROL_ONLY += ["skl2onnx", "sklearn", "sqlalchemy", "starlette", "uvicorn"]
# The house's own folders on the control side, in case one comes in with nothing heavy behind it yet.
CONTROL_ONLY += [
    "interlock.api",
    "interlock.cli",
    "interlock.client",
    "interlock.operations",
    "interlock.registry",
]
# What makes versions fail on purpose is imported when a self-test loads one.
CONTROL_ONLY += ["interlock.runtime.fault"]

LIMIT = 1.25
"""Of what NumPy and ONNX Runtime cost, which no worker can do without; the measured share is 0.6."""


def loaded_of(wanted: list[str], imported: str) -> list[str]:
    """Which of `wanted` are in sys.modules after a fresh interpreter imported `imported`."""
    code = f"import sys, {imported}; print(*(m for m in {wanted!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def cost_s(imported: str, before: str = "") -> float:
    """Processor seconds that a fresh interpreter takes to import `imported`, after the statement `before`."""
    code = (
        f"import time\n{before}\n"
        "started = time.process_time()\n"
        f"import {imported}\n"
        "print(time.process_time() - started)"
    )
    compiled = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # else each run compiles all of ours anew
    done = subprocess.run(
        [sys.executable, "-c", code], env=compiled, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def share_of_floor(imported: str, runs: int) -> float:
    """What importing `imported` costs beyond NumPy and ONNX Runtime, as a share of what these cost.

    The least of so many runs, in turns: a machine that is busy with something else slows both clocks.
    """
    floor = "numpy, onnxruntime"
    costs = [(cost_s(imported, f"import {floor}"), cost_s(floor)) for _ in range(runs)]
    return min(own for own, _ in costs) / min(both for _, both in costs)


def test_a_worker_imports_nothing_of_the_control_plane() -> None:
    assert loaded_of(CONTROL_ONLY, DATA_PLANE) == []


@pytest.mark.slow
def test_a_worker_is_imported_quickly() -> None:
    share = share_of_floor(DATA_PLANE, 4)
    assert share < LIMIT, f"{DATA_PLANE} takes {share:.2f} times what its floor takes, the limit is {LIMIT}"


@pytest.mark.slow
@pytest.mark.parametrize("heavy", ["sqlalchemy", "fastapi"])
def test_the_check_sees_what_is_imported(heavy: str) -> None:
    assert heavy in loaded_of(CONTROL_ONLY, heavy)


@pytest.mark.slow
def test_the_clock_sees_a_slow_import() -> None:
    assert share_of_floor(f"{DATA_PLANE}, fastapi, sqlalchemy", 1) > LIMIT


def test_a_command_has_no_threads_of_numpy(tmp_path: Path) -> None:
    """More of them spin for a tenth of a second wherever NumPy is imported."""
    code = (
        "import os, sys\nfrom interlock.cli.main import main\n"
        f"sys.argv = ['interlock', 'status', '--home', {str(tmp_path / 'home')!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'numpy' in sys.modules\nprint(len(os.listdir('/proc/self/task')))"
    )
    alone = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=alone)
    assert done.stdout.split()[-1] == "1", done.stdout
