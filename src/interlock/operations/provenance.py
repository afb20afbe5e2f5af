"""Gathers what is recorded of a version: its data, code, environment and parent run, then its quality.

`gather` runs before anything is checked, so that what it finds is what was registered, and so that a slip in
the name of a run costs no wait. Environment variables are not looked at.
"""

import hashlib
import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from interlock import __version__
from interlock.core.errors import ConfigError, InterlockError
from interlock.core.model import Array, Signature, Tensors, Version
from interlock.core.provenance import Check, Code, Dataset, Environment, ParentRun, Provenance, Quality
from interlock.core.table import column_datatype, conform
from interlock.evidence.quality import evaluate
from interlock.operations.context import Context
from interlock.operations.reference import Reference
from interlock.operations.revision import revision, without_credentials
from interlock.operations.tracked import tracked
from interlock.registry.mlflow import Registry
from interlock.runtime import examples
from interlock.runtime.answer_process import answers
from interlock.runtime.check import CheckReport

MOST_ROWS = 100_000
"""Reference metrics are of that many rows at most, the first ones."""


def gather(
    ctx: Context,
    artifact: object,
    rows: Reference | None,
    *,
    data: str | Path | None = None,
    target: str | None = None,
    run: str | None = None,
) -> Provenance:
    """What is known before the version is checked. `data` is the file that `rows` come from, None for arrays;
    `run` the MLflow run that trained the model, by default the one that is active in this process.

    Raises: ConfigError for a run that no store knows; RegistryError; OSError if the data cannot be read.
    """
    return Provenance(
        dataset=None if rows is None else dataset(rows, None if data is None else Path(data), target),
        code=code_of(artifact),
        environment=environment(),
        parent=parent_of(ctx.registry, run),
        interlock=__version__,
    )


def completed(
    found: Provenance, report: CheckReport, quality: Quality | None, conversion: msgspec.Struct | None
) -> Provenance:
    """With what the checks and the conversion showed."""
    return msgspec.structs.replace(
        found,
        checks=tuple(Check(result.name, result.passed, result.detail) for result in report.results),
        generated=report.generated,
        quality=quality,
        conversion=None if conversion is None else msgspec.to_builtins(conversion, str_keys=True),
    )


def measure(folder: Path, version: Version, rows: Reference | None) -> Quality | None:
    """The metrics of a checked version on its reference rows, answered in a process of its own; None without
    a target. A model that cannot answer them has none, and the reason stands there."""
    if rows is None or rows.target is None:
        return None
    target = np.asarray(rows.target)[:MOST_ROWS]
    if version.capabilities.streaming or version.signature.batch_axis is None:
        return Quality("", len(target), {}, {"all": "the model does not give one answer for each row"})
    if not version.capabilities.side_effect_free:
        return Quality("", len(target), {}, {"all": "the model has side effects: it is not asked in vain"})
    try:
        return evaluate(target, answers(folder, version, _inputs(version.signature, rows)))
    except InterlockError as error:
        return Quality("", len(target), {}, {"all": error.message})


def dataset(rows: Reference, path: Path | None, target: str | None) -> Dataset:
    """The reference rows by digest and place. Raises: OSError."""
    if path is None:
        digest = digest_of_arrays(rows.inputs, rows.target)
        return Dataset(digest, rows.rows, None, _columns(rows, target), target)
    path = path.expanduser().absolute()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Dataset(
        f"sha256:{digest}",
        rows.rows,
        str(path),
        _columns(rows, target),
        target,
        path.stat().st_size,
        tracked(path),
    )


def digest_of_arrays(inputs: Mapping[str, Array], target: Array | None) -> str:
    """ "sha256:<hex>" over names, dtypes, shapes and values; equal for equal arrays in whatever memory order.

    >>> x = np.arange(6.0).reshape(2, 3)
    >>> digest_of_arrays({"x": x}, None) == digest_of_arrays({"x": np.asfortranarray(x)}, None)
    True
    """
    total = hashlib.sha256()
    named = [*sorted(inputs.items()), *((("", target),) if target is not None else ())]
    for name, array in named:
        total.update(f"{name}\0{array.dtype.str}\0{list(array.shape)}\0".encode())
        if array.dtype.kind == "O":
            for value in array.ravel().tolist():
                words = value if isinstance(value, bytes) else repr(value).encode(errors="replace")
                total.update(b"%d\0%s" % (len(words), words))
        else:
            total.update(np.ascontiguousarray(array).data)
    return f"sha256:{total.hexdigest()}"


def code_of(artifact: object) -> Code | None:
    """The revision of the artifact's folder; else of the caller's script; else of the current folder."""
    places: list[Path] = []
    if isinstance(artifact, str | Path):
        path = Path(artifact)
        if not path.exists():
            path = Path(str(artifact).rpartition(":")[0])  # "file.py:Class"
        places.append(path if path.is_dir() else path.parent)
    else:
        script = getattr(sys.modules.get("__main__"), "__file__", None)
        places += [Path(script).parent] if script else []
    found = (revision(place.absolute()) for place in (*places, Path.cwd()))
    return next((code for code in found if code is not None), None)


def environment() -> Environment:
    """What is installed here, by name; of a distribution that is there twice, the one that Python imports."""
    packages: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        said = distribution.metadata  # a property that parses a file each time
        if said["Name"] and said["Version"]:
            packages.setdefault(str(said["Name"]), str(said["Version"]))
    ordered = {name: packages[name] for name in sorted(packages, key=str.lower)}
    return Environment(platform.python_version(), platform.platform(), ordered)


def parent_of(registry: Registry, run: str | None) -> ParentRun | None:
    """The run that trained the model: the one that was named, or the active one of this process.

    Raises: ConfigError for a named run that no store knows; RegistryError.
    """
    # Only what the caller imported: without MLflow in the process no run of it can be active.
    theirs = sys.modules.get("mlflow")
    active = getattr(theirs, "active_run", lambda: None)()
    run_id = run if run is not None else None if active is None else str(active.info.run_id)
    if run_id is None:
        return None
    where = _other_store(theirs) if theirs is not None else None
    if registry.has_run(run_id):
        return ParentRun(run_id)
    if where is not None:
        return ParentRun(run_id, where)
    raise ConfigError(f"no run {run_id!r} in the registry's store: copy its id from MLflow's page of the run")


def _other_store(mlflow: Any) -> str | None:
    """Where the caller's own MLflow code keeps its runs, None if it never said."""
    if mlflow.active_run() is None and not mlflow.tracking.is_tracking_uri_set():
        return None
    uri = str(mlflow.get_tracking_uri())
    # An SQLite URI has no host, and its path must stay as it is.
    return uri if "//" not in uri or uri.startswith(("sqlite:", "file:")) else without_credentials(uri)


def _columns(rows: Reference, target: str | None) -> dict[str, str]:
    columns = {name: _datatype(array) for name, array in rows.inputs.items() if name != examples.ONLY}
    if columns and target is not None and rows.target is not None:
        columns[target] = _datatype(rows.target)
    return columns


def _datatype(array: Array) -> str:
    return column_datatype(array) or str(array.dtype)


def _inputs(signature: Signature, rows: Reference) -> Tensors:
    """The reference rows as the model gets them."""
    cut = {name: array[:MOST_ROWS] for name, array in rows.inputs.items()}
    if signature.columns and set(signature.columns) <= set(cut):
        return conform(signature, {name: cut[name] for name in signature.columns})
    return examples.fit(signature, examples.texts_as_bytes(cut))
