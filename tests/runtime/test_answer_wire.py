"""Tensors survive the messages to the process that answers offline, and wild heads are refused."""

import numpy as np
import pytest

from interlock.core.errors import MalformedMessage
from interlock.runtime.answer_wire import Piece, pack, unpack


def test_tensors_survive() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {
        "turned": base.T,
        "big": base.astype(">f8"),
        "none": base[:0],
        "b": np.array([[b"a", b"\xff"]], object),
        "s": np.array(["ä", "b"], object),
        "u": np.array([["x"]]),
    }
    pieces, body = pack(tensors)
    back = unpack(pieces, memoryview(b"".join(body)))
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        assert back[name].shape == array.shape and back[name].tolist() == array.tolist()
    with pytest.raises(TypeError, match="tensor 'c' has dtype complex128"):
        pack({"c": np.zeros(1, complex)})


@pytest.mark.parametrize(
    "piece",
    [
        Piece("x", "<f4", (4,), 12),
        Piece("x", "<f4", (-1,), 4),
        Piece("x", "<f4", (8,), 32),
        Piece("x", "<f4", (4,), -16),
        Piece("x", "<f4", (0,) * 65, 0),
        Piece("x", "<f4", (0, 2**70), 0),
        Piece("x", "|O", (2,), 16),
        Piece("x", "bytes", (4,), 16),
        Piece("x", "bytes", (2**62,), 16),
    ],
    ids=str,
)
def test_wild_pieces_are_refused(piece: Piece) -> None:
    with pytest.raises(MalformedMessage, match="tensor 'x'"):
        unpack((piece,), memoryview(b"\xff" * 16))
