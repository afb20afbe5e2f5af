"""The id that the server makes says where a request went; the deadline is the client's, within bounds."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import DeadlineInvalid, MalformedMessage
from interlock.core.model import ModelSettings
from interlock.core.request import RequestId, deadline, id_prefix, parse_request_id

numbers = st.integers(0, 2**64 - 1)
ids = st.builds(RequestId, numbers, numbers, numbers, numbers, numbers, numbers, st.none() | numbers)


@given(id=ids)
def test_an_id_comes_back_as_it_was(id: RequestId) -> None:
    text = id.encode()
    assert parse_request_id(text) == id and text == text.lower()
    assert text.startswith(id_prefix(id.release, id.epoch, id.arm, id.origin))


@given(one=ids, other=ids)
def test_different_ids_have_different_texts(one: RequestId, other: RequestId) -> None:
    assert (one.encode() == other.encode()) == (one == other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "has not the form"),
        (b"1-2-3-4-5", "has not the form"),
        (b"1-2-3-4-5-6-7-8", "has not the form"),
        (b"1-2-3-4-5-", "has not the form"),
        (b"1-2-3-4-5-11112222333344445", "has not the form"),
        (b"1-2-3-4-5-g", "not hexadecimal"),
        (b"1-2-3-4-5-F", "not lower-case"),
        (b"1-2-3-4-5-0x1", "not lower-case"),
        (b"1-2-3-4-5-1_1", "not lower-case"),
        (b" 1-2-3-4-5-6", "not lower-case"),
        (b"1-2-3-4-5-\xff", "not hexadecimal"),
        (b"+1-2-3-4-5-6", "not lower-case"),
    ],
)
def test_what_this_software_did_not_make_is_refused_with_what_it_was(text: bytes, said: str) -> None:
    with pytest.raises(MalformedMessage, match=said):
        parse_request_id(text)


@given(text=st.binary(max_size=120))
def test_no_bytes_raise_anything_else(text: bytes) -> None:
    try:
        assert parse_request_id(text).release >= 0
    except MalformedMessage as error:
        assert len(error.message) < 700


SETTINGS = ModelSettings(default_timeout_s=10.0, max_timeout_s=60.0)


@pytest.mark.parametrize(
    ("timeout_s", "wanted"), [(None, 110.0), (0.5, 100.5), (60.0, 160.0), (61.0, 160.0), (1e300, 160.0)]
)
def test_the_deadline_counts_from_receipt_and_has_a_bound(timeout_s: float | None, wanted: float) -> None:
    assert deadline(100.0, timeout_s, SETTINGS) == wanted


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, inf, -inf, nan])
def test_a_time_out_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(DeadlineInvalid, match="want a finite number above 0"):
        deadline(100.0, timeout_s, SETTINGS)
