"""Feedback over HTTP: all of a message or none of it, and an error that names the item."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import InvalidRequest
from interlock.core.feedback import MOST_BYTES, MOST_ITEMS, Feedback
from interlock.wire.feedback import feedback_of

ID = "7-1-0-a-18c2f-3"


def item(**changes: object) -> dict[str, object]:
    return {"id": ID, "name": "clicked", "value": 1, **changes}


def test_one_or_many_items_and_numbers_or_booleans() -> None:
    assert feedback_of(json.dumps(item()).encode()) == [Feedback(ID, "clicked", 1.0)]
    many = [item(value=False), item(value=2.5, name="stars")]
    assert feedback_of(json.dumps(many).encode()) == [
        Feedback(ID, "clicked", 0.0),
        Feedback(ID, "stars", 2.5),
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "feedback: "),
        (b"[]", "feedback of 0 items"),
        (b"[1]", "feedback: "),
        (json.dumps([item(), item(id="x")]).encode(), "feedback item 1: request id b'x'"),
        (json.dumps([item(), item(name="")]).encode(), "feedback item 1: 'name' is ''"),
        (json.dumps(item(value="1")).encode(), "feedback: "),
        (json.dumps(item(value=None)).encode(), "feedback: "),
        (json.dumps(item(unit="u")).encode(), "feedback: "),
        (b'{"id": "' + ID.encode() + b'", "name": "a", "value": 1e999}', "feedback: "),
        (json.dumps([item()] * (MOST_ITEMS + 1)).encode(), "want 1 to 1,000"),
        (b" " * (MOST_BYTES + 1), "send it in several messages"),
        (json.dumps(item(id="1-ffffffffffffffff-1-1-1-1")).encode(), "as it came"),
        (json.dumps(item(id="07-1-0-a-18c2f-3")).encode(), "as it came"),
        (b'{"id": "\xff", "name": "a", "value": 1}', "feedback: "),
    ],
)
def test_what_is_wrong_is_named(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        feedback_of(body)
    assert said in error.value.message


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    try:
        assert feedback_of(body)
    except InvalidRequest as error:
        assert len(error.message) < 1000
