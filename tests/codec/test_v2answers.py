"""What the codec makes of outputs, and of one row that stays a list."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferResult

from interlock.core.errors import (
    InvalidRequest,
    OutputMismatch,
    UnknownOutput,
    Unsupported,
)
from interlock.core.model import Array, Signature, TensorSpec
from interlock.core.request import Outputs, Response
from tests.codec.test_v2infer import Codec, bits, echo


def test_outputs_that_are_not_finite_are_written_as_triton_writes_them() -> None:
    answer = (
        echo("FP64")
        .decode(b'{"inputs":[{"name":"a","shape":[1,1],"datatype":"FP64","data":[NaN]}]}', None)
        .answer
    )
    text, _ = answer.encode({"b": np.array([[np.nan, np.inf, -np.inf, 0.5]])}, None)
    assert text.endswith(b'"shape":[1,4],"data":[NaN,Infinity,-Infinity,0.5]}]}')
    got = InferResult.from_response_body(text).as_numpy("b")
    assert bits(got) == bits(np.array([[np.nan, np.inf, -np.inf, 0.5]]))


@pytest.mark.parametrize(("version", "named"), [("1", "1"), ("0", "0")])
def test_an_answer_names_the_version_that_gave_it(version: str, named: str) -> None:
    """Also where another one than the request was decoded for: a shield."""
    body = b'{"inputs":[{"name":"a","shape":[1,1],"datatype":"FP64","data":[1.0]}]}'
    answer = echo("FP64").decode(body, None).answer
    response = Response(b"id", "m", version, Outputs({"b": np.ones((1, 1))}))
    text, _ = answer.answer(response, None)
    assert json.loads(text)["model_version"] == named


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "output 'b' is missing; the model gave []"),
        ({"b": np.zeros((1, 1), np.int64)}, "output 'b': the model gave int64, its signature says BYTES"),
        ({"b": np.array([[1]], object)}, "output 'b': element 0 is of type int; BYTES needs str or bytes"),
        ({"b": np.array([["a", b"\xff"]], object)}, "output 'b': element 1 is not UTF-8"),
    ],
)
def test_outputs_that_break_the_signature_are_named(outputs: dict[str, Array], words: str) -> None:
    answer = (
        echo("BYTES")
        .decode(b'{"inputs":[{"name":"a","shape":[1,1],"datatype":"BYTES","data":["x"]}]}', None)
        .answer
    )
    with pytest.raises(OutputMismatch) as caught:
        answer.encode(outputs, None)
    assert words in caught.value.message


def test_a_half_precision_output_must_be_asked_for_in_binary() -> None:
    codec = Codec(
        "half", "1", Signature((TensorSpec("a", "FP32", (-1,)),), (TensorSpec("b", "FP16", (-1,)),))
    )
    entry = b'{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","data":[1]}]'
    with pytest.raises(UnknownOutput, match="output 'b' is FP16, which JSON cannot carry"):
        codec.decode(entry + b"}", None)
    assert codec.decode(entry + b',"parameters":{"binary_data_output":true}}', None).rows == 1


@pytest.mark.parametrize(
    "more",
    [
        b',"outputs":[{"name":"b","parameters":{"classification":2}}]',
        b',"outputs":[{"name":"b","parameters":{"shared_memory_region":"r"}}]',
        b',"parameters":{"sequence_id":7,"sequence_start":true}',
    ],
)
def test_what_the_protocol_knows_and_we_do_not_is_unsupported(more: bytes) -> None:
    entry = b'{"inputs":[{"name":"a","shape":[1,1],"datatype":"FP32","data":[1]}]'
    with pytest.raises(Unsupported):
        echo("FP32").decode(entry + more + b"}", None)


def test_many_choices_of_outputs_do_not_pile_up() -> None:
    outputs = tuple(TensorSpec(f"b{n}", "FP32", (-1,)) for n in range(5))
    codec = Codec("many", "1", Signature((TensorSpec("a", "FP32", (-1,)),), outputs))
    rng = np.random.default_rng(1)
    for _ in range(300):
        names = [f"b{n}" for n in rng.permutation(5)[:4]]
        body = json.dumps(
            {
                "inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": [1]}],
                "outputs": [{"name": name} for name in names],
            }
        ).encode()
        # Whatever the order, the same key: such requests share a batch.
        assert codec.decode(body, None).answer.names == tuple(sorted(names))
    assert len(codec._answers) <= 64


ROWS = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 3)),),
    outputs=(TensorSpec("y", "FP32", (-1, 3)),),
)
VALUES = st.one_of(
    st.floats(width=32), st.integers(-5, 5), st.booleans(), st.none(), st.text(max_size=2), st.just([1.0])
)


@given(
    data=st.lists(VALUES, min_size=2, max_size=4),
    shape=st.sampled_from([[1, 3], [1, 2], [3], [1, 3, 1], [2, 3], [0, 3], [-1, 3]]),
    extra=st.sampled_from([{}, {"parameters": {}}, {"parameters": {"binary_data_size": 12}}, {"more": 1}]),
    top=st.sampled_from([{}, {"id": "a"}, {"parameters": {"timeout": 5}}, {"outputs": [{"name": "y"}]}]),
)
def test_a_row_that_stays_a_list_is_the_row_that_becomes_an_array(
    data: list[Any], shape: list[int], extra: dict[str, Any], top: dict[str, Any]
) -> None:
    """The short way for one row and the general way accept the same messages and read the same values."""
    entry = {"name": "x", "shape": shape, "datatype": "FP32", "data": data} | extra
    body = json.dumps({"inputs": [entry]} | top).encode()
    quick, general = Codec("m", "1", ROWS), Codec("m", "1", ROWS)
    general._row_decoder = None

    def read(codec: Codec) -> tuple[Any, ...]:
        try:
            decoded = codec.decode(body, None)
        except InvalidRequest as error:
            return type(error), error.message
        value = np.array(decoded.inputs["x"], np.float32).reshape(shape)
        return value.tobytes(), decoded.rows, decoded.id, decoded.answer.names, decoded.parameters

    assert read(quick) == read(general)
