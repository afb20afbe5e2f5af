"""Owns the memory that a worker and an executor share, and the messages that say what is in it.

Every message is an *arena*, a block of shared memory with tensors and a few bytes of msgpack, and a *frame*
of fixed size on the Unix socket that rings the bell. An arena belongs to the side that writes it; when it is
too small it is replaced by another, whose descriptor travels with the frame. Its size is sealed, so that no
other process can cut it under a reader. Whatever the other side writes is checked before it is used.
"""

import fcntl
import mmap
import os
import socket
import struct
import tempfile
from collections import deque

import msgspec
import numpy as np

from interlock.core.errors import ConfigError, MalformedMessage
from interlock.core.model import Array, Tensors, datatype_of
from interlock.runtime.packing import NUMBERS, pack_texts, shaped, unpack_texts

SCHEMA = 1
SMALLEST_BYTES = 64 * 1024
MOST_BYTES = 1024**3
"""Largest arena: what one batch may bring in, and what it may give back, in bytes."""

FRAME = struct.Struct("<IIQQQ")
"""kind (| `WITH_ARENA`), slot, sequence, and where in the arena its msgpack is: offset, bytes."""
(HELLO, RUN, READY, REFUSED, DONE, FAILED, STREAM, PART, TAKEN, CANCEL) = range(1, 11)
"""STREAM is a RUN that is answered by PARTs before its DONE or FAILED. TAKEN: the worker has read one, so
that its arena may be written again; CANCEL: it wants no more. Both have no msgpack."""
WITH_ARENA = 0x100
MOST_SLOTS = 4

_HEADER = 64
_ALIGN = 64
_INLINE_COPY_BYTES = 16 * 1024


class TooLarge(Exception):
    """More bytes than an arena may have; each side says it in its own words."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """One tensor in an arena: `size` bytes from `at`. `dtype` is a code of `packing`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    at: int
    size: int


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """A worker's first words. `owner` is its incarnation."""

    version_key: str
    owner: int
    schema: int = SCHEMA


class Run(msgspec.Struct, frozen=True, array_like=True):
    """One batch of `requests` joined requests; hung when it takes longer than `kill_after_s`, a stream when
    one part does."""

    pieces: tuple[Piece, ...]
    outputs: tuple[str, ...] | None
    requests: int
    kill_after_s: float


class Done(msgspec.Struct, frozen=True, array_like=True):
    """The outputs of a batch, and the seconds that predict took; of a stream all its parts until then."""

    pieces: tuple[Piece, ...]
    elapsed_s: float


class Trouble(msgspec.Struct, frozen=True, array_like=True):
    """Why there are no outputs, or no executor: the name of an error of `core.errors`, and its words."""

    error: str
    message: str
    elapsed_s: float = 0.0


class Arena:
    """Shared memory. Its first 8 bytes are the number of the batch that the reader began last."""

    __slots__ = ("_cells", "_quiet", "fd", "map", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.map = mmap.mmap(fd, size)
        self._cells = memoryview(self.map)[:8].cast("Q")
        self._quiet = 0

    @classmethod
    def new(cls, size: int) -> "Arena":
        """A fresh arena of this process. Raises: OSError."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("interlock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
            os.ftruncate(fd, size)
        return cls(fd, size)

    @classmethod
    def received(cls, fd: int) -> "Arena":
        """The other side's. Raises: MalformedMessage unless its size is bounded and sealed."""
        size = os.fstat(fd).st_size
        if not 0 < size <= MOST_BYTES:
            raise MalformedMessage(f"an arena of {size} bytes; the limit is {MOST_BYTES}")
        if hasattr(fcntl, "F_GET_SEALS"):
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError:
                seals = 0
            if not seals & fcntl.F_SEAL_SHRINK:
                raise MalformedMessage("an arena that can be cut under its reader")
        return cls(fd, size)

    @property
    def began(self) -> int:
        """The sequence number of the batch that the reader began last; 0 for none."""
        return int(self._cells[0])

    @began.setter
    def began(self, sequence: int) -> None:
        self._cells[0] = sequence

    def replaced(self, need: int) -> bool:
        """Whether `need` bytes call for another arena: too small, or for long far too large."""
        if need > self.size:
            return True
        wasteful = self.size > 16 * 1024**2 and need * 8 < self.size
        self._quiet = self._quiet + 1 if wasteful else 0
        return self._quiet > 64

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def layout(tensors: Tensors) -> tuple[tuple[Piece, ...], list[Array | bytes], int]:
    """Where each tensor will be, what to copy there, and the first byte after all of them.

    Raises: ConfigError for a dtype or an element that the protocol cannot carry.
    """
    pieces: list[Piece] = []
    sources: list[Array | bytes] = []
    at = _HEADER
    for name, array in tensors.items():
        source: Array | bytes
        code = array.dtype.str
        if code in NUMBERS:
            source, size = array, array.nbytes
        else:
            if datatype_of(array.astype(array.dtype.newbyteorder("="))) == "BYTES":
                try:
                    code, source = pack_texts(array)
                except (TypeError, ValueError, OverflowError) as error:
                    raise ConfigError(f"tensor {name!r} of dtype {array.dtype}: {error}") from error
                size = len(source)
            else:  # the right numbers in the other byte order
                source = array.astype(array.dtype.newbyteorder("<"))
                code, size = source.dtype.str, source.nbytes
        pieces.append(Piece(name, code, array.shape, at, size))
        sources.append(source)
        at += (size + _ALIGN - 1) // _ALIGN * _ALIGN
    return tuple(pieces), sources, at


def write(
    arena: Arena, pieces: tuple[Piece, ...], sources: list[Array | bytes], end: int, head: bytes
) -> None:
    """Copy every source to its place, once, and `head` to `end`."""
    mapped = arena.map
    for piece, source in zip(pieces, sources, strict=True):
        at, size = piece.at, piece.size
        if isinstance(source, bytes):
            mapped[at : at + size] = source
        elif size <= _INLINE_COPY_BYTES:
            mapped[at : at + size] = source.tobytes()
        else:
            np.copyto(np.frombuffer(mapped, source.dtype, source.size, at).reshape(source.shape), source)
    mapped[end : end + len(head)] = head


def room(arena: Arena | None, need: int) -> Arena | None:
    """None if `arena` will do for `need` bytes, else a fresh one. Raises: TooLarge, OSError."""
    if need > MOST_BYTES:
        raise TooLarge(f"{need} bytes of tensors, the limit of one batch is {MOST_BYTES}")
    if arena is not None and not arena.replaced(need):
        return None
    return Arena.new(max(SMALLEST_BYTES, 1 << (need - 1).bit_length()))


def read_head(arena: Arena, at: int, size: int) -> bytes:
    """The msgpack of a message, copied first: its writer could change it while it is decoded."""
    if at + size > arena.size:
        raise MalformedMessage(f"{size} bytes at {at} in an arena of {arena.size}")
    return arena.map[at : at + size]


def read(arena: Arena, pieces: tuple[Piece, ...], copy: bool) -> Tensors:
    """The tensors of a message: views of the arena, or copies that outlive the next message.

    Raises: MalformedMessage if a piece is not inside of the arena or not what it says.
    """
    tensors: Tensors = {}
    for piece in pieces:
        if piece.at < 0 or piece.size < 0 or piece.at + piece.size > arena.size:
            raise MalformedMessage(f"tensor {piece.name!r}: {piece.size} bytes at {piece.at} of {arena.size}")
        count = 1
        for length in piece.shape:
            if length < 0:
                raise MalformedMessage(f"tensor {piece.name!r} has shape {list(piece.shape)}")
            count *= length
        dtype = NUMBERS.get(piece.dtype)
        if dtype is None:
            data = arena.map[piece.at : piece.at + piece.size]
            tensors[piece.name] = unpack_texts(piece.name, piece.dtype, piece.shape, count, data)
            continue
        if count * dtype.itemsize != piece.size:
            raise MalformedMessage(
                f"tensor {piece.name!r}: {piece.size} bytes for {list(piece.shape)} of {piece.dtype}"
            )
        array = shaped(piece.name, piece.shape, np.frombuffer(arena.map, dtype, count, piece.at))
        tensors[piece.name] = array.copy() if copy else array
    return tensors


Received = tuple[int, int, int, int, int, Arena | None]
"""A frame as it came: kind, slot, sequence, offset, bytes, and the arena that it announces."""


class Peer:
    """One end of the socket: whole frames in, with the descriptors that came along; frames out."""

    __slots__ = ("_buffer", "_fds", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._buffer = b""
        self._fds: deque[int] = deque()

    def send(self, kind: int, slot: int, sequence: int, at: int, size: int, fd: int = -1) -> None:
        """Raises: OSError; also when the other side does not read, for a frame is never sent by halves."""
        if fd < 0:
            data = FRAME.pack(kind, slot, sequence, at, size)
            sent = self.sock.send(data)
        else:
            data = FRAME.pack(kind | WITH_ARENA, slot, sequence, at, size)
            sent = socket.send_fds(self.sock, [data], [fd])
        if sent != len(data):
            raise ConnectionAbortedError("the other side does not read")

    def receive(self) -> list[Received] | None:
        """The frames that have arrived, maybe none; None at the end of the connection.

        Raises: MalformedMessage; OSError.
        """
        try:
            data, control, _, _ = self.sock.recvmsg(4096, 256)
        except (BlockingIOError, InterruptedError):
            return []
        for level, kind, packed in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(packed) - len(packed) % 4
                self._fds.extend(np.frombuffer(packed[:whole], np.int32).tolist())
        if not data:
            return None
        data = self._buffer + data if self._buffer else data
        cut = len(data) // FRAME.size * FRAME.size
        self._buffer = data[cut:]
        frames: list[Received] = []
        for kind, slot, sequence, at, size in FRAME.iter_unpack(data[:cut]):
            if slot >= MOST_SLOTS:
                raise MalformedMessage(f"slot {slot}; there are {MOST_SLOTS}")
            arena = None
            if kind & WITH_ARENA:
                if not self._fds:
                    raise MalformedMessage("a frame without the arena that it announces")
                fd = self._fds.popleft()
                try:
                    arena = Arena.received(fd)
                except BaseException:
                    os.close(fd)
                    raise
                arena.close()
            frames.append((kind & 0xFF, slot, sequence, at, size, arena))
        if self._fds and not self._buffer:
            raise MalformedMessage(f"{len(self._fds)} descriptors that no frame announces")
        return frames

    def close(self) -> None:
        """Close the socket and what came over it unasked."""
        while self._fds:
            os.close(self._fds.popleft())
        self.sock.close()
