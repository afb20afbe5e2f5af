"""The benchmark of formats: one format from training to the table, and how one that is absent is listed."""

import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from benchmarks import bench_formats
from benchmarks.bench_formats import Measured, Record
from benchmarks.machine import this_machine


def record(*found: Measured) -> Record:
    return Record(this_machine(), "Python 3", {}, 1, 0.05, list(found), 1.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.server
@pytest.mark.beside
def test_a_format_is_registered_served_compared_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    one = bench_formats.measure("python", Path(sys.executable), rounds=2, seconds=0.05)
    assert one.error == "" and one.command == "interlock register python digits"
    assert (one.runtime, one.placement) == ("python", "executor")
    assert one.difference is not None and one.difference < 1e-6
    assert set(one.us) == set(bench_formats.SIDES) == set(one.peak_bytes)
    assert all(len(times) == 2 for by_rows in one.us.values() for times in by_rows.values())
    # A request takes longer than the call that it makes.
    assert median(one.us["served"][1]) > median(one.us["native"][1])
    assert all(10e6 < held < 2e9 for held in one.peak_bytes.values())
    line = bench_formats.table(record(one)).splitlines()[1]
    assert line.startswith("python  python, executor") and line.count("x)") == 4


def test_what_is_not_installed_is_listed_with_what_installs_it() -> None:
    python = Path(sys.executable)
    assert bench_formats.missing(python, ("numpy", "no_such_framework")) == ["no_such_framework"]
    one = Measured(
        "keras", "digits", "interlock register keras model.keras", error="not installed (keras): …"
    )
    assert "keras   not installed (keras)" in bench_formats.table(record(one))


def test_an_answer_that_is_another_is_not_timed() -> None:
    wanted = np.eye(3, dtype=np.float32)
    near = {"label": np.arange(3), "probabilities": wanted + np.float32(5e-5)}
    assert bench_formats.gap(near, wanted, "ours") == pytest.approx(5e-5, rel=0.01)
    for other in (wanted + np.float32(2e-4), wanted * np.nan, wanted[:2], np.arange(3)):
        with pytest.raises(RuntimeError, match="served, 3 rows: another answer than the framework's"):
            bench_formats.gap({"probabilities": other}, wanted, "served, 3 rows")
