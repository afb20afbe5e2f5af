"""Owns the admin API's paths. Each calls an operation; what blocks runs in a thread, never on the loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from interlock import __version__
from interlock.api import rollouts, schema, versions
from interlock.api.asked import ReleaseRequest, ResumeRequest, carry_on, resumption
from interlock.api.guard import Guard, rules
from interlock.api.problems import answer, problem
from interlock.api.rollouts import Looked
from interlock.api.webhook import add_webhook
from interlock.core.errors import (
    Forbidden,
    InterlockError,
    NotReady,
    ReleaseFailed,
)
from interlock.core.settings import NodeConfig
from interlock.operations import release, status
from interlock.operations.certificate import read_row
from interlock.operations.context import Context
from interlock.operations.discovery import read_token
from interlock.operations.status import (
    ModelSummary,
    NodeStatus,
    Quarantine,
    Status,
    VersionSummary,
    why_not_ready,
)
from interlock.operations.wait import POLL_S
from interlock.registry.rows import Event, ReleaseRow, ReleaseState

LOAD_WAIT_S = 60.0
UNLOAD_WAIT_S = 10.0
"""How long `load` waits for the version to answer before it says that it still goes on."""


@dataclass(frozen=True)
class AdminDeps:
    """What control hands to its API. `poke` wakes the rollout loop; `metrics_text` is the whole page;
    `looked` is what the rollout loop saw last; `hint` says that the registry has changed."""

    context: Context
    config: NodeConfig
    node_status: Callable[[], NodeStatus]
    metrics_text: Callable[[], bytes]
    poke: Callable[[], None]
    looked: Looked = lambda: {}
    hint: Callable[[], None] = lambda: None


class Health(msgspec.Struct, frozen=True):
    """`reason` says why the node is not ready."""

    live: bool
    ready: bool
    reason: str = ""


class Pointer(msgspec.Struct, frozen=True):
    """Where things are: paths of this port; another port's URL (`inference`); a file here (`docs`)."""

    name: str
    version: str
    inference: str
    openapi: str = "/api/openapi.json"
    status: str = "/api/status"
    metrics: str = "/metrics"
    ready: str = "/health/ready"
    docs: str = "docs/reference/admin-api.md"


Name = Annotated[str, Path(description="The model's name.", max_length=128, examples=["iris"])]
Limit = Annotated[int, Query(ge=1, le=status.MAX_EVENTS, description="The most rows to answer with.")]
OfModel = Annotated[str | None, Query(max_length=128, description="Only of this model.")]


def create_app(deps: AdminDeps) -> Guard:
    """The admin API as an ASGI application, guarded as the settings ask.

    Raises: ConfigError when it would listen beyond loopback without a token.
    """
    config = deps.config
    if config.token is None:
        config = msgspec.structs.replace(config, token=read_token(config.home))
    guard_rules = rules(config)
    return Guard(_app(deps), guard_rules)


def openapi(deps: AdminDeps) -> dict[str, Any]:
    """The OpenAPI description, as /api/openapi.json answers it."""
    return _app(deps).openapi()


def _app(deps: AdminDeps) -> FastAPI:
    app = FastAPI(
        title="Interlock admin API",
        version=__version__,
        summary="Asks one node of Interlock what it serves, and tells it what to serve.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
    )
    _reads(app, deps)
    rollouts.add_rollouts(app, deps.context, deps.looked)
    versions.add_versions(app, deps.context)
    _changes(app, deps)
    add_webhook(app, deps.context.home, deps.context.now_s, deps.hint)
    _probes(app, deps)
    app.add_exception_handler(InterlockError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_bug)
    kinds = (
        Status,
        list[ModelSummary],
        list[VersionSummary],
        list[Event],
        list[ReleaseRow],
        list[Quarantine],
        *rollouts.KINDS,
        *versions.KINDS,
    )
    described: list[dict[str, Any]] = []

    def describe() -> dict[str, Any]:
        if not described:
            described.append(schema.describe(app, (*kinds, ReleaseRequest, ResumeRequest, Health, Pointer)))
        return described[0]

    app.openapi = describe  # type: ignore[method-assign]
    return app


def _reads(app: FastAPI, deps: AdminDeps) -> None:
    ctx = deps.context

    @app.get("/api/status", responses=schema.returns(Status, 500), tags=["node"])
    def get_status() -> Response:
        """The node, its processes, its models, open releases, and what is in quarantine."""
        return _json(status.status(ctx, deps.node_status()))

    @app.get("/api/quarantine", responses=schema.returns(list[Quarantine]), tags=["node"])
    def get_quarantine() -> Response:
        """The versions that crashed their process too often; releasing one anew tries it again."""
        return _json(status.quarantine(deps.node_status()))

    @app.get("/api/models", responses=schema.returns(list[ModelSummary], 500, 502), tags=["models"])
    def get_models() -> Response:
        """All models that the registry or the ledger knows, by name."""
        return _json(status.models(ctx, deps.node_status()))

    @app.get(
        "/api/models/{name}/versions",
        responses=schema.returns(list[VersionSummary], 400, 404, 500, 502),
        tags=["models"],
    )
    def get_versions(name: Name) -> Response:
        """The versions of a model, newest first."""
        return _json(status.versions(ctx, name, deps.node_status()))

    @app.get("/api/events", responses=schema.returns(list[Event], 400, 500), tags=["releases"])
    def get_events(
        model: OfModel = None,
        after: Annotated[
            int | None,
            Query(ge=0, le=2**62, description="Only later than this `seq`; without it, the newest ones."),
        ] = None,
        limit: Limit = 100,
    ) -> Response:
        """Lines of the append-only log, oldest first."""
        return _json(status.events(ctx, model, after, limit))

    @app.get("/api/releases", responses=schema.returns(list[ReleaseRow], 400, 500), tags=["releases"])
    def get_releases(model: OfModel = None, limit: Limit = 100) -> Response:
        """Releases, newest first."""
        return _json(status.releases(ctx, model, limit))

    @app.get("/api/releases/{id}", responses=schema.returns(ReleaseRow, 400, 404, 500), tags=["releases"])
    def get_release(id: Annotated[int, Path(ge=1, le=2**62, description="The release.")]) -> Response:
        """One release and how it stands."""
        return _json(read_row(ctx, id))


def _changes(app: FastAPI, deps: AdminDeps) -> None:
    ctx = deps.context

    async def change(work: Callable[[], ReleaseRow | None]) -> ReleaseRow | None:
        try:
            return await run_in_threadpool(work)
        finally:
            deps.poke()

    @app.post(
        "/api/models/{name}/release",
        status_code=202,
        responses=schema.returns(
            ReleaseRow, 400, 404, 409, 413, 422, 500, 502, status=202, description="Asked for"
        ),
        openapi_extra=schema.takes(
            ReleaseRequest,
            required=False,
            example={"version": "2", "strategy": "canary", "policy": {"budget": 50}},
            not_together=("version", "alias"),
        ),
        tags=["releases"],
    )
    async def post_release(name: Name, request: Request) -> Response:
        """Release a version: loaded beside the old one, checked, swapped without a failed request.

        Answers at once with the release; follow it at /api/releases/{id}. As a canary it answers a share of
        the requests first, until the evidence promotes it or rolls it back.
        """
        body = await request.body()
        return _json(await change(lambda: carry_on(ctx, name, body)), 202)

    @app.post(
        "/api/models/{name}/rollback",
        status_code=202,
        responses=schema.returns(ReleaseRow, 400, 404, 409, 500, status=202, description="Asked for"),
        tags=["releases"],
    )
    async def post_rollback(name: Name) -> Response:
        """Go back to the version that was live before, or stop the release that is under way."""
        return _json(await change(lambda: release.rollback(ctx, name)), 202)

    steps: dict[str, tuple[Callable[[Context, str], ReleaseRow], str]] = {
        "pause": (release.pause, "Leave a canary's weight as it is; what is proved against it still counts."),
        "promote": (release.promote, "Give a canary all requests, whatever the evidence."),
        "abort": (release.abort, "End the release that is under way; what was live answers everything."),
    }
    for step, (work, words) in steps.items():
        _step(app, change, ctx, step, work, words)

    @app.post(
        "/api/models/{name}/resume",
        status_code=202,
        responses=schema.returns(ReleaseRow, 400, 404, 409, 413, 500, status=202, description="Asked for"),
        openapi_extra=schema.takes(ResumeRequest, required=False, example={"budget": 100}),
        tags=["releases"],
    )
    async def post_resume(name: Name, request: Request) -> Response:
        """Let a paused canary go on, with a larger harm budget if one is given."""
        budget = resumption(await request.body()).budget
        return _json(await change(lambda: release.resume(ctx, name, budget)), 202)

    @app.post(
        "/api/models/{name}/load",
        responses=schema.returns(ReleaseRow, 400, 404, 409, 422, 500, 502),
        tags=["repository control"],
    )
    async def post_load(name: Name) -> Response:
        """Serve the newest version, past every gate; answers when it does. Off unless allowed."""
        _check_repository_control(deps.config)
        row = await change(lambda: release.release_now(ctx, name, None))
        assert row is not None
        until_s = time.monotonic() + LOAD_WAIT_S
        while not row.state.finished and time.monotonic() < until_s:
            await asyncio.sleep(POLL_S)
            row = await run_in_threadpool(ctx.ledger.release, row.id)
        if row.state is not ReleaseState.DONE:
            why = row.reason or f"it is still {row.state} after {LOAD_WAIT_S:g} s and goes on"
            raise ReleaseFailed(f"version {row.number} of {name!r} was not loaded: {why}")
        return _json(row)

    @app.post(
        "/api/models/{name}/unload",
        status_code=204,
        responses=schema.fails(400, 404, 500),
        response_description="Taken off",
        tags=["repository control"],
    )
    async def post_unload(name: Name) -> Response:
        """Take a model off the node; answers when no worker answers for it any more. Off unless allowed."""
        _check_repository_control(deps.config)
        await change(lambda: release.unload(ctx, name))
        until_s = time.monotonic() + UNLOAD_WAIT_S
        # A worker that does not react does not undo it: the ledger has it, and the next letter says so again.
        left = status.answering(deps.node_status(), name)
        while left and time.monotonic() < until_s:
            await asyncio.sleep(POLL_S)
            left = status.answering(deps.node_status(), name)
        return Response(status_code=204)


def _probes(app: FastAPI, deps: AdminDeps) -> None:
    @app.get("/", responses=schema.returns(Pointer), tags=["node"])
    async def get_root(request: Request) -> Response:
        """Where things are; a page of links for a browser."""
        pointer = Pointer("interlock", __version__, deps.node_status().http_url)
        if "text/html" not in request.headers.get("accept", ""):
            return _json(pointer)
        return Response(_page(pointer), media_type="text/html; charset=utf-8")

    @app.get("/health/live", responses=schema.returns(Health), tags=["node"])
    async def get_live() -> Response:
        """200 while this process answers."""
        return _json(Health(live=True, ready=not why_not_ready(deps.node_status())))

    @app.get("/health/ready", responses=schema.returns(Health), tags=["node"])
    async def get_ready() -> Response:
        """200 while every worker is ready; else 503 with the reason."""
        reason = why_not_ready(deps.node_status())
        if reason:
            return problem(NotReady(f"the node is not ready: {reason}"))
        return _json(Health(live=True, ready=True))

    @app.get(
        "/metrics",
        responses={200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}},
        tags=["node"],
    )
    def get_metrics() -> Response:
        """The node's metrics: docs/reference/metrics.md."""
        return Response(deps.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _page(pointer: Pointer) -> str:
    paths = (pointer.status, pointer.ready, pointer.metrics, pointer.openapi)
    links = "".join(f'<li><a href="{path}">{path}</a></li>' for path in paths)
    return (
        f"<!doctype html><title>Interlock</title><h1>Interlock {pointer.version}</h1>"
        f"<p>The admin API of a node. It answers V2 inference at {escape(pointer.inference)}.</p>"
        f"<ul>{links}</ul><p>Described in {pointer.docs} of the source.</p>"
    )


def _step(
    app: FastAPI,
    change: Callable[[Callable[[], ReleaseRow | None]], Awaitable[ReleaseRow | None]],
    ctx: Context,
    step: str,
    work: Callable[[Context, str], ReleaseRow],
    words: str,
) -> None:
    async def post_step(name: Name) -> Response:
        return _json(await change(lambda: work(ctx, name)), 202)

    app.post(
        f"/api/models/{{name}}/{step}",
        status_code=202,
        responses=schema.returns(ReleaseRow, 400, 404, 409, 500, status=202, description="Asked for"),
        tags=["releases"],
        name=f"post_{step}",
        description=words,
    )(post_step)


def _check_repository_control(config: NodeConfig) -> None:
    if not config.allow_repository_control:
        raise Forbidden(
            "load and unload are off, as they pass every gate: start the node with "
            "--allow-repository-control, or use: interlock release"
        )


def _json(value: Any, code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), code, media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InterlockError)
    return problem(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "NotFound", 405: "MethodNotAllowed"}.get(error.status_code, "HTTPError")
    words = f"{request.method} {request.url.path}: {error.detail}"
    return answer(error.status_code, code, words, dict(error.headers or {}))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return answer(400, "InvalidRequest", f"{where}: {first['msg']}, got {first.get('input')!r:.200}")


async def _on_bug(request: Request, error: Exception) -> Response:
    # The server logs the traceback; what is in it is not for the other side.
    return answer(500, "InternalError", f"a fault in Interlock ({type(error).__name__}); its log says more")
