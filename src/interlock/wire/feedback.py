"""Decides what a message of feedback says; pure.

`POST /feedback` with one object, or a list of them: {"id": "<interlock-request-id>", "name": "conversion",
"value": 1}. A value is a number, or true and false for 1 and 0.
"""

import msgspec

from interlock.core.errors import InvalidRequest, MalformedMessage, RequestTooLarge
from interlock.core.feedback import MOST_BYTES, MOST_ITEMS, Feedback, check_feedback


class _Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    name: str
    value: bool | float


_decode = msgspec.json.Decoder(list[_Item] | _Item).decode


def feedback_of(body: bytes) -> list[Feedback]:
    """All of a message, or none of it.

    Raises: RequestTooLarge; MalformedMessage; InvalidRequest, which names the item that cannot be kept.
    """
    if len(body) > MOST_BYTES:
        raise RequestTooLarge(
            f"{len(body)} bytes of feedback; the limit is {MOST_BYTES}: send it in several messages"
        )
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(
            f"feedback: {error}; want an object, or a list of them, with 'id', 'name' and 'value'"
        ) from None
    items = found if isinstance(found, list) else [found]
    if not 0 < len(items) <= MOST_ITEMS:
        raise InvalidRequest(f"feedback of {len(items)} items: want 1 to {MOST_ITEMS:,} in one message")
    kept = [Feedback(item.id, item.name, float(item.value)) for item in items]
    for index, item in enumerate(kept):
        try:
            check_feedback(item)
        except InvalidRequest as error:
            raise InvalidRequest(f"feedback item {index}: {error.message}") from None
    return kept
