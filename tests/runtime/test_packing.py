"""Texts survive the way between two processes with their kind, and bytes that lie about themselves do not."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import MalformedMessage
from interlock.core.model import Array
from interlock.core.table import MISSING
from interlock.runtime.packing import BYTES, NUMBERS, STRINGS, pack_texts, shaped, unpack_texts


def objects(*items: Any) -> Array:
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array


def there_and_back(array: Array) -> Array:
    code, data = pack_texts(array)
    return unpack_texts("t", code, array.shape, array.size, data)


@given(st.lists(st.binary(max_size=9), max_size=8) | st.lists(st.text(max_size=9), max_size=8))
def test_texts_and_bytes_stay_what_they_are(items: list[Any]) -> None:
    array = objects(*items).reshape(-1, 1)
    back = there_and_back(array)
    assert back.shape == array.shape and back.ravel().tolist() == items


def test_the_layout() -> None:
    assert pack_texts(objects(b"a", b"", b"bc")) == (BYTES, struct.pack("<III", 1, 0, 2) + b"abc")
    assert pack_texts(objects("ä")) == (STRINGS, struct.pack("<I", 2) + "ä".encode())
    assert pack_texts(objects()) == (BYTES, b"")
    turned = np.array([["a", "b"], ["c", "d"]]).T
    assert pack_texts(turned)[1].endswith(b"acbd")
    assert not {BYTES, STRINGS, "|O"} & NUMBERS.keys()


@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        (("a", b"b"), [b"a", b"b"]),
        ((np.str_("a"), np.bytes_(b"b")), [b"a", b"b"]),
        ((bytearray(b"a"), memoryview(b"bc")), [b"a", b"bc"]),
        (("a", MISSING), [b"a", MISSING]),
    ],
)
def test_what_is_mixed_comes_back_as_bytes(items: tuple[Any, ...], wanted: list[bytes]) -> None:
    back = there_and_back(objects(*items)).tolist()
    assert back == wanted and set(map(type, back)) == {bytes}


@pytest.mark.parametrize(("item", "kind"), [(1, TypeError), (None, TypeError), ("\ud800", ValueError)])
def test_what_is_no_text_is_refused(item: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        pack_texts(objects("a", item))


def test_strings_of_a_model_that_are_no_utf_8_are_marked() -> None:
    assert unpack_texts("t", STRINGS, (1,), 1, struct.pack("<I", 1) + b"\xff").tolist() == ["\ufffd"]


@pytest.mark.parametrize(
    ("code", "shape", "data", "words"),
    [
        ("|O", (1,), bytes(8), "8 bytes of '|O' for 1 items"),
        (BYTES, (2,), bytes(7), "7 bytes of 'bytes' for 2 items"),
        (BYTES, (2**62,), bytes(100), "for 4611686018427387904 items"),
        (STRINGS, (1,), struct.pack("<I", 2) + b"a", "lengths add up to 6 of 5 bytes"),
        (BYTES, (1,), struct.pack("<I", 0) + b"a", "lengths add up to 4 of 5 bytes"),
        (BYTES, (2,), struct.pack("<II", 2**32 - 1, 2**32 - 1), "lengths add up to 8589934598 of 8 bytes"),
        (BYTES, (0,), b"a", "lengths add up to 0 of 1 bytes"),
        (BYTES, (0,) * 65, b"", "has shape"),
        (BYTES, (0, 2**70), b"", "has shape"),
    ],
)
def test_wild_texts_are_refused(code: str, shape: tuple[int, ...], data: bytes, words: str) -> None:
    count = 1
    for length in shape:
        count *= length
    with pytest.raises(MalformedMessage) as refused:
        unpack_texts("t", code, shape, count, data)
    assert words in refused.value.message and "tensor 't'" in refused.value.message


@given(st.integers(0, 3), st.binary(max_size=24), st.sampled_from([BYTES, STRINGS]))
def test_whatever_comes_is_texts_or_refused(count: int, data: bytes, code: str) -> None:
    try:
        array = unpack_texts("t", code, (count,), count, data)
    except MalformedMessage:
        return
    assert array.shape == (count,)
    if code == BYTES:
        assert pack_texts(array)[1] == data


def test_numbers_of_a_wild_shape_are_refused() -> None:
    assert shaped("x", (2, 1), np.zeros(2)).shape == (2, 1)
    for shape in ((0,) * 65, (0, 2**70), (3,)):
        with pytest.raises(MalformedMessage, match="tensor 'x' has shape"):
            shaped("x", shape, np.zeros(0))
