"""Bounds of tensors in bytes; that they arrive as they were sent is `test_v2infer`'s."""

import pytest

from interlock.codec.raw import MOST_TEXTS, unpack
from interlock.core.errors import RequestTooLarge, ShapeMismatch


@pytest.mark.slow
def test_a_tensor_has_so_many_strings_and_one_more_is_refused_before_any_is_read() -> None:
    data = memoryview(bytes(4 * (MOST_TEXTS + 1)))
    array = unpack("x", "BYTES", (MOST_TEXTS,), MOST_TEXTS, data[:-4])
    assert array.shape == (MOST_TEXTS,) and array[0] == array[-1] == b""
    words = f"input 'x': {MOST_TEXTS + 1} BYTES elements in one tensor; the limit is {MOST_TEXTS}"
    with pytest.raises(RequestTooLarge, match=words):
        unpack("x", "BYTES", (MOST_TEXTS + 1,), MOST_TEXTS + 1, data)


def test_a_shape_that_lies_is_told_so_first() -> None:
    with pytest.raises(ShapeMismatch, match="cannot hold the"):
        unpack("x", "BYTES", (2**40,), 2**40, memoryview(b"1234"))
