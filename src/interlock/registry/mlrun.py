"""Decides where MLflow holds what is recorded of a version: its run's and logged model's own places.

Metrics, params and tags of the run (those of MLflow's own names where it has one), a dataset input, the child
of the training run; `FOLDER` of the model's files holds the rest as JSON.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.model import Version
from interlock.core.provenance import Check, Code, Dataset, Environment, ParentRun, Provenance
from interlock.registry.mlmodel import COLUMN_TYPE_OF, DATATYPE_OF, FOLDER

REFERENCE = "reference_"
"""What metrics on the reference rows begin with: the model may have been trained on these very data."""

_LONGEST_DIGEST = 36  # what MLflow's store takes of a dataset's
_LARGEST_SCHEMA_BYTES = 1_000_000
_COMMIT, _DIRTY = "mlflow.source.git.commit", "mlflow.source.git.dirty"
_BRANCH, _REMOTE = "mlflow.source.git.branch", "mlflow.source.git.repoURL"
_PARENT = "mlflow.parentRunId"


class Facts(msgspec.Struct, frozen=True):
    """What goes into MLflow beside the model's own files; `files` are relative to `FOLDER`."""

    metrics: dict[str, float] = {}
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    files: dict[str, bytes] = {}
    dataset: Dataset | None = None
    parent: ParentRun | None = None


class SeenRun(msgspec.Struct, frozen=True):
    """The MLflow run that a version came from, as it is there now."""

    run_id: str
    name: str = ""
    metrics: dict[str, float] = {}
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    dataset: Dataset | None = None
    code: Code | None = None
    parent: ParentRun | None = None


def facts_of(version: Version, provenance: Provenance) -> Facts:
    """What MLflow is told of a version that was just checked."""
    profile, able = version.profile, version.capabilities
    metrics = {f"batch_{rows}_s": seconds for rows, seconds in profile.batch_s.items()}
    metrics |= {f"batch_{rows}_bytes": float(size) for rows, size in profile.batch_bytes.items()}
    metrics |= {
        "load_s": profile.load_s,
        "resident_bytes": float(profile.resident_bytes),
        "artifact_bytes": float(profile.artifact_bytes),
    }
    params = {"runtime": version.runtime, "placement": version.placement.value}
    params |= {f"capability.{key}": json.dumps(value) for key, value in msgspec.to_builtins(able).items()}
    tags = {"interlock.digest": version.digest, "interlock.version": provenance.interlock}
    if (quality := provenance.quality) is not None:
        metrics |= {f"{REFERENCE}{name}": value for name, value in quality.metrics.items()}
        params["reference.rows"] = str(quality.rows)
    if (data := provenance.dataset) is not None:
        tags["interlock.dataset.digest"] = data.digest
        if data.dvc is not None:
            told = {"file": data.dvc.file, "md5": data.dvc.md5, "commit": data.dvc.commit}
            tags |= {f"interlock.dvc.{key}": value for key, value in told.items() if value}
            tags |= {"interlock.dvc.warning": data.dvc.warning} if data.dvc.warning else {}
    if (code := provenance.code) is not None:
        tags |= {_COMMIT: code.commit, "mlflow.source.name": code.folder, "mlflow.source.type": "LOCAL"}
        tags |= {_BRANCH: code.branch} if code.branch else {}
        tags |= {_REMOTE: code.remote} if code.remote else {}
        tags |= {_DIRTY: str(code.dirty).lower()} if code.dirty is not None else {}
    if (parent := provenance.parent) is not None:
        if parent.tracking_uri is None:
            tags[_PARENT] = parent.run_id
        else:
            tags["interlock.parent.run_id"] = parent.run_id
            tags["interlock.parent.tracking_uri"] = parent.tracking_uri
    rest = msgspec.structs.replace(provenance, checks=(), environment=None)
    measured = {"placement": version.placement, "profile": profile, "capabilities": able}
    files: dict[str, Any] = {"provenance.json": rest, "checks.json": provenance.checks}
    files |= {"profile.json": measured, "environment.json": provenance.environment}
    return Facts(
        metrics, params, tags, {n: _json(v) for n, v in files.items()}, provenance.dataset, provenance.parent
    )


def begin(client: Any, name: str, facts: Facts, experiment: Callable[[], str]) -> Any:
    """A new run: beside its parent, where MLflow's pages nest it, else in the given experiment."""
    parent = facts.parent
    if parent is not None and parent.tracking_uri is None:
        where = client.get_run(parent.run_id).info.experiment_id
    else:
        where = experiment()
    return client.create_run(where, run_name=name, tags=facts.tags)


def log(client: Any, run_id: str, model_id: str, metrics: Mapping[str, float], facts: Facts) -> None:
    """Fill the run: `metrics` and those of the facts (also as the logged model's), params, dataset."""
    from mlflow.entities import DatasetInput, InputTag, LoggedModelOutput, Metric, Param

    now_ms = int(time.time() * 1000)
    data = None if facts.dataset is None else _as_mlflow(facts.dataset)
    if data is not None:
        context = InputTag("mlflow.data.context", "reference")
        client.log_inputs(run_id, [DatasetInput(data, [context])])
    entries = []
    for key, value in {**metrics, **facts.metrics}.items():
        about = data if data is not None and key.startswith(REFERENCE) else None
        entries.append(
            Metric(
                key,
                float(value),
                now_ms,
                0,
                model_id=model_id,
                dataset_name=None if about is None else about.name,
                dataset_digest=None if about is None else about.digest,
                run_id=run_id,
            )
        )
    client.log_batch(run_id, metrics=entries, params=[Param(k, v) for k, v in facts.params.items()])
    client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def download_described(uri: str, tracking_uri: str, folder: Path) -> None:
    """Copy what describes a model, and none of its own files, into a folder."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    files: Any = get_artifact_repository(uri, tracking_uri, tracking_uri)
    there = {str(item.path) for item in files.list_artifacts("")}
    for name in ("MLmodel", "requirements.txt", FOLDER):
        if name in there:
            files.download_artifacts(name, str(folder))


def read_files(folder: Path) -> Provenance | None:
    """What `facts_of` put into the files of a version, from a downloaded folder; None where nothing is, or
    what this Interlock cannot read."""
    try:
        found = msgspec.json.decode((folder / FOLDER / "provenance.json").read_bytes(), type=Provenance)
        checks = msgspec.json.decode((folder / FOLDER / "checks.json").read_bytes(), type=tuple[Check, ...])
        environment = msgspec.json.decode(
            (folder / FOLDER / "environment.json").read_bytes(), type=Environment | None
        )
    except (OSError, msgspec.DecodeError):
        return None
    return msgspec.structs.replace(found, checks=checks, environment=environment)


def seen(run: Any) -> SeenRun:
    """A run of MLflow's client, whoever made it, and what it says of where its models come from."""
    tags = {str(key): str(value) for key, value in run.data.tags.items()}
    code = None
    if commit := tags.get(_COMMIT):
        dirty = tags.get(_DIRTY)
        code = Code(
            commit,
            tags.get("mlflow.source.name", ""),
            tags.get(_BRANCH),
            None if dirty is None else dirty.lower() == "true",
            tags.get(_REMOTE),
        )
    inputs = run.inputs.dataset_inputs if run.inputs is not None else ()
    return SeenRun(
        run_id=str(run.info.run_id),
        name=str(run.info.run_name or ""),
        metrics={str(k): float(v) for k, v in run.data.metrics.items()},
        params={str(k): str(v) for k, v in run.data.params.items()},
        tags=tags,
        dataset=next((_from_mlflow(entry.dataset) for entry in inputs), None),
        code=code,
        parent=ParentRun(tags[_PARENT]) if _PARENT in tags else None,
    )


def _as_mlflow(data: Dataset) -> Any:
    """MLflow's own entity: a file it could load again, or data that only code had."""
    from mlflow.entities import Dataset as Entity

    where = data.location
    name = data.location.rpartition("/")[2] if data.location else "arrays"
    source: dict[str, Any]
    if where is None:
        kind, source = "code", {"tags": {"interlock.dataset.digest": data.digest}}
    elif where.startswith(("http://", "https://")):
        kind, source = "http", {"url": where}
    else:
        kind, source = where.partition("://")[0] if "://" in where else "local", {"uri": where}
    profile = {"num_rows": data.rows, "num_columns": len(data.columns), "digest": data.digest}
    if data.dvc is not None:
        profile |= {"dvc_md5": data.dvc.md5 or "", "dvc_commit": data.dvc.commit or ""}
    columns = [{"name": name, "type": _type(kind), "required": True} for name, kind in data.columns.items()]
    schema = json.dumps({"mlflow_colspec": columns}) if columns else None
    return Entity(
        name=name[:500] or "data",
        digest=data.digest.removeprefix("sha256:")[:_LONGEST_DIGEST],
        source_type=kind,
        source=json.dumps(source),
        schema=schema if schema is None or len(schema) < _LARGEST_SCHEMA_BYTES else None,
        profile=json.dumps(profile),
    )


def _from_mlflow(entity: Any) -> Dataset:
    """What one can say of a dataset that some code logged."""
    source, profile, schema = (_parsed(t) for t in (entity.source, entity.profile, entity.schema))
    where = source.get("uri") or source.get("url") or source.get("path")
    columns = [c for c in schema.get("mlflow_colspec", ()) if isinstance(c, dict)]
    return Dataset(
        digest=str(profile.get("digest") or entity.digest),
        rows=int(profile.get("num_rows") or 0),
        location=None if where is None else str(where),
        columns={
            str(c.get("name")): str(DATATYPE_OF.get(str(c.get("type")), c.get("type"))) for c in columns
        },
    )


def _type(datatype: str) -> str:
    exact = {kind: name for name, kind in DATATYPE_OF.items() if name != "binary"}
    return exact.get(datatype) or COLUMN_TYPE_OF.get(datatype, "string")


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
