"""Reads a release's part of the event log and certifies it; leaves the certificate in the home folder."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from interlock.core.errors import LedgerError, NotFound
from interlock.core.fault import is_selftest
from interlock.operations.status import MAX_EVENTS
from interlock.rollout.certificate import Certificate, as_markdown, certify

CLOCK_S = 3600.0
"""By how much the clock may have been set back or forth during a release, for all of its log to be found."""

if TYPE_CHECKING:
    from interlock.operations.context import Context
    from interlock.registry.rows import Event, ReleaseRow


def certificate(ctx: Context, release_id: int) -> Certificate:
    """The certificate of a release, as its log stands now.

    Raises: NotFound for an unknown release, and for one that compared nothing; LedgerError.
    """
    row = read_row(ctx, release_id)
    found = _certified(ctx, row)
    if found is None:
        raise NotFound(
            f"release {release_id} of {row.model!r} ({row.strategy}) compared no versions: there is nothing "
            "to certify"
        )
    return found


def leave_certificate(ctx: Context, row: ReleaseRow) -> Path | None:
    """Write a finished release's certificate into the home folder, as JSON and Markdown, once.

    Returns the Markdown file; None where nothing was compared, and for a self-test, which certifies nothing
    that is served. Raises: OSError; LedgerError.
    """
    if is_selftest(row.model):
        return None
    folder = ctx.home / "certificates"
    stem = f"release-{row.id}"
    markdown = folder / f"{stem}.md"
    if markdown.exists() and _is_of(folder / f"{stem}.json", row):
        return markdown
    found = _certified(ctx, row)
    if found is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    if markdown.exists():  # of a ledger that was here before this one: it is worth keeping
        for path in (folder / f"{stem}.json", markdown):
            path.replace(path.with_name(f"{stem}-{int(markdown.stat().st_mtime)}{path.suffix}"))
    # The Markdown last: while it is not there, whoever starts next writes both again.
    for path, content in (
        (folder / f"{stem}.json", msgspec.json.format(msgspec.json.encode(found)) + b"\n"),
        (markdown, as_markdown(found).encode()),
    ):
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
    return markdown


def _is_of(path: Path, row: ReleaseRow) -> bool:
    try:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return False
    return (known.get("model"), known.get("requested_s")) == (row.model, row.requested_s)


def read_row(ctx: Context, release_id: int) -> ReleaseRow:
    """One release. Raises: NotFound; LedgerError."""
    try:
        return ctx.ledger.release(release_id)
    except LedgerError as error:
        if "no release" in error.message:
            raise NotFound(error.message) from None
        raise


def _certified(ctx: Context, row: ReleaseRow) -> Certificate | None:
    try:
        return certify(row, events_of(ctx, row))
    except msgspec.ValidationError as error:  # of a newer Interlock; control must not end over it
        raise LedgerError(
            f"release {row.id} of {row.model!r} has a record that this Interlock cannot read: {error}"
        ) from None


def events_of(ctx: Context, row: ReleaseRow) -> list[Event]:
    """All that the log says of a release, oldest first."""
    found: list[Event] = []
    # A model's log may be long, and this one's part of it is not; clocks may have been set meanwhile.
    during = row.requested_s - CLOCK_S, (row.finished_s or inf) + CLOCK_S
    page = ctx.ledger.events(row.model, 0, MAX_EVENTS, during)
    while page:
        found += [event for event in page if event.body.get("release") == row.id]
        page = ctx.ledger.events(row.model, page[-1].seq, MAX_EVENTS, during)
    return found
