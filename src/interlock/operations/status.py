"""What one asks a node and its ledger: the node view, models, versions, events, quarantine.

Every function reads; none changes anything. The structs are the JSON of the admin API and of the command
line's `--json`, field by field. The module imports nothing heavy, so that a command which asks a running node
starts in no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from interlock.core.errors import ModelNotFound
from interlock.core.letters import Report, VersionState, VersionStatus
from interlock.operations.registered import registry_numbers, registry_versions
from interlock.registry.rows import Event, ReleaseRow

if TYPE_CHECKING:
    from interlock.operations.context import Context

MAX_EVENTS = 1000
"""The most events or releases that one answer holds; ask again after the last one's `seq`."""


class ProcessStatus(msgspec.Struct, frozen=True):
    """One process as control sees it: its last Report, how many seconds ago that came, and whether the
    process is still connected. `restarts`: how often the supervisor had to start it again.

    Executors talk to workers alone: their reports are what the supervisor sees of them."""

    report: Report
    age_s: float
    up: bool = True
    restarts: int = 0


class NodeStatus(msgspec.Struct, frozen=True):
    """The node view that control keeps. `revision` is that of the newest Desired; `workers` how many there
    should be; `started_s` is Unix time."""

    node: str
    workers: int
    http_url: str
    admin_url: str
    started_s: float
    revision: int
    processes: tuple[ProcessStatus, ...] = ()


class Quarantine(msgspec.Struct, frozen=True):
    """A version that crashed its process too often to be tried again; its key is MODEL/NUMBER@DIGEST."""

    version_key: str
    reason: str


class ModelSummary(msgspec.Struct, frozen=True):
    """One model. `live` is the version that the ledger wants to answer, `newest` the newest registered one;
    `release` is the model's last release; `ready` counts the workers where the live version answers."""

    name: str
    live: str | None
    newest: str | None
    versions: int
    release: ReleaseRow | None = None
    ready: int = 0


class VersionSummary(msgspec.Struct, frozen=True):
    """One registered version and where it stands on the node; `state` is "" where no worker has it.

    `metric` names the first of its reference metrics, of the value `quality`; "" where none was measured."""

    number: str
    live: bool
    digest: str = ""
    runtime: str = ""
    placement: str = ""
    aliases: tuple[str, ...] = ()
    created_s: float | None = None
    state: str = ""
    reason: str = ""
    ready: int = 0
    metric: str = ""
    quality: float | None = None


class Status(msgspec.Struct, frozen=True):
    """All that `interlock status` shows. `node` is None while no node runs; `not_ready` says why it is not
    ready, "" when it is."""

    node: NodeStatus | None
    not_ready: str
    models: tuple[ModelSummary, ...]
    open_releases: tuple[ReleaseRow, ...]
    quarantined: tuple[Quarantine, ...]


def status(ctx: Context, node: NodeStatus | None) -> Status:
    """The node and what is on it, from the ledger and the node view (None: no node runs)."""
    quarantined = quarantine(node)
    names = [model.name for model in ctx.ledger.models()]
    return Status(
        node=node,
        not_ready=why_not_ready(node),
        models=tuple(_summary(ctx, name, _numbers(ctx, name), node) for name in names),
        open_releases=tuple(ctx.ledger.open_releases()),
        quarantined=quarantined,
    )


def why_not_ready(node: NodeStatus | None) -> str:
    """Why a node as a whole is not ready: one of its workers is not, or is missing; "" when it is.

    >>> why_not_ready(NodeStatus("local", 2, "", "", 0.0, 0))
    'no worker of 2 has reported yet'
    """
    if node is None:
        return "no node runs here"
    workers = [process for process in node.processes if is_worker(process)]
    if not workers:
        return f"no worker of {node.workers} has reported yet"
    for process in workers:
        name = process.report.process
        if not process.up:
            return f"{name} is down"
        if process.report.draining:
            return f"{name} is draining"
        if not process.report.ready:
            late = [f"{v.model}/{v.number} {v.state}" for v in process.report.versions if v.state != "ready"]
            return f"{name} is not ready: {', '.join(late) or 'it has not read what it shall serve'}"
    if len(workers) < node.workers:
        return f"{len(workers)} of {node.workers} workers have reported"
    return ""


def given_up(found: Status) -> tuple[str, ...]:
    """A line for each live version that workers cannot answer and do not go on trying to load, with the
    reason: a node is ready without it, for the sake of the others."""
    live = {(model.name, model.live) for model in found.models}
    where: dict[str, list[str]] = {}
    for process in found.node.processes if found.node is not None else ():
        for one in process.report.versions if process.up and is_worker(process) else ():
            gone = one.state in (VersionState.FAILED, VersionState.QUARANTINED)
            if gone and (one.model, one.number) in live:
                line = f"{one.model} version {one.number} {one.state}: {one.reason or 'no reason given'}"
                where.setdefault(line, []).append(process.report.process)
    return tuple(f"{line} ({', '.join(processes)})" for line, processes in sorted(where.items()))


def answering(node: NodeStatus, model: str) -> int:
    """How many workers answer for a model, by what they last said."""
    return sum(
        any(one.model == model and one.state is VersionState.READY for one in process.report.versions)
        for process in node.processes
        if process.up and is_worker(process)
    )


def is_worker(process: ProcessStatus) -> bool:
    """Whether a process answers requests itself (executors, control and the supervisor do not)."""
    return process.report.process.startswith("worker-")


def is_executor(process: ProcessStatus) -> bool:
    """Whether a process executes one version, for all workers."""
    return process.report.process.startswith("x-")


def join_children(processes: Sequence[ProcessStatus]) -> tuple[ProcessStatus, ...]:
    """Processes that reported themselves, completed by what the supervisor's Report says of all; by name."""
    heard = {process.report.process: process for process in processes}
    supervisor = heard.get("supervisor")
    for child in supervisor.report.children if supervisor is not None and supervisor.up else ():
        found = heard.get(child.process)
        if found is not None:
            heard[child.process] = msgspec.structs.replace(found, restarts=child.restarts)
        elif child.process.startswith("x-"):
            report = Report(
                node=supervisor.report.node if supervisor is not None else "",
                process=child.process,
                incarnation=child.incarnation,
                pid=child.pid,
                seen_revision=-1,
                revision=-1,
                ready=child.ready and not child.leaving,
                draining=child.leaving,
                resident_bytes=child.resident_bytes,
            )
            age_s = supervisor.age_s if supervisor is not None else 0.0
            heard[child.process] = ProcessStatus(report, age_s, child.pid != 0, child.restarts)
    return tuple(heard[name] for name in sorted(heard))


def quarantine(node: NodeStatus | None) -> tuple[Quarantine, ...]:
    """The versions that the supervisor gave up, sorted by key; none while no node runs."""
    if node is None:
        return ()
    reasons: dict[str, str] = {}
    for process in node.processes:
        reasons.update(process.report.quarantined)
    return tuple(Quarantine(key, reasons[key]) for key in sorted(reasons))


def models(ctx: Context, node: NodeStatus | None) -> list[ModelSummary]:
    """All models that the registry or the ledger knows, by name."""
    numbers = {model.name: set(_numbers(ctx, model.name)) for model in ctx.ledger.models()}
    for name, registered in registry_numbers(ctx).items():
        numbers.setdefault(name, set()).update(registered)
    return [_summary(ctx, name, sorted(numbers[name], key=version_order), node) for name in sorted(numbers)]


def versions(ctx: Context, name: str, node: NodeStatus | None) -> list[VersionSummary]:
    """The versions of a model that the registry or the ledger knows, newest first.

    Raises: ModelNotFound; RegistryError.
    """
    recorded = {version.number: version for version in ctx.ledger.versions(name)}
    registered = registry_versions(ctx, name)
    if not recorded and not registered:
        raise ModelNotFound(f"no model {name!r} in the registry or the ledger; see: interlock models")
    live = ctx.ledger.live(name)
    main_metrics = ctx.ledger.main_metrics(name)
    found = []
    for number in sorted({*recorded, *registered}, key=version_order, reverse=True):
        known = registered.get(number)
        created_s = ctx.ledger.created_s(name, number) if known is None else known.created_s
        summary = VersionSummary(
            number=number,
            live=live is not None and live.number == number,
            aliases=() if known is None else known.aliases,
            created_s=created_s,
            **_standing(node, name, number),
        )
        if version := recorded.get(number):
            metric, quality = main_metrics.get(number, ("", None))
            summary = msgspec.structs.replace(
                summary,
                digest=version.digest,
                runtime=version.runtime,
                placement=version.placement.value,
                metric=metric,
                quality=quality,
            )
        found.append(summary)
    return found


def events(ctx: Context, model: str | None, after_seq: int | None, limit: int) -> list[Event]:
    """Events of one model (or all) after a sequence number, oldest first; the newest ones without a number.

    At most `MAX_EVENTS`.
    """
    bounded = min(max(limit, 1), MAX_EVENTS)
    if after_seq is None:
        return ctx.ledger.latest_events(model, bounded)
    return ctx.ledger.events(model, after_seq, bounded)


def releases(ctx: Context, model: str | None, limit: int) -> list[ReleaseRow]:
    """The newest releases of one model (or all), newest first; at most `MAX_EVENTS`."""
    return ctx.ledger.releases(model, min(max(limit, 1), MAX_EVENTS))


def version_order(number: str) -> tuple[int, int, str]:
    """The key that sorts version numbers: as numbers where they are, before names.

    >>> sorted(["10", "9", "b"], key=version_order)
    ['9', '10', 'b']
    """
    return (0, int(number), "") if number.isascii() and number.isdigit() else (1, 0, number)


def _summary(ctx: Context, name: str, numbers: Sequence[str], node: NodeStatus | None) -> ModelSummary:
    live = ctx.ledger.live(name)
    last = ctx.ledger.releases(name, 1)
    return ModelSummary(
        name=name,
        live=None if live is None else live.number,
        newest=numbers[-1] if numbers else None,
        versions=len(numbers),
        release=last[0] if last else None,
        ready=0 if live is None else _ready(node, name, live.number),
    )


def _numbers(ctx: Context, name: str) -> list[str]:
    return sorted((version.number for version in ctx.ledger.versions(name)), key=version_order)


def _ready(node: NodeStatus | None, model: str, number: str) -> int:
    return sum(found.state is VersionState.READY for found in _found(node, model, number))


def _found(node: NodeStatus | None, model: str, number: str) -> Iterator[VersionStatus]:
    for process in node.processes if node is not None else ():
        if process.up and is_worker(process):
            yield from (v for v in process.report.versions if v.model == model and v.number == number)


def _standing(node: NodeStatus | None, model: str, number: str) -> dict[str, Any]:
    """Over all workers: the state that is furthest from READY, with its reason, and how many are READY."""
    found = list(_found(node, model, number))
    if not found:
        return {}
    worst = max(found, key=lambda status: _CONCERN.index(status.state))
    ready = sum(status.state is VersionState.READY for status in found)
    return {"state": worst.state.value, "reason": worst.reason, "ready": ready}


_CONCERN = (
    VersionState.READY,
    VersionState.DRAINING,
    VersionState.LOADING,
    VersionState.PENDING,
    VersionState.FAILED,
    VersionState.QUARANTINED,
)
