"""Owns the admin API's path about one version: all that is recorded of it."""

from typing import Annotated

import msgspec
from fastapi import FastAPI, Path
from starlette.responses import Response

from interlock.api import schema
from interlock.operations.context import Context
from interlock.operations.description import Description, describe

KINDS = (Description,)

Name = Annotated[str, Path(description="The model's name.", max_length=128, examples=["iris"])]
Selector = Annotated[
    str, Path(description="A number, @ALIAS, or `newest`.", max_length=256, examples=["3", "@champion"])
]


def add_versions(app: FastAPI, ctx: Context) -> None:
    """Add the path to an application."""

    @app.get(
        "/api/models/{name}/versions/{selector}",
        responses=schema.returns(Description, 400, 404, 500, 502),
        tags=["models"],
    )
    def get_version(name: Name, selector: Selector) -> Response:
        """All that is recorded of a version: signature, measurements, data, code, environment, MLflow run.

        Two of these are compared by `interlock diff`.
        """
        found = describe(ctx, name, None if selector == "newest" else selector)
        return Response(msgspec.json.encode(found), media_type="application/json")
