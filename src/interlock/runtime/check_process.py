"""Owns the process in which a model is checked: bounded in time and memory, so that it may crash or hang.

`python -m interlock.runtime.check_process REQUEST` is the child; `run_check` starts it.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import CheckFailed, InterlockError, said
from interlock.core.garbage import seldom
from interlock.core.model import Array, Tensors, Version
from interlock.runtime.check import CheckReport, check
from interlock.runtime.check_end import MARK, end, end_with_parent
from interlock.runtime.check_limit import first_rows
from interlock.runtime.child import environment, error_of, how_it_ended, resident_bytes
from interlock.runtime.environment import variables_for
from interlock.runtime.examples import texts_as_bytes
from interlock.runtime.prepare import PREPARERS, Prepared, prepare

DEFAULT_TIME_S = 120.0
DEFAULT_MEMORY_BYTES = 4 * 1024**3


CHECKED_ROWS = 1024
"""Reference rows that the suite uses; preparing a model uses all that it is given."""

TOLD_EVERY_S = 5.0

_CONVERTING = "converting"
"""The file in the desk of a child that has loaded its model, and has begun to convert it."""

Tell = Callable[[str], object]
"""Is told, in words, that a check is still going on."""


class _Request(msgspec.Struct, frozen=True):
    """`out`: the folder that the prepared model's files go to; None: the model is to be checked. `given_up`:
    why it is not to be converted."""

    folder: str
    version: Version
    reference: str | None
    memory_bytes: int
    out: str | None = None
    given_up: str = ""
    parent: int = 0


class _Outcome(msgspec.Struct, frozen=True):
    """What was asked for, a report or what was prepared, or else the name and words of an error.
    `ended`: what ended it in the middle of a conversion, where that is no error of the tree."""

    report: CheckReport | None = None
    prepared: Prepared | None = None
    error: str = ""
    message: str = ""
    ended: str = ""


def run_check(
    folder: Path,
    version: Version,
    reference: Tensors | None = None,
    *,
    time_s: float = DEFAULT_TIME_S,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    python: str = sys.executable,
    progress: Tell = lambda words: None,
) -> CheckReport:
    """Run the contract suite in a process of its own, under the interpreter `python`. `progress` is told
    every few seconds that it goes on.

    Raises: CheckFailed if a check fails, or the process crashes, exceeds `time_s` or `memory_bytes`, or
    writes into `folder`; LoadFailed, MissingExtra, UntrustedArtifact as the runtime raised them.
    """
    rows = None if reference is None else first_rows(reference, CHECKED_ROWS)
    outcome = _run(folder, version, rows, None, "", time_s, memory_bytes, python, progress)
    report = _checked(outcome).report
    assert report is not None  # as the child was asked to
    if report.failures:
        words = "; ".join(f"{failure.name}: {failure.detail}" for failure in report.failures)
        raise CheckFailed(f"{version.model!r} breaks the contract of a runtime: {words}")
    return report


def run_prepare(
    folder: Path,
    draft: Version,
    reference: Tensors | None,
    out: Path,
    *,
    time_s: float = DEFAULT_TIME_S,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: Tell = lambda words: None,
) -> Prepared:
    """Prepare a model as it came (`prepare.py`) into the empty folder `out`: in a process of its own where
    that takes loading it. Not in the one that checks it: what a conversion leaves in memory would be measured
    as the model's.

    A conversion that crashes, or exceeds a bound, is given up, and the report says so: the model is loaded
    anew and kept as it came. Raises: as `run_check` does.
    """
    if draft.runtime not in PREPARERS:
        return prepare(folder, draft, reference, out)
    bounds = (time_s, memory_bytes, sys.executable, progress)
    outcome = _run(folder, draft, reference, out, "", *bounds)
    if outcome.ended:
        progress(f"the conversion is given up: {outcome.ended}")
        shutil.rmtree(out)
        out.mkdir()
        outcome = _run(
            folder, draft, reference, out, f"its conversion was given up: {outcome.ended}", *bounds
        )
    prepared = _checked(outcome).prepared
    assert prepared is not None  # as the child was asked to
    return prepared


def _run(
    folder: Path,
    version: Version,
    reference: Tensors | None,
    out: Path | None,
    given_up: str,
    time_s: float,
    memory_bytes: int,
    python: str,
    progress: Tell,
) -> _Outcome:
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
            given_up,
            os.getpid(),
        )
        (desk / "request.json").write_bytes(msgspec.json.encode(request))
        outcome = _run_child(desk, version, time_s, memory_bytes, python, progress)
        is_conversion = (desk / _CONVERTING).exists()
    return outcome if is_conversion else msgspec.structs.replace(outcome, ended="")


def _checked(outcome: _Outcome) -> _Outcome:
    if outcome.error:
        raise error_of(outcome.error, outcome.message, CheckFailed)
    return outcome


def _run_child(
    desk: Path, version: Version, time_s: float, memory_bytes: int, python: str, progress: Tell
) -> _Outcome:
    with (desk / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            # -P: the folder in which one happens to be must not lend modules to it, as to no executor later.
            [python, "-P", "-m", "interlock.runtime.check_process", str(desk)],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env={**variables_for(python, environment()), MARK: str(desk)},
            start_new_session=True,
            umask=0o077,
        )
        try:
            verdict = _watch(child, time_s, memory_bytes, progress)
        finally:
            end(child, str(desk))
    if (desk / "outcome.json").exists() and not verdict:
        return msgspec.json.decode((desk / "outcome.json").read_bytes(), type=_Outcome)
    last = _tail(desk / "stderr")
    note = (desk / "note").read_text() if (desk / "note").exists() else ""
    if verdict == "time":
        ended = f"it did not finish within {time_s:g} s"
        reason = f"{ended}: make loading and predicting faster"
    elif verdict == "memory":
        ended = reason = _too_large(memory_bytes)
    else:
        ended = how_it_ended(child.returncode)
        reason = f"{ended} while it was loaded and tried: its code, or a library of it, ended it"
        ended += f"; it last said: {last.splitlines()[-1][:200]}" if last else ""
    reason += f"; {note}" if note else ""
    reason += f"; it last said: {last}" if last else ""
    return _Outcome(error="CheckFailed", message=f"{version.model!r}: {reason}", ended=ended)


def _watch(child: "subprocess.Popen[bytes]", time_s: float, memory_bytes: int, progress: Tell) -> str:
    """Wait for the end; returns what bound was exceeded, or ""."""
    began = time.monotonic()
    tell_s = TOLD_EVERY_S
    while True:
        try:
            child.wait(timeout=0.05)
            return ""
        except subprocess.TimeoutExpired:
            spent_s = time.monotonic() - began
            if spent_s > time_s:
                return "time"
            if spent_s > tell_s:
                progress(f"still loading and trying it: {spent_s:.0f} s of at most {time_s:g} s")
                tell_s += TOLD_EVERY_S
            if resident_bytes(child.pid) > memory_bytes:
                return "memory"


def _tail(path: Path, most: int = 800) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read(most).decode(errors="replace").strip()


def _too_large(memory_bytes: int) -> str:
    return f"it asked for more than {memory_bytes // 1024**2} MiB of memory, which a model may have at most"


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
    end_with_parent(request.parent)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (request.memory_bytes, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = request.memory_bytes if hard == resource.RLIM_INFINITY else min(hard, request.memory_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))  # of one file: what it prints, above all
    sys.dont_write_bytecode = True  # beside a model's source it would change the digest of the artifact
    reference: Tensors | None = None
    if request.reference is not None:
        with np.load(request.reference, allow_pickle=False) as stored:
            names = [name[:-1] for name in stored["names"].tolist()]
            reference = {name: _restored(stored[f"{index}"]) for index, name in enumerate(names)}
    folder = Path(request.folder)

    def begin() -> str:
        (desk / _CONVERTING).touch()
        return request.given_up

    try:
        if request.out is not None:
            seldom()  # not where a model is checked: its memory is measured as in an executor
            prepared = prepare(folder, request.version, reference, Path(request.out), begin)
            outcome = _Outcome(prepared=prepared)
        else:
            before = _files(folder)
            report = check(folder, request.version, reference, (desk / "note").write_text)
            if not report.failures:  # else there is more to say than that
                _check_unchanged(before, _files(folder))
            outcome = _Outcome(report=report)
    except BaseException as error:
        outcome = _failed(error, request)
    partial = desk / "outcome.partial"
    partial.write_bytes(msgspec.json.encode(outcome))
    partial.rename(desk / "outcome.json")
    sys.stdout.flush()
    os._exit(0)  # a model's threads and destructors have no say in how this ends


def _failed(error: BaseException, request: _Request) -> _Outcome:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            words = _too_large(request.memory_bytes)
            return _Outcome(error="CheckFailed", message=f"{request.version.model!r}: {words}", ended=words)
        cause = cause.__cause__
    if isinstance(error, InterlockError):
        message = error.message.encode(errors="backslashreplace").decode()
        return _Outcome(error=type(error).__name__, message=message)
    if isinstance(error, SystemExit):
        words = f"its code ended the process (sys.exit, code {error.code!r:.60}): raise an exception instead"
    else:
        words = f"its code raised {said(error)}".encode(errors="backslashreplace").decode()
    return _Outcome(error="CheckFailed", message=f"{request.version.model!r}: {words}", ended=words)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of each file in an artifact, which tell most changes at no cost."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if not path.is_dir():
            found[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
    return found


def _check_unchanged(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> None:
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        raise CheckFailed(
            f"loading or trying the model changed {changed[:5]!a} in its own folder, which its digest"
            " forbids: write to a temporary folder (tempfile) instead"
        )


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
