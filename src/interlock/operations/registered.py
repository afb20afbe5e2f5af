"""Lists what the registry holds, whether plain MLflow code or `interlock register` put it there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from interlock.core.errors import ModelNotFound, RegistryError

if TYPE_CHECKING:
    from interlock.operations.context import Context
    from interlock.registry.mlflow import RegisteredVersion


def registry_numbers(ctx: Context) -> dict[str, list[str]]:
    """Every registered model, with its version numbers in no order; a model without versions has none.

    Two searches however many models there are. Raises: RegistryError.
    """
    if is_empty(ctx):
        return {}
    found: dict[str, list[str]] = {name: [] for name in ctx.registry.models()}
    for version in _pages(ctx.registry.client.search_model_versions):
        found.setdefault(version.name, []).append(str(version.version))
    return found


def registry_versions(ctx: Context, name: str) -> dict[str, RegisteredVersion]:
    """The registered versions of one model by number; none for a name that the registry does not know.

    Raises: RegistryError.
    """
    if is_empty(ctx):
        return {}
    try:
        return {version.number: version for version in ctx.registry.versions(name)}
    except ModelNotFound:
        return {}


def is_empty(ctx: Context) -> bool:
    """Whether the home's own store was never made: no need then to load MLflow, which takes seconds."""
    return ctx.registry.is_default and not (ctx.home / "mlflow.db").exists()


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        try:
            page = search(page_token=token)
        except Exception as error:  # MLflow raises its own, SQLAlchemy's and requests' errors
            raise RegistryError(f"the registry did not list its versions: {error}") from error
        yield from page
        token = page.token
        if not token:
            return
