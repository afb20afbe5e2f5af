"""Whatever a person has at hand becomes the request that the model wants, or a clear refusal."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlock.cli.payload import data_of, read
from interlock.client.inputs import inputs_of
from interlock.client.message import encode
from interlock.client.views import Metadata, Tensor
from interlock.codec.v2infer import Codec
from interlock.core.errors import DatatypeMismatch, InputMismatch, MalformedMessage
from interlock.core.model import Signature, TensorSpec
from interlock.core.table import MISSING

IRIS = Metadata("iris", (Tensor("x", "FP32", (-1, 4)),))
TABLE = Metadata("table", (Tensor("age", "INT64", (-1, 1)), Tensor("name", "BYTES", (-1, 1))))
MATRIX = Metadata("matrix", (Tensor("x", "FP32", (-1, 2), {"columns": ["age", "fare"]}),))
TWO = Metadata("two", (Tensor("n", "INT64", (-1,)), Tensor("x", "FP32", (-1, 2))))
FLAT = Metadata("flat", (Tensor("x", "FP64", (-1,)),))
OPEN = Metadata("open", (Tensor("inputs", "FP32", (-1, 2)),))

ROWS = [[5.0, 3.5, 1.5, 0.25], [6.0, 2.0, 1.0, 0.5]]
CELLS = [[f"{value}" for value in row] for row in ROWS]


def sent(data: Any, metadata: Metadata) -> dict[str, Any]:
    return {one.name: one.array.tolist() for one in inputs_of(data_of(data, metadata), metadata)}


@pytest.mark.parametrize(
    "data",
    [ROWS, {"x": ROWS}, CELLS, [["a", "b", "c", "d"], *CELLS],
     [dict(zip("abcd", row, strict=True)) for row in ROWS]],
)  # fmt: skip
def test_rows_records_and_csv_mean_the_same(data: Any) -> None:
    assert sent(data, IRIS) == {"x": ROWS}


def test_one_row_alone_is_one_row() -> None:
    assert sent(ROWS[0], IRIS) == {"x": [ROWS[0]]}
    assert sent([1.0, 2.0], FLAT) == {"x": [1.0, 2.0]}
    assert sent([["x"], ["1.0"], ["2.0"]], FLAT) == {"x": [1.0, 2.0]}  # a table of one column


@pytest.mark.parametrize(
    "data",
    [{"age": [30, 40], "name": ["a", None]}, [{"age": 30, "name": "a"}, {"name": None, "age": 40}],
     [[30, "a"], [40, None]]],
)  # fmt: skip
def test_columns_are_found_by_name_or_place_and_a_missing_text_is_missing(data: Any) -> None:
    assert sent(data, TABLE) == {"age": [[30], [40]], "name": [[b"a"], [MISSING]]}


@pytest.mark.parametrize(
    "data",
    [[["age", "name"], ["30", "a"], ["40", "b"]], [["name", "age"], ["a", "30"], ["b", "40"]],
     [["30", "a"], ["40", "b"]]],
)  # fmt: skip
def test_columns_of_csv(data: Any) -> None:
    assert sent(data, TABLE) == {"age": [[30], [40]], "name": [[b"a"], [b"b"]]}


@pytest.mark.parametrize(
    "data",
    [{"fare": [7, 8], "age": [1, 2]}, [{"fare": 7, "age": 1}, {"age": 2, "fare": 8}], [[1, 7], [2, 8]],
     [["fare", "age"], ["7", "1"], ["8", "2"]], [["1", "7"], ["2", "8"]], {"x": [[1, 7], [2, 8]]}],
    ids=["columns", "records", "rows", "CSV", "CSV without names", "the tensor"],
)  # fmt: skip
def test_a_matrix_gets_its_columns_in_its_own_order(data: Any) -> None:
    request = encode(inputs_of(data_of(data, MATRIX), MATRIX), None, None)
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (), 0, ("age", "fare"))
    inputs, *_ = Codec("matrix", "1", signature).decode(b"".join(request.parts), int(request.headers[0][1]))
    assert np.asarray(inputs["x"]).tolist() == [[1.0, 7.0], [2.0, 8.0]]


def test_a_missing_number_is_one_too() -> None:
    for data in ([{"age": 1, "fare": None}], [[1, None]], [["age", "fare"], ["1", ""]]):
        ((age,), (fare,)) = np.hstack(list(sent(data, MATRIX).values())).reshape(2, 1).tolist()
        assert age == 1 and math.isnan(fare)


def test_several_inputs_are_found_by_place_or_by_a_header() -> None:
    for data in ([[1, [2, 3]]], {"x": [[2, 3]], "n": [1]}):
        assert sent(data, TWO) == {"n": [1], "x": [[2.0, 3.0]]}
    both = Metadata("both", (Tensor("n", "INT64", (-1,)), Tensor("b", "BYTES", (-1,))))
    assert sent([["b", "n"], ["two", "2"]], both) == {"n": [2], "b": [b"two"]}


def test_integers_of_csv_arrive_whole() -> None:
    big = 2**53 + 1
    assert sent([["age", "name"], [f"{big}", "a"]], TABLE)["age"] == [[big]]


def test_a_whole_request_goes_as_it_is_but_for_the_form_of_its_outputs() -> None:
    tensor = {"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [None, math.nan, 2**70, "\ud800"]}
    request = {
        "id": "7",
        "inputs": [tensor],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
    }
    made = data_of({**request, "parameters": {"user": "u17"}}, IRIS)
    assert made.headers == [(b"content-type", b"application/json")]
    wanted = {**request, "parameters": {"user": "u17", "binary_data_output": True}}
    assert json.dumps(json.loads(made.parts[0]), sort_keys=True) == json.dumps(wanted, sort_keys=True)
    asked = data_of({**request, "parameters": {"binary_data_output": False}}, IRIS)
    assert json.loads(asked.parts[0])["parameters"] == {"binary_data_output": False}
    assert json.loads(data_of({**request, "parameters": 7}, IRIS).parts[0])["parameters"] == 7


def test_an_input_may_be_called_inputs() -> None:
    assert sent({"inputs": [[1, 2]]}, OPEN) == {"inputs": [[1.0, 2.0]]}


@pytest.mark.parametrize(
    ("data", "metadata", "words"),
    [
        ({"y": ROWS}, IRIS, "no input 'y'; input 'x' is missing; the inputs of 'iris' are x"),
        ([], IRIS, "want rows, records"),
        (7, IRIS, "want rows, records"),
        ([[1, 2, 3]], TWO, "has 2 inputs"),
        ([{"a": 1}, {"b": 2}], IRIS, "record 1 has other names"),
        ([{"age": 1, "fare": 2}, {"age": 1}], MATRIX, "record 1 has other names"),
        ([{"age": 1, "far": 2}], MATRIX, "column 'fare' is missing; column 'far' is unknown"),
        ([["age", "far"], ["1", "2"]], MATRIX, "column 'fare' is missing; column 'far' is unknown"),
        (
            [["age", "fare", "age"], ["1", "2", "3"]],
            MATRIX,
            "a column is there twice in the header age, fare",
        ),
        ([["1", "2"], ["3"]], IRIS, "line 2 has 1 values, the first one 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(data: Any, metadata: Metadata, words: str) -> None:
    with pytest.raises(InputMismatch, match=words):
        sent(data, metadata)


def test_a_cell_that_is_no_number_is_named() -> None:
    with pytest.raises(DatatypeMismatch, match="column 'age': 'x' in row 1 is no INT64"):
        sent([["30", "a"], ["x", "b"]], TABLE)


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
