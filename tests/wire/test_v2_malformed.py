"""Each malformed infer request is a 400 that names what came and what is wanted, and the server lives on."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from interlock.core.model import Signature, TensorSpec
from tests.wire.direct import serving, version
from tests.wire.node import Node, running

ALL = Signature(
    inputs=(
        TensorSpec("f", "FP32", (-1, 2)),
        TensorSpec("u", "UINT8", (-1, -1)),
        TensorSpec("s", "BYTES", (-1,)),
        TensorSpec("h", "FP16", (-1,)),
        TensorSpec("b", "BOOL", (-1,)),
        TensorSpec("i", "INT64", (-1,)),
    ),
    outputs=(TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "BF16", (-1,))),
)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    infer = serving()
    infer.add(version("all", "1", ALL), lambda inputs: {"y": np.zeros(1, np.float32)})
    for spec in ALL.inputs:
        one = Signature((spec,), (TensorSpec("y", "FP32", (-1,)),))
        infer.add(version(spec.name, "1", one), lambda inputs: {"y": np.zeros(1, np.float32)})
    with running(infer) as up:
        yield up


def x(**changes: Any) -> dict[str, Any]:
    """An infer message of iris whose only input is changed; None takes a field away."""
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]} | changes
    return {"inputs": [{key: value for key, value in entry.items() if value is not None}]}


def of(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}


def binary(name: str, datatype: str, shape: list[int], size: Any) -> dict[str, Any]:
    entry = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    return {"inputs": [entry]}


GOOD = x()
TWICE = {"inputs": [GOOD["inputs"][0], GOOD["inputs"][0]]}
BOTH = x(parameters={"binary_data_size": 16})

JSON_CASES: list[tuple[str, Any, str]] = [
    ("iris", [], "the body is a list; want a JSON object with 'inputs'"),
    ("iris", {}, "'inputs': got nothing; want a list of at least one input"),
    ("iris", {"inputs": []}, "'inputs': got an empty list; want a list of at least one input"),
    ("iris", {"inputs": {"x": 1}}, "'inputs': got an object"),
    ("iris", {"inputs": [3]}, "inputs[0] is a number; want an object with name, shape, datatype, data"),
    ("iris", x(name=7), "inputs[0].name is a number; want the input's name"),
    ("iris", x(name="z"), "input 'z' is unknown; model 'iris' version 2 wants 'x' FP32 [-1, 4]"),
    ("iris", TWICE, "input 'x' is there twice; send it once"),
    (
        "all",
        of("f", "FP32", [1, 2], [1, 2]),
        "input 'u', 's', 'h', 'b', 'i' is missing; model 'all' version 1",
    ),
    ("iris", x(datatype="FP64"), "input 'x': got datatype FP64; the signature wants FP32"),
    ("iris", x(datatype="FLOAT"), "input 'x': datatype \"FLOAT\"; want one of BOOL, UINT8"),
    ("iris", x(datatype=None), "input 'x': datatype null; want one of"),
    ("iris", x(shape=None), "input 'x': shape is null; want a list"),
    ("iris", x(shape="1,4"), "input 'x': shape is a string; want a list"),
    ("iris", x(shape=[1, 4.0]), "input 'x': shape [1, 4.0] holds 4.0; want lengths >= 0"),
    ("iris", x(shape=[-1, 4]), "input 'x': shape [-1, 4] holds -1; want lengths >= 0"),
    ("iris", x(shape=[True, 4]), "input 'x': shape [true, 4] holds true; want lengths >= 0"),
    ("iris", x(shape=[1, 5]), "input 'x': got shape [1, 5]; the signature wants [-1, 4]"),
    ("iris", x(shape=[4]), "input 'x': got shape [4]; the signature wants [-1, 4]"),
    ("iris", x(shape=[0, 4], data=[]), "input 'x': got shape [0, 4], which has no rows; send at least one"),
    ("iris", x(shape=[2, 4]), "input 'x': shape [2, 4] takes 8 values, data has 4"),
    (
        "iris",
        x(shape=[2**62, 4]),
        "input 'x': shape [4611686018427387904, 4] takes 18446744073709551616 values",
    ),
    ("iris", x(shape=[10**40, 4]), "takes 40000000000000000000000000000000000000000 values, data has 4"),
    ("iris", x(shape=[1] * 65), "input 'x': shape is a list; want a list of up to 64 lengths"),
    ("iris", x(data=None), "input 'x' has no data; send 'data', or parameters.binary_data_size"),
    ("iris", x(data={}), "input 'x': data is an object; want a list"),
    ("iris", x(data=[1, 2, 3, "4"]), "input 'x': value \"4\" at position 3 does not fit FP32; want numbers"),
    ("iris", x(data=[1, True, 3, 4]), "input 'x': value true at position 1 does not fit FP32"),
    ("iris", x(data=[1, None, 3, 4]), "input 'x': value null at position 1 does not fit FP32"),
    ("iris", x(data=[1, 2, 3, 1e39]), "input 'x': value 1e+39 at position 3 does not fit FP32"),
    ("iris", x(data=[[1, 2], [3, 4]]), "input 'x': the nested data has shape [2, 2], 'shape' says [1, 4]"),
    (
        "iris",
        x(data=[[1, 2, 3], [4]]),
        "input 'x': the nested data is ragged: a list of 3 stands beside a list of 1",
    ),
    ("iris", x(data=[[1, 2, 3, [4]]]), "input 'x': value [4] at position 3 does not fit FP32"),
    ("iris", x(data=[[[1, 2, 3, 4]]]), "input 'x': data is nested deeper than shape [1, 4]"),
    (
        "u",
        of("u", "UINT8", [1, 2], [1, 300]),
        "input 'u': value 300 at position 1 does not fit UINT8; want integers from 0 to 255",
    ),
    ("u", of("u", "UINT8", [1, 2], [-1, 3]), "input 'u': value -1 at position 0 does not fit UINT8"),
    ("u", of("u", "UINT8", [1, 2], [1.5, 3]), "input 'u': value 1.5 at position 0 does not fit UINT8"),
    (
        "i",
        of("i", "INT64", [1], [2**63]),
        "input 'i': value 9223372036854775808 at position 0 does not fit INT64",
    ),
    ("i", of("i", "INT64", [1], [float("nan")]), "input 'i': value NaN at position 0 does not fit INT64"),
    (
        "b",
        of("b", "BOOL", [1], [1]),
        "input 'b': value 1 at position 0 does not fit BOOL; want true or false",
    ),
    ("s", of("s", "BYTES", [1], [7]), "input 's': value 7 at position 0 does not fit BYTES; want strings"),
    ("h", of("h", "FP16", [1], [1.0]), "input 'h' is FP16, which JSON cannot carry; send it as binary data"),
    ("iris", GOOD | {"id": 7}, "id: got 7"),
    ("iris", GOOD | {"parameters": []}, "parameters: got []"),
    ("iris", GOOD | {"parameters": {"timeout": "5"}}, 'parameters: got {"timeout": "5"}'),
    ("iris", GOOD | {"parameters": {"timeout": -5}}, "parameter timeout is -5; want microseconds above 0"),
    ("iris", GOOD | {"parameters": {"priority": -1}}, "parameter priority is -1; want 0"),
    ("iris", GOOD | {"outputs": {}}, "outputs: got {}"),
    ("iris", GOOD | {"outputs": [{"name": "label"}, {"name": "label"}]}, "output 'label' is asked for twice"),
    (
        "iris",
        GOOD | {"outputs": [{"name": "labels"}]},
        "output 'labels' is unknown; model 'iris' version 2 has 'label', 'probabilities'",
    ),
    ("iris", BOTH, "input 'x' has both data and binary_data_size; send one of them"),
    (
        "iris",
        binary("x", "FP32", [1, 4], 16),
        "input 'x' has binary_data_size 16, but no Inference-Header-Content-Length",
    ),
]

BINARY_CASES: list[tuple[str, Any, bytes, int, str]] = [
    (
        "iris",
        binary("x", "FP32", [1, 4], 16),
        bytes(12),
        0,
        "input 'x': binary_data_size is 16, the body has 12 bytes left",
    ),
    ("iris", binary("x", "FP32", [1, 4], -1), bytes(16), 0, "input 'x': binary_data_size is -1"),
    (
        "iris",
        binary("x", "FP32", [1, 4], 12),
        bytes(12),
        0,
        "input 'x': 12 bytes of binary data; shape [1, 4] of FP32 takes 16",
    ),
    ("iris", binary("x", "FP32", [2**62, 4], 16), bytes(16), 0, "of FP32 takes 73786976294838206464"),
    ("iris", binary("x", "FP32", [1, 4], 16), bytes(17), 0, "1 bytes are left over behind the binary inputs"),
    (
        "iris",
        binary("x", "FP32", [1, 4], "16"),
        bytes(16),
        0,
        'input \'x\': parameters: got {"binary_data_size": "16"}',
    ),
    ("iris", GOOD, bytes(4), 0, "4 bytes are left over behind the binary inputs"),
    ("iris", GOOD, b"", 9999, "Inference-Header-Content-Length is "),
    ("iris", GOOD, b"", -5, "the body is not JSON"),
    (
        "b",
        binary("b", "BOOL", [2], 2),
        b"\x01\x02",
        0,
        "input 'b': byte 2 is no BOOL: send 0 for false and 1 for true",
    ),
    (
        "s",
        binary("s", "BYTES", [2], 3),
        b"abc",
        0,
        "input 's': 3 bytes of binary data cannot hold the 2 elements",
    ),
    (
        "s",
        binary("s", "BYTES", [2], 9),
        struct.pack("<I5s", 5, b"abcde"),
        0,
        "input 's': the binary data ends after 1 of 2 BYTES",
    ),
    (
        "s",
        binary("s", "BYTES", [1], 6),
        struct.pack("<I2s", 2**31, b"ab"),
        0,
        "input 's': BYTES element 0 says that it has 2147483648 bytes, 2 are left",
    ),
    (
        "s",
        binary("s", "BYTES", [1], 7),
        struct.pack("<I3s", 2, b"abc"),
        0,
        "input 's': 1 bytes are left over after the 1 BYTES elements",
    ),
]

BODY_CASES: list[tuple[bytes, str]] = [
    (
        json.dumps({"inputs": [1] * 1025}).encode(),
        "'inputs' has 1025 entries; want at most 1024",
    ),
    (
        json.dumps({"inputs": [None], "parameters": {str(k): k for k in range(1025)}}).encode(),
        "'parameters' has 1025 entries; want at most 1024",
    ),
    (b"", "the body is empty; want a JSON object with 'inputs'"),
    (b"inputs", "the body is not JSON"),
    (b"\x93NUMPY", "needs the length of its JSON in Inference-Header-Content-Length"),
    (
        json.dumps(binary("x", "FP32", [1, 4], 16)).encode() + bytes(16),
        "(byte 105); a body with binary tensors needs the length of its JSON in Inference-Header-Content",
    ),
    (b'{"inputs":', "the body is not JSON: Input data was truncated"),
    (
        b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,1e999]}]}',
        "the body is not JSON",
    ),
    (b'{"inputs":[{"name":"\xff"}]}', "the body is not JSON"),
    (b'{"id":"\\ud800","inputs":[NaN]}', "the body is not JSON"),
    (b"[" * 100_000, "the JSON is nested too deep"),
    (b"[NaN," + b"[" * 100_000, "the JSON is nested too deep"),
    (b'{"inputs":[NaN]}\x00', "Inference-Header-Content-Length"),
    (
        b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":' + b"[" * 500 + b"]" * 500 + b"}]}",
        "input 'x'",
    ),
]

HEADER_CASES: list[tuple[str, str, str]] = [
    ("x-request-timeout-ms", "soon", "header x-request-timeout-ms is 'soon'; want milliseconds above 0"),
    ("x-request-timeout-ms", "0", "header x-request-timeout-ms is '0'; want milliseconds above 0"),
    ("x-request-timeout-ms", "-5", "header x-request-timeout-ms is '-5'"),
    ("x-request-timeout-ms", "nan", "header x-request-timeout-ms is 'nan'"),
    ("x-interlock-priority", "2", "header x-interlock-priority is '2'; want 0 (first) or 1"),
    ("x-interlock-unit", "u" * 257, "header x-interlock-unit has 257 bytes; the limit is 256"),
    ("inference-header-content-length", "12a", "header Inference-Header-Content-Length is '12a'"),
    ("inference-header-content-length", "-1", "header Inference-Header-Content-Length is '-1'"),
]


def check(node: Node, model: str, body: bytes, headers: dict[str, str], words: str) -> None:
    answer = node.ask("POST", f"/v2/models/{model}/infer", body, headers)
    assert (answer.status, words in answer.error) == (400, True), answer
    assert len(answer.body) < 2000
    assert list(answer.json) == ["error"]
    good = node.infer_json(GOOD)
    assert good.status == 200, "the server must answer the next request"


@pytest.mark.parametrize(("model", "message", "words"), JSON_CASES)
def test_json(node: Node, model: str, message: Any, words: str) -> None:
    check(node, model, json.dumps(message).encode(), {}, words)


@pytest.mark.parametrize(("model", "message", "data", "longer", "words"), BINARY_CASES)
def test_binary(node: Node, model: str, message: Any, data: bytes, longer: int, words: str) -> None:
    text = json.dumps(message).encode()
    check(node, model, text + data, {"Inference-Header-Content-Length": str(len(text) + longer)}, words)


@pytest.mark.parametrize(("body", "words"), BODY_CASES)
def test_bodies(node: Node, body: bytes, words: str) -> None:
    check(node, "iris", body, {}, words)


@pytest.mark.parametrize(("name", "value", "words"), HEADER_CASES)
def test_headers(node: Node, name: str, value: str, words: str) -> None:
    check(node, "iris", json.dumps(GOOD).encode(), {name: value}, words)


def test_rows_of_two_inputs_must_agree(node: Node) -> None:
    message = {
        "inputs": of("f", "FP32", [2, 2], [1, 2, 3, 4])["inputs"] + of("i", "INT64", [1], [1])["inputs"]
    }
    check(
        node, "all", json.dumps(message).encode(), {}, "input 'i' has 1 rows, input 'f' has 2; want the same"
    )
