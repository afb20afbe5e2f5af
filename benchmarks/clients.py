"""Owns the load of `bench_releases.py`: tritonclient and k6, each a process of its own, at a constant rate.

Both send one random row a request, open loop, and write a line for each answer, from which `Answer` is read.
tritonclient sends binary tensors, k6 JSON. Started as a program, this file is the process of tritonclient.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import msgspec
import numpy as np

from benchmarks import envs
from benchmarks.candidates import LEAST, Client
from benchmarks.process import Started, wait_until

CORES = "0,1"
_K6 = Path(__file__).resolve().parent / "peers" / "k6"


class Answer(msgspec.Struct, frozen=True):
    """One request as its client saw it. `sent_s` is Unix time; `status` 0 where no answer came; `version` is
    what the answer says, "-" without one; `row` are the values sent."""

    sent_s: float
    status: int
    took_ms: float
    version: str
    row: tuple[float, ...]

    @classmethod
    def parse(cls, line: str) -> Answer:
        """Read one line.

        >>> Answer.parse("7.5 200 2.25 3 10.5 0.25 0.5 0.75").version
        '3'
        """
        sent_s, status, took_ms, version, *row = line.split()
        return cls(float(sent_s), int(status), float(took_ms), version, tuple(map(float, row)))

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def row_bytes(self) -> bytes:
        """The row as the model hashes it."""
        return np.array(self.row, "<f4").tobytes()


def ensure_k6() -> Path:
    """The program of k6, installed if need be.

    Raises: RuntimeError that says what to do.
    """
    try:
        return envs.ensure("k6") / "k6"
    except RuntimeError as error:
        raise RuntimeError(
            "k6 could not be installed (benchmarks/peers/k6/requirements.txt; it is for Linux on x86-64); "
            f"measure with the other client alone: --only tritonclient. {error}"
        ) from None


class Load:
    """One client that sends to one model until it is stopped."""

    def __init__(self, client: Client, url: str, model: str, rate: float, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._client = client
        self._answers, self._summary = folder / "answers.txt", folder / "summary.json"
        infer = f"{url}/v2/models/{model}/infer"
        if client == "k6":
            argv = [str(ensure_k6()), "run", "--quiet", "--no-usage-report", "--no-color", "--address", ""]
            argv += ["--log-format", "raw", "--console-output", str(self._answers)]
            argv += ["--summary-export", str(self._summary)]
            argv += ["--env", f"URL={infer}", "--env", f"RATE={rate:g}", "--env", f"LEAST={LEAST:g}"]
            argv += [str(_K6 / "rows.js")]
        else:
            argv = [sys.executable, "-m", "benchmarks.clients", url.removeprefix("http://"), model]
            argv += ["--rate", str(rate), "--answers", str(self._answers)]
        self._started = Started(
            argv, cores=CORES, log=folder / "client.log", cwd=Path(__file__).resolve().parent.parent
        )

    def check(self) -> None:
        """Raises: RuntimeError with what the client printed, if it has ended by itself."""
        if not self._started.running():
            raise RuntimeError(f"{self._client} has ended: {self._started.tail()}")

    def wait(self) -> None:
        """Return when answers come. Raises: RuntimeError if none do."""
        wait_until(lambda: self._answers.exists() and self._answers.stat().st_size > 1000, self._started)

    def stop(self) -> None:
        """Send no further request, and wait for the answers."""
        if self._started.running():
            self._started.stop(grace_s=40.0)

    def answers(self) -> list[Answer]:
        """What came of each request, when it has stopped."""
        if not self._answers.exists():
            return []
        return [Answer.parse(line) for line in self._answers.read_text().splitlines()]

    def unsent(self) -> int:
        """Requests that were due and that the client could not send."""
        if not self._summary.exists():
            return 0
        seen = json.loads(self._summary.read_text())["metrics"]
        return int(seen.get("dropped_iterations", {}).get("count", 0))


class _Triton:
    """The open loop of tritonclient's asyncio client."""

    def __init__(self, host: str, model: str, out: TextIO) -> None:
        import tritonclient.http.aio as aio

        self._aio = aio
        self._client = aio.InferenceServerClient(host, conn_limit=300)
        self._model = model
        self._out = out
        self._random = np.random.default_rng()

    async def run(self, rate: float, stopped: asyncio.Event) -> None:
        """Send request k at k / `rate` s, whatever came of those before, until `stopped`."""
        asked: set[asyncio.Task[None]] = set()
        start_s, number = time.monotonic(), 0
        while not stopped.is_set():
            pause_s = start_s + number / rate - time.monotonic()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            task = asyncio.create_task(self._ask())
            asked.add(task)
            task.add_done_callback(asked.discard)
            number += 1
        await asyncio.gather(*asked)
        await self._client.close()

    async def _ask(self) -> None:
        from aiohttp import ClientError
        from tritonclient.utils import InferenceServerException

        row = self._random.random((1, 4), np.float32)
        row[0, 0] += np.float32(LEAST)
        given = self._aio.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(row)
        sent_s, began_s, version = time.time(), time.monotonic(), "-"
        try:
            answer = await self._client.infer(self._model, [given])
            status, version = 200, answer.get_response()["model_version"]
        except InferenceServerException as error:
            status = int(error.status()) if str(error.status()).isdigit() else 0
        except (ClientError, OSError, TimeoutError) as error:
            print(f"{sent_s:.3f} {type(error).__name__}: {error}", file=sys.stderr)
            status = 0
        took_ms = 1e3 * (time.monotonic() - began_s)
        values = " ".join(repr(value) for value in row[0].tolist())
        print(f"{sent_s:.3f} {status} {took_ms:.3f} {version} {values}", file=self._out)


async def _flood(host: str, model: str, rate: float, answers: Path) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    with answers.open("w", buffering=1) as out:
        await _Triton(host, model, out).run(rate, stopped)


def main(argv: Sequence[str] | None = None) -> int:
    """Ask a model for random rows by tritonclient, until SIGTERM."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=main.__doc__)
    arguments.add_argument("host", help="host:port")
    arguments.add_argument("model")
    arguments.add_argument("--rate", type=float, default=100.0, help="requests per second")
    arguments.add_argument("--answers", type=Path, required=True, help="write a line for each answer here")
    given = arguments.parse_args(argv)
    asyncio.run(_flood(given.host, given.model, given.rate, given.answers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
