"""The unit of a request in a field of its parameters: any string or integer, whatever stands around it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.codec.v2unit import MOST_UNIT_BYTES, UnitField
from interlock.core.errors import InvalidRequest

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)
NAMES = TEXTS.filter(lambda name: not set(name) & {'"', "\\"} and min(name) > " ")
OTHERS = st.dictionaries(TEXTS, st.one_of(st.integers(), st.text(max_size=5), st.booleans()), max_size=3)
INPUTS = [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.5]}]
NAN = [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [float("nan")]}]


def body(parameters: Any, inputs: Any = INPUTS) -> bytes:
    return json.dumps({"id": "a", "parameters": parameters, "inputs": inputs}).encode()


@given(NAMES, st.one_of(TEXTS, st.integers(-(10**254), 10**255)), OTHERS, st.booleans())
def test_a_string_or_an_integer_is_a_unit(name: str, value: str | int, others: Any, is_nan: bool) -> None:
    text = body({**others, name: value}, NAN if is_nan else INPUTS)
    wanted = str(value).encode()
    if len(wanted) > MOST_UNIT_BYTES:
        with pytest.raises(InvalidRequest, match=f"has {len(wanted)} bytes"):
            UnitField(name).read(text, None)
    else:
        assert UnitField(name).read(text, None) == wanted


@given(NAMES, st.one_of(TEXTS, st.integers(0, 9)), st.binary(max_size=40))
def test_it_is_read_from_the_json_before_binary_tensors(name: str, value: str | int, tail: bytes) -> None:
    text = body({name: value, "binary_data_output": True})
    wanted = str(value).encode()
    if len(wanted) <= MOST_UNIT_BYTES:
        for sent in (text + tail, memoryview(text + tail), bytearray(text + tail)):
            assert UnitField(name).read(sent, len(text)) == wanted


@pytest.mark.parametrize(
    "sent",
    [
        *(body(parameters) for parameters in (None, {}, {"other": "u1"}, {"user": None}, {"user": ""})),
        *(body(None, NAN), body({"user": ""}, NAN)),
        *(b"", b"{", b"[]", b"17", b"\xff", b'{"parameters": 3}', b'{"parameters": {"user": "\\ud800"}}'),
        b'{"inputs": ' + b"[" * 100_000,
    ],
)
def test_no_such_field_is_no_unit_and_what_is_malformed_is_for_the_codec(sent: bytes) -> None:
    assert UnitField("user").read(sent, None) is None


def test_a_raw_tensor_has_no_unit() -> None:
    assert UnitField("user").read(body({"user": "u1"}), 0) is None


@pytest.mark.parametrize(
    ("value", "came"),
    [
        ("1.5", "is 1.5"),
        ("1e2", "is 100.0"),
        ("true", "is true"),
        ('["u1"]', 'is ["u1"]'),
        ('{"id": 1}', 'is {"id": 1}'),
        ('"' + "x" * 257 + '"', "has 257 bytes"),
        ('"' + "\N{STEAM LOCOMOTIVE}" * 65 + '"', "has 260 bytes"),
        ("9" * 257, "has 257 bytes"),
        ("9" * 100_000, "has 100000 bytes"),
    ],
)
def test_anything_else_is_refused_by_name_with_what_came_and_what_is_wanted(value: str, came: str) -> None:
    sent = b'{"parameters": {"user": %b}, "inputs": []}' % value.encode()
    with pytest.raises(InvalidRequest) as error:
        UnitField("user").read(sent, None)
    said = error.value.message
    assert said.startswith(
        f"parameter 'user', by which requests stick to a version, {came}; want a string or"
    )


def test_one_unit_is_one_however_its_number_is_sent() -> None:
    numbers = {UnitField("user").read(body({"user": value}), None) for value in (17, "17")}
    assert numbers == {b"17"}
