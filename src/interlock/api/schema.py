"""Decides how the admin API describes itself: OpenAPI schemas made from the structs that it answers with."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from interlock.api.problems import ErrorBody

REF = "#/components/schemas/{name}"


def returns(kind: Any, *errors: int, status: int = 200, description: str = "OK") -> dict[int | str, Any]:
    """The `responses` of a route: JSON of a struct type, and the errors that it may answer with."""
    return {status: {"description": description, "content": _json(kind)}, **fails(*errors)}


def fails(*errors: int) -> dict[int | str, Any]:
    """The errors alone, for a route that answers without a body. Any route may answer 403."""
    return {code: {"description": _MEANINGS[code], "content": _json(ErrorBody)} for code in (403, *errors)}


def takes(kind: Any, *, required: bool, example: Any, not_together: Sequence[str] = ()) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is JSON of a struct type, of which some members exclude each
    other."""
    content = _json(kind)
    if not_together:
        schema = content["application/json"]["schema"]
        told = {
            "properties": {name: {"type": "string"} for name in not_together},
            "required": [*not_together],
        }
        content["application/json"]["schema"] = {"allOf": [schema], "not": told}
    content["application/json"]["example"] = example
    return {"requestBody": {"required": required, "content": content}}


def describe(app: FastAPI, kinds: Sequence[Any]) -> dict[str, Any]:
    """The whole OpenAPI description, with the schemas of `kinds` and all that they hold."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    _, components = msgspec.json.schema_components((*kinds, ErrorBody), ref_template=REF)
    found = document.setdefault("components", {}).setdefault("schemas", {})
    found.update(components)
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"token": []}]
    return document


_MEANINGS = {
    400: "The request must be changed",
    403: "Switched off, or the token, Host or Origin is wrong",
    404: "No such model, version or release",
    409: "Refused in this state",
    413: "The body is too long",
    422: "The artifact cannot be used",
    500: "It was tried and failed",
    502: "The registry cannot be reached",
    503: "Not ready; try again",
}


def _json(kind: Any) -> dict[str, Any]:
    return {"application/json": {"schema": dict(_schema(kind))}}


@cache  # most routes may answer with the same few
def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components((kind,), ref_template=REF)
    return schema
