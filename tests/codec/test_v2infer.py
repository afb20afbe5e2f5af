"""The codec against tritonclient's own encoder and decoder, for every datatype, in JSON and in binary."""

import json
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from interlock.codec import v2infer
from interlock.codec.v2answer import Answer
from interlock.codec.v2json import JSON_DATATYPES, Parameters
from interlock.core.errors import (
    InvalidRequest,
    ShapeMismatch,
)
from interlock.core.model import DATATYPES, Array, Inputs, Signature, TensorSpec
from tests.thorough import examples

INTEGERS = {name: np.iinfo(dtype) for name, dtype in DATATYPES.items() if dtype.kind in "iu"}
FLOAT_BITS: dict[str, Literal[16, 32, 64]] = {"FP16": 16, "BF16": 32, "FP32": 32, "FP64": 64}


class Decoded(NamedTuple):
    """What `decode` gives, by name."""

    inputs: Inputs
    rows: int
    answer: Answer
    id: str | None
    parameters: Parameters | None


class Codec(v2infer.Codec):
    def decode(self, body: bytes | memoryview, header_length: int | None) -> Decoded:
        return Decoded(*super().decode(body, header_length))


def array_of(decoded: Decoded, name: str) -> Array:
    """An input of a message that the row decoder did not read."""
    value = decoded.inputs[name]
    assert not isinstance(value, list)
    return value


def elements(datatype: str, in_json: bool) -> st.SearchStrategy[Any]:
    if datatype in INTEGERS:
        return st.integers(int(INTEGERS[datatype].min), int(INTEGERS[datatype].max))
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(max_size=8).map(str.encode) if in_json else st.binary(max_size=8)
    return st.floats(width=FLOAT_BITS[datatype])


@st.composite
def tensors(draw: st.DrawFn, datatype: str, in_json: bool) -> Array:
    """An array as tritonclient takes it: BF16 in ml_dtypes' type, BYTES as objects."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(0, 3)))
    count = shape[0] * shape[1]
    values = draw(st.lists(elements(datatype, in_json), min_size=count, max_size=count))
    array = np.empty(count, DATATYPES[datatype])
    array[:] = values
    if datatype == "BF16":
        with np.errstate(over="ignore"):
            return array.astype(ml_dtypes.bfloat16).reshape(shape)
    return array.reshape(shape)


def echo(datatype: str) -> Codec:
    spec = TensorSpec("a", datatype, (-1, -1))
    return Codec("echo", "1", Signature((spec,), (TensorSpec("b", datatype, (-1, -1)),)))


def bits(array: Array) -> Any:
    """What compares equal for equal tensors: NaN equals NaN, and 0.0 is not -0.0."""
    if array.dtype == object:
        return array.shape, [e.encode() if isinstance(e, str) else e for e in array.ravel().tolist()]
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    return array.shape, array.tobytes()


def from_triton(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


CASES = [(name, False) for name in DATATYPES] + [(name, True) for name in sorted(JSON_DATATYPES)]


@pytest.mark.parametrize(("datatype", "in_json"), CASES)
@given(data=st.data())
@settings(max_examples=examples(40), deadline=None)
def test_tritonclients_tensors_arrive_and_return_as_they_are(
    datatype: str, in_json: bool, data: st.DataObject
) -> None:
    sent = data.draw(tensors(datatype, in_json))
    tensor = InferInput("a", list(sent.shape), datatype)
    tensor.set_data_from_numpy(sent, binary_data=not in_json)
    wanted = InferRequestedOutput("b", binary_data=not in_json)
    body, json_size = InferenceServerClient.generate_request_body([tensor], outputs=[wanted], request_id="7")
    codec = echo(datatype)

    decoded = codec.decode(body, json_size)

    assert decoded.rows == sent.shape[0]
    assert decoded.id == "7"
    assert decoded.answer.names is None
    assert array_of(decoded, "a").dtype == DATATYPES[datatype]
    assert bits(array_of(decoded, "a")) == bits(from_triton(sent))

    text, binary = decoded.answer.encode({"b": array_of(decoded, "a")}, decoded.id)
    whole = text + b"".join(binary or [])
    result = InferResult.from_response_body(whole, header_length=None if binary is None else len(text))
    assert (binary is None) == in_json
    assert result.get_response()["id"] == "7"
    assert bits(from_triton(result.as_numpy("b"))) == bits(from_triton(sent))


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_float32_becomes_bfloat16_as_in_ml_dtypes(values: list[float]) -> None:
    array = np.array([values], np.float32)
    text = b'{"inputs":[%b],"parameters":{"binary_data_output":true}}' % BF16_INPUT
    answer = echo("BF16").decode(text + bytes(2), len(text)).answer
    _, binary = answer.encode({"b": array}, None)
    with np.errstate(over="ignore"):
        expected = array.astype(ml_dtypes.bfloat16)
    assert binary is not None
    got = np.frombuffer(binary[0], ml_dtypes.bfloat16).reshape(array.shape)
    assert bits(got.astype(np.float32)) == bits(expected.astype(np.float32))


BF16_INPUT = b'{"name":"a","shape":[1,1],"datatype":"BF16","parameters":{"binary_data_size":2}}'

JSON_VALUES = st.recursive(
    st.one_of(
        st.integers(-300, 300),
        st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400]),
        st.floats(),
        st.booleans(),
        st.text(max_size=3),
        st.none(),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@given(data=st.data())
@settings(max_examples=examples(60), deadline=None)
def test_the_quick_reader_and_the_explaining_one_agree(datatype: str, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(-1, 3), min_size=1, max_size=3))
    count = abs(int(np.prod(shape)))
    plain = st.lists(elements(datatype, True), min_size=count, max_size=count).map(
        lambda values: [value.decode() if isinstance(value, bytes) else value for value in values]
    )
    entry = {"name": "a", "shape": shape, "datatype": datatype}
    entry["data"] = data.draw(st.one_of(plain, st.lists(JSON_VALUES, max_size=4), JSON_VALUES))
    body = json.dumps({"inputs": [entry]}).encode()
    codec = echo(datatype)

    def outcome(read: Any) -> Any:
        try:
            return read()
        except InvalidRequest as error:
            return type(error), error.message

    def quick() -> Any:
        # The answer's datatype is not what is under test: ask for it in binary.
        decoded = codec.decode(body[:-1] + b',"parameters":{"binary_data_output":true}}', None)
        return bits(array_of(decoded, "a")), decoded.rows

    def explaining() -> Any:
        _, inputs, rows = codec._explain(body, memoryview(b""), has_header=False)
        return bits(inputs["a"]), rows

    assert outcome(quick) == outcome(explaining)


@given(body=st.binary(max_size=64), length=st.one_of(st.none(), st.integers(1, 80)))
def test_random_bytes_are_refused_with_an_error_of_ours(body: bytes, length: int | None) -> None:
    with pytest.raises(InvalidRequest):
        echo("FP32").decode(body + b"x", length)


@pytest.mark.parametrize(
    ("datatype", "values", "position"),
    [
        ("FP32", [1, float("inf"), 2**128], 2),
        ("FP32", [float("nan"), 3.4028235677973366e38, 10**400], 1),
        ("FP64", [float("nan"), -float("inf"), 10**400], 2),
        ("UINT64", [2**64 - 1, 0, 2**64], 2),
        ("INT8", [0, -129, 300], 1),
    ],
)
def test_the_first_value_out_of_range_is_the_one_named(
    datatype: str, values: list[Any], position: int
) -> None:
    entry = {"name": "a", "shape": [1, 3], "datatype": datatype, "data": values}
    with pytest.raises(InvalidRequest, match=f"at position {position} does not fit {datatype}"):
        echo(datatype).decode(json.dumps({"inputs": [entry]}).encode(), None)
    good = json.dumps({"inputs": [entry | {"data": values[:1] * 3}]}).encode()
    assert echo(datatype).decode(good, None).rows == 1


TWO = Signature(
    inputs=(
        TensorSpec("x", "FP32", (-1, 2)),
        TensorSpec("words", "BYTES", (-1,)),
        TensorSpec("k", "INT64", ()),
    ),
    outputs=(
        TensorSpec("y", "FP32", (-1,)),
        TensorSpec("word", "BYTES", (-1,)),
        TensorSpec("n", "INT64", ()),
    ),
)


def test_json_and_binary_inputs_mix_in_one_request_and_its_answer() -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    text = json.dumps(
        {
            "inputs": [
                {"name": "words", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 10}},
                {"name": "k", "shape": [], "datatype": "INT64", "data": [7]},
                {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
            ],
            "outputs": [
                {"name": "word", "parameters": {"binary_data": True}},
                {"name": "n"},
                {"name": "y", "parameters": {"binary_data": True}},
            ],
        }
    ).encode()
    body = text + b"\x02\0\0\0ab\0\0\0\0" + x.tobytes()

    decoded = Codec("two", "3", TWO).decode(body, len(text))

    assert decoded.rows == 2
    assert array_of(decoded, "words").tolist() == [b"ab", b""]
    assert array_of(decoded, "k").shape == () and array_of(decoded, "k") == 7
    assert (array_of(decoded, "x") == x).all()
    outputs = {"y": x[:, 0], "word": np.array(["ä", b"\xff"], object), "n": np.array(9), "more": x}
    head, binary = decoded.answer.encode(outputs, "id")
    result = InferResult.from_response_body(head + b"".join(binary or []), header_length=len(head))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["word", "n", "y"]
    assert result.as_numpy("word").tolist() == ["ä".encode(), b"\xff"]
    assert result.as_numpy("n") == 9
    assert result.as_numpy("y").tolist() == [1, 3]


def test_an_aligned_binary_input_is_not_copied_and_an_output_neither() -> None:
    size = 4 * 6
    text = (
        b'{"inputs":[{"name":"a","shape":[2,3],"datatype":"FP32","parameters":{"binary_data_size":24}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    text += b" " * (-len(text) % 8)
    body = text + bytes(size)
    decoded = echo("FP32").decode(body, len(text))
    assert np.shares_memory(array_of(decoded, "a"), np.frombuffer(body, np.uint8))

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    _, binary = decoded.answer.encode({"b": array}, None)
    assert binary is not None and np.shares_memory(np.frombuffer(binary[0], np.uint8), array)

    moved = echo("FP32").decode(b" " + body, len(text) + 1)
    assert array_of(moved, "a").flags.aligned


def test_nested_data_reads_as_flat_data() -> None:
    def decode(data: Any) -> Any:
        entry = {"name": "a", "shape": [2, 3], "datatype": "INT32", "data": data}
        return array_of(echo("INT32").decode(json.dumps({"inputs": [entry]}).encode(), None), "a").tolist()

    assert decode([1, 2, 3, 4, 5, 6]) == decode([[1, 2, 3], [4, 5, 6]]) == [[1, 2, 3], [4, 5, 6]]


def test_a_tensor_of_six_axes_may_be_nested() -> None:
    spec = TensorSpec("a", "INT32", (-1, 1, 2, 1, 1, 2))
    body = (
        b'{"inputs":[{"name":"a","shape":[1,1,2,1,1,2],"datatype":"INT32","data":[[[[[[1,2]]],[[[3,4]]]]]]}]}'
    )
    decoded = Codec("deep", "1", Signature((spec,), (spec,))).decode(body, None)
    assert array_of(decoded, "a").ravel().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("datatype", "shape", "body", "expected"),
    [
        ("FP32", (-1, 2), np.arange(6, dtype="<f4").tobytes(), [[0, 1], [2, 3], [4, 5]]),
        ("INT16", (-1, -1), b"\x01\0\x02\0", [[1, 2]]),
        ("UINT8", (2,), b"ab", [97, 98]),
        ("BYTES", (-1, 1), b"all of it", [[b"all of it"]]),
    ],
)
def test_a_raw_request_is_the_only_inputs_tensor(
    datatype: str, shape: tuple[int, ...], body: bytes, expected: Any
) -> None:
    batch_axis = 0 if shape[0] < 0 else None
    signature = Signature((TensorSpec("a", datatype, shape),), (TensorSpec("b", "FP16", (-1,)),), batch_axis)
    decoded = Codec("raw", "1", signature).decode(body, 0)
    assert array_of(decoded, "a").tolist() == expected
    assert decoded.rows == (len(expected) if batch_axis == 0 else 1)
    # FP16 leaves in binary, unasked: there is no other way to answer.
    assert decoded.answer.encode({"b": np.zeros(1, np.float16)}, None)[1] is not None


def test_a_raw_request_needs_one_input_and_a_length_that_fits() -> None:
    with pytest.raises(InvalidRequest, match="needs a model with one input"):
        Codec("two", "1", TWO).decode(b"1234", 0)
    with pytest.raises(ShapeMismatch, match="7 bytes are no multiple of 8"):
        Codec("m", "1", Signature((TensorSpec("a", "FP32", (-1, 2)),), ())).decode(b"1234567", 0)
    with pytest.raises(ShapeMismatch, match="cannot tell 2 axes"):
        Codec("m", "1", Signature((TensorSpec("a", "FP32", (-1, -1, -1)),), ())).decode(b"1234567", 0)
