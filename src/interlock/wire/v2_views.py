"""Decides how the node's facts read in the Open Inference Protocol and its extensions; pure."""

import math
from collections.abc import Iterable
from typing import Any

from interlock.core.letters import VersionState, VersionStatus
from interlock.core.model import ModelSettings, Signature, TensorSpec, Version
from interlock.core.state import ArmCounts, ArmKey
from interlock.core.table import is_matrix

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
"""Those of Triton's that are offered; `schedule_policy` is the parameters priority and timeout."""

# Clients know these names from Triton; a runtime that they do not know is named as it is.
_PLATFORMS = {"onnx": ("onnxruntime_onnx", "onnxruntime"), "python": ("python", "python")}
_STATES = {
    VersionState.READY: "READY",
    VersionState.PENDING: "LOADING",
    VersionState.LOADING: "LOADING",
    VersionState.DRAINING: "UNLOADING",
    VersionState.FAILED: "UNAVAILABLE",
    VersionState.QUARANTINED: "UNAVAILABLE",
}


def metadata(version: Version, numbers: Iterable[str]) -> dict[str, Any]:
    """Model metadata; `numbers` are the versions that can be asked for. The parameters tell a client
    whether it may send a request again that may have run."""
    return {
        "name": version.model,
        "versions": sorted(numbers, key=_by_number),
        "platform": _platform(version)[0],
        "inputs": _inputs(version.signature),
        "outputs": [_tensor(spec) for spec in version.signature.outputs],
        "parameters": {"side_effect_free": version.capabilities.side_effect_free},
    }


def config(version: Version, settings: ModelSettings) -> dict[str, Any]:
    """The model as Triton's ModelConfig. `max_batch_size` 0 says that requests are not joined; where they
    are, `dims` leave the batch axis out."""
    limit = version.capabilities.max_batch_rows
    if settings.max_batch_rows is not None:
        limit = min(limit, settings.max_batch_rows)
    joins = version.signature.batch_axis == 0 and all(
        spec.shape and spec.shape[0] < 0 for spec in version.signature.inputs + version.signature.outputs
    )
    platform, backend = _platform(version)
    view: dict[str, Any] = {
        "name": version.model,
        "platform": platform,
        "backend": backend,
        "version_policy": {"specific": {"versions": [int(version.number)]}}
        if version.number.isdigit()
        else {"latest": {"num_versions": 1}},
        "max_batch_size": max(limit, 1) if joins else 0,
        "input": [_config_tensor(spec, joins) for spec in version.signature.inputs],
        "output": [_config_tensor(spec, joins) for spec in version.signature.outputs],
        "instance_group": [
            {"name": f"{version.model}_0", "kind": "KIND_CPU", "count": 1, "gpus": [], "profile": []}
        ],
        "default_model_filename": version.entry,
        "parameters": {},
        "model_transaction_policy": {"decoupled": version.capabilities.streaming},
    }
    if joins and version.capabilities.batchable:
        view["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": round(settings.max_wait_s * 1e6),
            "preserve_ordering": False,
        }
    return view


def index(statuses: Iterable[VersionStatus], only_ready: bool) -> list[dict[str, str]]:
    """The repository index: one entry a version, in order of name and number."""
    entries = [
        {
            "name": status.model,
            "version": status.number,
            "state": _STATES[status.state],
            "reason": status.reason,
        }
        for status in sorted(statuses, key=lambda status: (status.model, _by_number(status.number)))
    ]
    return [entry for entry in entries if not only_ready or entry["state"] == "READY"]


def statistics(counted: Iterable[tuple[ArmKey, ArmCounts]]) -> dict[str, Any]:
    """Triton's statistics, summed over the node's workers and a version's arms.

    Triton counts a request of n rows as n inferences, and so do we. Time for reading and writing messages
    is not taken apart from the rest, so `compute_input` and `compute_output` have a count and no time;
    counts by batch size are not kept, so `batch_stats` is empty.
    """
    totals: dict[tuple[str, str], ArmCounts] = {}
    for key, counts in counted:
        name = (key.model, key.version)
        totals[name] = totals[name].merge(counts) if name in totals else counts
    return {
        "model_stats": [
            {
                "name": model,
                "version": number,
                "inference_count": counts.rows,
                "execution_count": counts.batches,
                "inference_stats": _durations(counts),
                "response_stats": {},
                "batch_stats": [],
                "memory_usage": [],
            }
            for (model, number), counts in sorted(
                totals.items(), key=lambda item: (item[0][0], _by_number(item[0][1]))
            )
        ]
    }


def _durations(counts: ArmCounts) -> dict[str, dict[str, int]]:
    # Whatever was dispatched and is not a success; what a crash cut off has no duration.
    failures = counts.invalid + counts.failed + counts.timed_out + counts.cancelled + counts.lost
    return {
        "success": {"count": counts.ok, "ns": round(counts.ok_s * 1e9)},
        "fail": {"count": failures, "ns": counts.not_ok_ns},
        "queue": {"count": counts.queue.count, "ns": round(counts.queue.sum_s * 1e9)},
        "compute_input": {"count": counts.ok, "ns": 0},
        # Each request spends all of its batch's time in the model: so Triton counts, and so it adds up.
        "compute_infer": {"count": counts.ok, "ns": max(round((counts.ok_s - counts.queue.sum_s) * 1e9), 0)},
        "compute_output": {"count": counts.ok, "ns": 0},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }


def _inputs(signature: Signature) -> list[dict[str, Any]]:
    """A table that is one tensor names its columns in the parameters, where the protocol leaves room."""
    tensors = [_tensor(spec) for spec in signature.inputs]
    if is_matrix(signature):
        tensors[0]["parameters"] = {"columns": list(signature.columns)}
    return tensors


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _config_tensor(spec: TensorSpec, joins: bool) -> dict[str, Any]:
    dims = list(spec.shape[1:] if joins else spec.shape)
    view: dict[str, Any] = {
        "name": spec.name,
        "data_type": "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}",
        # Triton's dims are never empty; a row of one number has shape [1], reshaped to [].
        "dims": dims or [1],
    }
    if not dims:
        view["reshape"] = {"shape": []}
    return view


def _platform(version: Version) -> tuple[str, str]:
    return _PLATFORMS.get(version.runtime, (version.runtime, version.runtime))


def _by_number(number: str) -> tuple[float, str]:
    return (int(number) if number.isdigit() else math.inf, number)
