"""Letters between real ends of a real socket: latest wins, control comes and goes, strangers are survived."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from interlock.app.link import LETTER_BYTES, LetterClient, LetterServer, write_atomically
from interlock.core.letters import SCHEMA, Desired, Report, encode, letters_socket
from interlock.wire.http import new_loop


class Process:
    """A process of the node that only exchanges letters."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.got: list[int] = []
        self.sent = 0
        self.file = home / "run" / f"{name}.desired.json"
        self.client = LetterClient(letters_socket(home), self.file, self.report, self.take)

    def report(self) -> Report:
        self.sent += 1
        seen = self.got[-1] if self.got else 0
        return Report("local", self.name, 1, 2, seen, seen, True)

    def take(self, desired: Desired) -> None:
        self.got.append(desired.revision)


class Control:
    """The other end, with what it heard."""

    def __init__(self, home: Path) -> None:
        self.heard: list[Report] = []
        self.gone: list[str] = []
        self.server = LetterServer(letters_socket(home), self.heard.append, self.gone.append)


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)


def heard(control: Control, revision: int) -> bool:
    return any(report.revision == revision for report in control.heard)


@contextlib.asynccontextmanager
async def running(process: Process) -> AsyncIterator[None]:
    task = asyncio.create_task(process.client.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_each_process_gets_the_latest_and_control_hears_its_report(tmp_path: Path) -> None:
    control = Control(tmp_path)
    await control.server.start()
    control.server.publish(Desired("local", 5))
    a, b = Process(tmp_path, "worker-0"), Process(tmp_path, "worker-1")
    async with running(a), running(b):
        await until(lambda: a.got == [5] and b.got == [5])
        control.server.publish(Desired("local", 6))
        await until(lambda: {r.process for r in control.heard if r.revision == 6} == {"worker-0", "worker-1"})
    await until(lambda: sorted(control.gone) == ["worker-0", "worker-1"])
    await control.server.close()


async def test_a_desired_is_on_disk_before_it_is_carried_out_and_is_found_by_the_next_start(
    tmp_path: Path,
) -> None:
    control = Control(tmp_path)
    await control.server.start()
    control.server.publish(Desired("local", 7))
    first = Process(tmp_path, "worker-0")
    on_disk: list[bool] = []
    first.take = lambda desired: on_disk.append(first.file.exists())  # type: ignore[method-assign]
    first.client = LetterClient(letters_socket(tmp_path), first.file, first.report, first.take)
    assert first.client.load_last() is None
    async with running(first):
        await until(lambda: on_disk == [True])
    again = Process(tmp_path, "worker-0")
    last = again.client.load_last()
    assert last is not None and last.revision == 7
    async with running(again):
        await until(lambda: again.sent >= 1)
        control.server.publish(Desired("local", 6))
        control.server.publish(Desired("local", 8))
        await until(lambda: bool(again.got))
    assert again.got == [8], "7 was known and 6 is older"
    await control.server.close()


async def test_a_last_desired_that_is_broken_or_too_new_counts_as_none(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-0")
    for content in (b"", b'{"node":', encode(Desired("local", 9, schema=SCHEMA + 1))):
        write_atomically(process.file, content)
        assert process.client.load_last() is None


async def test_control_goes_and_comes_back_and_the_process_finds_it(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-0")
    async with running(process):
        for revision in (1, 2, 3):
            control = Control(tmp_path)
            await control.server.start()
            control.server.publish(Desired("local", revision))
            await until(partial(heard, control, revision))
            await control.server.close()
    assert process.got == [1, 2, 3]


@pytest.mark.slow
def test_a_line_that_breaks_while_a_report_is_due_is_connected_again(tmp_path: Path) -> None:
    """On the workers' own loop, whose closed transports raise what no OSError is."""
    path = letters_socket(tmp_path)
    path.parent.mkdir(parents=True)
    process = Process(tmp_path, "worker-0")

    async def wish(task: asyncio.Task[None]) -> None:
        while not task.done():
            process.client.send_soon()
            await asyncio.sleep(0)

    async def many_breaks() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            task = asyncio.create_task(process.client.run())
            wishes = asyncio.create_task(wish(task))
            for turn in range(60):
                accept = asyncio.create_task(asyncio.get_running_loop().sock_accept(listener))
                await asyncio.wait((accept, task), return_when=asyncio.FIRST_COMPLETED)
                assert not task.done(), task.exception()
                line, _ = accept.result()
                line.setblocking(False)
                for _ in range(turn % 7):
                    await asyncio.get_running_loop().sock_recv(line, 1 << 20)
                line.close()
            task.cancel()
            await asyncio.gather(task, wishes, return_exceptions=True)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(many_breaks(), 30.0))


async def test_many_wishes_to_report_make_one_report(tmp_path: Path) -> None:
    control = Control(tmp_path)
    await control.server.start()
    process = Process(tmp_path, "worker-0")
    async with running(process):
        await until(lambda: bool(control.heard))
        before = process.sent
        for _ in range(100):
            process.client.send_soon()
        await until(lambda: len(control.heard) > before)
        assert process.sent == before + 1
    await control.server.close()


async def test_a_stranger_on_the_socket_and_a_desired_of_the_future_harm_nobody(tmp_path: Path) -> None:
    control = Control(tmp_path)
    await control.server.start()
    process = Process(tmp_path, "worker-0")
    async with running(process):
        await until(lambda: bool(control.heard))
        for junk in (b"hello\n", b"{}\n", b"\xff" * 100, b"x" * (LETTER_BYTES + 2)):
            _, writer = await asyncio.open_unix_connection(str(letters_socket(tmp_path)))
            with contextlib.suppress(OSError):
                writer.write(junk)
                await writer.drain()
            writer.close()
        control.server.publish(Desired("local", 3, schema=SCHEMA + 1))
        control.server.publish(Desired("local", 2))
        await until(lambda: process.got == [2])
    assert control.gone in ([], ["worker-0"])
    await control.server.close()


async def test_a_desired_that_cannot_be_saved_is_carried_out_all_the_same(tmp_path: Path) -> None:
    control = Control(tmp_path)
    await control.server.start()
    process = Process(tmp_path, "worker-0")
    process.file.mkdir(parents=True)
    async with running(process):
        control.server.publish(Desired("local", 2))
        await until(lambda: process.got == [2])
    await control.server.close()


async def test_one_that_fails_to_carry_out_a_desired_goes_on_listening(tmp_path: Path) -> None:
    control = Control(tmp_path)
    await control.server.start()
    process = Process(tmp_path, "worker-0")

    def take(desired: Desired) -> None:
        process.got.append(desired.revision)
        if desired.revision == 2:
            raise msgspec.ValidationError("a plant")

    process.client = LetterClient(letters_socket(tmp_path), process.file, process.report, take)
    async with running(process):
        control.server.publish(Desired("local", 2))
        await until(lambda: process.got == [2])
        control.server.publish(Desired("local", 3))
        await until(lambda: process.got == [2, 3])
    await control.server.close()
