"""Builds homes with versions and releases in their ledger, for tests that need no registry."""

import threading
import time
from pathlib import Path

from interlock.core.letters import Report, VersionState, VersionStatus
from interlock.core.model import Placement, Signature, TensorSpec, Version, artifact_path
from interlock.operations.context import Context, open_context
from interlock.operations.status import NodeStatus, ProcessStatus
from interlock.registry.rows import ReleaseRow, ReleaseState

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "INT64", (-1,)),))


def a_version(model: str, number: str) -> Version:
    digest = "sha256:" + f"{model}{number}".encode().hex().ljust(64, "0")[:64]
    return Version(model, number, digest, "onnx", "model.onnx", SIGNATURE, placement=Placement.INLINE)


def a_home(folder: Path, **numbers: int) -> Context:
    """An opened home where each named model has that many recorded versions."""
    ctx = open_context(folder)
    for model, count in numbers.items():
        for number in range(1, count + 1):
            ctx.ledger.put_version(a_version(model, str(number)), ctx.now_s())
    return ctx


def carry_out(ctx: Context, row: ReleaseRow) -> ReleaseRow:
    """What a node does with a release that goes well."""
    for state in (ReleaseState.PREPARING, ReleaseState.SWITCHING, ReleaseState.DONE):
        row = ctx.ledger.advance(row.id, state, time_s=ctx.now_s())
    return row


def release_and_carry_out(ctx: Context, model: str, number: str) -> ReleaseRow:
    return carry_out(ctx, ctx.ledger.request_release(model, number, "now", ctx.now_s()))


def a_report(process: str, *statuses: VersionStatus, ready: bool = True) -> Report:
    return Report("local", process, 7, 4242, 3, 3, ready, versions=statuses, resident_bytes=64 << 20)


def a_status(model: str, number: str, state: VersionState, reason: str = "") -> VersionStatus:
    return VersionStatus(model, number, a_version(model, number).digest, state, reason)


def a_node(*reports: Report, workers: int = 1) -> NodeStatus:
    processes = tuple(ProcessStatus(report, 0.1) for report in reports)
    return NodeStatus(
        "local", workers, "http://127.0.0.1:8000", "http://127.0.0.1:8002", 1_700_000_000.0, 3, processes
    )


def register_in_mlflow(ctx: Context, model: str, count: int) -> None:
    """What plain MLflow code does; the files of these versions are in the home's cache already."""
    client = ctx.registry.client
    client.create_registered_model(model)
    for number in range(1, count + 1):
        client.create_model_version(model, source=str(ctx.home), run_id=None)
        artifact_path(ctx.home, a_version(model, str(number)).digest).mkdir(parents=True)


class carrying_out:
    """A stand-in for the rollout loop: finishes what is asked for, well or with a reason."""

    def __init__(self, ctx: Context, failure: str = "") -> None:
        self._ctx = ctx
        self._failure = failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            for row in self._ctx.ledger.open_releases():
                if self._failure:
                    self._ctx.ledger.advance(row.id, ReleaseState.FAILED, self._failure, time_s=time.time())
                else:
                    carry_out(self._ctx, row)
