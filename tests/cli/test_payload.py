"""Whatever a person has at hand becomes the V2 request that the model wants, or a clear refusal."""

import json
from pathlib import Path
from typing import Any

import pytest

from interlock.cli.payload import Metadata, Spec, read, request_of
from interlock.core.errors import InputMismatch, MalformedMessage

IRIS = Metadata("iris", (Spec("x", "FP32", (-1, 4)),))
TWO = Metadata("two", (Spec("age", "INT64", (-1, 1)), Spec("name", "BYTES", (-1, 1))))
FLAT = Metadata("flat", (Spec("x", "FP64", (-1,)),))

ROWS = [[5.1, 3.5, 1.4, 0.2], [6.0, 2.0, 1.0, 0.1]]


def tensors(data: Any, metadata: Metadata) -> dict[str, tuple[list[int], list[Any]]]:
    return {t["name"]: (t["shape"], t["data"]) for t in request_of(data, metadata)["inputs"]}


@pytest.mark.parametrize(
    "data",
    [ROWS, {"x": ROWS}, [["5.1", "3.5", "1.4", "0.2"], ["6.0", "2.0", "1.0", "0.1"]],
     [["a", "b", "c", "d"], ["5.1", "3.5", "1.4", "0.2"], ["6.0", "2.0", "1.0", "0.1"]],
     [dict(zip("abcd", row, strict=True)) for row in ROWS]],
)  # fmt: skip
def test_rows_records_and_csv_mean_the_same(data: Any) -> None:
    assert tensors(data, IRIS) == {"x": ([2, 4], [value for row in ROWS for value in row])}


def test_one_row_alone_is_one_row() -> None:
    assert tensors(ROWS[0], IRIS) == {"x": ([1, 4], ROWS[0])}
    assert tensors([1.0, 2.0], FLAT) == {"x": ([2], [1.0, 2.0])}
    assert tensors([["x"], ["1.0"], ["2.0"]], FLAT) == {"x": ([2], [1.0, 2.0])}  # a table of one column


@pytest.mark.parametrize(
    "data",
    [{"age": [30, 40], "name": ["a", "b"]}, [{"age": 30, "name": "a"}, {"age": 40, "name": "b"}],
     [["age", "name"], ["30", "a"], ["40", "b"]], [["name", "age"], ["a", "30"], ["b", "40"]],
     [[30, "a"], [40, "b"]]],
)  # fmt: skip
def test_several_inputs_are_found_by_name_or_place(data: Any) -> None:
    assert tensors(data, TWO) == {"age": ([2, 1], [30, 40]), "name": ([2, 1], ["a", "b"])}


def test_a_whole_request_goes_through_as_it_is() -> None:
    request = {"id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROWS[0]}]}
    assert request_of(request, IRIS) is request


@pytest.mark.parametrize(
    ("data", "metadata", "words"),
    [
        ({"y": ROWS}, IRIS, "no input 'y'; the model's inputs: x"),
        ([], IRIS, "want rows, records"),
        (7, IRIS, "want rows, records"),
        ([[1, 2, 3]], TWO, "has 2 inputs"),
        ([{"a": 1}, {"b": 2}], IRIS, "record 1 has other names"),
        ([["1", "2"], ["3"]], IRIS, "line 2 has 1 values, the first one 2"),
        ([["30", "a"], ["x", "b"]], TWO, "'age' wants INT64, and 'x' is none"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(data: Any, metadata: Metadata, words: str) -> None:
    with pytest.raises(InputMismatch, match=words):
        request_of(data, metadata)


def test_data_is_json_or_a_file_or_standard_input(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n\n3,4\n")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))

    def stdin() -> bytes:
        return b"\xef\xbb\xbf1,2\n"

    assert read(" [[1]]", stdin) == [[1]]
    assert read(str(tmp_path / "rows.csv"), stdin) == [["a", "b"], ["1", "2"], ["3", "4"]]
    assert read(str(tmp_path / "rows.json"), stdin) == ROWS
    assert read("-", stdin) == [["1", "2"]]


@pytest.mark.parametrize(
    ("data", "words"),
    [("[1", "not JSON"), ("nowhere.csv", "neither JSON nor a file"), ("-", "not UTF-8"),
     ("{" * 100_000, "not JSON")],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(data: str, words: str) -> None:
    with pytest.raises(MalformedMessage, match=words):
        read(data, lambda: b"\xff\xfe")
