"""Holds the command `score`: what it prints, how it ends, and that it says what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from interlock.cli.main import cli
from tests.app.nodes import put_onnx, put_python

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = [pytest.mark.server, pytest.mark.beside]


def asked(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["score", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_file_is_scored_and_reported(interlock_home: Path, tmp_path: Path) -> None:
    version = put_onnx(interlock_home, "m", "1", 3.0)
    pq.write_table(pa.table({"x": list(np.ones((10, 2), np.float32))}), tmp_path / "in.parquet")
    code, out, _ = asked("m@1", tmp_path / "in.parquet", tmp_path / "out.parquet", "--json", "--keep", "all")
    report = json.loads(out)
    assert (code, report["rows"], report["resumed_rows"], report["digest"]) == (0, 10, 0, version.digest)
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["x", "y"]
    code, _, said = asked("m@1", tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert code == 1 and "--force" in said


def test_rows_without_an_answer_change_the_exit_code(interlock_home: Path, tmp_path: Path) -> None:
    put_python(interlock_home, "p", "1", 2.0)
    x = np.ones((40, 2), np.float32)
    x[16, 0] = 13  # ends the process, where it is the first of a call of 16
    pq.write_table(pa.table({"x": list(x)}), tmp_path / "in.parquet")
    x[16:21, 0] = 13
    pq.write_table(pa.table({"x": list(x)}), tmp_path / "bad.parquet")
    code, _, said = asked("p@1", tmp_path / "bad.parquet", tmp_path / "out.parquet")
    assert code == 1 and "interlock: row 16: " in said and "exit code 13" in said
    code, out, said = asked(
        "p@1", tmp_path / "bad.parquet", tmp_path / "out.parquet", "--errors", "null", "--workers", 1
    )
    assert code == 1 and "given up" in said, said  # five crashes in a row
    code, out, said = asked(
        "p@1", tmp_path / "in.parquet", tmp_path / "out.parquet", "--errors", "null", "--json"
    )
    assert code == 3 and json.loads(out)["error_rows"] == 1 and "1 rows have no answer" in said, said
    (bad,) = (row for row in pq.read_table(tmp_path / "out.parquet").to_pylist() if row["error"])
    assert bad["y"] is None and "exit code 13" in bad["error"]


def test_what_is_not_there_is_said(interlock_home: Path, tmp_path: Path) -> None:
    put_onnx(interlock_home, "m", "1", 3.0)
    pq.write_table(pa.table({"X": [1]}), tmp_path / "in.parquet")
    code, _, said = asked("m@1", tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert code == 1 and "no column 'x', which the model takes; did you mean 'X'" in said
    assert asked("m@1", tmp_path / "no.parquet", tmp_path / "out.parquet")[0] == 2
