"""Decides what differs between two versions of a model, by their descriptions; pure.

`a` is the older or the live one, `b` what would come after it: every difference is told as a change from a
to b.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from interlock.core.model import Signature, TensorSpec
from interlock.core.provenance import Provenance
from interlock.evidence.quality import HIGHER_IS_BETTER
from interlock.operations.description import Description

Direction = Literal["better", "worse", "same", ""]
"""Of a metric whose better side is known; "" for any other."""


class MetricChange(msgspec.Struct, frozen=True):
    """One metric; None where a version does not have it. `change` is b - a."""

    name: str
    a: float | None
    b: float | None
    change: float | None
    direction: Direction = ""


class SizeChange(msgspec.Struct, frozen=True):
    """One measured size or time, in its own unit; `ratio` is b / a. Rows of a batch stand in `rows`."""

    a: float | None
    b: float | None
    ratio: float | None
    rows: int | None = None


class ValueChange(msgspec.Struct, frozen=True):
    """One value that differs; None where a version does not have it."""

    name: str
    a: Any
    b: Any


class SignatureChange(msgspec.Struct, frozen=True):
    """One input, output or column. `breaks`: a request or reader that fits a does not fit b."""

    place: Literal["input", "output", "column", "batch axis"]
    name: str
    a: str | None
    b: str | None
    breaks: bool


class DataChange(msgspec.Struct, frozen=True):
    """The reference data: whether they are the same bytes (None: not known of both), and what differs."""

    same: bool | None
    changes: tuple[ValueChange, ...] = ()
    columns_added: tuple[str, ...] = ()
    columns_removed: tuple[str, ...] = ()


class EnvironmentChange(msgspec.Struct, frozen=True):
    """Distribution to version of what came and went, and what has another version; Python is among these."""

    added: dict[str, str] = {}
    removed: dict[str, str] = {}
    changed: tuple[ValueChange, ...] = ()


class Difference(msgspec.Struct, frozen=True):
    """All that differs. `compatible`: whoever asks a may ask b, and understands what it answers (None: the
    signature of one is not known). `latency` is in seconds a call and `memory` in bytes, by rows."""

    model: str
    a: str
    b: str
    same_artifact: bool | None
    compatible: bool | None
    metrics: tuple[MetricChange, ...]
    signature: tuple[SignatureChange, ...]
    size_bytes: SizeChange | None
    latency: tuple[SizeChange, ...]
    resident_bytes: SizeChange | None
    memory: tuple[SizeChange, ...]
    data: DataChange
    environment: EnvironmentChange
    code: tuple[ValueChange, ...]
    capabilities: tuple[ValueChange, ...]
    options: tuple[ValueChange, ...]
    warnings: tuple[str, ...] = ()


def difference(a: Description, b: Description) -> Difference:
    """What changes from version a to version b."""
    one, two = a.version, b.version
    profiles = (None if one is None else one.profile), (None if two is None else two.profile)
    changes = signature_changes(a.signature, b.signature)
    known = a.signature is not None and b.signature is not None
    return Difference(
        model=a.model,
        a=a.number,
        b=b.number,
        same_artifact=None if one is None or two is None else one.digest == two.digest,
        compatible=not any(change.breaks for change in changes) if known else None,
        metrics=_metrics(a.metrics, b.metrics),
        signature=changes,
        size_bytes=_size(a.size_bytes, b.size_bytes),
        latency=_by_rows(*({} if p is None else p.batch_s for p in profiles)),
        resident_bytes=_size(*(None if p is None else p.resident_bytes or None for p in profiles)),
        memory=_by_rows(*({} if p is None else p.batch_bytes for p in profiles)),
        data=_data(a.provenance, b.provenance),
        environment=_environment(a, b),
        code=_values(_code(a.provenance), _code(b.provenance)),
        capabilities=_values(_able(a), _able(b)),
        options=_values(_options(a), _options(b)),
        warnings=(
            *(f"version {a.number}: {said}" for said in a.warnings),
            *(f"version {b.number}: {said}" for said in b.warnings),
        ),
    )


def signature_changes(a: Signature | None, b: Signature | None) -> tuple[SignatureChange, ...]:
    """Inputs, outputs and columns that came, went or are otherwise; none where one signature is unknown.

    It breaks what a client of a does if b wants an input that a had not, refuses one that a had (another
    datatype or shape, or none of that name), or lacks or changes an output. More outputs break nothing. A
    table may come as one tensor or by column to either kind of model, so there the columns count.
    """
    if a is None or b is None:
        return ()
    found: list[SignatureChange] = []
    if a.columns and b.columns:
        found += _columns(a, b)
    else:
        found += _specs("input", a.inputs, b.inputs, new_breaks=True)
        if a.columns != b.columns:
            found += [
                SignatureChange("column", name, name, None, False) for name in a.columns
            ]  # the names are lost; the inputs above say what that breaks
            found += [SignatureChange("column", name, None, name, False) for name in b.columns]
    found += _specs("output", a.outputs, b.outputs, new_breaks=False)
    if a.batch_axis != b.batch_axis:
        axes = str(a.batch_axis), str(b.batch_axis)
        found.append(SignatureChange("batch axis", "", *axes, breaks=a.batch_axis is not None))
    return tuple(found)


def _columns(a: Signature, b: Signature) -> list[SignatureChange]:
    kinds = [_column_types(signature) for signature in (a, b)]
    found = []
    for name in dict.fromkeys((*a.columns, *b.columns)):
        before, after = (kind.get(name) for kind in kinds)
        if before != after:
            # Numbers are taken as whichever number the model has; texts and numbers are no such pair.
            alike = before and after and (before == "BYTES") == (after == "BYTES")
            found.append(SignatureChange("column", name, before, after, not alike))
    if not found and a.columns != b.columns:
        orders = ", ".join(a.columns), ", ".join(b.columns)
        found.append(SignatureChange("column", "(order)", *orders, breaks=True))
    return found


def _column_types(signature: Signature) -> dict[str, str]:
    by_name = {spec.name: spec.datatype for spec in signature.inputs}
    whole = signature.inputs[0].datatype if signature.inputs else ""
    return {name: by_name.get(name, whole) for name in signature.columns}


def _specs(
    place: Literal["input", "output"],
    a: Iterable[TensorSpec],
    b: Iterable[TensorSpec],
    *,
    new_breaks: bool,
) -> list[SignatureChange]:
    before, after = {spec.name: spec for spec in a}, {spec.name: spec for spec in b}
    found = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if old is None:
            breaks = new_breaks
        elif new is None or old.datatype != new.datatype:
            breaks = True
        else:
            # Any length where there was a fixed one takes all that fitted before, and answers anything.
            breaks = len(old.shape) != len(new.shape) or any(
                was != now and not (place == "input" and now == -1)
                for was, now in zip(old.shape, new.shape, strict=False)
            )
        found.append(SignatureChange(place, name, _spec(old), _spec(new), breaks))
    return found


def _spec(spec: TensorSpec | None) -> str | None:
    return None if spec is None else f"{spec.datatype} {list(spec.shape)}"


def _metrics(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[MetricChange, ...]:
    found = []
    for name in dict.fromkeys((*a, *b)):
        before, after = a.get(name), b.get(name)
        change = None if before is None or after is None else after - before
        found.append(MetricChange(name, before, after, change, _direction(name, change)))
    return tuple(found)


def _direction(name: str, change: float | None) -> Direction:
    for prefix in ("reference_", "training_", "test_", "val_", "eval_"):
        name = name.removeprefix(prefix)
    higher = HIGHER_IS_BETTER.get(name)
    if higher is None or change is None or change != change:
        return ""
    if change == 0:
        return "same"
    return "better" if (change > 0) == higher else "worse"


def _size(a: float | None, b: float | None, rows: int | None = None) -> SizeChange | None:
    if a is None and b is None:
        return None
    return SizeChange(a, b, b / a if a and b is not None else None, rows)


def _by_rows(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[SizeChange, ...]:
    changes = (_size(a.get(rows), b.get(rows), rows) for rows in sorted({*a, *b}))
    return tuple(change for change in changes if change is not None)


def _values(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[ValueChange, ...]:
    names = dict.fromkeys((*a, *b))
    return tuple(ValueChange(n, a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n))


def _data(a: Provenance, b: Provenance) -> DataChange:
    one, two = a.dataset, b.dataset
    facts = []
    for data in (one, two):
        dvc = None if data is None else data.dvc
        facts.append(
            {}
            if data is None
            else {
                "digest": data.digest,
                "location": data.location,
                "rows": data.rows,
                "target": data.target,
                "DVC MD5": None if dvc is None else dvc.md5,
                "DVC revision": None if dvc is None else dvc.commit,
            }
        )
    columns: list[dict[str, str]] = [{} if data is None else data.columns for data in (one, two)]
    types = [
        {f"column {name}": kind for name, kind in each.items() if name in other}
        for each, other in zip(columns, columns[::-1], strict=True)
    ]
    return DataChange(
        None if one is None or two is None else one.digest == two.digest,
        (*_values(*facts), *_values(*types)),
        tuple(name for name in columns[1] if name not in columns[0]),
        tuple(name for name in columns[0] if name not in columns[1]),
    )


def _environment(a: Description, b: Description) -> EnvironmentChange:
    """By the locks of both; by what both ask for where one of them has no lock."""
    locks = [one.provenance.environment for one in (a, b)]
    if all(lock is not None for lock in locks):
        before, after = ({"python": lock.python, **lock.packages} for lock in locks if lock is not None)
    elif a.requirements and b.requirements:
        before, after = _required(a), _required(b)
    else:
        return EnvironmentChange()
    return EnvironmentChange(
        {name: after[name] for name in after if name not in before},
        {name: before[name] for name in before if name not in after},
        tuple(change for change in _values(before, after) if None not in (change.a, change.b)),
    )


def _required(one: Description) -> dict[str, str]:
    pins = (line.partition("==") for line in one.requirements)
    return ({"python": one.python} if one.python else {}) | {name: pin for name, _, pin in pins}


def _code(found: Provenance) -> dict[str, Any]:
    code = found.code
    if code is None:
        return {}
    return {"commit": code.commit, "branch": code.branch, "dirty": code.dirty, "remote": code.remote}


def _able(one: Description) -> dict[str, Any]:
    version = one.version
    if version is None:
        return {}
    named = {"runtime": version.runtime, "placement": version.placement.value, "entry": version.entry}
    able: dict[str, Any] = msgspec.to_builtins(version.capabilities)
    return named | able


def _options(one: Description) -> dict[str, Any]:
    return {} if one.version is None else dict(one.version.options)
