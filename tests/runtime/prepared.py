"""Prepares a model as a registration does, in the process of the test: a child would import its library anew,
which takes seconds."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from interlock.core.model import Signature, Version
from interlock.operations.artifact import recognise
from interlock.operations.reference import Reference
from interlock.runtime.catalog import runtime_of
from interlock.runtime.check import check
from interlock.runtime.prepare import ConversionReport, prepare
from interlock.runtime.protocol import Loaded
from interlock.runtime.table import OPTION


class Ready(NamedTuple):
    """What a registration would record of it, loaded; `generated`: the checks made up their rows."""

    version: Version
    conversion: ConversionReport
    loaded: Loaded
    generated: bool


def prepared(artifact: object, folder: Path, rows: Reference | None = None, *, trust: bool = False) -> Ready:
    """Prepare and check a path or an object, in the empty `folder`. Raises: as `register` does."""
    came, out = folder / "came", folder / "out"
    came.mkdir()
    out.mkdir()
    given = recognise(artifact, trust=trust)
    options = given.fill(came) or {}
    if rows is not None and rows.table is not None:
        options = {**options, OPTION: msgspec.to_builtins(rows.table)}
    inputs = None if rows is None else rows.inputs
    draft = Version("m", "1", "", given.runtime, given.entry, Signature((), ()), options=options)
    made = prepare(came, draft, inputs, out)
    assert made.conversion is not None
    draft = msgspec.structs.replace(draft, runtime=made.runtime, entry=made.entry, options=made.options)
    report = check(out, draft, inputs)
    assert report.failures == ()
    version = msgspec.structs.replace(draft, signature=report.signature, placement=report.placement)
    return Ready(version, made.conversion, runtime_of(version.runtime).load(out, version), report.generated)
