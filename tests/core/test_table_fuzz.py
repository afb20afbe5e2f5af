"""Holds that whatever arrays a client sends as a table become inputs, or one of the client's errors."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.codec.v2infer import Codec
from interlock.core.errors import InvalidRequest, Unsupported
from interlock.core.model import DATATYPES, Signature, TensorSpec
from interlock.core.table import MISSING, conform, texts


class Mute:
    """Has no words."""

    def __str__(self) -> str:
        raise ValueError


OUT = (TensorSpec("y", "FP32", (-1,)),)
NAMES = ("a", "ü", "c")
SIGNATURES = [
    Signature((TensorSpec("input", datatype, (-1, 3)),), OUT, 0, NAMES)
    for datatype in ("FP32", "FP64", "INT64", "BOOL", "FP16", "UINT8")
] + [
    Signature(
        tuple(TensorSpec(name, kind, (-1, 1)) for name, kind in zip(NAMES, kinds, strict=True)), OUT, 0, NAMES
    )
    for kinds in (("INT64", "BYTES", "FP32"), ("BOOL", "UINT64", "FP64"), ("BYTES", "INT8", "FP16"))
]
ODD: list[Any] = [
    None, MISSING, b"", "", "true", b"\xff\xfe", "\ud800", "nan", "inf", "1e999", "1_0", " 1 ", "٣",
    10**400, 10**5000, -(2**63), 2**64, 2**53 + 1, 0.1, float("nan"), float("inf"), -0.0, True, 1j,
    [1, 2], {"a": 1}, (), Mute(), np.float64(1), np.array([1, 2]), np.datetime64("2026-01-01"),
    np.bytes_(b"1"), object, b"\x00", "\x00",
]  # fmt: skip
DTYPES = ["?", "b", "B", "i8", "u8", "f2", "f4", "f8", "g", "F", "D", "S3", "U3", "M8[s]", "m8[s]", "V4"]
SHAPES = [(), (0,), (1,), (2,), (2, 1), (1, 2), (2, 3), (0, 3), (2, 3, 1), (3, 0)]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = draw(st.sampled_from(SHAPES))
    count = int(np.prod(shape))
    if draw(st.booleans()):
        made = np.empty(count, np.object_)
        for index in range(count):
            made[index] = draw(st.sampled_from(ODD))
        return made.reshape(shape)
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype.kind == "U":  # any bytes are no letters
        return np.full(shape, "1")
    return np.frombuffer(data, dtype).reshape(shape)


@given(
    st.sampled_from(SIGNATURES),
    st.one_of(
        st.fixed_dictionaries({name: arrays() for name in NAMES}),
        st.dictionaries(st.sampled_from([*NAMES, "input", "\ud800", ""]), arrays(), max_size=4),
    ),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that signal, in the bytes drawn
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_arbitrary_arrays_become_inputs_or_the_clients_error(
    signature: Signature, sent: dict[str, np.ndarray[Any, Any]]
) -> None:
    try:
        made = conform(signature, sent)
    except InvalidRequest as error:
        assert error.message
        return
    assert list(made) == [spec.name for spec in signature.inputs]
    rows = {len(array) for array in made.values()}
    assert len(rows) == 1
    for spec in signature.inputs:
        assert made[spec.name].dtype == DATATYPES[spec.datatype]
        assert made[spec.name].shape[1:] == spec.shape[1:]
        if spec.datatype == "BYTES":
            assert all(type(item) is bytes for item in made[spec.name].ravel().tolist())


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(SIGNATURES),
    st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from([*NAMES, "input", "x"]),
                "datatype": st.sampled_from([*DATATYPES, "NONE"]),
                "shape": st.lists(st.integers(-1, 3), max_size=3),
                "data": st.one_of(st.lists(values, max_size=6), values),
            }
        ),
        max_size=4,
    ),
)
def test_arbitrary_messages_for_a_table_too(signature: Signature, inputs: list[dict[str, Any]]) -> None:
    body = json.dumps({"inputs": inputs}).encode(errors="surrogatepass")
    try:
        found, rows, *_ = Codec("m", "1", signature).decode(body, None)
    except (InvalidRequest, Unsupported) as error:
        assert error.message
        return
    assert rows >= 1
    assert set(found) == {spec.name for spec in signature.inputs}


def test_a_finite_number_never_becomes_infinite() -> None:
    (signature,) = (one for one in SIGNATURES if one.inputs[0].datatype == "FP32" and len(one.inputs) == 1)
    with pytest.raises(InvalidRequest, match=r"column 'ü': value 1e\+300 in row 1 does not fit FP32"):
        conform(signature, {"a": np.zeros(2), "ü": np.array([np.inf, 1e300]), "c": np.zeros(2)})


def test_a_wide_table_costs_no_square_of_its_columns() -> None:
    """Ten times as many columns: ten times the comparisons of names, which are counted."""
    calls = [0]

    class Name(str):
        def __eq__(self, other: object) -> bool:
            calls[0] += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    counted = []
    for width in (200, 2000):
        names = tuple(Name(f"c{index}") for index in range(width))
        signature = Signature((TensorSpec("input", "FP32", (-1, width)),), OUT, 0, names)
        sent: dict[str, Any] = {Name(name): np.ones(2) for name in reversed(names)}
        calls[0] = 0
        assert conform(signature, sent)["input"].shape == (2, width)
        counted.append(calls[0])
    assert counted[1] <= 20 * counted[0] + 100


def test_texts_of_everything() -> None:
    odd = np.empty(len(ODD), np.object_)
    for index, value in enumerate(ODD):
        odd[index] = value
    for index in range(len(odd)):
        try:
            (made,) = texts(odd[index : index + 1]).tolist()
        except InvalidRequest:
            continue
        assert type(made) is bytes
