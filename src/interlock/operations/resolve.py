"""The use case `resolve`: a number, an alias or "the newest" becomes a Version record."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock.core.errors import UntrustedArtifact
from interlock.core.model import Signature, Version, artifact_path
from interlock.operations.context import Context
from interlock.operations.register import described, put
from interlock.registry import artifacts, environments, mlmodel, requirements
from interlock.runtime import pickles, pyfunc, sklearn
from interlock.runtime.check_process import DEFAULT_MEMORY_BYTES, DEFAULT_TIME_S, run_check
from interlock.runtime.environment import OPTION, interpreter_of


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

    A version that plain MLflow code registered is downloaded, checked in a process of its own, and recorded:
    read natively where there is a runtime for its flavor, else as a `pyfunc` in an environment made from its
    requirements. `trust` vouches for code that its files bring.
    Raises: ModelNotFound, VersionNotFound, RegistryError, ArtifactError (UnknownFormat, UntrustedArtifact,
    EnvironmentFailed, LoadFailed, CheckFailed), LedgerError.
    """
    if selector is not None and selector.isdigit():
        known = ctx.ledger.version(name, selector)
        if known is not None and artifact_path(ctx.home, known.digest).is_dir():
            return _runnable(ctx, known, progress)
    found = ctx.registry.resolve(name, selector)
    known = ctx.ledger.version(name, found.number)
    if known is not None and artifact_path(ctx.home, known.digest).is_dir():
        return _runnable(ctx, known, progress)
    progress(f"downloading version {found.number} of {name}")
    with tempfile.TemporaryDirectory(prefix="interlock-resolve-", dir=ctx.home) as text:
        folder = Path(text)
        ctx.registry.download(name, found.number, folder)
        source = mlmodel.read(folder)
        mlmodel.strip(folder, source.runtime)
        options = _options(source, folder, name, found.number, trust)
        digest = artifacts.add(ctx.home, folder)
    if known is not None and known.digest == digest:
        return _runnable(ctx, known, progress)  # only the cache had lost it
    if source.runtime == "pyfunc":
        options = _environment(ctx, artifact_path(ctx.home, digest), digest, progress)
    progress("checking it in a process of its own")
    draft = Version(name, "new", digest, source.runtime, source.entry, Signature((), ()), options=options)
    report = run_check(
        artifact_path(ctx.home, digest),
        draft,
        time_s=time_s,
        memory_bytes=memory_bytes,
        python=interpreter_of(ctx.home, draft),
    )
    return put(ctx, described(draft, found.number, report))


def _environment(
    ctx: Context, folder: Path, digest: str, progress: Callable[[str], object]
) -> dict[str, Any]:
    """The options of a `pyfunc` that somebody vouched for: its digest and its environment, which is built."""
    environment = environments.ensure(ctx.home, requirements.read(folder), folder, progress=progress)
    return {pyfunc.TRUST_OPTION: digest, OPTION: environment}


def _runnable(ctx: Context, known: Version, progress: Callable[[str], object]) -> Version:
    """A recorded version, its environment built anew if that is gone."""
    if known.options.get(OPTION):
        folder = artifact_path(ctx.home, known.digest)
        environments.build(ctx.home, requirements.read(folder), folder, progress=progress)
    return known


def _options(source: mlmodel.Source, folder: Path, name: str, number: str, trust: bool) -> dict[str, Any]:
    """The runtime's options, with nothing trusted that nobody on this home vouched for."""
    if source.runtime == "python" and not trust:
        raise UntrustedArtifact(
            f"version {number} of {name!r} is Python code that was not registered here: if you know where "
            "it comes from, register its folder yourself"
        )
    if source.runtime == "pyfunc" and not trust:
        raise UntrustedArtifact(
            f"version {number} of {name!r} is an MLflow python_function: loading it runs code and pickles "
            "that it brings, and nobody here vouched for it. If you know where it comes from: "
            f"interlock release {name} {number} --trust"
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
