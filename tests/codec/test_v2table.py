"""Tests of infer messages for tabular models: each form in which a table may come."""

import json
from typing import Any

import numpy as np
import pytest

from interlock.codec.raw import pack
from interlock.codec.v2infer import Codec
from interlock.core.errors import DatatypeMismatch, InputMismatch, InvalidRequest, ShapeMismatch
from interlock.core.model import Array, Signature, Tensors, TensorSpec
from interlock.core.table import MISSING

OUT = (TensorSpec("label", "INT64", (-1,)),)
MATRIX = Signature((TensorSpec("input", "FP32", (-1, 2)),), OUT, 0, ("length", "width"))
MIXED = Signature(
    (TensorSpec("age", "INT64", (-1, 1)), TensorSpec("city", "BYTES", (-1, 1))), OUT, 0, ("age", "city")
)


def one(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def decoded(signature: Signature, *inputs: dict[str, Any]) -> tuple[Any, int]:
    found, rows, *_ = Codec("m", "1", signature).decode(json.dumps({"inputs": inputs}).encode(), None)
    return found, rows


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_a_matrix_takes_one_input_a_column(shape: list[int]) -> None:
    found, rows = decoded(
        MATRIX, one("width", "FP64", shape, [0.5, None]), one("length", "INT64", shape, [1, 2])
    )
    assert rows == 2
    assert np.array_equal(found["input"], np.array([[1, 0.5], [2, np.nan]], np.float32), equal_nan=True)


def test_a_matrix_under_its_own_name_may_lack_values() -> None:
    found, rows = decoded(MATRIX, one("input", "FP32", [1, 2], [[None, 3]]))
    assert rows == 1
    assert np.array_equal(found["input"], np.array([[np.nan, 3]], np.float32), equal_nan=True)


@pytest.mark.parametrize(
    "inputs",
    [
        (one("age", "INT64", [2], [30, 41]), one("city", "BYTES", [2], ["Ghent", None])),
        (one("city", "BYTES", [2, 1], [["Ghent"], [None]]), one("age", "FP32", [2, 1], [30, 41])),
        (one("table", "BYTES", [2, 2], [["30", "Ghent"], ["41", None]]),),
        (one("table", "BYTES", [2, 2], ["30", "Ghent", "41", None]),),
    ],
)
def test_mixed_columns_in_each_form(inputs: tuple[dict[str, Any], ...]) -> None:
    found, rows = decoded(MIXED, *inputs)
    assert rows == 2
    assert found["age"].tolist() == [[30], [41]]
    assert found["city"].tolist() == [[b"Ghent"], [MISSING]]


def test_columns_as_binary_tensors() -> None:
    parts: list[tuple[str, str, Array]] = [
        ("age", "INT64", np.array([30, 41])),
        ("city", "BYTES", np.array([b"Ghent", MISSING], object)),
    ]
    packed = [bytes(pack(*part)) for part in parts]
    head = json.dumps(
        {
            "inputs": [
                {"name": n, "datatype": d, "shape": [2], "parameters": {"binary_data_size": len(data)}}
                for (n, d, _), data in zip(parts, packed, strict=True)
            ]
        }
    ).encode()
    found: Tensors
    found, rows, *_ = Codec("m", "1", MIXED).decode(head + b"".join(packed), len(head))  # type: ignore[assignment]
    assert rows == 2
    assert found["city"].tolist() == [[b"Ghent"], [MISSING]]


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ((one("age", "INT64", [1], [None]), one("city", "BYTES", [1], ["a"])), DatatypeMismatch, "null"),
        ((one("age", "INT64", [1], [1]),), InputMismatch, "column 'city' is missing"),
        ((one("age", "INT64", [0], []), one("city", "BYTES", [0], [])), ShapeMismatch, "no rows"),
        ((one("t", "FP32", [1, 3], [1, 2, 3]),), ShapeMismatch, "the model has 2 columns"),
        ((one("age", "FP32", [2], [1, 2]), one("age", "FP32", [2], [1, 2])), InputMismatch, "twice"),
        (
            (one("age", "FP32", [2], [1, None, 2]), one("city", "BYTES", [2], ["a", "b"])),
            ShapeMismatch,
            "takes 2",
        ),
        ((one("t", "BYTES", [1, 2], [["x", "Ghent"]]),), DatatypeMismatch, "column 'age': 'x' in row 0"),
    ],
)
def test_what_does_not_fit_is_named(
    inputs: tuple[dict[str, Any], ...], error: type[InvalidRequest], words: str
) -> None:
    with pytest.raises(error, match=words):
        decoded(MIXED, *inputs)


def test_null_means_nothing_to_a_model_that_is_no_table() -> None:
    plain = Signature((TensorSpec("x", "FP32", (-1, 2)),), OUT, 0)
    with pytest.raises(DatatypeMismatch, match="null"):
        decoded(plain, one("x", "FP32", [1, 2], [1, None]))
