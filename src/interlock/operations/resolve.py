"""The use case `resolve`: a number, an alias or "the newest" becomes a Version record."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock.core.errors import UntrustedArtifact
from interlock.core.model import Signature, Version, artifact_path
from interlock.operations.context import Context
from interlock.operations.register import described, put
from interlock.registry import artifacts, mlmodel
from interlock.runtime import pickles, sklearn
from interlock.runtime.check_process import DEFAULT_MEMORY_BYTES, DEFAULT_TIME_S, run_check


def resolve(
    ctx: Context,
    name: str,
    selector: str | None = None,
    *,
    trust: bool = False,
    time_s: float = DEFAULT_TIME_S,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: Callable[[str], object] = lambda message: None,
) -> Version:
    """A version by number, "@alias", or None for the newest. What the ledger holds comes back at once.

    A version that plain MLflow code registered (flavor onnx or sklearn) is downloaded, checked on generated
    rows in a process of its own, and recorded. `trust` vouches for code that its files bring.
    Raises: ModelNotFound, VersionNotFound, RegistryError, ArtifactError (UnknownFormat, UntrustedArtifact,
    LoadFailed, CheckFailed), LedgerError.
    """
    if selector is not None and selector.isdigit():
        known = ctx.ledger.version(name, selector)
        if known is not None and artifact_path(ctx.home, known.digest).is_dir():
            return known
    found = ctx.registry.resolve(name, selector)
    known = ctx.ledger.version(name, found.number)
    if known is not None and artifact_path(ctx.home, known.digest).is_dir():
        return known
    progress(f"downloading version {found.number} of {name}")
    with tempfile.TemporaryDirectory(prefix="interlock-resolve-", dir=ctx.home) as text:
        folder = Path(text)
        ctx.registry.download(name, found.number, folder)
        source = mlmodel.read(folder)
        mlmodel.strip(folder)
        options = _options(source, folder, name, found.number, trust)
        digest = artifacts.add(ctx.home, folder)
    if known is not None and known.digest == digest:
        return known  # only the cache had lost it
    progress("checking it in a process of its own")
    draft = Version(name, "new", digest, source.runtime, source.entry, Signature((), ()), options=options)
    report = run_check(
        artifact_path(ctx.home, digest), draft, time_s=time_s, memory_bytes=memory_bytes, progress=progress
    )
    return put(ctx, described(draft, found.number, report))


def _options(source: mlmodel.Source, folder: Path, name: str, number: str, trust: bool) -> dict[str, Any]:
    """The runtime's options, with nothing trusted that nobody on this home vouched for."""
    if source.runtime == "python" and not trust:
        raise UntrustedArtifact(
            f"version {number} of {name!r} is Python code that was not registered here: if you know where "
            "it comes from, register its folder yourself"
        )
    if source.runtime != "sklearn":
        return dict(source.options)
    path = folder / source.entry
    options: dict[str, Any] = {
        "input_datatype": source.options.get("input_datatype") or source.input_datatype or "FP32"
    }
    if path.suffix == ".skops":
        if trust:
            options["trusted_types"] = sklearn.foreign_types(path)
    elif trust:
        options[pickles.DIGEST_OPTION] = pickles.sha256_of(path)
    else:
        pickles.refuse(path)
    return options
