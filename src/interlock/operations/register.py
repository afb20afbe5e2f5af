"""The use case `register`: a model file or object becomes an immutable version, checked and measured.

Order matters: cache, check, registry, ledger. Whatever fails, no list shows half a version: an artifact that
nothing names is garbage in the cache, and a version that only the registry knows is whole: it is resolved
like one that plain MLflow code registered.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock.core.errors import ConfigError
from interlock.core.model import Array, Signature, Version, artifact_path, check_name
from interlock.core.provenance import Provenance
from interlock.operations import provenance
from interlock.operations import reference as data_of
from interlock.operations.artifact import Given, recognise, save_estimator
from interlock.operations.context import Context, opened
from interlock.operations.reference import Reference
from interlock.registry import artifacts
from interlock.registry.mlrun import facts_of
from interlock.runtime.check import CheckReport
from interlock.runtime.check_process import DEFAULT_MEMORY_BYTES, DEFAULT_TIME_S, run_check
from interlock.runtime.examples import ONLY

_CHECKED_ROWS = 1024
"""Reference rows that go to the checking process."""


class ConversionReport(msgspec.Struct, frozen=True):
    """Whether a scikit-learn model runs as ONNX, and why. `difference` is the largest |difference| seen over
    `rows` rows (None: not compared); `kept_s`, `onnx_s` are median seconds a call by rows."""

    converted: bool
    reason: str
    rows: int = 0
    difference: float | None = None
    kept_s: dict[int, float] = {}
    onnx_s: dict[int, float] = {}


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
    """Register a path (.onnx, .skops, .pkl, .joblib, .py, "file.py:Class", a folder) or a fitted estimator.

    `data` are reference rows (.parquet, .csv, .npz), without which nothing is converted; `target` is the
    column in them that is the answer. `trust` vouches for code that loading runs. `run`: the MLflow run that
    trained it, by default the active one of this process. `time_s` and `memory_bytes` bound the checking
    process.
    Raises: ArtifactError (UnknownFormat, UntrustedArtifact, LoadFailed, CheckFailed), ConfigError,
    MissingExtra, RegistryError, LedgerError. Nothing is registered then.
    """
    check_name(name)
    rows = data if isinstance(data, Reference) or data is None else data_of.read(Path(data), target)
    path = None if data is None or isinstance(data, Reference) else Path(data)
    found = provenance.gather(ctx, artifact, rows, data=path, target=target, run=run)
    progress("reading the model")
    given = recognise(artifact, trust=trust)
    options: dict[str, Any] = {}
    conversion = None
    if given.estimator is not None:
        progress("comparing it with its conversion to ONNX")
        with warnings.catch_warnings():
            # An estimator fitted on a DataFrame says so at each of some hundred calls with an array.
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            given, options, conversion = _prepare_estimator(given, rows)
        progress(conversion.reason)
    made: dict[str, Any] = {}
    digest = artifacts.add_made(ctx.home, lambda folder: made.update(_fill(given, folder)))
    options.update(made)
    progress("checking it in a process of its own")
    draft = Version(name, "new", digest, given.runtime, given.entry, Signature((), ()), options=options)
    report = run_check(
        artifact_path(ctx.home, digest), draft, _sample(rows), time_s=time_s, memory_bytes=memory_bytes
    )
    if rows is not None and rows.target is not None:
        progress("measuring it on the reference rows")
    quality = provenance.measure(artifact_path(ctx.home, digest), described(draft, "new", report), rows)
    progress("logging it into the registry")
    found = provenance.completed(found, report, quality, conversion)
    return _record(ctx, draft, report, conversion, found, tags or {})


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


def _prepare_estimator(
    given: Given, rows: Reference | None
) -> tuple[Given, dict[str, Any], ConversionReport]:
    """The estimator as ONNX if that is the same and faster, else as it is."""
    if rows is None:
        reason = "kept as scikit-learn: without reference data (--data) the conversion cannot be compared"
        return given, {"input_datatype": "FP32"}, ConversionReport(False, reason)
    matrix = _matrix(rows)
    if not _same_in_float32(given.estimator, matrix):
        reason = (
            "kept as scikit-learn: it needs 64-bit floats (with 32-bit ones it refuses, or answers otherwise)"
        )
        return given, {"input_datatype": "FP64"}, ConversionReport(False, reason)
    from interlock.runtime import convert

    found = convert.convert(given.estimator, data_of.widened(matrix, convert.LEAST_ROWS))
    prefix = "converted" if found.onnx is not None else "kept as scikit-learn"
    report = ConversionReport(
        found.onnx is not None,
        f"{prefix}: {found.reason}",
        found.rows,
        found.difference,
        found.kept_s,
        found.onnx_s,
    )
    if found.onnx is None:
        return given, {"input_datatype": "FP32"}, report
    graph = found.onnx
    return (
        Given("onnx", "model.onnx", fill=lambda folder: (folder / "model.onnx").write_bytes(graph)),
        {},
        report,
    )


def _matrix(rows: Reference) -> Array:
    if len(rows.inputs) != 1:
        raise ConfigError(f"a scikit-learn model has one input, the reference data {sorted(rows.inputs)}")
    matrix = next(iter(rows.inputs.values()))
    try:
        matrix = np.asarray(matrix, np.float64)
    except (TypeError, ValueError):
        raise ConfigError("the reference data hold columns that are not numbers; encode them first") from None
    if matrix.ndim != 2:
        raise ConfigError(f"the reference data have shape {list(matrix.shape)}, want [rows, columns]")
    return matrix


def _same_in_float32(estimator: Any, matrix: Array) -> bool:
    """Whether a client that sends FP32 gets the same answers: equal labels, |difference| <= 1e-5."""
    from interlock.runtime.convert import TOLERANCE

    sample = matrix[:_CHECKED_ROWS]
    try:
        rounded = np.asarray(estimator.predict(sample.astype(np.float32)))
    except (TypeError, ValueError):
        return False  # compiled for float64 only
    exact = np.asarray(estimator.predict(sample))
    if exact.dtype.kind != "f":
        return bool(np.array_equal(exact, rounded))
    return bool(np.allclose(exact, rounded, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


def _fill(given: Given, folder: Path) -> dict[str, Any]:
    if given.fill is not None:
        given.fill(folder)
        return {}
    return save_estimator(given.estimator, folder)


def _sample(rows: Reference | None) -> dict[str, Array] | None:
    if rows is None:
        return None
    if len(rows.inputs) == 1:
        return {ONLY: next(iter(rows.inputs.values()))[:_CHECKED_ROWS]}
    return {name: array[:_CHECKED_ROWS] for name, array in rows.inputs.items()}


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


def put(ctx: Context, version: Version, found: Provenance | None = None) -> Version:
    """Into the ledger; another process that recorded the same artifact first has the last word.

    Raises: LedgerError.
    """
    known = ctx.ledger.version(version.model, version.number)
    if known is not None and known.digest == version.digest:
        return known
    ctx.ledger.put_version(version, ctx.now_s(), replace=True, provenance=found)
    return version
