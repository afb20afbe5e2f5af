"""Owns the process in which a model is checked: bounded in time and memory, so that it may crash or hang.

`python -m interlock.runtime.check_process REQUEST` is the child; `run_check` starts it.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import CheckFailed, InterlockError
from interlock.core.model import Array, Tensors, Version
from interlock.runtime.check import CheckReport, check
from interlock.runtime.check_limit import first_rows
from interlock.runtime.child import end, environment, error_of, how_it_ended, resident_bytes
from interlock.runtime.examples import texts_as_bytes
from interlock.runtime.prepare import Prepared, prepare

DEFAULT_TIME_S = 120.0
DEFAULT_MEMORY_BYTES = 4 * 1024**3


CHECKED_ROWS = 1024
"""Reference rows that the suite uses; preparing a model uses all that it is given."""


class _Request(msgspec.Struct, frozen=True):
    """`out`: the folder that the prepared model's files go to; None to check the model as it is."""

    folder: str
    version: Version
    reference: str | None
    memory_bytes: int
    out: str | None = None


class _Outcome(msgspec.Struct, frozen=True):
    """Either a report, or the name and words of an error."""

    report: CheckReport | None = None
    prepared: Prepared | None = None
    error: str = ""
    message: str = ""


def run_check(
    folder: Path,
    version: Version,
    reference: Tensors | None = None,
    *,
    time_s: float = DEFAULT_TIME_S,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> CheckReport:
    """Run the contract suite in a process of its own.

    Raises: CheckFailed if a check fails, or the process crashes, exceeds `time_s` or `memory_bytes`;
    LoadFailed, MissingExtra, UntrustedArtifact as the runtime raised them.
    """
    return _run(folder, version, reference, None, time_s, memory_bytes)[0]


def run_prepared_check(
    folder: Path,
    draft: Version,
    reference: Tensors | None,
    out: Path,
    *,
    time_s: float = DEFAULT_TIME_S,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> tuple[CheckReport, Prepared]:
    """Prepare a model as it came (`prepare.py`) in a process of its own, into the empty folder `out`, and run
    the contract suite on what that made.

    Raises: as `run_check` does.
    """
    report, prepared = _run(folder, draft, reference, out, time_s, memory_bytes)
    assert prepared is not None  # as the child was asked to
    return report, prepared


def _run(
    folder: Path,
    version: Version,
    reference: Tensors | None,
    out: Path | None,
    time_s: float,
    memory_bytes: int,
) -> tuple[CheckReport, Prepared | None]:
    with tempfile.TemporaryDirectory(prefix="interlock-check-") as name:
        desk = Path(name)
        path = None
        if reference is not None:
            path = desk / "reference.npz"
            reference = texts_as_bytes(reference)
            # Names of columns may be what no file in an archive can be called.
            storable: dict[str, Any] = {
                f"{i}": _storable(array) for i, array in enumerate(reference.values())
            }
            storable["names"] = np.array([name + "." for name in reference], dtype=str)
            np.savez(path, **storable)
        request = _Request(
            str(folder),
            version,
            None if path is None else str(path),
            memory_bytes,
            None if out is None else str(out),
        )
        (desk / "request.json").write_bytes(msgspec.json.encode(request))
        _run_child(desk, version, time_s, memory_bytes)
        outcome = msgspec.json.decode((desk / "outcome.json").read_bytes(), type=_Outcome)
    if outcome.report is None:
        raise error_of(outcome.error, outcome.message, CheckFailed)
    failures = outcome.report.failures
    if failures:
        said = "; ".join(f"{failure.name}: {failure.detail}" for failure in failures)
        raise CheckFailed(f"{version.model!r} breaks the contract of a runtime: {said}")
    return outcome.report, outcome.prepared


def _run_child(desk: Path, version: Version, time_s: float, memory_bytes: int) -> None:
    with (desk / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "interlock.runtime.check_process", str(desk)],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env=environment(),
            start_new_session=True,
            umask=0o077,
        )
        try:
            verdict = _watch(child, time.monotonic() + time_s, memory_bytes)
        finally:
            end(child)
    if (desk / "outcome.json").exists() and not verdict:
        return
    said = (desk / "stderr").read_bytes()[-800:].decode(errors="replace").strip()
    note = (desk / "note").read_text() if (desk / "note").exists() else ""
    if not verdict:
        verdict = how_it_ended(child.returncode)
    if verdict == "time":
        reason = f"it did not finish within {time_s:g} s"
    elif verdict == "memory":
        reason = f"it asked for more than {memory_bytes // 1024**2} MiB of memory"
    else:
        reason = f"{verdict} while it was loaded and tried"
    reason += f"; {note}" if note else ""
    raise CheckFailed(f"{version.model!r}: {reason}" + (f"; it last said: {said}" if said else ""))


def _watch(child: "subprocess.Popen[bytes]", until: float, memory_bytes: int) -> str:
    """Wait for the end; returns what bound was exceeded, or ""."""
    while True:
        try:
            child.wait(timeout=0.05)
            return ""
        except subprocess.TimeoutExpired:
            if time.monotonic() > until:
                return "time"
            if resident_bytes(child.pid) > memory_bytes:
                return "memory"


def _storable(array: Array) -> Array:
    """npz without pickle holds no objects: bytes travel as text of fixed width, a letter a byte.

    NumPy takes zeros off the end of such text; the full stop there keeps them.
    """
    if array.dtype.kind != "O":
        return array
    texts = [item.decode("latin-1") + "." for item in array.ravel().tolist()]
    return np.array(texts, dtype=str).reshape(array.shape)


def _restored(array: Array) -> Array:
    if array.dtype.kind != "U":
        return array
    result = np.empty(array.size, object)
    result[:] = [text[:-1].encode("latin-1") for text in array.ravel().tolist()]
    return result.reshape(array.shape)


def _child(desk: Path) -> None:
    request = msgspec.json.decode((desk / "request.json").read_bytes(), type=_Request)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (request.memory_bytes, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True  # beside a model's source it would change the digest of the artifact
    reference: Tensors | None = None
    if request.reference is not None:
        with np.load(request.reference, allow_pickle=False) as stored:
            names = [name[:-1] for name in stored["names"].tolist()]
            reference = {name: _restored(stored[f"{index}"]) for index, name in enumerate(names)}
    folder, version, prepared = Path(request.folder), request.version, None
    try:
        if request.out is not None:
            prepared = prepare(folder, version, reference, Path(request.out))
            folder = Path(request.out)
            version = msgspec.structs.replace(
                version, runtime=prepared.runtime, entry=prepared.entry, options=prepared.options
            )
        rows = None if reference is None else first_rows(reference, CHECKED_ROWS)
        report = check(folder, version, rows, (desk / "note").write_text)
        outcome = _Outcome(report=report, prepared=prepared)
    except MemoryError:
        limit = request.memory_bytes // 1024**2
        words = f"{request.version.model!r}: it asked for more than {limit} MiB of memory"
        outcome = _Outcome(error="CheckFailed", message=words)
    except InterlockError as error:
        outcome = _Outcome(error=type(error).__name__, message=error.message)
    except Exception as error:
        outcome = _Outcome(error="CheckFailed", message=f"{type(error).__name__}: {str(error)[:500]}")
    partial = desk / "outcome.partial"
    partial.write_bytes(msgspec.json.encode(outcome))
    partial.rename(desk / "outcome.json")
    sys.stdout.flush()
    os._exit(0)  # a model's threads and destructors have no say in how this ends


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
