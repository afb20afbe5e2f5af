"""Arrays, rows, records, dicts and DataFrames: what each becomes for each kind of model."""

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.client.inputs import Sent, inputs_of
from interlock.client.views import Metadata, Tensor
from interlock.core.errors import DatatypeMismatch, InputMismatch, InvalidRequest, ShapeMismatch
from interlock.core.table import MISSING

ONE = Metadata("one", (Tensor("x", "FP32", (-1, 2)),))
LIST = Metadata("list", (Tensor("x", "INT64", (-1,)),))
TWO = Metadata("two", (Tensor("a", "FP32", (-1, 2)), Tensor("n", "INT32", (-1, 1))))
MATRIX = Metadata("matrix", (Tensor("x", "FP32", (-1, 2), {"columns": ["age", "fare"]}),))
MIXED = Metadata(
    "mixed", (Tensor("age", "FP32", (-1, 1)), Tensor("sex", "BYTES", (-1, 1)), Tensor("n", "INT64", (-1, 1)))
)


def lists(sent: list[Sent]) -> dict[str, Any]:
    return {one.name: one.array.tolist() for one in sent}


@pytest.mark.parametrize(
    "data",
    [
        np.array([[1.0, 2.0]]),
        np.array([[1, 2]], np.int8),
        np.array([1.0, 2.0]),
        np.array([[1, 2]], ">f8"),
        np.array([[1, 2]], np.float16),
        np.array([[1, 2]], ml_dtypes.bfloat16),
        np.array([["1", "2.0"]], object),
        [[1, 2]],
        [1, 2],
        ((1, 2),),
        [np.array([1, 2])],
        {"x": [[1, 2]]},
        {"x": np.array([1.0, 2.0])},
        pd.DataFrame({"a": [1], "b": [2.0]}),
        [{"a": 1, "b": 2.0}],
    ],
    ids=lambda data: type(data).__name__,
)
def test_one_row_of_one_input_in_every_form(data: Any) -> None:
    (sent,) = inputs_of(data, ONE)
    assert (sent.name, sent.datatype) == ("x", "FP32")
    assert sent.array.dtype == np.float32
    assert sent.array.tolist() == [[1.0, 2.0]]


def test_an_array_of_the_right_datatype_is_sent_as_it_is() -> None:
    array = np.ones((3, 2), np.float32)
    assert inputs_of(array, ONE)[0].array is array


def test_a_column_of_a_model_that_wants_a_list() -> None:
    for data in ([1, 2, 3], np.array([[1], [2], [3]]), {"x": [1, 2, 3]}):
        assert inputs_of(data, LIST)[0].array.tolist() == [1, 2, 3]


def test_inputs_by_name() -> None:
    sent = inputs_of({"n": [7], "a": [[1, 2]]}, TWO)
    assert lists(sent) == {"a": [[1.0, 2.0]], "n": [[7]]}


@pytest.mark.parametrize(
    ("data", "metadata", "said"),
    [
        ({"n": [1]}, TWO, "input 'a' is missing; the inputs of 'two' are a, n"),
        ({"n": [1], "a": [[1, 2]], "b": 1}, TWO, "no input 'b'"),
        ([[1, 2]], TWO, "has 2 inputs: give a dict of values by name, for a, n"),
        ({"y": [1]}, ONE, "no input 'y'"),
        ([{"a": 1}, 7], ONE, "row 1 is a int; the first one is a record"),
        ({"age": [1]}, MATRIX, "column 'fare' is missing"),
        ({"age": [1], "fare": [1], "seat": [2]}, MATRIX, "column 'seat' is unknown"),
    ],
)
def test_names_that_do_not_fit_are_named(data: Any, metadata: Metadata, said: str) -> None:
    with pytest.raises(InputMismatch, match=said):
        inputs_of(data, metadata)


@pytest.mark.parametrize(
    ("data", "metadata", "said"),
    [
        ([[1, 2], [3]], ONE, "the rows have different lengths"),
        ([[1, "m"]], MIXED, "row 0 has 2 values; the model has 3 columns"),
        ({"age": [1, 2], "sex": ["m"], "n": [1]}, MIXED, "different numbers of rows"),
        (pd.DataFrame({"age": [1.0]}), ONE, None),
    ],
)
def test_shapes_that_do_not_fit(data: Any, metadata: Metadata, said: str | None) -> None:
    if said is None:  # how many columns the model wants the server says best
        assert inputs_of(data, metadata)[0].array.shape == (1, 1)
        return
    with pytest.raises(ShapeMismatch, match=said):
        inputs_of(data, metadata)


@pytest.mark.parametrize(
    ("data", "metadata", "said"),
    [
        ([[1, 2.5]], LIST, "value 2.5 at position 1 does not fit INT64"),
        ({"a": [[1, 2]], "n": [2**31]}, TWO, "value 2147483648 at position 0 does not fit INT32"),
        ([[1, 1e300]], ONE, r"value 1e\+300 at position 1 does not fit FP32"),
        ({"age": [1], "fare": ["dear"]}, MATRIX, "column 'fare': 'dear' in row 0 is no FP32"),
        ({"age": [1], "sex": ["m"], "n": [1.5]}, MIXED, "column 'n': value 1.5 in row 0 does not fit INT64"),
        ({"age": [1], "sex": [3], "n": [1]}, MIXED, "column 'sex': got numbers"),
        (np.array([[1, 2j]]), ONE, "input 'x'"),
    ],
)
def test_a_value_that_would_be_lost_is_named(data: Any, metadata: Metadata, said: str) -> None:
    with pytest.raises(DatatypeMismatch, match=said):
        inputs_of(data, metadata)


@pytest.mark.parametrize(
    "data",
    [
        [[22, "male", 1], [None, None, 2]],
        [{"age": 22, "sex": "male", "n": 1}, {"n": 2}],
        [{"n": 1, "sex": "male", "age": 22.0}, {"age": None, "sex": None, "n": 2}],
        {"sex": ["male", None], "n": [1, 2], "age": [22, None]},
        {"sex": np.array(["male", float("nan")], object), "n": np.array([1, 2]), "age": [22, float("nan")]},
        np.array([[22, "male", 1], [None, None, 2]], object),
        pd.DataFrame({"n": [1, 2], "age": [22, None], "sex": ["male", None]}),
        pd.DataFrame(
            {
                "age": pd.array([22, None], "Int64"),
                "sex": pd.array(["male", None], "string"),
                "n": pd.array([1, 2], "Int64"),
            }
        ),
        pd.DataFrame(
            {"age": pd.array([22, None], "Float32"), "sex": pd.Categorical(["male", None]), "n": [1, 2]},
            index=[9, 4],
        ),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_table_of_mixed_columns_in_every_form(data: Any) -> None:
    sent = inputs_of(data, MIXED)
    assert [one.datatype for one in sent] == ["FP32", "BYTES", "INT64"]
    age, sex, n = (one.array for one in sent)
    assert age.shape == sex.shape == n.shape == (2, 1)
    assert age[0, 0] == 22 and np.isnan(age[1, 0])
    assert sex.ravel().tolist() == [b"male", MISSING]
    assert n.ravel().tolist() == [1, 2]


def test_named_columns_go_by_name_even_to_a_model_that_takes_one_tensor() -> None:
    """The order that the client remembers may be another version's."""
    for data in ({"fare": [7, 8], "age": [1, 2]}, pd.DataFrame({"fare": [7, 8], "age": [1, 2]})):
        assert lists(inputs_of(data, MATRIX)) == {"age": [[1.0], [2.0]], "fare": [[7.0], [8.0]]}
    (sent,) = inputs_of([[1, 7], [2, 8]], MATRIX)
    assert (sent.name, sent.array.tolist()) == ("x", [[1.0, 7.0], [2.0, 8.0]])
    (sent,) = inputs_of({"x": [[1, 7]]}, MATRIX)
    assert sent.name == "x"


def test_integers_beyond_the_53_bits_of_a_float_arrive_whole() -> None:
    big = 2**53 + 1
    for values in ([big], np.array([big], object)):
        sent = inputs_of({"age": [1], "sex": ["m"], "n": values}, MIXED)
        assert sent[2].array.tolist() == [[big]]
        assert inputs_of(values, LIST)[0].array.tolist() == [big]


def test_bytes_keep_their_zeros() -> None:
    model = Metadata("texts", (Tensor("t", "BYTES", (-1,)),))
    assert inputs_of([b"a\0", b"\0"], model)[0].array.tolist() == [b"a\0", b"\0"]
    assert inputs_of(["ä", None], model)[0].array.tolist() == ["ä".encode(), MISSING]
    assert inputs_of("one", model)[0].array.tolist() == [b"one"]


def test_a_datatype_that_nobody_knows_is_refused() -> None:
    with pytest.raises(DatatypeMismatch, match="FP8"):
        inputs_of([1], Metadata("m", (Tensor("x", "FP8", (-1,)),)))
    with pytest.raises(InputMismatch, match="no inputs"):
        inputs_of([1], Metadata("m", ()))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xan"), inner, max_size=3),
    max_leaves=8,
)


@given(values, st.sampled_from([ONE, LIST, TWO, MATRIX, MIXED]))
def test_whatever_comes_is_sent_or_refused_as_the_callers_fault(data: Any, metadata: Metadata) -> None:
    try:
        sent = inputs_of(data, metadata)
    except InvalidRequest:
        return
    assert {one.name for one in sent} <= {"x", "a", "n", "age", "sex", "fare"}


def test_pandas_is_not_imported_for_those_who_do_not_use_it() -> None:
    code = "import sys, interlock; interlock.Client, interlock.AsyncClient; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("values", [[1, 2**63 + 5], [2**53 + 1, 2**64 - 1], [0, 2**63 - 1]])
def test_whole_numbers_of_any_size_keep_all_digits(values: list[int]) -> None:
    """NumPy makes floats of a list in which some are negative or small and some fit only into UINT64."""
    big = Metadata("big", (Tensor("x", "UINT64", (-1,)),))
    assert lists(inputs_of(values, big)) == {"x": values}
    assert lists(inputs_of({"x": tuple(values)}, big)) == {"x": values}


def test_large_floats_stay_floats() -> None:
    assert lists(inputs_of([[1.5, 2.0**70]], ONE)) == {"x": [[1.5, 2.0**70]]}
    assert lists(inputs_of([[2**70, -np.inf]], ONE)) == {"x": [[2.0**70, -np.inf]]}
