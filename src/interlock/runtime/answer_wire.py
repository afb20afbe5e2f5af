"""Owns the messages between `answer_process` and its child: a msgpack head, then the bytes of the tensors.

What arrives is checked before it is used: the child runs code of the model's author.
"""

import socket
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np

from interlock.core.errors import MalformedMessage
from interlock.core.model import DATATYPES, Array, Tensors, Version

MOST_BYTES = 1024**3
"""The largest message, in bytes: the rows of one ask, or their answers."""

CELL = struct.Struct("<QQQ")
"""What a child writes to shared memory before each call: how many it began, and the rows of this one, [start,
stop)."""

_SIZES = struct.Struct("<IQ")
_DTYPES = {dtype.str: dtype for dtype in DATATYPES.values() if dtype.kind != "O"}
_BYTES, _STRINGS = "bytes", "str"
_encoder = msgspec.msgpack.Encoder()

Struct = TypeVar("Struct", bound=msgspec.Struct)


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """One tensor: `size` bytes of the body. Strings are u32 lengths, then the bytes of all."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Start(msgspec.Struct, frozen=True):
    """The first message to a child. A call may take `call_s` seconds."""

    folder: str
    version: Version
    memory_bytes: int
    call_s: float


class Ask(msgspec.Struct, frozen=True):
    """Rows to answer, `most_rows` in a call; `first_only`: stop at the first row that fails."""

    pieces: tuple[Piece, ...]
    most_rows: int
    first_only: bool


class Trouble(msgspec.Struct, frozen=True):
    """Row `row` of an ask (or, at the start, the load) failed: the name of an error of `core.errors`, and
    its words."""

    row: int
    error: str
    message: str


class Reply(msgspec.Struct, frozen=True):
    """The answers of the rows that have one, in groups that could not be joined (mostly one), and the
    others. After a Start: nothing, or one Trouble."""

    groups: tuple[tuple[Piece, ...], ...] = ()
    troubles: tuple[Trouble, ...] = ()


def pack(tensors: Tensors) -> tuple[tuple[Piece, ...], list[memoryview]]:
    """What the body consists of, and what says so.

    Raises: TypeError for what no tensor of the protocol can hold.
    """
    pieces: list[Piece] = []
    body: list[memoryview] = []
    for name, array in tensors.items():
        if array.dtype.kind in "SUO":
            code, data = _strings(array)
            pieces.append(Piece(name, code, array.shape, len(data)))
            body.append(memoryview(data))
            continue
        dtype = array.dtype.newbyteorder("<")
        if dtype.str not in _DTYPES:
            raise TypeError(f"tensor {name!r} has dtype {array.dtype}")
        pieces.append(Piece(name, dtype.str, array.shape, array.nbytes))
        body.append(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
    return tuple(pieces), body


def unpack(pieces: tuple[Piece, ...], body: memoryview) -> Tensors:
    """The tensors of a body: views of it, but for strings. Raises: MalformedMessage."""
    tensors: Tensors = {}
    at = 0
    for piece in pieces:
        part = body[at : at + piece.size]
        at += piece.size
        count = 1
        for length in piece.shape:
            count *= length
        dtype = _DTYPES.get(piece.dtype)
        if min(piece.shape, default=0) < 0 or piece.size < 0 or len(part) != piece.size:
            raise MalformedMessage(f"tensor {piece.name!r}: {piece}")
        if dtype is None:
            tensors[piece.name] = _as_strings(piece, part, count).reshape(piece.shape)
        elif count * dtype.itemsize != piece.size:
            raise MalformedMessage(f"tensor {piece.name!r}: {piece}")
        else:
            tensors[piece.name] = np.frombuffer(part, dtype).reshape(piece.shape)
    return tensors


def send(sock: socket.socket, head: msgspec.Struct, body: list[memoryview]) -> None:
    """One message. Raises: OSError; MalformedMessage if it has more than MOST_BYTES."""
    total = sum(map(len, body))
    if total > MOST_BYTES:
        raise MalformedMessage(f"{total} bytes of tensors, the limit of one message is {MOST_BYTES}")
    packed = _encoder.encode(head)
    sock.sendall(_SIZES.pack(len(packed), total) + packed)
    for view in body:
        sock.sendall(view)


def receive(kind: type[Struct], read: Callable[[memoryview], bool]) -> tuple[Struct, memoryview] | None:
    """One message: its head and its body; None at the end. `read` fills a buffer, False at the end.

    Raises: MalformedMessage.
    """
    sizes = memoryview(bytearray(_SIZES.size))
    if not read(sizes):
        return None
    head_bytes, body_bytes = _SIZES.unpack(sizes)
    if head_bytes + body_bytes > MOST_BYTES + 2**26:
        raise MalformedMessage(f"a message of {head_bytes + body_bytes} bytes; the limit is {MOST_BYTES}")
    head, body = memoryview(bytearray(head_bytes)), memoryview(bytearray(body_bytes))
    if not read(head) or not read(body):
        return None
    try:
        return msgspec.msgpack.decode(head, type=kind), body
    except msgspec.MsgspecError as error:
        raise MalformedMessage(f"a head that is no {kind.__name__}: {error}") from error


def _strings(array: Array) -> tuple[str, bytes]:
    items: list[Any] = array.ravel().tolist()
    code = _STRINGS if items and all(type(item) is str for item in items) else _BYTES
    data = [item if type(item) is bytes else _as_bytes(item) for item in items]
    return code, np.fromiter(map(len, data), np.uint32, len(data)).tobytes() + b"".join(data)


def _as_bytes(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if not isinstance(item, (bytes, bytearray, memoryview)):
        raise TypeError(f"an element is {type(item).__name__}, want bytes or str")
    return bytes(item)


def _as_strings(piece: Piece, part: memoryview, count: int) -> Array:
    if piece.dtype not in (_BYTES, _STRINGS) or count * 4 > piece.size:
        raise MalformedMessage(f"tensor {piece.name!r}: {piece}")
    ends = np.cumsum(np.frombuffer(part[: count * 4], np.uint32), dtype=np.int64) + count * 4
    if (int(ends[-1]) if count else 0) != piece.size:
        raise MalformedMessage(f"tensor {piece.name!r}: its lengths do not add up to {piece.size} bytes")
    data, begin = bytes(part), count * 4
    array = np.empty(count, np.object_)
    for index, end in enumerate(ends.tolist()):
        item = data[begin:end]
        array[index] = item.decode(errors="replace") if piece.dtype == _STRINGS else item
        begin = end
    return array
