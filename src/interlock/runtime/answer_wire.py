"""Owns the messages between `answer_process` and its child: a msgpack head, then the bytes of the tensors.

What arrives is checked before it is used: the child runs code of the model's author.
"""

import socket
import struct
from collections.abc import Callable
from typing import TypeVar

import msgspec
import numpy as np

from interlock.core.errors import MalformedMessage
from interlock.core.model import Tensors, Version
from interlock.runtime.packing import NUMBERS, pack_texts, shaped, unpack_texts

MOST_BYTES = 1024**3
"""The largest message, in bytes: the rows of one ask, or their answers."""

CELL = struct.Struct("<QQQ")
"""What a child writes to shared memory before each call: how many it began, and the rows of this one, [start,
stop)."""

_SIZES = struct.Struct("<IQ")
_encoder = msgspec.msgpack.Encoder()

Struct = TypeVar("Struct", bound=msgspec.Struct)


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """One tensor: `size` bytes of the body. `dtype` is a code of `packing`."""

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
            code, data = pack_texts(array)
            pieces.append(Piece(name, code, array.shape, len(data)))
            body.append(memoryview(data))
            continue
        dtype = array.dtype.newbyteorder("<")
        if dtype.str not in NUMBERS:
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
        dtype = NUMBERS.get(piece.dtype)
        if min(piece.shape, default=0) < 0 or piece.size < 0 or len(part) != piece.size:
            raise MalformedMessage(f"tensor {piece.name!r}: {piece}")
        if dtype is None:
            tensors[piece.name] = unpack_texts(piece.name, piece.dtype, piece.shape, count, bytes(part))
        elif count * dtype.itemsize != piece.size:
            raise MalformedMessage(f"tensor {piece.name!r}: {piece}")
        else:
            tensors[piece.name] = shaped(piece.name, piece.shape, np.frombuffer(part, dtype))
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
