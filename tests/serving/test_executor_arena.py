"""Tensors survive the shared memory, and nothing that the other side writes there hurts its reader."""

import asyncio
import os
import socket
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from interlock.core.errors import ConfigError, InterlockError, LoadFailed, MalformedMessage, ModelCrashed
from interlock.core.model import DATATYPES, Tensors, Version
from interlock.serving import executor_arena
from interlock.serving.executor import ExecutorPlace, NotStarted
from interlock.serving.executor_arena import (
    DONE,
    FRAME,
    READY,
    WITH_ARENA,
    Arena,
    Done,
    Piece,
    TooLarge,
    Trouble,
    layout,
    read,
    read_head,
    room,
    write,
)
from tests.serving.executor_process import SIGNATURE, until

X = {"x": np.ones((1, 4), np.float32)}
PLAIN = [dtype for dtype in set(DATATYPES.values()) if dtype != np.dtype(np.object_)]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


def there_and_back(tensors: Tensors, copy: bool = True) -> Tensors:
    pieces, sources, end = layout(tensors)
    arena = room(None, end + 5)
    assert arena is not None
    write(arena, pieces, sources, end, b"hello")
    assert read_head(arena, end, 5) == b"hello"
    other = Arena.received(os.dup(arena.fd))
    answer = read(other, pieces, copy)
    arena.close()
    other.close()
    return answer


@given(st.lists(st.sampled_from(PLAIN).flatmap(lambda d: hnp.arrays(d, SHAPES)), max_size=4), st.booleans())
def test_numbers_survive(arrays: list[np.ndarray], copy: bool) -> None:
    tensors = {f"t{index}": array for index, array in enumerate(arrays)}
    answer = there_and_back(tensors, copy)
    assert list(answer) == list(tensors)
    for name, array in tensors.items():
        assert answer[name].dtype == array.dtype
        assert answer[name].shape == array.shape
        assert answer[name].tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=8) | st.lists(st.text(max_size=9), min_size=1, max_size=8))
def test_strings_survive_with_their_kind(items: list[bytes] | list[str]) -> None:
    array = np.empty((len(items), 1), np.object_)
    array[:, 0] = items
    answer = there_and_back({"s": array})["s"]
    assert answer.shape == array.shape
    assert answer.ravel().tolist() == items


def test_what_is_not_laid_out_like_the_wire() -> None:
    base = np.arange(40_000, dtype=np.float32).reshape(100, 400)
    tensors = {"strided": base[::2, ::3], "turned": base.T, "big": base.astype(">f4")}
    answer = there_and_back(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(answer[name], array)
    answer = there_and_back(
        {"u": np.array([["é", "b"]]), "s": np.array([b"xy"]), "mixed": _objects("a", b"b")}
    )
    assert answer["u"].tolist() == [["é", "b"]]
    assert answer["s"].tolist() == [b"xy"]
    assert answer["mixed"].tolist() == [b"a", b"b"]


def _objects(*items: object) -> np.ndarray:
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.zeros(1, "M8[s]"), _objects(1, None)])
def test_what_the_protocol_cannot_carry(array: np.ndarray) -> None:
    with pytest.raises(ConfigError):
        layout({"x": array})


def test_an_arena_has_a_limit_and_shrinks_after_a_quiet_time(monkeypatch: pytest.MonkeyPatch) -> None:
    large = room(None, 17 * 1024**2)
    assert large is not None
    assert room(large, 17 * 1024**2) is None
    answers = [room(large, 1000) for _ in range(65)]
    assert answers[:64] == [None] * 64
    assert answers[64] is not None and answers[64].size == executor_arena.SMALLEST_BYTES
    with pytest.raises(TooLarge, match="1073741824"):
        room(None, executor_arena.MOST_BYTES + 1)


def test_an_arena_that_could_be_cut_is_refused(tmp_path: Path) -> None:
    fd = os.memfd_create("loose")
    os.ftruncate(fd, 4096)
    with pytest.raises(MalformedMessage, match="cut"):
        Arena.received(fd)
    os.ftruncate(fd, 0)
    with pytest.raises(MalformedMessage, match="0 bytes"):
        Arena.received(fd)
    os.close(fd)
    sealed = Arena.new(4096)
    with pytest.raises(PermissionError):
        os.ftruncate(sealed.fd, 0)
    sealed.close()


WILD = [
    Piece("x", "<f4", (1, 4), 4090, 16),
    Piece("x", "<f4", (1, 4), -64, 16),
    Piece("x", "<f4", (1, -4), 64, 16),
    Piece("x", "<f4", (1, 4), 64, 12),
    Piece("x", "<f4", (0,) * 65, 64, 0),
    Piece("x", "<f4", (0, 2**70), 64, 0),
    Piece("x", "|O8", (1,), 64, 8),
    Piece("x", "bytes", (2**62,), 64, 100),
    Piece("x", "bytes", (4,), 64, 17),
    Piece("x", "str", (1,), 64, 2**40),
]


@pytest.mark.parametrize("piece", WILD, ids=str)
def test_wild_pieces_are_refused(piece: Piece) -> None:
    arena = Arena.new(4096)
    arena.map[64:128] = b"\xff" * 64
    with pytest.raises(MalformedMessage):
        read(arena, (piece,), copy=True)
    with pytest.raises(MalformedMessage):
        read_head(arena, 2**63, 2**63)
    arena.close()


class WildExecutor:
    """Greets well, then answers each batch with whatever bytes the test wants."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.path = path

    async def serve_one(self, answer: bytes, fds: list[int], begin: bool = True) -> None:
        """One connection: greeting, one batch, one answer, goodbye."""
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(self.listener)
        sock.setblocking(True)
        with sock:
            _, (hello, *_), _, _ = socket.recv_fds(sock, FRAME.size, 1)
            inputs = Arena.received(hello)
            arena = Arena.new(4096)
            head = msgspec.msgpack.encode(Trouble("", ""))
            arena.map[64 : 64 + len(head)] = head
            frame = FRAME.pack(READY | WITH_ARENA, 0, 0, 64, len(head))
            socket.send_fds(sock, [frame], [arena.fd])
            arena.close()
            sock.setblocking(False)
            readable = asyncio.Event()
            loop.add_reader(sock.fileno(), readable.set)
            await readable.wait()
            loop.remove_reader(sock.fileno())
            sock.recv(FRAME.size)  # small enough for the arena of the greeting
            if begin:
                inputs.began = 1
            inputs.close()
            if fds:
                socket.send_fds(sock, [answer], fds)
            elif answer:
                sock.send(answer)


def _answer(head: bytes) -> tuple[bytes, list[int]]:
    arena = Arena.new(4096)
    arena.map[64 : 64 + len(head)] = head
    return FRAME.pack(DONE | WITH_ARENA, 0, 1, 64, len(head)), [arena.fd]


def _wild_answers() -> dict[str, tuple[bytes, list[int]]]:
    loose = os.memfd_create("loose")
    return {
        "nothing": (b"", []),
        "half a frame": (FRAME.pack(DONE, 0, 1, 64, 5)[:7], []),
        "unknown kind": (FRAME.pack(77, 0, 1, 64, 0), []),
        "unknown slot": (FRAME.pack(DONE, 3, 1, 64, 0), []),
        "slot out of range": (FRAME.pack(DONE, 2**31, 1, 64, 0), []),
        "another batch": (FRAME.pack(DONE, 0, 99, 64, 0), []),
        "outside of the arena": (FRAME.pack(DONE, 0, 1, 2**63, 2**62), []),
        "not msgpack": _answer(b"\xc1\xc1"),
        "wild piece": _answer(msgspec.msgpack.encode(Done((WILD[0],), 0.0))),
        "wrong types": _answer(msgspec.msgpack.encode([[["x", 1, 2, 3, 4]], "soon"])),
        "an empty arena": (FRAME.pack(DONE | WITH_ARENA, 0, 1, 64, 0), [loose]),
        "no arena": (FRAME.pack(DONE | WITH_ARENA, 0, 1, 64, 0), []),
        "arenas unasked": (FRAME.pack(DONE, 0, 1, 64, 0), [loose, loose, loose]),
        "a second greeting": (FRAME.pack(READY, 0, 0, 64, 3), []),
    }


@pytest.mark.parametrize("name", list(_wild_answers()))
async def test_a_wild_executor_fails_its_batch_and_nothing_else(tmp_path: Path, name: str) -> None:
    answer, fds = _wild_answers()[name]
    executor = WildExecutor(tmp_path / "x.sock")
    place = ExecutorPlace(executor.path, Version("m", "1", "sha256:" + "0" * 64, "p", "", SIGNATURE), owner=1)
    serving = asyncio.create_task(executor.serve_one(answer, fds))
    await place.connect(time.monotonic() + 10)
    results: list[Tensors | InterlockError] = []
    place.run(X, None, 1, time.monotonic() + 10, lambda result, _: results.append(result))
    await serving
    await until(lambda: results)
    assert isinstance(results[0], ModelCrashed)
    ended = name in ("nothing", "half a frame")
    assert ("it ended" if ended else "cannot be understood") in results[0].message
    serving = asyncio.create_task(executor.serve_one(b"", [], begin=False))
    await until(lambda: place.connected)
    place.run(X, None, 1, time.monotonic() + 10, lambda result, _: results.append(result))
    await serving
    await until(lambda: len(results) == 2)
    assert isinstance(results[1], NotStarted)
    await place.close()
    executor.listener.close()
    for fd in set(fds):
        os.close(fd)


async def test_a_listener_that_never_speaks_is_an_error_at_the_deadline(tmp_path: Path) -> None:
    executor = WildExecutor(tmp_path / "x.sock")
    place = ExecutorPlace(executor.path, Version("m", "1", "sha256:" + "0" * 64, "p", "", SIGNATURE), owner=1)
    with pytest.raises(LoadFailed, match="still loading"):
        await place.connect(time.monotonic() + 0.1)
    await place.close()
    executor.listener.close()
