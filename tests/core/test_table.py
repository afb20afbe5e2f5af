"""Tests of how columns become a model's inputs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import DatatypeMismatch, InputMismatch, ShapeMismatch
from interlock.core.model import Signature, TensorSpec
from interlock.core.table import MISSING, cast, column_datatype, conform, is_matrix, texts

MATRIX = Signature((TensorSpec("input", "FP32", (-1, 3)),), (), 0, ("a", "b", "c"))
COLUMNS = Signature(
    (
        TensorSpec("age", "INT64", (-1, 1)),
        TensorSpec("city", "BYTES", (-1, 1)),
        TensorSpec("paid", "BOOL", (-1, 1)),
        TensorSpec("sum", "FP64", (-1, 1)),
    ),
    (),
    0,
    ("age", "city", "paid", "sum"),
)
SENT = {
    "age": np.array([30, 41]),
    "city": np.array(["Ghent", None], object),
    "paid": np.array([True, False]),
    "sum": np.array([1.5, np.nan]),
}


@given(st.permutations(["a", "b", "c"]), st.integers(1, 5), st.booleans())
def test_columns_in_any_order_become_the_matrix(order: list[str], rows: int, deep: bool) -> None:
    table = np.arange(rows * 3).reshape(rows, 3)
    sent = {name: table[:, ["a", "b", "c"].index(name)] for name in order}
    if deep:
        sent = {name: values[:, None] for name, values in sent.items()}
    made = conform(MATRIX, sent)["input"]
    assert made.dtype == np.float32
    assert np.array_equal(made, table)


def test_one_table_under_any_name_becomes_columns() -> None:
    texts = np.array([["30", "Ghent", "true", "1.5"], ["41", None, "False", ""]], object)
    made, same = conform(COLUMNS, {"rows": texts}), conform(COLUMNS, SENT)
    for name, values in same.items():
        assert values.shape == (2, 1)
        assert made[name].dtype == values.dtype
        assert np.array_equal(made[name], values, equal_nan=values.dtype.kind == "f")
    assert same["city"].ravel().tolist() == [b"Ghent", MISSING]


def test_a_table_of_one_column_can_be_either_kind() -> None:
    matrix = Signature((TensorSpec("input", "FP64", (-1, 1)),), (), 0, ("a",))
    column = Signature((TensorSpec("a", "FP64", (-1, 1)),), (), 0, ("a",))
    assert is_matrix(matrix)
    assert not is_matrix(column)
    for signature, name in ((matrix, "input"), (column, "a")):
        for sent in ({"a": np.array([1])}, {"other": np.array([[1]])}):
            assert conform(signature, sent)[name].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"age": np.array([1.5, 2.0])},
            DatatypeMismatch,
            "column 'age': value 1.5 in row 0 does not fit INT64",
        ),
        ({"age": np.array([1.0, np.nan])}, DatatypeMismatch, "value nan in row 1 does not fit INT64"),
        ({"age": np.array([2.0**63, 0.0])}, DatatypeMismatch, "does not fit INT64"),
        ({"age": np.array(["x", "1"], object)}, DatatypeMismatch, "column 'age': 'x' in row 0 is no INT64"),
        ({"paid": np.array([2, 0])}, DatatypeMismatch, "value 2 in row 0 does not fit BOOL"),
        (
            {"city": np.array([1, 2])},
            DatatypeMismatch,
            "column 'city': got numbers (int64); the model wants texts",
        ),
        ({"age": np.array([1])}, ShapeMismatch, "different numbers of rows: 'age' 1, 'city' 2"),
        ({"age": np.zeros((2, 2))}, ShapeMismatch, "column 'age': got shape [2, 2]"),
        ({"zip": np.array([1, 2])}, InputMismatch, "column 'zip' is unknown; want the columns 'age', 'city'"),
        ({"age": None}, InputMismatch, "column 'age' is missing"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], error: type[Exception], words: str) -> None:
    sent = {name: values for name, values in {**SENT, **change}.items() if values is not None}
    with pytest.raises(error) as caught:
        conform(COLUMNS, sent)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_table_of_another_width_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"got shape \[2, 4\]; the model has 3 columns: 'a', 'b', 'c'"):
        conform(MATRIX, {"x": np.zeros((2, 4))})


def test_the_datatype_of_a_column() -> None:
    assert column_datatype(np.array([1], np.int32)) == "INT32"
    assert column_datatype(np.array(["a", float("nan")], object)) == "BYTES"
    assert column_datatype(np.array([True, False], object)) == "BOOL"
    assert column_datatype(np.array([True, None], object)) == "FP64"
    assert column_datatype(np.array([1, None], object)) == "FP64"
    assert column_datatype(np.array([1, "a"], object)) is None
    assert column_datatype(np.array(["2026-01-01"], "datetime64[D]")) is None


def test_what_pandas_calls_missing_is_missing() -> None:
    column = np.array(["a", pd.NA, None], object)
    assert texts(column).tolist() == [b"a", MISSING, MISSING]
    assert column_datatype(column) == "BYTES"
    assert np.isnan(cast("age", np.array([pd.NA, 4], object), "FP32")).tolist() == [True, False]


@pytest.mark.filterwarnings("error")
def test_a_number_too_large_for_the_float_is_named_and_infinity_stays() -> None:
    with pytest.raises(DatatypeMismatch, match=r"column 'age': value 1e\+300 in row 1 does not fit FP32"):
        cast("age", np.array([1.0, 1e300]), "FP32")
    assert cast("age", np.array([np.inf, -np.inf]), "FP32").tolist() == [np.inf, -np.inf]


def test_texts_become_integers_whole_and_truths_in_any_case() -> None:
    big = [2**53 + 1, -(2**63), 2**63 - 1]
    for values in ([f" {number}" for number in big], [b"%d" % number for number in big], [*big]):
        assert cast("n", np.array(values, object), "INT64").tolist() == big
    assert cast("n", np.array(["18446744073709551615"]), "UINT64").tolist() == [2**64 - 1]
    assert cast("n", np.array(["2.0", "3"], object), "INT64").tolist() == [2, 3]
    for text in ("256", "-1", "2.5", ""):
        with pytest.raises(DatatypeMismatch, match="in row 1 does not fit UINT8"):
            cast("n", np.array(["1", text], object), "UINT8")
    words = np.array(["TRUE", " false", "1", b"0"], object)
    assert cast("b", words, "BOOL").tolist() == [True, False, True, False]
