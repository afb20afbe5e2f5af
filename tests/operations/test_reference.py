"""Holds how reference data are read."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interlock.core.errors import ConfigError
from interlock.core.table import MISSING
from interlock.operations import reference
from interlock.runtime import table as tables
from interlock.runtime.examples import ONLY


def test_csv_columns_become_a_table_and_a_target(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,kind\n1,2.5,x\n3,4.5,y\n")
    read = reference.read(path, "kind")
    assert read.rows == 2 and read.table is not None
    assert {name: values.tolist() for name, values in read.inputs.items()} == {"a": [1, 3], "b": [2.5, 4.5]}
    assert read.table.columns == (("a", "INT64"), ("b", "FP64")) and read.table.is_numeric
    assert read.target is not None and read.target.tolist() == ["x", "y"]
    with pytest.raises(ConfigError, match="no column 'nope'"):
        reference.read(path, "nope")


def test_a_data_frame_keeps_its_kinds_of_columns() -> None:
    frame = pd.DataFrame(
        {
            "age": pd.array([30, None, 41], "Int64"),
            "visits": np.array([1, 2, 3], np.int32),
            "city": ["Ghent", None, "Bruges"],
            "word": pd.Series(["a", np.nan, "b"], dtype=object),
            "plan": pd.Categorical(["plus", "basic", None], categories=["basic", "plus"]),
            "member": [True, False, True],
        }
    )
    read = reference.of(frame)
    table = read.table
    assert table is not None and not table.is_numeric
    assert [datatype for _, datatype in table.columns] == ["FP64", "INT32", "BYTES", "BYTES", "BYTES", "BOOL"]
    assert table.categories == {"plan": ("basic", "plus")} and table.none == ("city",)
    assert np.isnan(read.inputs["age"]).tolist() == [False, True, False]
    assert read.inputs["city"].tolist() == [b"Ghent", MISSING, b"Bruges"]
    again = tables.frame(table, read.inputs)
    assert again["city"].tolist() == ["Ghent", None, "Bruges"] and np.isnan(again["word"][1])
    assert again["plan"].equals(frame["plan"]) and again["visits"].dtype == np.int32


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"when": pd.to_datetime(["2026-01-01"])}), "column 'when' is datetime64"),
        (pd.DataFrame({"mixed": [1, "a"]}), "column 'mixed' is object"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), r"columns \['a'\] are there more than once"),
        (pd.DataFrame(index=range(3)), "without a column"),
    ],
)
def test_columns_that_no_input_can_carry_are_named(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        reference.of(frame)


def test_a_sample_holds_the_extremes() -> None:
    values = np.zeros(5000)
    values[3333], values[777] = 9.0, -9.0
    taken = reference.sample(reference.of(pd.DataFrame({"a": values, "b": range(5000)})), 100)
    assert 100 <= len(taken["a"]) <= 104
    assert (taken["a"].min(), taken["a"].max()) == (-9.0, 9.0)


def test_a_target_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="'the target': 2"):
        reference.of(np.zeros((3, 2)), [0, 1])


def test_npz_holds_one_array_an_input(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, a=np.ones((3, 2)), b=np.zeros(3), y=np.arange(3))
    read = reference.read(path, "y")
    assert sorted(read.inputs) == ["a", "b"] and read.rows == 3
    np.savez(path, a=np.ones((3, 2)), b=np.zeros(2))
    with pytest.raises(ConfigError, match="same number"):
        reference.read(path, None)


def test_an_archive_that_cannot_be_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "half.npz"
    path.write_bytes(b"PK\x03\x04half")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        reference.read(path, None)
    assert caught.value.__traceback__ is not None, "which would keep it open"
    assert str(path) not in [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]


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
