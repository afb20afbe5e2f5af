"""The use case `resolve`: a number, an alias or "the newest" becomes a Version record."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from interlock.core.errors import UnknownFormat, UntrustedArtifact
from interlock.core.model import DATATYPES, Signature, Version, artifact_path
from interlock.core.provenance import Provenance
from interlock.operations.context import Context
from interlock.operations.provenance import completed
from interlock.operations.register import described, put
from interlock.registry import artifacts, environments, mlmodel, mlrun, requirements
from interlock.runtime import environment, pickles, pyfunc, sklearn
from interlock.runtime.check_process import DEFAULT_MEMORY_BYTES, DEFAULT_TIME_S, run_check
from interlock.runtime.table import OPTION, Table


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
        recorded = mlrun.read_files(folder)  # of another home's Interlock
        options = _options(source, folder, name, found.number, trust)
        mlmodel.strip(folder, source.runtime)
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
        python=environment.interpreter_of(ctx.home, draft),
        progress=progress,
    )
    seen = completed(Provenance(), report, None, None) if recorded is None else recorded
    return put(ctx, described(draft, found.number, report), seen)


def _environment(
    ctx: Context, folder: Path, digest: str, progress: Callable[[str], object]
) -> dict[str, Any]:
    """The options of a `pyfunc` that somebody vouched for: its digest and its environment, which is built."""
    made = environments.ensure(ctx.home, requirements.read(folder), folder, progress=progress)
    return {pyfunc.TRUST_OPTION: digest, environment.OPTION: made}


def _runnable(ctx: Context, known: Version, progress: Callable[[str], object]) -> Version:
    """A recorded version, its environment built anew if that is gone."""
    if known.options.get(environment.OPTION):
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
    if source.runtime == "pyfunc":
        if not trust:
            raise UntrustedArtifact(
                f"version {number} of {name!r} is an MLflow python_function: loading it runs code and "
                "pickles that it brings, and nobody here vouched for it. If you know where it comes from: "
                f"interlock release {name} {number} --trust"
            )
        return {}  # they name its digest, which is not known yet
    path = folder / source.entry
    options = {key: value for key, value in source.options.items() if not key.startswith("trusted")}
    if not source.ours and (table := _table(folder, name, number)) is not None:
        options[OPTION] = msgspec.json.decode(msgspec.json.encode(table))
    if source.runtime != "sklearn":
        if trust and source.runtime == "huggingface":
            options["trusted_code"] = True
        elif trust and source.runtime in ("torch", "keras", "tensorflow"):
            graph = path / "saved_model.pb" if path.is_dir() else path
            options[pickles.DIGEST_OPTION] = pickles.sha256_of(graph)
        return options
    options.setdefault("input_datatype", source.input_datatype or "FP32")
    if not source.ours and OPTION in options:
        # MLflow gives it a DataFrame; whether an array would do, only its training data could show.
        options.update(named=True, input_datatype="FP64")
    if path.suffix == ".skops":
        if trust:
            options["trusted_types"] = sklearn.foreign_types(path)
    elif trust:
        options[pickles.DIGEST_OPTION] = pickles.sha256_of(path)
    else:
        pickles.refuse(path)
    return options


def _table(folder: Path, name: str, number: str) -> Table | None:
    """The columns that an MLmodel file declares, None if it declares tensors or nothing.

    Raises: UnknownFormat for a column that no input of a model can carry.
    """
    signature = mlmodel.declared(folder).signature
    if signature is None or not signature.columns:
        return None
    for spec in signature.inputs:
        if spec.datatype not in DATATYPES:
            raise UnknownFormat(
                f"version {number} of {name!r}: its signature has the column {spec.name!r} of type "
                f"{spec.datatype}, which no input of a model can carry: want numbers, booleans or texts"
            )
    return Table(tuple((spec.name, spec.datatype) for spec in signature.inputs))
