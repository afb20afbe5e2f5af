"""Lists what the registry holds: names, version numbers, aliases. Whether plain MLflow code or
`interlock register` put a version there makes no difference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from interlock.core.errors import RegistryError

if TYPE_CHECKING:
    from interlock.operations.context import Context


class Registered(msgspec.Struct, frozen=True):
    """What the registry says of one version; `created_s` is Unix time."""

    aliases: tuple[str, ...]
    created_s: float


def registry_numbers(ctx: Context) -> dict[str, list[str]]:
    """Every registered model, with its version numbers in no order; a model without versions has none.

    Raises: RegistryError.
    """
    if _is_empty(ctx):
        return {}
    client = ctx.registry.client
    found: dict[str, list[str]] = {m.name: [] for m in _pages(client.search_registered_models)}
    for version in _pages(client.search_model_versions):
        found.setdefault(version.name, []).append(str(version.version))
    return found


def registry_versions(ctx: Context, name: str) -> dict[str, Registered]:
    """The registered versions of one model by number; none for a name that the registry does not know.

    Raises: RegistryError.
    """
    if _is_empty(ctx):
        return {}
    client = ctx.registry.client
    quote = "'" if '"' in name else '"'
    wanted = {"filter_string": f"name = {quote}{name}{quote}"} if quote not in name else {}
    models = [model for model in _pages(client.search_registered_models, **wanted) if model.name == name]
    aliases: dict[str, list[str]] = {}
    for alias, number in (models[0].aliases if models else {}).items():
        aliases.setdefault(str(number), []).append(alias)
    return {
        str(version.version): Registered(
            tuple(sorted(aliases.get(str(version.version), ()))), version.creation_timestamp / 1000
        )
        for version in _pages(client.search_model_versions, **wanted)
        if version.name == name
    }


def _is_empty(ctx: Context) -> bool:
    """Whether the home's own store was never made: no need then to load MLflow, which takes seconds."""
    return ctx.registry.is_default and not (ctx.home / "mlflow.db").exists()


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        try:
            page = search(page_token=token, **arguments)
        except Exception as error:  # MLflow raises its own, SQLAlchemy's and requests' errors
            raise RegistryError(f"the registry did not list its models: {error}") from error
        yield from page
        token = page.token
        if not token:
            return
