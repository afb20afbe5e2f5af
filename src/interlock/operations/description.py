"""The use case `show`: all that is recorded of one version, from the ledger and from MLflow, side by side.

The ledger's part needs no MLflow: a registry that is down costs what only it knows, and says so. Imports
nothing heavy, so that a command which asks a running node starts in no time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from interlock.core.errors import NotFound, RegistryError, UnknownFormat, VersionNotFound
from interlock.core.model import Signature, Version
from interlock.core.provenance import Provenance
from interlock.operations.status import version_order

if TYPE_CHECKING:
    from interlock.operations.context import Context
    from interlock.registry.mlflow import Seen
    from interlock.registry.mlmodel import Declared

REFERENCE = "reference_"


class Run(msgspec.Struct, frozen=True):
    """The MLflow run of a version, as it is there now: what somebody logged since is in it."""

    run_id: str
    name: str = ""
    metrics: dict[str, float] = {}
    params: dict[str, str] = {}
    tags: dict[str, str] = {}


class Description(msgspec.Struct, frozen=True):
    """One version. `version` is None for one that this home has not loaded yet: then `signature` is what its
    MLmodel file declares, and `requirements` what that asks for. `run` is None where MLflow has none or did
    not answer; `warnings` say what is missing, and why."""

    model: str
    number: str
    live: bool = False
    aliases: tuple[str, ...] = ()
    created_s: float | None = None
    about: str = ""
    tags: dict[str, str] = {}
    source: str = ""
    flavors: tuple[str, ...] = ()
    signature: Signature | None = None
    version: Version | None = None
    provenance: Provenance = Provenance()
    requirements: tuple[str, ...] = ()
    python: str | None = None
    size_bytes: int | None = None
    run: Run | None = None
    warnings: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """How good it is said to be: its own on the reference rows, else what its run holds."""
        quality = self.provenance.quality
        if quality is not None and quality.metrics:
            return {f"{REFERENCE}{name}": value for name, value in quality.metrics.items()}
        return {} if self.run is None or self.is_ours else dict(self.run.metrics)

    @property
    def is_ours(self) -> bool:
        """Whether `interlock register` made it, here or in another home."""
        return bool(self.provenance.interlock)


def describe(ctx: Context, name: str, selector: str | None = None) -> Description:
    """What is recorded of a version by number, "@alias", or None for the newest.

    Raises: ModelNotFound, VersionNotFound; RegistryError for an alias, or a version that is not in the
    ledger, while the registry cannot be asked.
    """
    warnings: list[str] = []
    seen: Seen | None = None
    try:
        seen = _seen(ctx, name, selector)
    except (RegistryError, NotFound) as error:
        number = _number_in_ledger(ctx, name, selector)
        if number is None:
            raise
        gone = isinstance(error, NotFound)
        warnings.append(
            "the registry does not have it any more" if gone else f"without MLflow's part: {error.message}"
        )
    else:
        number = seen.entry.number if seen is not None else _number_in_ledger(ctx, name, selector)
        if number is None:
            raise VersionNotFound(f"no version {selector or 'at all'} of model {name!r} in the ledger")
    version = ctx.ledger.version(name, number)
    live = ctx.ledger.live(name)
    found = Description(
        model=name,
        number=number,
        live=live is not None and live.number == number,
        created_s=ctx.ledger.created_s(name, number),
        version=version,
        signature=None if version is None else version.signature,
        size_bytes=None if version is None else version.profile.artifact_bytes,
        provenance=ctx.ledger.provenance(name, number) or Provenance(),
    )
    if seen is not None:
        found = _with_mlflow(ctx, found, seen, warnings)
    return msgspec.structs.replace(found, warnings=(*warnings, *found.provenance.warnings))


def _seen(ctx: Context, name: str, selector: str | None) -> Seen | None:
    from interlock.operations.registered import is_empty

    if is_empty(ctx) and not (selector or "").startswith("@"):
        return None
    return ctx.registry.look(name, selector)


def _number_in_ledger(ctx: Context, name: str, selector: str | None) -> str | None:
    numbers = sorted((version.number for version in ctx.ledger.versions(name)), key=version_order)
    if selector is None:
        return numbers[-1] if numbers else None
    return selector if selector in numbers else None


def _with_mlflow(ctx: Context, found: Description, seen: Seen, warnings: list[str]) -> Description:
    entry, run = seen.entry, seen.run
    if found.version is None:
        try:
            declared, recorded = _declared(ctx, found.model, found.number)
        except (RegistryError, UnknownFormat) as error:
            warnings.append(f"its files cannot be read: {error.message}")
        else:
            found = msgspec.structs.replace(
                found,
                signature=declared.signature,
                flavors=declared.flavors,
                requirements=declared.requirements,
                python=declared.python,
                size_bytes=declared.size_bytes,
                provenance=recorded or Provenance(),
            )
    if run is not None:
        known = found.provenance
        found = msgspec.structs.replace(
            found,
            run=Run(run.run_id, run.name, run.metrics, run.params, run.tags),
            provenance=msgspec.structs.replace(
                known,
                dataset=known.dataset or run.dataset,
                code=known.code or run.code,
                parent=known.parent or run.parent,
            ),
        )
    return msgspec.structs.replace(
        found,
        aliases=entry.aliases,
        created_s=entry.created_s,
        about=seen.description,
        tags=entry.tags,
        source=entry.source,
    )


def _declared(ctx: Context, name: str, number: str) -> tuple[Declared, Provenance | None]:
    """What the files beside a model say that nobody has loaded here; the model's own stay where they are."""
    from interlock.registry import mlmodel, mlrun

    with tempfile.TemporaryDirectory(prefix="interlock-show-") as text:
        folder = Path(text)
        ctx.registry.download_described(name, number, folder)
        return mlmodel.declared(folder), mlrun.read_files(folder)
