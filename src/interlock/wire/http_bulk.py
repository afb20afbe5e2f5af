"""Reads the rest of a large body of known length straight into its place, and then hands the connection back.

What `data_received` gets has been copied out of the event loop's buffer once, and joining the pieces copies
it again. Here the kernel writes where the tensor will be read.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

import numpy as np

BULK_BYTES = 64 * 1024
"""Bodies of which so much is missing come this way; below, switching costs more than the copies."""

EVEN_BYTES = 64
"""Where vectors are read fastest. A tensor whose elements lie across boundaries is copied before its use."""


class BulkBody(asyncio.BufferedProtocol):
    """The protocol of a transport while one body comes in; all else it leaves to the one before.

    `even_at` is the byte of the body that shall lie on a boundary of `EVEN_BYTES`. `progress` is told the
    bytes that each read brought, `complete` the whole body, once, when this has given the transport back.
    """

    __slots__ = ("_at", "_complete", "_progress", "_protocol", "_transport", "_view")

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        length: int,
        even_at: int,
        begun: list[bytes],
        progress: Callable[[int, float], None],
        complete: Callable[[memoryview], None],
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._progress = progress
        self._complete = complete
        # Not zeroed: the pages of what is only announced, and never sent, are never touched.
        room = np.empty(length + EVEN_BYTES, np.uint8)
        start = -(room.ctypes.data + even_at) % EVEN_BYTES
        self._view = room.data[start : start + length]
        self._at = 0
        for piece in begun:
            self._view[self._at : self._at + len(piece)] = piece
            self._at += len(piece)

    def begin(self) -> None:
        """Take the transport over."""
        self._transport.set_protocol(self)

    def give_back(self) -> None:
        """Let the protocol before hear of what comes next."""
        self._transport.set_protocol(self._protocol)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._at += nbytes
        self._progress(nbytes, monotonic())
        if self._at == len(self._view):
            self.give_back()
            self._complete(self._view)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
