"""Outlet: sends the parts of one stream out of an executor, `AHEAD` of them before the worker has read one.

Each part goes into an arena of its own, in turn: an arena is written again only after the worker has said
that it took the part in it. That bounds the memory, and makes a slow reader the model's brake.
"""

import select

import msgspec

from interlock.core.errors import ConfigError, MalformedMessage
from interlock.core.model import Tensors
from interlock.serving.executor_arena import (
    CANCEL,
    PART,
    TAKEN,
    Arena,
    Done,
    Peer,
    Received,
    TooLarge,
    Trouble,
    layout,
    room,
    write,
)
from interlock.serving.executor_model import exhausted

_encoder = msgspec.msgpack.Encoder()


class Outlet:
    """One stream under way. `arenas` are `AHEAD` places for arenas, kept from stream to stream; frames that
    come meanwhile and are not for this stream are appended to `frames`."""

    def __init__(
        self, peer: Peer, arenas: list[Arena | None], slot: int, sequence: int, frames: list[Received]
    ) -> None:
        self._peer = peer
        self._arenas = arenas
        self._slot = slot
        self._sequence = sequence
        self._frames = frames
        self._sent = 0
        self._taken = 0
        # The caller may have left before the model began.
        self._is_cancelled = any(frame[:3] == (CANCEL, slot, sequence) for frame in frames)
        self._poll = select.poll()
        self._poll.register(peer.sock, select.POLLIN)

    @property
    def is_full(self) -> bool:
        """Whether the worker has to take a part before the next one may be made."""
        return self._sent - self._taken >= len(self._arenas)

    def is_wanted(self) -> bool:
        """Whether the caller is still there. Raises: MalformedMessage, OSError: the worker is not."""
        self._listen(0)
        return not self._is_cancelled

    def wait(self) -> None:
        """Until the worker says something. Raises: MalformedMessage, OSError."""
        self._listen(None)

    def send(self, part: Tensors, elapsed_s: float) -> Trouble | None:
        """Hand one part out; returns why that is impossible. Raises: OSError."""
        index = self._sent % len(self._arenas)
        try:
            pieces, sources, end = layout(part)
            head = _encoder.encode(Done(pieces, elapsed_s))
            fresh = room(self._arenas[index], end + len(head))
        except TooLarge as error:
            return Trouble("OutputMismatch", f"a part is too large: {error}")
        except ConfigError as error:
            return Trouble("OutputMismatch", f"a part cannot be sent: {error}")
        except MemoryError as error:
            return exhausted("no memory for a part", error)
        arena = fresh or self._arenas[index]
        assert arena is not None
        self._arenas[index] = arena
        write(arena, pieces, sources, end, head)
        self._peer.send(PART, self._slot, self._sequence, end, len(head), fresh.fd if fresh else -1)
        if fresh is not None:
            fresh.close()
        self._sent += 1
        return None

    def _listen(self, wait_ms: float | None) -> None:
        for _, event in self._poll.poll(wait_ms):
            if event & select.POLLHUP:
                raise ConnectionAbortedError("the worker went away in a stream")
            received = self._peer.receive()
            if received is None:
                raise ConnectionAbortedError("the worker left in a stream")
            for frame in received:
                if frame[1:3] == (self._slot, self._sequence) and frame[0] == TAKEN:
                    self._taken += 1
                elif frame[1:3] == (self._slot, self._sequence) and frame[0] == CANCEL:
                    self._is_cancelled = True
                else:
                    self._frames.append(frame)
        if self._taken > self._sent:
            raise MalformedMessage(f"{self._taken} parts taken of {self._sent}")
