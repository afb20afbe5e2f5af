"""Whatever a model does to its process, the worker and its other batches live, and the process comes back.

Past 400 lines because each way in which a model can harm its process is a test, and all need one rig.
"""

import asyncio
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from interlock.core.errors import (
    InputMismatch,
    LoadFailed,
    MemoryExhausted,
    ModelCrashed,
    OutputMismatch,
    PredictFailed,
    RequestTooLarge,
)
from interlock.core.fault import Fault
from interlock.serving import executor_arena
from interlock.serving.block import Phase
from interlock.serving.executor import NotStarted
from interlock.serving.executor_host import EXIT_HUNG, EXIT_LOAD_FAILED, EXIT_ORPHANED, reason_path
from tests.serving import executor_process as say
from tests.serving.executor_process import Executor, until

pytestmark = pytest.mark.server


@pytest.fixture
def executor(interlock_home: Path) -> Iterator[Executor]:
    executor = Executor(interlock_home)
    executor.start()
    yield executor
    executor.stop()


@pytest.mark.beside
async def test_a_batch_there_and_back(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    x[0, 0] = 0
    answer = await place.begin({"x": x})
    assert isinstance(answer, dict)
    np.testing.assert_array_equal(answer["y"], x * 2)
    # The answer outlives the next batch in the same memory.
    assert await place.works()
    np.testing.assert_array_equal(answer["y"], x * 2)
    await until(lambda: _phase(executor) is Phase.IDLE)
    block = executor.block()
    assert block is not None
    assert (block.phase, block.version_key, block.owner) == (Phase.IDLE, executor.version.key, 77)
    assert time.monotonic() - block.heartbeat_s < 5
    await place.place.close()
    assert isinstance(await place.command(say.TWICE), NotStarted)


@pytest.mark.beside
async def test_two_slots_are_two_batches_at_once_and_a_third_is_sent_back(executor: Executor) -> None:
    place = executor.place(slots=2)
    await place.connect()
    for _ in range(50):
        inputs = [{"x": np.array([[0, value]], np.float32)} for value in range(2)]
        first, second = [place.begin(tensors) for tensors in inputs]
        third = place.begin(inputs[0])
        assert isinstance(await third, NotStarted)
        answers = [await first, await second]
        assert [answer["y"].tolist() for answer in answers if isinstance(answer, dict)] == [
            [[0, 0]],
            [[0, 2]],
        ]
    await place.place.close()


@pytest.mark.beside
async def test_the_next_batch_is_offered_from_within_the_answer_to_the_last(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    finished: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answers: list[object] = []

    def done(result: object, elapsed_s: float) -> None:
        answers.append(result)
        if len(answers) == 200:
            finished.set_result(len(answers))
        else:
            place.place.run(x, ("y",), 1, time.monotonic() + 20, done)

    x = {"x": np.zeros((1, 4), np.float32)}
    place.place.run(x, ("y",), 1, time.monotonic() + 20, done)
    assert await asyncio.wait_for(finished, 20) == 200
    assert all(isinstance(answer, dict) for answer in answers)
    await place.place.close()


@pytest.mark.beside
async def test_large_tensors_grow_the_arenas_both_ways(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    for columns in (150_000, 10, 5_000_000):
        x = np.random.default_rng(0).random((1, columns), np.float32)
        answer = await place.begin({"x": x})
        assert isinstance(answer, dict)
        np.testing.assert_array_equal(answer["y"], x * 2)
    large = np.array([[say.LARGE, 7.5]], np.float32)
    answer = await place.begin({"x": large})
    assert isinstance(answer, dict)
    assert answer["y"].shape == (1, 1 << 20)
    assert float(answer["y"].min()) == float(answer["y"].max()) == 7.5
    await place.place.close()


@pytest.mark.beside
@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        (say.RAISE, PredictFailed, "ValueError: row 0 is poison"),
        (say.SYSTEM_EXIT, PredictFailed, "SystemExit"),
        (say.WRONG, OutputMismatch, "list"),
        (say.HUGE, OutputMismatch, "too large"),
        (say.NUMPY_GROW, MemoryExhausted, "memory"),
    ],
)
async def test_a_fault_of_the_model_is_its_batchs_alone(
    executor: Executor, command: int, error: type[Exception], words: str
) -> None:
    place = executor.place()
    await place.connect()
    answer = await place.command(command)
    assert isinstance(answer, error)
    assert words in str(answer)
    assert await place.works()
    assert executor.process is not None and executor.process.poll() is None
    assert place.news == []
    await place.place.close()


async def test_allocating_without_end_costs_its_batch_only(interlock_home: Path) -> None:
    executor = Executor(interlock_home, memory_limit_bytes=400 * 1024**2)
    executor.start()
    try:
        place = executor.place()
        await place.connect()
        for _ in range(3):
            answer = await place.command(say.GROW)
            assert isinstance(answer, MemoryExhausted)
            assert str(answer) == (
                "the model wants more memory than it may have: its process has 400 MiB; send fewer rows,"
                " or raise executor_memory_bytes in the app file"
            )
            assert await place.works()
        await place.place.close()
    finally:
        executor.stop()


@pytest.mark.parametrize(("command", "code"), [(say.EXIT, 9), (say.KILL, -signal.SIGKILL)])
async def test_death_in_predict_fails_that_batch_and_the_place_comes_back(
    executor: Executor, command: int, code: int
) -> None:
    place, neighbour = executor.place(owner=1), executor.place(owner=2)
    await place.connect()
    await neighbour.connect()
    answer = await place.command(command)
    assert isinstance(answer, ModelCrashed)
    assert executor.wait() == code
    block = executor.block()
    assert block is not None
    assert (block.phase, block.owner, block.requests) == (Phase.RUNNING, 1, 1)
    held = place.command(say.TWICE)  # waits for the next incarnation
    executor.start()
    assert isinstance(await asyncio.wait_for(held, 20), dict)
    await until(lambda: neighbour.place.connected)
    assert await neighbour.works()
    assert [connected for connected, _ in neighbour.news] == [False, True]
    await place.place.close()
    await neighbour.place.close()


async def test_a_batch_that_was_not_begun_is_said_to_be_so(executor: Executor) -> None:
    place, neighbour = executor.place(owner=1), executor.place(owner=2)
    await place.connect()
    await neighbour.connect()
    running = place.command(say.SLEEP)
    await until(lambda: _phase(executor) is Phase.RUNNING)
    waiting = neighbour.command(say.TWICE)
    assert executor.process is not None
    executor.process.kill()
    assert isinstance(await running, ModelCrashed)
    assert isinstance(await waiting, NotStarted)
    await place.place.close()
    await neighbour.place.close()


def _phase(executor: Executor) -> Phase | None:
    block = executor.block()
    return block.phase if block else None


async def test_a_batch_that_waits_behind_another_is_not_hung(executor: Executor) -> None:
    place, neighbour = executor.place(owner=1), executor.place(owner=2)
    await place.connect()
    await neighbour.connect()
    slow = place.command(say.SLOW)
    await until(lambda: _phase(executor) is Phase.RUNNING)
    assert isinstance(await neighbour.command(say.TWICE, kill_after_s=0.1), dict)
    assert isinstance(await slow, dict)
    await place.place.close()
    await neighbour.place.close()


async def test_a_hung_batch_is_killed_and_the_next_is_served(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    answer = await place.command(say.SLEEP, kill_after_s=0.3)
    assert isinstance(answer, ModelCrashed)
    assert "in time" in str(answer)
    assert executor.wait() == EXIT_HUNG
    executor.start()
    assert await place.works()
    await place.place.close()


async def test_a_hang_that_holds_the_interpreters_lock_ends_too(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    answer = await place.command(say.HOLD_THE_LOCK, kill_after_s=0.2)
    assert isinstance(answer, ModelCrashed)
    assert executor.wait() == -signal.SIGALRM
    block = executor.block()
    assert block is not None
    assert block.phase is Phase.RUNNING
    assert 0 < block.kill_at_s < time.monotonic()
    await place.place.close()


async def test_a_slow_batch_within_its_time_is_not_killed_later(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    assert isinstance(await place.command(say.SLOW, kill_after_s=0.6), dict)
    quiet_until_s = time.monotonic() + 2.0  # past the thread's limit and the kernel timer's
    await until(lambda: time.monotonic() > quiet_until_s)
    assert await place.works()
    assert place.news == []
    await place.place.close()


@pytest.mark.beside
async def test_a_forked_child_does_not_hide_its_parents_death(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    assert isinstance(await place.command(say.FORK), dict)
    answer = await asyncio.wait_for(place.command(say.EXIT), 10)
    assert isinstance(answer, ModelCrashed)
    await place.place.close()


@pytest.mark.beside
async def test_what_the_model_prints_goes_to_the_log_and_a_closed_stdout_harms_nothing(
    executor: Executor,
) -> None:
    place = executor.place()
    await place.connect()
    assert isinstance(await place.command(say.PRINT), dict)
    assert "said by the model" in executor.log.read_text()
    assert isinstance(await place.command(say.CLOSE_STDOUT), dict)
    assert isinstance(await place.command(say.PRINT), PredictFailed)
    assert await place.works()
    assert executor.process is not None
    executor.process.terminate()
    await place.place.close()
    assert executor.wait() == 0


@pytest.mark.beside
async def test_who_is_told_to_leave_answers_until_its_workers_have_left(executor: Executor) -> None:
    """Each has its own time at which it reads that the version goes, and what it has sent until then."""
    early, late = executor.place(), executor.place()
    await early.connect()
    await late.connect()
    running = late.command(say.SLOW)
    await until(lambda: _phase(executor) is Phase.RUNNING)
    assert executor.process is not None
    executor.process.terminate()
    await early.place.close()
    assert isinstance(await running, dict)
    for _ in range(20):
        assert await late.works()
    assert executor.process.poll() is None
    await late.place.close()
    assert executor.wait() == 0


@pytest.mark.beside
async def test_a_worker_that_does_not_leave_holds_nobody_up_for_ever(interlock_home: Path) -> None:
    executor = Executor(interlock_home)
    executor.linger_s = 0.5
    executor.start()
    try:
        place = executor.place()
        await place.connect()
        running = place.command(say.SLOW)
        await until(lambda: _phase(executor) is Phase.RUNNING)
        assert executor.process is not None
        executor.process.terminate()
        assert isinstance(await running, dict)
        assert executor.wait() == 0
        await place.place.close()
    finally:
        executor.stop()


@pytest.mark.beside
async def test_an_orphan_finishes_its_batch_and_leaves(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    running = place.command(say.SLOW)
    await until(lambda: _phase(executor) is Phase.RUNNING)
    executor.cut_lifeline()
    assert isinstance(await running, dict)
    assert executor.wait() == 0
    await place.place.close()


async def test_an_orphan_whose_batch_does_not_end_leaves_all_the_same(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    running = place.command(say.SLEEP)
    await until(lambda: _phase(executor) is Phase.RUNNING)
    executor.cut_lifeline()
    assert isinstance(await running, ModelCrashed)
    assert executor.wait() == EXIT_ORPHANED
    await place.place.close()


@pytest.mark.beside
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('no weights')\n", "no weights"),
        ("class Model:\n    def predict(self, inputs):\n        raise KeyError('cold')\n", "cold"),
        ("raise SystemExit(4)\n", "SystemExit"),
    ],
)
async def test_a_load_that_fails_says_why(interlock_home: Path, source: str, words: str) -> None:
    executor = Executor(interlock_home, source)
    executor.start()
    try:
        with pytest.raises(LoadFailed, match=words):
            await executor.place().connect()
        assert executor.wait() == EXIT_LOAD_FAILED
        assert words in reason_path(executor.path).read_text()
        with pytest.raises(LoadFailed, match=words):  # it has ended; the reason is still known
            await executor.place().connect(within_s=0.1)
    finally:
        executor.stop()


@pytest.mark.beside
async def test_other_bytes_than_registered_are_not_loaded(interlock_home: Path) -> None:
    executor = Executor(interlock_home)
    (interlock_home / "artifacts" / executor.version.digest[7:] / "extra.py").write_text("evil = 1")
    executor.start()
    try:
        with pytest.raises(LoadFailed, match="registered as sha256"):
            await executor.place().connect()
    finally:
        executor.stop()


@pytest.mark.beside
async def test_a_fault_is_loaded_of_no_model_but_a_self_tests(interlock_home: Path) -> None:
    executor = Executor(interlock_home)
    for model, words in (("m", "only a self-test's own model may have"), ("m:selftest", "")):
        executor.be(replace(executor.version, model=model, fault=Fault("fail", 1.0)))
        executor.start()
        try:
            place = executor.place()
            if words:
                with pytest.raises(LoadFailed, match=words):
                    await place.connect()
                continue
            await place.connect()  # the warm-up has not met the fault
            failed = await place.command(say.TWICE)
            assert isinstance(failed, PredictFailed) and "FaultInjected" in failed.message
            await place.place.close()
        finally:
            executor.stop()


@pytest.mark.beside
async def test_loading_leaves_the_artifact_as_it_was(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    files = [path.name for path in (executor.home / "artifacts").rglob("*") if path.is_file()]
    assert files == ["model.py"]
    await place.place.close()


async def test_killed_while_it_loads_is_loaded_by_the_next(interlock_home: Path) -> None:
    source = "import pathlib, time\nmark = pathlib.Path(__file__).parents[2] / 'slow'\n"
    source += "while mark.exists():\n    time.sleep(0.01)\n" + say.MODEL
    executor = Executor(interlock_home, source)
    (interlock_home / "slow").touch()
    executor.start()
    try:
        place = executor.place()
        connecting = asyncio.create_task(place.connect())
        await until(lambda: _phase(executor) is Phase.LOADING)
        executor.stop()
        block = executor.block()
        assert block is not None
        assert (block.phase, block.version_key) == (Phase.LOADING, executor.version.key)
        (interlock_home / "slow").unlink()
        executor.start()
        await connecting
        assert await place.works()
        await place.place.close()
    finally:
        executor.stop()


@pytest.mark.beside
async def test_no_executor_is_an_error_at_the_deadline(interlock_home: Path) -> None:
    with pytest.raises(LoadFailed, match="until the deadline"):
        await Executor(interlock_home).place().connect(within_s=0.05)


async def test_a_held_batch_is_given_up_at_its_time(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    executor.stop()
    await until(lambda: not place.place.connected)
    assert isinstance(await place.command(say.TWICE, kill_after_s=0.05), NotStarted)
    held = place.command(say.TWICE)
    await place.place.close()
    assert isinstance(await held, NotStarted)


@pytest.mark.beside
async def test_inputs_that_cannot_be_sent(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    place = executor.place()
    await place.connect()
    objects = np.array([[object()]], np.object_)
    assert isinstance(await place.begin({"x": objects}), InputMismatch)
    monkeypatch.setattr(executor_arena, "MOST_BYTES", 100_000)
    assert isinstance(await place.begin({"x": np.zeros((1, 100_000), np.float32)}), RequestTooLarge)
    assert await place.works()
    await place.place.close()


@pytest.mark.beside
async def test_a_wild_worker_harms_neither_the_executor_nor_its_neighbour(executor: Executor) -> None:
    place = executor.place()
    await place.connect()
    random = np.random.default_rng(1)
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as wild:
            wild.connect(str(executor.path))
            arena = executor_arena.Arena.new(4096)
            arena.map[:] = random.bytes(4096)
            frame = executor_arena.FRAME.pack(
                int(random.integers(0, 8)) | executor_arena.WITH_ARENA, 0, 1, int(random.integers(5000)), 99
            )
            socket.send_fds(wild, [frame + random.bytes(50)], [arena.fd, arena.fd])
            wild.settimeout(10)
            assert wild.recv(100) == b""  # given up, without a word
            arena.close()
    assert await place.works()
    await place.place.close()


async def test_connections_leak_neither_descriptors_nor_memory(executor: Executor) -> None:
    assert executor.process is not None
    executors_fds = Path(f"/proc/{executor.process.pid}/fd")

    async def once() -> None:
        place = executor.place()
        await place.connect()
        assert await place.works()
        assert isinstance(await place.begin({"x": np.zeros((1, 100_000), np.float32)}), dict)
        await place.place.close()

    for _ in range(20):
        await once()
    gc.collect()
    await until(lambda: _sockets(executors_fds) == 1)
    ours, theirs = len(os.listdir("/proc/self/fd")), len(os.listdir(executors_fds))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(180):
        await once()
    gc.collect()
    await until(lambda: _sockets(executors_fds) == 1)
    assert len(os.listdir("/proc/self/fd")) <= ours + 1
    assert len(os.listdir(executors_fds)) <= theirs + 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < resident + 20 * 1024


def _sockets(folder: Path) -> int:
    count = 0
    for entry in folder.iterdir():
        try:
            count += os.readlink(entry).startswith("socket:")
        except FileNotFoundError:
            continue
    return count
