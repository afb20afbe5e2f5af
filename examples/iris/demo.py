"""Owns the order of the demo: train, register, serve, predict, release and roll back under load; then three
versions that are released by evidence, of which two do not deserve it.

make demo                the whole of it
KEEP=1 make demo         leaves the node running and prints its URLs
python -m examples.iris.demo --swaps 4 --rate 200
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from benchmarks.load import OpenLoopProcess
from examples.iris.evidence import register_forests, release_forests
from examples.iris.evidence import table as evidence_table
from examples.iris.models import TARGET, Files, Rows, irises, train, write
from examples.iris.node import CommandFailed, DemoNode, Swap, Up
from examples.iris.report import NOTE, Seen, exit_code, table
from interlock.core.errors import MissingExtra
from interlock.operations.load import Request

NAME = "iris"
VERDICTS = (0, 1, 2)
"""What `interlock gate` leaves with: pass, worse, undecided. The demo shows it, whichever it is."""
LOAD_STARTS_S = 20.0
"""How long the load generator may take until the node has counted its first requests."""


class Demo:
    """One run in a folder of its own."""

    def __init__(
        self, folder: Path, swaps: int, rate: float, quiet_s: float, by_evidence: bool = True
    ) -> None:
        self.node = DemoNode(folder / "home")
        self._folder = folder
        self._by_evidence = by_evidence
        self.up: Up | None = None
        self._swaps = swaps
        self._rate = rate
        self._quiet_s = quiet_s
        # A pipe has no width; rich would take 80 columns for it.
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self._began_s = time.monotonic()

    def run(self) -> int:
        """All steps; the exit code. The node runs afterwards.

        Raises: CommandFailed; InterlockError; RuntimeError if the load generator failed; the client's errors.
        """
        with self._step("training two classifiers on 150 irises"):
            rows, labels = irises()
            models = train(rows, labels)
        files = write(self._folder / "trained", models, rows, labels)
        for (what, _), path in zip(models, files.models, strict=True):
            self._register(what, path, files.data)
        self._compare(files)
        self.node.run("release", NAME, "1", "--now")
        self.say("interlock release iris 1 --now: it waits for a node")
        with self._step("starting a node: interlock up --detach"):
            self.up = self.node.up()
        self.say(f"  inference {self.up.http_url}   admin {self.up.admin_url}   pid {self.up.pid}")
        client = _client(self.up)
        version, answered = _ask(client, rows)
        self._check(version, "1", answered, models[0][1], rows)
        self.say("tritonclient, 150 rows as binary tensors: version 1 answers as scikit-learn does")
        seen = self._swap_under_load(client, models, rows)
        self._console.print()
        self._console.print(table(seen))
        self._console.print(f"[dim]{NOTE}[/dim]", soft_wrap=True)
        code = exit_code(seen)
        return max(code, self._release_by_evidence(rows)) if self._by_evidence else code

    def _release_by_evidence(self, rows: Rows) -> int:
        assert self.up is not None
        self._console.print()
        with self._step("registering four random forests as plain Python") as progress:
            register_forests(self.node, self._folder, rows, lambda now: progress(f": {now}"))
        with self._step("releasing three of them by evidence", leaves_a_line=False):
            seen = release_forests(self.node, self.up, rows, self.say)
        self._console.print()
        self._console.print(evidence_table(seen))
        self._console.print(f"[dim]failed requests: {seen.load.failed:,} of {seen.load.sent:,}[/dim]")
        for one in seen.ended:
            self._console.print()
            self._console.print(one.file.read_text(), markup=False, soft_wrap=True)
        return seen.exit_code

    def _register(self, what: str, path: Path, data: Path) -> None:
        words = ["register", NAME, str(path), "--trust", "--data", str(data), "--target", TARGET]
        shown = f"interlock register {NAME} {path.name} --trust --data {data.name} --target {TARGET}"
        with self._step(f"{what}: {shown}"):
            done = msgspec.json.decode(self.node.run(*words, "--json"))
        version = done["version"]
        self.say(f"  version {done['number']}: {version['runtime']}, runs {version['placement']}")
        report = done["conversion"]
        self.say(f"  {report['reason']}")
        if report["onnx_s"]:
            one, many = (
                f"{1e6 * report['kept_s'][n]:.0f} us before, {1e6 * report['onnx_s'][n]:.0f} us after"
                for n in ("1", "32")
            )
            self.say(
                f"  largest difference {report['difference']:.1e} on {report['rows']:,} rows; "
                f"one row {one}; 32 rows {many}"
            )

    def _compare(self, files: Files) -> None:
        """What is different between the two versions, and whether the second is worse on a holdout."""
        self.say(f"interlock diff {NAME} 1 2")
        self._console.print(self.node.run("diff", NAME, "1", "2"), markup=False, soft_wrap=True)
        words = ["gate", NAME, "2", "--against", "1", "--data", str(files.holdout), "--target", TARGET]
        words += ["--metric", "accuracy:0.1"]
        shown = f"interlock gate {NAME} 2 --against 1 --data {files.holdout.name} --metric accuracy:0.1"
        with self._step(shown):
            verdict = self.node.run(*words, codes=VERDICTS)
        self._console.print(verdict, markup=False, soft_wrap=True)

    def _swap_under_load(self, client: Any, models: list[tuple[str, Any]], rows: Rows) -> Seen:
        assert self.up is not None
        body = msgspec.json.encode(
            {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": rows[0].tolist()}]}
        )
        url = f"{self.up.http_url}/v2/models/{NAME}/infer"
        headers = {"content-type": "application/json"}
        before = _answered(client)
        # It is told to stop when the swaps are over; the spin of a benchmark would take a core from the node.
        load = OpenLoopProcess(Request(url, body, headers), self._rate, 3600, spin_us=50, core=None)
        swaps: list[Swap] = []
        try:
            with self._step(f"load: {self._rate:g} requests/s, open loop; {self._quiet_s:g} s of it quiet"):
                self._wait_load(load, client, before)
                quiet_from_s = time.monotonic()
                _pause(self._quiet_s, load)
            swaps_from_s = time.monotonic()
            for _ in range(self._swaps):
                for number in ("2", "1"):
                    command = f"release {NAME} 2 --now" if number == "2" else f"rollback {NAME}"
                    words = f"swap {len(swaps) + 1} of {2 * self._swaps}: interlock {command}"
                    with self._step(words, leaves_a_line=False):
                        swap = self.node.release(NAME, "2") if number == "2" else self.node.rollback(NAME)
                        version, answered = _ask(client, rows)
                        self._check(version, number, answered, models[int(number) - 1][1], rows)
                    swaps.append(swap)
                    self.say(f"{words}: version {number} answers after {1e3 * swap.took_s:.0f} ms")
                    _pause(0.0, load)
            ended_s = time.monotonic()
            result, timeline = load.end()
        finally:
            load.stop()
        return Seen(
            result,
            timeline.between(quiet_from_s, swaps_from_s),
            timeline.between(swaps_from_s, ended_s),
            tuple(swaps),
        )

    def _wait_load(self, load: OpenLoopProcess, client: Any, before: int) -> None:
        until_s = time.monotonic() + LOAD_STARTS_S
        while _answered(client) <= before:
            _pause(0.05, load)
            if time.monotonic() > until_s:
                raise RuntimeError(f"the load has not begun within {LOAD_STARTS_S:g} s")

    def _check(self, version: str, wanted: str, answered: Any, model: Any, rows: Rows) -> None:
        if version != wanted or not np.array_equal(answered, model.predict(rows)):
            raise CommandFailed(f"version {version} answered {answered[:5]}…; version {wanted} was released")

    def say(self, words: str) -> None:
        """One line, with the seconds since the start."""
        self._console.print(f"[dim]{time.monotonic() - self._began_s:6.1f} s[/dim]  {words}", soft_wrap=True)

    @contextmanager
    def _step(self, words: str, leaves_a_line: bool = True) -> Iterator[Callable[[str], None]]:
        """Show what goes on while it does: a spinner in a terminal, a line for each change elsewhere."""
        if not self._console.is_terminal:
            if leaves_a_line:
                self.say(f"{words} …")
            yield lambda more: self.say(f"{words}{more} …")
            return
        with self._console.status(f"{words} …") as status:
            yield lambda more: status.update(f"{words}{more} …")
        if leaves_a_line:
            self.say(words)


def _client(up: Up) -> Any:
    """The client that most users of V2 have, with its default settings (binary tensors on)."""
    try:
        from tritonclient.http import InferenceServerClient
    except ImportError:
        raise MissingExtra("tritonclient", "test") from None
    return InferenceServerClient(up.http_url.removeprefix("http://"))


def _ask(client: Any, rows: Rows) -> tuple[str, Any]:
    """The version that answered, and the label of each row."""
    from tritonclient.http import InferInput

    given = InferInput("input", list(rows.shape), "FP32")
    given.set_data_from_numpy(rows)
    answer = client.infer(NAME, [given])
    return answer.get_response()["model_version"], answer.as_numpy("label")


def _answered(client: Any) -> int:
    """How many requests the node has answered so far, by its own statistics."""
    stats = client.get_inference_statistics(NAME)["model_stats"]
    return sum(int(one["inference_stats"]["success"]["count"]) for one in stats)


def _pause(seconds: float, load: OpenLoopProcess) -> None:
    """Let the load go on for a while.

    Raises: RuntimeError with what the generator said, if it has ended.
    """
    until_s = time.monotonic() + seconds
    while True:
        if not load.running():
            load.finish()
            raise RuntimeError("the load generator ended before it was told to")
        if time.monotonic() >= until_s:
            return
        time.sleep(0.05)


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stop(demo: Demo, keep: bool) -> None:
    """Stop the node, or say where it is."""
    if keep and demo.up is not None:
        demo.say(f"KEEP: the node goes on (pid {demo.up.pid})")
        print(f"  inference (V2)   {demo.up.http_url}/v2/models/{NAME}")
        print(f"  admin API        {demo.up.admin_url}/api/openapi.json")
        print(f"  metrics          {demo.up.admin_url}/metrics")
        print(f"  stop it with     interlock down --home {demo.node.home}")
        return
    # Whoever presses Ctrl-C twice still gets the node stopped.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    demo.node.down()
    demo.say("the node is stopped")


def main(argv: Sequence[str] | None = None) -> int:
    """The demo; 0, or 1 if a request or a step failed, or 130 if it was interrupted."""
    arguments = argparse.ArgumentParser(
        prog="python -m examples.iris.demo", description=__doc__.split("\n")[0]
    )
    arguments.add_argument("--swaps", type=int, default=10, help="releases, each rolled back (10)")
    arguments.add_argument("--rate", type=float, default=300.0, help="requests per second (300)")
    arguments.add_argument("--quiet-s", type=float, default=3.0, help="seconds of load before the swaps (3)")
    arguments.add_argument("--only-swaps", action="store_true", help="leave the releases by evidence out")
    given = arguments.parse_args(argv)
    if given.swaps < 1 or given.rate <= 0 or given.quiet_s <= 0:
        arguments.error("--swaps, --rate and --quiet-s must be above 0")
    keep = os.environ.get("KEEP", "") not in ("", "0")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # what the demo registers is for its own home alone
    signal.signal(signal.SIGTERM, _leave)
    folder = Path(tempfile.mkdtemp(prefix="il-demo-"))
    demo = Demo(folder, given.swaps, given.rate, given.quiet_s, not given.only_swaps)
    code, spoiled = 1, True
    try:
        code = demo.run()
        spoiled = False
    except KeyboardInterrupt:
        demo.say("interrupted")
        code, keep, spoiled = 130, False, False
    except Exception as error:  # of the client's many libraries, too: whatever it is, the node is stopped
        keep = False
        print(f"the demo failed: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        try:
            _stop(demo, keep)
        finally:
            if spoiled:
                print(f"its home is left for a look: {demo.node.home} (logs in logs/)", file=sys.stderr)
            elif not keep:
                shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
