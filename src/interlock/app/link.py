"""Owns the line between the planes: letters as lines of JSON over the node's Unix socket, both ends."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from interlock.app.logs import fields
from interlock.core.errors import SchemaTooNew
from interlock.core.letters import Desired, Report, decode_desired, decode_report, encode

log = logging.getLogger("interlock.link")

LETTER_BYTES = 32 * 1024 * 1024
"""The longest letter either end reads: about 10,000 versions with their signatures."""

REPORT_EVERY_S = 1.0
BACKOFF_S = (0.02, 0.5)
"""First and longest pause before connecting again."""


class LetterClient:
    """A process's end: keeps the last Desired on disk, reports, and reconnects for ever.

    Runs on one event loop. `report` is called whenever a Report is due; `on_desired` for each Desired whose
    revision is above all those seen, after it is on disk. Neither may block.
    """

    def __init__(
        self,
        path: Path,
        desired_file: Path,
        report: Callable[[], Report],
        on_desired: Callable[[Desired], None],
    ) -> None:
        self._path = path
        self._file = desired_file
        self._report = report
        self._on_desired = on_desired
        self._seen = -1
        self._wake = asyncio.Event()

    def load_last(self) -> Desired | None:
        """The Desired that this process had when it last ran; None when there is none that can be read."""
        try:
            desired = decode_desired(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, SchemaTooNew) as error:
            log.warning("the last Desired cannot be used", extra=fields(file=self._file, error=str(error)))
            return None
        self._seen = max(self._seen, desired.revision)
        return desired

    def send_soon(self) -> None:
        """Report at the next turn of the loop; any number of calls before it make one Report."""
        self._wake.set()

    async def run(self) -> None:
        """Connect, exchange letters, reconnect; until cancelled."""
        pause_s = BACKOFF_S[0]
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path), limit=LETTER_BYTES)
            except OSError:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, BACKOFF_S[1])
                continue
            pause_s = BACKOFF_S[0]
            # No TaskGroup: one whose tasks fail just when it is cancelled tells of their errors alone.
            both = asyncio.create_task(self._send(writer)), asyncio.create_task(self._receive(reader))
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                ends = await asyncio.gather(*both, return_exceptions=True)
                writer.close()
            errors = [end for end in ends if isinstance(end, Exception)]
            for error in errors:
                if not isinstance(error, OSError):
                    raise error
            log.info("control is away; going on without it", extra=fields(error=str(errors[0])))
            await asyncio.sleep(pause_s)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        while True:
            self._wake.clear()
            if (
                writer.is_closing()
            ):  # uvloop's transport would raise RuntimeError, if we saw it before the reader
                raise ConnectionResetError("the line is closed")
            writer.write(encode(self._report()) + b"\n")
            await writer.drain()
            try:
                async with asyncio.timeout(REPORT_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        while True:
            line = await _read_letter(reader)
            try:
                desired = decode_desired(line)
            except (msgspec.MsgspecError, SchemaTooNew) as error:
                log.error("a Desired was not applied", extra=fields(error=str(error)))
                continue
            if desired.revision <= self._seen:
                continue
            try:
                await asyncio.to_thread(write_atomically, self._file, line)
            except OSError as error:
                # A full disk must not stop a rollback; only a restart without control would miss it.
                log.error("the last Desired was not saved", extra=fields(file=self._file, error=str(error)))
            self._seen = desired.revision
            try:
                self._on_desired(desired)
            except Exception:
                log.exception("a Desired was not carried out", extra=fields(revision=desired.revision))
            self.send_soon()


class LetterServer:
    """Control's end: hears every process of the node and sends each the latest Desired.

    `on_report` gets each Report; `on_gone` the name of a process whose connection closed and that has not
    connected anew meanwhile. Both are called on the event loop.
    """

    def __init__(
        self, path: Path, on_report: Callable[[Report], None], on_gone: Callable[[str], None]
    ) -> None:
        self._path = path
        self._on_report = on_report
        self._on_gone = on_gone
        self._latest: bytes | None = None
        self._changed: dict[asyncio.StreamWriter, asyncio.Event] = {}
        self._owner: dict[str, asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket that a dead control left behind is replaced."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path=str(self._path), limit=LETTER_BYTES)
        os.chmod(self._path, 0o600)

    async def close(self) -> None:
        """Stop listening and hang up."""
        if self._server is not None:
            self._server.close()
        for writer in self._changed:
            writer.close()  # the reading side sees the end, and its task ends by itself
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    def publish(self, desired: Desired) -> None:
        """Send to all that are connected, and to whoever connects later. One that reads slowly gets the
        latest only."""
        self._latest = encode(desired) + b"\n"
        for changed in self._changed.values():
            changed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        changed = self._changed[writer] = asyncio.Event()
        names: set[str] = set()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._send(writer, changed))
                both.create_task(self._receive(reader, writer, names))
        except* OSError as gone:
            log.debug("a process hung up", extra=fields(processes=sorted(names), error=str(gone)))
        finally:
            self._tasks.discard(task)
            self._changed.pop(writer, None)
            writer.close()
            for name in names:
                if self._owner.get(name) is writer:
                    del self._owner[name]
                    self._on_gone(name)

    async def _send(self, writer: asyncio.StreamWriter, changed: asyncio.Event) -> None:
        while True:
            changed.clear()
            if self._latest is not None:
                writer.write(self._latest)
                await writer.drain()
            await changed.wait()

    async def _receive(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, names: set[str]
    ) -> None:
        while True:
            line = await _read_letter(reader)
            try:
                report = decode_report(line)
            except (msgspec.MsgspecError, SchemaTooNew) as error:
                log.error("a Report was not understood", extra=fields(error=str(error)))
                continue
            names.add(report.process)
            self._owner[report.process] = writer
            try:
                self._on_report(report)
            except Exception:
                log.exception("a Report was not taken in", extra=fields(reporter=report.process))


def write_atomically(file: Path, data: bytes) -> None:
    """Replace a file so that a reader sees the old bytes or the new ones, never a part.

    Raises: OSError; the old file then stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


async def _read_letter(reader: asyncio.StreamReader) -> bytes:
    """One line without its end. Raises: ConnectionError at the end of the line or for one too long."""
    try:
        line = await reader.readline()
    except ValueError:
        raise ConnectionError(f"a letter of more than {LETTER_BYTES} bytes") from None
    if not line.endswith(b"\n"):
        raise ConnectionResetError("the other end hung up")
    return line[:-1]
