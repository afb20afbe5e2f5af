"""Holds how reference data are read, and that widened rows hold the extremes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from interlock.core.errors import ConfigError
from interlock.operations import reference
from interlock.runtime.examples import ONLY
from tests.thorough import examples


def test_csv_columns_become_a_matrix_and_a_target(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,kind\n1,2.5,x\n3,4.5,y\n")
    read = reference.read(path, "kind")
    assert read.inputs[ONLY].tolist() == [[1.0, 2.5], [3.0, 4.5]] and read.rows == 2
    assert read.target is not None and read.target.tolist() == ["x", "y"]
    with pytest.raises(ConfigError, match=r"columns \['kind'\] are not numbers"):
        reference.read(path, None)
    with pytest.raises(ConfigError, match="no column 'nope'"):
        reference.read(path, "nope")


def test_npz_holds_one_array_an_input(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, a=np.ones((3, 2)), b=np.zeros(3), y=np.arange(3))
    read = reference.read(path, "y")
    assert sorted(read.inputs) == ["a", "b"] and read.rows == 3
    np.savez(path, a=np.ones((3, 2)), b=np.zeros(2))
    with pytest.raises(ConfigError, match="same number"):
        reference.read(path, None)


@pytest.mark.parametrize("name", ["rows.txt", "rows.npz", "absent.csv", "empty.csv"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    if name != "absent.csv":
        (tmp_path / name).write_text("" if name == "empty.csv" else "nothing")
    with pytest.raises(ConfigError, match=name):
        reference.read(tmp_path / name, None)


def test_data_without_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        reference.of(np.zeros((0, 3)))
    assert reference.of([1.0, 2.0]).inputs[ONLY].shape == (2, 1)


MATRICES = arrays_of.arrays(
    np.float64,
    st.tuples(st.integers(1, 20), st.integers(1, 5)),
    elements=st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))),
)


@settings(max_examples=examples(60), deadline=None)
@given(matrix=MATRICES, least=st.integers(1, 300))
def test_widened_rows_hold_the_given_ones_and_their_extremes(matrix: np.ndarray, least: int) -> None:
    wide = reference.widened(matrix, least)
    assert (
        wide.dtype == np.float32 and len(wide) >= max(least, len(matrix)) and wide.shape[1] == matrix.shape[1]
    )
    given_rows = {row.tobytes() for row in matrix.astype(np.float32)}
    assert given_rows <= {row.tobytes() for row in wide}
    whole = matrix[np.isfinite(matrix).all(axis=1)]
    if len(whole):
        assert (np.nanmin(wide, axis=0) < whole.min(axis=0).astype(np.float32)).all()
        assert (np.nanmax(wide, axis=0) > whole.max(axis=0).astype(np.float32)).all()
    assert np.array_equal(wide, reference.widened(matrix, least), equal_nan=True)  # seeded
