"""Certificates in the home folder: written once, whole, and never a reason for control to end."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from interlock.core.errors import LedgerError, NotFound
from interlock.operations.certificate import certificate, events_of, leave_certificate
from interlock.operations.context import Context
from interlock.registry.rows import ReleaseState
from interlock.rollout.certificate import Certificate, as_markdown
from interlock.rollout.plan import SHADOW
from tests.operations.homes import a_home, release_and_carry_out
from tests.rollout.histories import BAD, GOOD, a_shadow, begun


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=2, rose=2)
    yield context
    context.close()


def test_the_files_hold_what_the_log_says(ctx: Context) -> None:
    row = a_shadow(ctx, GOOD)
    page = leave_certificate(ctx, row)
    assert page == ctx.home / "certificates" / f"release-{row.id}.md"
    found = certificate(ctx, row.id)
    assert page.read_text() == as_markdown(found)
    assert msgspec.json.decode(page.with_suffix(".json").read_bytes(), type=Certificate) == found
    assert {path.suffix for path in page.parent.iterdir()} == {".md", ".json"}, "nothing half written"


def test_they_are_written_once_and_again_where_the_second_file_is_missing(ctx: Context) -> None:
    row = a_shadow(ctx, BAD)
    page = leave_certificate(ctx, row)
    assert page is not None
    page.write_text("annotated")
    assert leave_certificate(ctx, row) == page and page.read_text() == "annotated"
    page.unlink()  # as if control had been killed between the two
    page.with_suffix(".part").write_text("# Rel")
    leave_certificate(ctx, row)
    assert page.read_text().startswith(f"# Release {row.id}: version 2 of iris, failed")


def test_where_nothing_was_compared_nothing_is_left(ctx: Context) -> None:
    row = release_and_carry_out(ctx, "iris", "1")
    assert leave_certificate(ctx, row) is None and not (ctx.home / "certificates").exists()
    with pytest.raises(NotFound, match=rf"release {row.id} of 'iris' \(now\) compared no versions"):
        certificate(ctx, row.id)
    with pytest.raises(NotFound, match="no release 99"):
        certificate(ctx, 99)


def test_a_record_of_a_newer_interlock_is_an_error_that_control_expects(ctx: Context) -> None:
    row = begun(ctx, SHADOW)
    newer = {"decision": 99, "snapshot": {"another": "shape"}, "action": {"type": "conjure"}}
    ctx.ledger.advance(row.id, ReleaseState.ROLLING_BACK, "x", newer, time_s=row.requested_s + 1.0)
    row = ctx.ledger.advance(row.id, ReleaseState.FAILED, "x", time_s=row.requested_s + 2.0)
    for attempt in (lambda: leave_certificate(ctx, row), lambda: certificate(ctx, row.id)):
        with pytest.raises(LedgerError, match="cannot read"):
            attempt()


def test_a_log_longer_than_a_page_is_read_to_its_end(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlock.operations.certificate.MAX_EVENTS", 3)
    row, late = a_shadow(ctx, GOOD), a_shadow(ctx, BAD)
    assert {event.body["release"] for event in events_of(ctx, late)} == {late.id}
    assert (certificate(ctx, row.id).decisions, certificate(ctx, late.id).decisions) == (3, 4)


def test_a_certificate_of_another_ledger_is_kept_beside_the_new_one(ctx: Context) -> None:
    row = a_shadow(ctx, GOOD)
    path = leave_certificate(ctx, row)
    assert path is not None
    stated = path.with_suffix(".json")
    stated.write_bytes(stated.read_bytes().replace(b'"iris"', b'"elsewhere"', 1))
    path.write_text("of another ledger")
    assert leave_certificate(ctx, row) == path and "of another ledger" not in path.read_text()
    (kept,) = (one for one in path.parent.glob(f"release-{row.id}-*.md"))
    assert kept.read_text() == "of another ledger" and kept.with_suffix(".json").exists()
    before = path.stat().st_mtime_ns
    assert leave_certificate(ctx, row) == path and path.stat().st_mtime_ns == before
