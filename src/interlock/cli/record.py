"""The commands that show what is recorded: show (one version), diff (two)."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from interlock.cli import show as shown
from interlock.cli.options import json_option, model_argument, node_options
from interlock.core.model import Signature
from interlock.operations.description import Description
from interlock.operations.difference import Difference, MetricChange, SizeChange, ValueChange, difference

Rows = Sequence[tuple[str, object]]
PACKAGES = 12
"""So many packages are shown; --json has them all."""


@click.command(epilog="Examples: interlock show iris 3  |  interlock show iris @champion --json")
@model_argument
@click.argument("version", required=False)
@node_options
@json_option
def show(name: str, version: str | None, home: Path, url: str | None, as_json: bool) -> None:
    """Show all that is recorded of a VERSION (a number or @ALIAS; the newest by default).

    What Interlock recorded, and what MLflow's run of it holds; of a version that plain MLflow code
    registered, what there is.
    """
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        found = control.describe(name, version)
    if as_json:
        shown.as_json(found)
        return
    for line in lines_of(found):
        click.echo(line)


@click.command(
    epilog="Examples: interlock diff iris 2 3  |  interlock diff iris @champion 3 --exit-code  |  "
    "Exit codes: 0 it was shown, 1 with --exit-code where a client of A cannot use B."
)
@model_argument
@click.argument("a")
@click.argument("b")
@click.option("--exit-code", is_flag=True, help="End with 1 if the signatures are incompatible.")
@node_options
@json_option
def diff(name: str, a: str, b: str, exit_code: bool, home: Path, url: str | None, as_json: bool) -> None:
    """Show what changes from version A to version B: metrics, signature, size, latency, data, environment.

    A and B are numbers or @ALIAS. Times and sizes are those measured at registration, each on the machine
    where that was.
    """
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        found = difference(control.describe(name, a), control.describe(name, b))
    if as_json:
        shown.as_json(found)
    else:
        for line in lines_of_difference(found):
            click.echo(line)
    if exit_code and found.compatible is False:
        raise click.exceptions.Exit(1)


def lines_of(found: Description) -> list[str]:
    """A description for people, section by section; those without content are left out."""
    version, past, run = found.version, found.provenance, found.run
    lines = [shown.printable(f"{found.model} version {found.number}" + (", live" if found.live else ""))]
    lines += [f"warning: {shown.printable(warning)}" for warning in found.warnings]
    registered = "" if found.created_s is None else _when(found.created_s)
    lines += _section(
        "version",
        [
            ("about", found.about),
            ("aliases", ", ".join(found.aliases)),
            ("registered", registered),
            ("digest", "" if version is None else version.digest),
            ("runtime", "" if version is None else f"{version.runtime}, {version.placement}"),
            ("flavors", ", ".join(found.flavors)),
            ("size", "" if found.size_bytes is None else shown.size(found.size_bytes)),
            ("source", found.source),
            *((f"tag {key}", value) for key, value in sorted(found.tags.items())),
        ],
    )
    lines += _signature(found.signature)
    if (quality := past.quality) is not None:
        lines += _section(
            f"quality on the {quality.rows} reference rows ({quality.task or 'not measured'})",
            [
                *((name, f"{value:.6g}") for name, value in quality.metrics.items()),
                *((name, f"absent: {why}") for name, why in quality.absent.items()),
            ],
        )
    elif found.metrics:
        lines += _section("metrics of its run", [(n, f"{v:.6g}") for n, v in sorted(found.metrics.items())])
    if version is not None:
        profile, able = version.profile, version.capabilities
        lines += _section(
            "measured at registration",
            [
                *(
                    (f"{rows} rows", _call(s, profile.batch_bytes.get(rows)))
                    for rows, s in profile.batch_s.items()
                ),
                ("load", f"{profile.load_s * 1e3:.1f} ms, then {shown.size(profile.resident_bytes)}"),
            ],
        )
        lines += _section(
            "capabilities", [(n.replace("_", " "), getattr(able, n)) for n in able.__struct_fields__]
        )
        lines += _section("options", list(version.options.items()))
    if past.conversion is not None:
        lines += _section("conversion", [("result", past.conversion.get("reason", ""))])
    rows = " (made-up rows)" if past.generated else ""
    lines += _section(
        f"checks{rows}", [(c.name, f"{'passed' if c.passed else 'FAILED'}  {c.detail}") for c in past.checks]
    )
    lines += _data(found)
    if (code := past.code) is not None:
        lines += _section(
            "code",
            [
                ("commit", code.commit + (" with changes" if code.dirty else "")),
                ("branch", code.branch),
                ("remote", code.remote),
                ("folder", code.folder),
            ],
        )
    if (lock := past.environment) is not None:
        lines += _section(
            "environment",
            [
                ("python", lock.python),
                ("platform", lock.platform),
                ("packages", f"{len(lock.packages)}; --json lists them"),
            ],
        )
    elif found.requirements:
        lines += _section(
            "requirements", [("python", found.python), ("packages", " ".join(found.requirements))]
        )
    if run is not None or past.parent is not None:
        parent = past.parent
        where = "" if parent is None or parent.tracking_uri is None else f" in {parent.tracking_uri}"
        lines += _section(
            "MLflow run",
            [
                ("run", "" if run is None else run.run_id),
                ("child of", "" if parent is None else f"{parent.run_id}{where}"),
                *(() if run is None or found.is_ours else sorted(run.params.items())),
            ],
        )
    return lines


def lines_of_difference(found: Difference) -> list[str]:
    """A difference for people; sections in which nothing differs are left out."""
    a, b = found.a, found.b
    lines = [shown.printable(f"{found.model}: from version {a} to version {b}")]
    lines += [f"warning: {shown.printable(warning)}" for warning in found.warnings]
    if found.same_artifact:
        lines.append("both have the same files")
    lines += _section("metrics", [(m.name, _metric(m)) for m in found.metrics])
    said = {True: "compatible", False: "INCOMPATIBLE", None: "not known of both"}[found.compatible]
    signature = [
        (
            f"{c.place} {c.name}".strip(),
            f"{_or_none(c.a)} -> {_or_none(c.b)}{'  (breaks)' if c.breaks else ''}",
        )
        for c in found.signature
    ]
    lines += _section(f"signature: {said}", signature or [("", "the same" if found.compatible else "")])
    sizes = [("files", _sizes(found.size_bytes)), ("after the load", _sizes(found.resident_bytes))]
    lines += _section("size", [(name, text) for name, text in sizes if text])
    lines += _section("latency, one call", [(f"{c.rows} rows", _times(c)) for c in found.latency])
    lines += _section("memory during a call", [(f"{c.rows} rows", _sizes(c)) for c in found.memory])
    data = found.data
    heading = {True: "data: the same bytes", False: "data: others", None: "data: not known of both"}[
        data.same
    ]
    if data.same is not None or data.changes:
        lines += _section(
            heading,
            [
                *_changes(data.changes),
                *(("column added", name) for name in data.columns_added),
                *(("column removed", name) for name in data.columns_removed),
            ]
            or [("", "nothing differs")],
        )
    packages = found.environment
    lines += _section(
        "environment",
        _few(
            [
                *_changes(packages.changed),
                *((name, f"added {pin}") for name, pin in packages.added.items()),
                *((name, f"removed {pin}") for name, pin in packages.removed.items()),
            ]
        ),
    )
    lines += _section("code", _changes(found.code))
    lines += _section("capabilities", _changes(found.capabilities))
    lines += _section("options", _changes(found.options))
    return lines


def _section(heading: str, rows: Rows) -> list[str]:
    """A heading and its rows, those without a value left out."""
    kept = [(name, value) for name, value in rows if value is not None and value != ""]
    if not kept:
        return []
    width = min(max(len(shown.printable(name)) for name, _ in kept), 28)
    return [
        "",
        shown.printable(heading),
        *(
            f"  {shown.printable(name) if name else '':<{width}}  {shown.printable(value)}".rstrip()
            for name, value in kept
        ),
    ]


def _signature(signature: Signature | None) -> list[str]:
    if signature is None:
        return []
    columns = ", ".join(signature.columns[:PACKAGES])
    more = len(signature.columns) - PACKAGES
    return _section(
        "signature",
        [
            *((f"input {s.name}", f"{s.datatype} {list(s.shape)}") for s in signature.inputs[:PACKAGES]),
            *((f"output {s.name}", f"{s.datatype} {list(s.shape)}") for s in signature.outputs),
            ("columns", f"{columns} and {more} more" if more > 0 else columns),
        ],
    )


def _data(found: Description) -> list[str]:
    data = found.provenance.dataset
    if data is None:
        return []
    size = "" if data.size_bytes is None else f", {shown.size(data.size_bytes)}"
    dvc = data.dvc
    told: Rows = []
    if dvc is not None:
        matches = {True: "the data match it", False: "the data do NOT match it", None: "not compared"}
        told = [
            ("DVC file", dvc.file),
            ("DVC MD5", None if dvc.md5 is None else f"{dvc.md5} ({matches[dvc.matches]})"),
            (
                "DVC revision",
                None if dvc.commit is None else dvc.commit + (" with changes" if dvc.dirty else ""),
            ),
        ]
    return _section(
        "data",
        [
            ("location", data.location or "arrays from Python"),
            ("digest", data.digest),
            ("rows", f"{data.rows}{size}"),
            ("columns", len(data.columns) or None),
            ("target", data.target),
            *told,
        ],
    )


def _call(seconds: float, peak_bytes: int | None) -> str:
    return f"{seconds * 1e6:.1f} us" + ("" if peak_bytes is None else f", at most {shown.size(peak_bytes)}")


def _metric(change: MetricChange) -> str:
    a, b = (_or_none(None if v is None else f"{v:.6g}") for v in (change.a, change.b))
    if change.change is None:
        return f"{a} -> {b}"
    return f"{a} -> {b}  ({change.change:+.3g}{', ' + change.direction if change.direction else ''})"


def _sizes(change: SizeChange | None) -> str:
    if change is None:
        return ""
    a, b = (_or_none(None if v is None else shown.size(int(v))) for v in (change.a, change.b))
    return f"{a} -> {b}{_ratio(change)}"


def _times(change: SizeChange) -> str:
    a, b = (_or_none(None if v is None else f"{v * 1e6:.1f} us") for v in (change.a, change.b))
    return f"{a} -> {b}{_ratio(change)}"


def _ratio(change: SizeChange) -> str:
    return "" if change.ratio is None else f"  (x {change.ratio:.2f})"


def _changes(changes: Iterable[ValueChange]) -> list[tuple[str, object]]:
    return [(c.name.replace("_", " "), f"{_or_none(c.a)} -> {_or_none(c.b)}") for c in changes]


def _few(rows: list[tuple[str, object]]) -> list[tuple[str, object]]:
    if len(rows) <= PACKAGES:
        return rows
    return [*rows[:PACKAGES], ("", f"and {len(rows) - PACKAGES} more; --json lists them")]


def _or_none(value: object) -> str:
    return "none" if value is None or value == "" else str(value)


def _when(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
