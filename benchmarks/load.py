"""The open-loop generator (`interlock.operations.load`) as a program and a process of its own.

    python -m benchmarks.load --url http://127.0.0.1:8000/v2/models/iris/infer --rate 1000 --seconds 10 \
        --body request.json --header content-type=application/json --json
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.process import CLIENT_CORE, pinned
from interlock.operations.arrivals import schedule
from interlock.operations.load import OpenLoopResult, Request, Timeline, open_loop


class OpenLoopProcess:
    """The open-loop generator as a process of its own, pinned, so that the caller's work adds no noise."""

    def __init__(
        self,
        request: Request,
        rate: float,
        seconds: float,
        *,
        connections: int = 32,
        poisson: bool = False,
        timeout_s: float = 10.0,
        spin_us: int = 1_000_000,
        core: int | None = CLIENT_CORE,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._timeline = Path(self._folder.name, "timeline.json")
        argv = [sys.executable, "-m", "benchmarks.load", "--json", "--url", request.url]
        argv += ["--method", request.method, "--timeline", str(self._timeline)]
        for number, content in enumerate((request.body, *request.more)):
            body = Path(self._folder.name, f"body-{number}")
            body.write_bytes(content)
            argv += ["--body", str(body)]
        argv += ["--rate", str(rate), "--seconds", str(seconds), "--connections", str(connections)]
        argv += ["--timeout-s", str(timeout_s), "--spin-us", str(spin_us)] + ["--poisson"] * poisson
        for name, value in request.headers.items():
            argv += ["--header", f"{name}={value}"]
        self._seconds = seconds
        self._popen = subprocess.Popen(
            pinned(argv, core) if core is not None else argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
        )

    def running(self) -> bool:
        return self._popen.poll() is None

    def finish(self) -> tuple[OpenLoopResult, Timeline]:
        """Wait for the end of the run.

        Raises: RuntimeError with what it printed, if the generator itself failed.
        """
        try:
            out, err = self._popen.communicate(timeout=self._seconds + 120)
            if not self._timeline.exists():
                raise RuntimeError(f"the load generator ended with {self._popen.returncode}: {out}{err}")
            timeline = msgspec.json.decode(self._timeline.read_bytes(), type=Timeline)
            return msgspec.json.decode(out, type=OpenLoopResult), timeline
        finally:
            self.stop()

    def end(self) -> tuple[OpenLoopResult, Timeline]:
        """Send no further request; `finish` with those that were sent."""
        self._popen.send_signal(signal.SIGTERM)
        return self.finish()

    def stop(self) -> None:
        """End the run at once, if it still goes on."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()
        self._folder.cleanup()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one open loop, until SIGTERM at most; the exit status is 1 if any request failed."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.load", description="open-loop load")
    arguments.add_argument("--url", required=True)
    arguments.add_argument("--method", default="POST")
    arguments.add_argument(
        "--body", type=Path, action="append", default=[], help="file with a body; of several, each in turn"
    )
    arguments.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    arguments.add_argument("--rate", type=float, default=1000.0, help="requests per second")
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--poisson", action="store_true", help="Poisson arrivals; else constant spacing")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--connections", type=int, default=32)
    arguments.add_argument("--timeout-s", type=float, default=10.0)
    arguments.add_argument("--spin-us", type=int, default=100, help="stop sleeping so long before a send")
    arguments.add_argument("--core", type=int, help="run on this core only")
    arguments.add_argument("--timeline", type=Path, help="write every request's time and latency here (JSON)")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args(argv)
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    bodies = [path.read_bytes() for path in given.body] or [b""]
    headers = dict(pair.split("=", 1) for pair in given.header)
    request = Request(given.url, bodies[0], headers, given.method, tuple(bodies[1:]))
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: signals.append(number))
    result, timeline = open_loop(
        request,
        schedule(given.rate, given.seconds, poisson=given.poisson, seed=given.seed),
        connections=given.connections,
        timeout_s=given.timeout_s,
        spin_s=given.spin_us / 1e6,
        stopped=lambda: bool(signals),
    )
    if given.timeline:
        given.timeline.write_bytes(msgspec.json.encode(timeline))
    if given.json:
        print(msgspec.json.encode(result).decode())
    else:
        at = result.latency
        print(f"{result.sent} sent, {result.offered_per_s}/s: {result.ok} good, failed: {result.failures}")
        print(f"latency ms: p50 {at.p50_ms} p99 {at.p99_ms} p99.9 {at.p999_ms} max {at.max_ms}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
