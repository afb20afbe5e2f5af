"""The use case `register`: a model file or object becomes an immutable version, checked and measured.

Order matters: check, cache, registry, ledger. Whatever fails, no list shows half a version: an artifact that
nothing names is garbage in the cache, and a version that only the registry knows is whole: it is resolved
like one that plain MLflow code registered.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import RegistryError
from interlock.core.model import Signature, Version, artifact_path, check_name
from interlock.core.provenance import Provenance
from interlock.operations import provenance
from interlock.operations import reference as data_of
from interlock.operations.artifact import recognise
from interlock.operations.context import Context, opened
from interlock.operations.reference import Reference
from interlock.registry import artifacts
from interlock.registry.mlrun import facts_of
from interlock.runtime.check import CheckReport
from interlock.runtime.check_process import DEFAULT_MEMORY_BYTES, DEFAULT_TIME_S, run_check, run_prepare
from interlock.runtime.prepare import ConversionReport
from interlock.runtime.table import OPTION

_PREPARED_ROWS = 10_000
"""Reference rows that go to the process that converts and checks: as many again for their extremes."""
_PREPARED_COLUMNS = 1_000
"""Of wider data as many rows fewer."""


class Registered(msgspec.Struct, frozen=True):
    """What was registered, as which number, and what the checks saw. Its repr is one short line."""

    version: Version
    number: str
    report: CheckReport
    conversion: ConversionReport | None = None
    provenance: Provenance | None = None

    def __repr__(self) -> str:
        version = self.version
        digest = version.digest.removeprefix("sha256:")[:12]
        reason = "" if self.conversion is None else f", {self.conversion.reason}"
        return (
            f"<Registered {version.model} version {self.number}: {version.runtime}, "
            f"{version.placement.value}, digest {digest}{reason}>"
        )


def register(
    ctx: Context,
    name: str,
    artifact: object,
    *,
    data: str | Path | Reference | None = None,
    target: str | None = None,
    trust: bool = False,
    tags: dict[str, str] | None = None,
    run: str | None = None,
    time_s: float = DEFAULT_TIME_S,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: Callable[[str], object] = lambda message: None,
) -> Registered:
    """Register a path (`artifact.FORMATS`, or "file.py:Class"), a fitted model or a PyTorch module.

    `data` are reference rows (.parquet, .csv, .npz), without which nothing is converted; `target` is the
    column in them that is the answer. `trust` vouches for code that loading runs. `run`: the MLflow run that
    trained it, by default the active one of this process. `time_s` and `memory_bytes` bound the checking
    process.
    Raises: ArtifactError (UnknownFormat, UntrustedArtifact, LoadFailed, CheckFailed), ConfigError,
    MissingExtra, RegistryError, LedgerError. Nothing is registered then.
    """
    check_name(name)
    with _nothing_registered():
        ctx.registry.check_answers()  # rather now than after minutes of checks
    rows = data if isinstance(data, Reference) or data is None else data_of.read(Path(data), target)
    path = None if data is None or isinstance(data, Reference) else Path(data)
    found = provenance.gather(ctx, artifact, rows, data=path, target=target, run=run)
    progress("reading the model")
    given = recognise(artifact, trust=trust, rows=None if rows is None else data_of.arrays(rows))
    with tempfile.TemporaryDirectory(prefix="interlock-register-") as text:
        came, out = Path(text) / "came", Path(text) / "out"
        came.mkdir()
        out.mkdir()
        options = given.fill(came) or {}
        if rows is not None and rows.table is not None:
            options = {**options, OPTION: msgspec.json.decode(msgspec.json.encode(rows.table))}
        draft = Version(name, "new", "", given.runtime, given.entry, Signature((), ()), options=options)
        sample = None if rows is None else data_of.sample(rows, _most_rows(rows))
        bounds: dict[str, Any] = {"time_s": time_s, "memory_bytes": memory_bytes, "progress": progress}
        progress("loading it in a process of its own, and converting it where that pays")
        prepared = run_prepare(came, draft, sample, out, **bounds)
        if prepared.conversion is not None:
            progress(prepared.conversion.reason)
        draft = msgspec.structs.replace(
            draft, runtime=prepared.runtime, entry=prepared.entry, options=prepared.options
        )
        progress("checking it in a process of its own")
        report = run_check(out, draft, sample, **bounds)
        digest = artifacts.add(ctx.home, out)
    draft = msgspec.structs.replace(draft, digest=digest)
    if rows is not None and rows.target is not None:
        progress("measuring it on the reference rows")
    quality = provenance.measure(artifact_path(ctx.home, digest), described(draft, "new", report), rows)
    progress("logging it into the registry")
    found = provenance.completed(found, report, quality, prepared.conversion)
    return _record(ctx, draft, report, prepared.conversion, found, tags or {})


def register_model(
    name: str,
    model: object,
    X: Any = None,
    y: Any = None,
    *,
    home: Path | str | None = None,
    progress: Callable[[str], object] | None = None,
    **options: Any,
) -> Registered:
    """Register a fitted model from Python: `interlock.register("iris", model, X, y)`.

    `X` are reference rows ([rows, columns], or a dict of input name to array), which the model is checked and
    converted with; `y` their answers. `home` defaults to INTERLOCK_HOME. `progress` is told each step, in
    words; by default they go to standard error where that is a terminal. Further options are `register`'s.
    Raises: as `register` does.
    """
    rows = None if X is None else data_of.of(X, y)
    with opened(None if home is None else Path(home)) as ctx:
        return register(ctx, name, model, data=rows, progress=progress or _tell, **options)


def _tell(step: str) -> None:
    if sys.stderr.isatty():
        print(f"interlock: {step}", file=sys.stderr, flush=True)


def _most_rows(rows: Reference) -> int:
    columns = sum(math.prod(values.shape[1:]) for values in rows.inputs.values())
    return max(100, _PREPARED_ROWS * _PREPARED_COLUMNS // max(columns, _PREPARED_COLUMNS))


def described(draft: Version, number: str, report: CheckReport) -> Version:
    """The whole record of a version: what was to be checked, and what the check found."""
    return msgspec.structs.replace(
        draft,
        number=number,
        signature=report.signature,
        capabilities=report.capabilities,
        placement=report.placement,
        profile=report.profile,
    )


def _record(
    ctx: Context,
    draft: Version,
    report: CheckReport,
    conversion: ConversionReport | None,
    found: Provenance,
    tags: dict[str, str],
) -> Registered:
    """Into the registry and the ledger; if the ledger refuses, out of the registry again."""
    metrics = {}
    if conversion is not None and conversion.difference is not None and np.isfinite(conversion.difference):
        metrics["conversion_largest_difference"] = conversion.difference
    with _nothing_registered():
        number, is_new = ctx.registry.log_version(
            draft.model,
            artifact_path(ctx.home, draft.digest),
            draft.runtime,
            draft.entry,
            report.signature,
            options=draft.options,
            metrics=metrics,
            tags={"interlock.digest": draft.digest, "interlock.runtime": draft.runtime, **tags},
            facts=facts_of(described(draft, "new", report), found),
        )
    version = described(draft, number, report)
    try:
        version = put(ctx, version, found)
    except BaseException:
        ctx.registry.remove(draft.model, number, model_too=is_new)
        raise
    return Registered(version, number, report, conversion, found)


@contextmanager
def _nothing_registered() -> Iterator[None]:
    try:
        yield
    except RegistryError as error:
        raise RegistryError(f"nothing was registered: {error.message}") from error


def put(ctx: Context, version: Version, found: Provenance | None = None) -> Version:
    """Into the ledger; another process that recorded the same artifact first has the last word.

    Raises: LedgerError.
    """
    known = ctx.ledger.version(version.model, version.number)
    if known is not None and known.digest == version.digest:
        return known
    ctx.ledger.put_version(version, ctx.now_s(), replace=True, provenance=found)
    return version
