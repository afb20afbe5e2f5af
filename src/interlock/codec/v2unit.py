"""Decides which unit a V2 request names in a field of its own `parameters`, before anything else is decoded.

Which version answers may depend on the unit, and what the tensors mean depends on the version: so the message
is read twice, at first for this field alone. Only requests of a model whose route asks for it pay that.
"""

from functools import lru_cache
from typing import Any

import msgspec

from interlock.codec.v2json import parse, shown
from interlock.core.errors import InvalidRequest, MalformedMessage

MOST_UNIT_BYTES = 256
_decode = msgspec.json.Decoder().decode
_MOST_RAW_BYTES = 6 * MOST_UNIT_BYTES + 2
"""What a string of so many bytes may take as JSON, were every one escaped."""
_NO_UNIT = msgspec.Raw(b"null")


class UnitField:
    """One field of the `parameters` of infer requests."""

    def __init__(self, name: str) -> None:
        self._name = name
        parameters = msgspec.defstruct(
            "Parameters",
            [("unit", msgspec.Raw, _NO_UNIT)],
            rename={"unit": name},
            gc=False,
            module=__name__,
        )
        optional: Any = parameters | None
        message = msgspec.defstruct("Message", [("parameters", optional, None)], gc=False, module=__name__)
        self._decode = msgspec.json.Decoder(message).decode

    def read(self, body: bytes | bytearray | memoryview, header_length: int | None) -> bytes | None:
        """The unit in a request; None where it has none: no such field, null, "", a body that is a raw
        tensor, or one that is malformed, which its codec is to explain. A string stands for itself, an
        integer for its decimal digits: 17 and "17" are one unit. `header_length`: as for `Codec.decode`.

        Raises: InvalidRequest for another kind of value, and for one above 256 bytes.
        >>> UnitField("user").read(b'{"parameters": {"user": "u17"}, "inputs": []}', None)
        b'u17'
        """
        if header_length == 0:
            return None
        text = body if header_length is None else memoryview(body)[:header_length]
        try:
            message: Any = self._decode(text)
            if message.parameters is None:
                return None
            raw = message.parameters.unit
            if len(raw) > _MOST_RAW_BYTES:
                raise self._refused(f"has {len(raw)} bytes")
            value = _decode(raw)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            value = self._explained(text)
        if value is None or value == "":
            return None
        if type(value) is str:
            unit = value.encode()
        elif type(value) is int:
            unit = b"%d" % value
        else:
            raise self._refused(f"is {shown(value)}")
        if len(unit) > MOST_UNIT_BYTES:
            raise self._refused(f"has {len(unit)} bytes")
        return unit

    def _explained(self, text: bytes | bytearray | memoryview) -> Any:
        """The field of a message that only the slow reader understands (NaN tokens); None if it does not."""
        try:
            document = parse(bytes(text))
        except MalformedMessage:
            return None
        parameters = document.get("parameters") if isinstance(document, dict) else None
        return parameters.get(self._name) if isinstance(parameters, dict) else None

    def _refused(self, came: str) -> InvalidRequest:
        return InvalidRequest(
            f"parameter '{self._name}', by which requests stick to a version, {came}; want a string or an "
            f"integer of at most {MOST_UNIT_BYTES} bytes, or none"
        )


@lru_cache(256)
def unit_field(name: str) -> UnitField:
    """The reader of a field, built once."""
    return UnitField(name)
