"""Owns the admin API's paths about one release: how it stands while it is open, what it certifies after."""

import time
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
from fastapi import FastAPI, Path
from starlette.responses import Response

from interlock.api import schema
from interlock.core.errors import NotFound
from interlock.operations.certificate import certificate
from interlock.operations.context import Context
from interlock.operations.release import known
from interlock.rollout.certificate import Certificate
from interlock.rollout.plan import Action
from interlock.rollout.snapshot import Snapshot
from interlock.rollout.view import RolloutView, unseen, view

Looked = Callable[[], Mapping[str, tuple[Snapshot, Action]]]
"""Of each model with an open release: what the last look saw, and what it decided."""
KINDS = (RolloutView, Certificate)

Name = Annotated[str, Path(description="The model's name.", max_length=128, examples=["iris"])]
Release = Annotated[int, Path(ge=1, le=2**62, description="The release.")]


def add_rollouts(app: FastAPI, ctx: Context, looked: Looked) -> None:
    """Add the paths to an application."""

    @app.get(
        "/api/models/{name}/rollout", responses=schema.returns(RolloutView, 400, 404, 500), tags=["releases"]
    )
    def get_rollout(name: Name) -> Response:
        """How the model's open release stands: weights, evidence, harm, forecast."""
        if (found := looked().get(name)) is not None:
            return _json(view(*found, time.time()))
        known(ctx, name)
        last = next(iter(ctx.ledger.releases(name, 1)), None)
        if last is None or last.state.finished:
            how = "" if last is None else f"; the last one ({last.id}) is {last.state}"
            raise NotFound(f"no release of {name!r} is under way{how}")
        live = ctx.ledger.live(name)
        return _json(unseen(last, None if live is None else live.number, time.time()))

    @app.get(
        "/api/releases/{id}/certificate",
        responses=schema.returns(Certificate, 400, 404, 500),
        tags=["releases"],
    )
    def get_certificate(id: Release) -> Response:
        """What a release by evidence compared, how it ended, and what that is worth."""
        return _json(certificate(ctx, id))


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
