"""Holds what a worker's imports cost: no registry, database or web framework, and under 0.3 s.

A worker that is killed must be back at once, and many of them share one node's memory. Control and the
command line may import what they like.
"""

import importlib.util
import statistics
import subprocess
import sys

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

LIMIT_S = 0.3
RUNS = 5


def loaded_of(wanted: list[str], imported: str) -> list[str]:
    """Which of `wanted` are in sys.modules after a fresh interpreter imported `imported`."""
    code = f"import sys, {imported}; print(*(m for m in {wanted!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def cost_s(imported: str) -> float:
    """Processor seconds that a fresh interpreter takes to import `imported` after ONNX Runtime and NumPy.

    Processor time, not wall time: a busy machine does not make an import slower by this clock.
    """
    code = (
        "import time, numpy, onnxruntime\n"
        "started = time.process_time()\n"
        f"import {imported}\n"
        "print(time.process_time() - started)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_a_worker_imports_nothing_of_the_control_plane() -> None:
    assert loaded_of(CONTROL_ONLY, DATA_PLANE) == []


@pytest.mark.slow
def test_a_worker_is_imported_quickly() -> None:
    median_s = statistics.median(cost_s(DATA_PLANE) for _ in range(RUNS))
    assert median_s < LIMIT_S, f"{DATA_PLANE}: {median_s:.3f} s of processor time, the limit is {LIMIT_S} s"


@pytest.mark.slow
@pytest.mark.parametrize("heavy", ["sqlalchemy", "fastapi"])
def test_the_check_sees_what_is_imported(heavy: str) -> None:
    assert heavy in loaded_of(CONTROL_ONLY, heavy)


@pytest.mark.slow
def test_the_clock_sees_a_slow_import() -> None:
    assert cost_s("fastapi") > 10 * cost_s("colorsys")
