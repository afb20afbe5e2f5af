"""Makes the sides of a comparison: servers under wrk, with the CPU time that they used."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from benchmarks.direct import DirectResult
from benchmarks.load import OpenLoopProcess
from benchmarks.pairs import OTHERS, Sample, Side
from benchmarks.process import SERVER_CORE, Started, core_busy_s, cpu_s, free_port, pinned, wait_until
from benchmarks.wrk import wrk
from interlock.operations.load import Request

_HERE = Path(__file__).resolve().parent


def wrk_side(
    title: str,
    request: Request,
    processes: Callable[[], Sequence[psutil.Process]],
    *,
    connections: int = 32,
    configuration: str = "",
    cores: Sequence[int] = (SERVER_CORE,),
) -> Side:
    """A server measured in requests per second by wrk; `processes` are those of the server, on `cores`."""

    def measure(seconds: float) -> Sample:
        tree = processes()
        before_s, busy_before_s, began_s = cpu_s(tree), core_busy_s(cores), time.monotonic()
        seen = wrk(request, seconds, connections=connections)
        wall_s = time.monotonic() - began_s
        # Close to 1: the server was the limit. Well below: the client was, and the ratio flatters the slower.
        server_s = cpu_s(tree) - before_s
        others_s = core_busy_s(cores) - busy_before_s - server_s
        detail = {
            **msgspec.structs.asdict(seen),
            "server_cores": round(server_s / wall_s, 3),
            OTHERS: round(others_s / wall_s, 3),
        }
        return Sample(seen.per_s, seen.failures, detail)

    return Side(title, measure, configuration)


@contextlib.contextmanager
def reference(script: str, work: Path) -> Iterator[tuple[str, Started]]:
    """Run one of the frozen servers of this folder; yields its URL and its process."""
    port = free_port()
    server = Started(
        [sys.executable, str(_HERE / script), str(port)], cores=SERVER_CORE, log=work / f"{script}.log"
    )
    try:
        wait_until(lambda: _accepts(port), server, timeout_s=20)
        yield f"http://127.0.0.1:{port}/v2/models/iris/infer", server
    finally:
        server.stop()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def direct(path: Path, rate: float, seconds: float, cores: Sequence[int]) -> list[DirectResult]:
    """The model called without a server, in one process pinned to each of `cores`, at the same time."""
    argv = [sys.executable, "-m", "benchmarks.direct", str(path)]
    argv += ["--rate", str(rate), "--seconds", str(seconds)]
    running = [
        subprocess.Popen(pinned(argv, core), stdout=subprocess.PIPE, cwd=_HERE.parent) for core in cores
    ]
    results = []
    for popen in running:
        out, _ = popen.communicate(timeout=seconds + 60)
        results.append(msgspec.json.decode(out, type=DirectResult))
    return results


def open_side(title: str, request: Request, rate: float, *, connections: int = 32) -> Side:
    """A server measured by our open loop at `rate` requests per second; the value is the p50 in ms."""

    def measure(seconds: float) -> Sample:
        load = OpenLoopProcess(request, rate, seconds, connections=connections)
        seen, _timeline = load.finish()
        at = seen.latency
        if at.p50_ms is None or at.p99_ms is None:
            raise RuntimeError(f"{title}: no request was answered: {seen.failures}")
        detail = {"p99_ms": at.p99_ms, "max_ms": at.max_ms, "lag_p99_ms": seen.lag.p99_ms}
        return Sample(at.p50_ms, seen.failed, {**detail, "sent": seen.sent, "failures": seen.failures})

    return Side(title, measure, f"open loop, {rate:g} requests/s evenly spaced, {connections} connections")


def direct_side(path: Path, rate: float) -> Side:
    """The same model called without a server, at the same rate, on the server's core; p50 in ms."""

    def measure(seconds: float) -> Sample:
        (seen,) = direct(path, rate, seconds, [SERVER_CORE])
        assert seen.latency.p50_ms is not None
        return Sample(seen.latency.p50_ms, 0, {"p99_ms": seen.latency.p99_ms, "per_s": seen.per_s})

    return Side("session.run", measure, f"one row, called {rate:g} times a second in a process of its own")
