"""A certificate says what was compared and who decided, and cannot be made to say anything else."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from interlock.core.state import PairCounts
from interlock.core.verdict import Verdict
from interlock.operations import release
from interlock.operations.context import Context
from interlock.registry.rows import Event, ReleaseRow, ReleaseState
from interlock.rollout.certificate import Certificate, as_markdown, certify
from interlock.rollout.judgement import Kind
from interlock.rollout.plan import CANARY, SHADOW
from interlock.rollout.replay import decisions, replay
from tests.operations.homes import a_home
from tests.rollout.histories import BAD, GOOD, POLICY, a_shadow, begun, decide, tried


@pytest.fixture
def ctx(interlock_home: Path) -> Iterator[Context]:
    context = a_home(interlock_home, iris=3)
    yield context
    context.close()


def events_of(ctx: Context, row: ReleaseRow) -> list[Event]:
    found = [event for event in ctx.ledger.events(row.model) if event.body.get("release") == row.id]
    assert replay(found) == []
    return found


def certified(ctx: Context, row: ReleaseRow) -> Certificate:
    row = ctx.ledger.release(row.id)
    found = certify(row, ctx.ledger.events())
    assert found is not None
    assert msgspec.json.decode(msgspec.json.encode(found), type=Certificate) == found
    return found


def test_a_shadow_that_passed_proves_its_margins_and_how_much_was_compared(ctx: Context) -> None:
    row = a_shadow(ctx, GOOD)
    found = certified(ctx, row)
    assert (found.verdict, found.decided, found.strategy) == ("passed", "evidence", SHADOW)
    assert (found.candidate, found.incumbent, found.pairs) == ("2", "1", GOOD)
    version = ctx.ledger.version("iris", "2")
    assert version is not None and found.candidate_digest == version.digest
    (stage,) = found.stages
    assert (stage.weight, stage.candidate, stage.incumbent, stage.pairs) == (0.0, 0, 2000, 2000)
    proofs = [gate for gate in found.gates if gate.kind is Kind.PROMOTION]
    assert len(proofs) == 2 and all(gate.verdict is Verdict.PASS for gate in proofs)
    assert found.finished_s is not None and found.finished_s >= found.requested_s
    assert "errors within margin" in found.reason and found.policy == POLICY
    assert not any("budget" in line or "promoted" in line for line in found.guarantee), "nobody was answered"
    assert "alarms with a probability of at most 1.00%" in found.guarantee[0]
    assert "is passed with a probability of at most 1.00%" in found.guarantee[1]


def test_a_shadow_that_failed_says_which_gate_was_against_it(ctx: Context) -> None:
    found = certified(ctx, a_shadow(ctx, BAD))
    assert (found.verdict, found.decided) == ("failed", "evidence")
    assert [gate.name for gate in found.gates if gate.verdict is Verdict.FAIL] == ["paired errors"]
    page = as_markdown(found)
    assert "| paired errors | roll back |" in page and "| against it |" in page
    assert "40 failed with the candidate alone" in page and "version 1 stays live" in page


def test_gates_are_those_of_the_deciding_look_and_counts_go_on_to_the_last(ctx: Context) -> None:
    """Requests that were in flight end after the decision; they may take evidence away, not the decision."""
    row = decide(ctx, begun(ctx, SHADOW), tried(1, 0.0, BAD))
    assert row.state is ReleaseState.ROLLING_BACK
    later = PairCounts(good=5000, worse=41, better=40, agreed=5000)
    row = decide(ctx, row, tried(1, 0.0, later))
    found = certified(ctx, row)
    assert [gate.name for gate in found.gates if gate.verdict is Verdict.FAIL] == ["paired errors"]
    assert found.pairs == later and found.stages[0].pairs == 5081


def test_a_canary_lists_each_share_and_what_it_may_have_cost(ctx: Context) -> None:
    row = begun(ctx, CANARY)
    shadow = tried(1, 0.0, GOOD)
    row = decide(ctx, row, shadow)
    assert row.state is ReleaseState.RAMPING and row.weight > 0
    pairs = PairCounts(good=2990, worse=10, agreed=2990, faster=700, shielded=9, unshielded=1)
    share = tried(2, row.weight, pairs, asked=3000)
    row = decide(ctx, row, shadow, share)
    assert row.state is ReleaseState.SWITCHING
    row = decide(ctx, row, shadow, share)
    assert row.state is ReleaseState.DONE
    found = certified(ctx, row)
    assert (found.verdict, found.decided, found.harm) == ("done", "evidence", 1.0)
    assert [(stage.weight, stage.candidate) for stage in found.stages] == [(0.0, 0), (row.weight, 3000)]
    assert "within margin" in found.reason, "that of the decision: the end itself has none"
    assert any("at most 50 of its own requests beyond the margin" in line for line in found.guarantee)
    assert "is promoted with a probability" in found.guarantee[1]
    page = as_markdown(found)
    assert "9 clients got the incumbent's answer instead of a failure, 1 got none" in page
    assert "About 1 requests of clients failed because of it" in page
    assert any(
        line.startswith(f"| {row.weight:g} | ") and "| 3,000 | 0 |" in line for line in page.splitlines()
    )
    assert found.decisions == len(decisions(events_of(ctx, row)))


def test_who_promotes_or_aborts_by_hand_is_named_and_proves_nothing(ctx: Context) -> None:
    shadow = tried(1, 0.0, PairCounts(good=20, agreed=20))
    row = begun(ctx, CANARY)
    release.abort(ctx, "iris")
    row = decide(ctx, ctx.ledger.release(row.id), shadow)
    found = certified(ctx, row)
    assert (found.verdict, found.decided) == ("failed", "person") and "aborted by hand" in found.reason
    assert "- decided by a person: aborted by hand" in as_markdown(found)
    row = begun(ctx, CANARY)
    release.promote(ctx, "iris")
    row = decide(ctx, ctx.ledger.release(row.id), shadow)
    found = certified(ctx, row)
    assert (found.verdict, found.decided, found.reason) == ("done", "person", "promoted by hand")
    assert not any(gate.verdict is Verdict.PASS for gate in found.gates if gate.kind is Kind.PROMOTION)
    assert "| not proved |" in as_markdown(found)


def test_what_a_person_pauses_and_resumes_is_still_decided_by_evidence(ctx: Context) -> None:
    row = begun(ctx, SHADOW)
    release.pause(ctx, "iris")
    release.resume(ctx, "iris", budget=7)
    row = decide(ctx, ctx.ledger.release(row.id), tried(1, 0.0, GOOD))
    found = certified(ctx, row)
    assert (found.verdict, found.decided, found.policy.budget) == ("passed", "evidence", 7.0)


def test_a_release_that_another_took_the_place_of_was_ended_by_a_person(ctx: Context) -> None:
    row = begun(ctx, CANARY)
    row = decide(ctx, row, tried(1, 0.0, GOOD))
    release.rollback(ctx, "iris")
    found = certified(ctx, row)
    assert (found.verdict, found.decided) == ("superseded", "person")


def test_an_open_release_is_not_decided_yet(ctx: Context) -> None:
    row = decide(ctx, begun(ctx, CANARY), tried(1, 0.0, GOOD))
    found = certified(ctx, row)
    assert (found.verdict, found.decided, found.finished_s) == ("ramping", "nobody", None)
    page = as_markdown(found)
    assert "ended not yet" in page and "- not decided yet: the harm budget allows" in page


def test_where_nothing_was_compared_there_is_no_certificate(ctx: Context) -> None:
    at_once = ctx.ledger.request_release("iris", "1", "now", 1.0)
    at_once = decide(ctx, at_once)
    assert certify(at_once, ctx.ledger.events()) is None
    first = ctx.ledger.advance(at_once.id, ReleaseState.FAILED, "it crashed", time_s=2.0)
    assert certify(first, ctx.ledger.events()) is None
    early = ctx.ledger.request_release("iris", "2", CANARY, 3.0, policy=POLICY)
    assert certify(early, ctx.ledger.events()) is None


def test_names_and_reasons_cannot_be_markdown_nor_command_the_terminal(ctx: Context) -> None:
    evil = "a|b`c*\x1b[2J\x9b2J\r\n# <script>[x](http://y)_&#60;~~"
    row = a_shadow(ctx, BAD)
    found = certified(ctx, row)
    found = msgspec.structs.replace(found, model=evil, reason=evil, candidate=evil, incumbent=evil)
    page = as_markdown(found)
    assert page.isascii() and all(c.isprintable() or c == "\n" for c in page)
    plain = r"a\|b\`c\* \[2J 2J \# \<script\>\[x\](http://y)\_\&\#60;\~\~"
    assert page.splitlines()[0] == f"# Release {row.id}: version {plain} of {plain}, failed"
    assert f"- decided by the evidence: {plain}\n" in page and f"compared with version {plain}\n" in page
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert len(headings) == 4, "a name or a reason added one"


def test_another_record_of_a_decision_gives_another_hash(ctx: Context) -> None:
    row = a_shadow(ctx, GOOD)
    events = events_of(ctx, row)
    found = certify(row, events)
    assert found is not None and found == certify(row, events)
    shuffled = [
        msgspec.structs.replace(event, body=dict(reversed(list(event.body.items())))) for event in events
    ]
    again = certify(row, shuffled)
    assert again is not None and again.decisions_sha256 == found.decisions_sha256, "of values, not of order"
    hashes = {found.decisions_sha256}
    for index, event in enumerate(events):
        if event.body.get("snapshot") is None:
            continue
        body = msgspec.json.decode(msgspec.json.encode(event.body))
        body["snapshot"]["snapshot"]["waited_s"] += 0.001
        changed = [*events[:index], msgspec.structs.replace(event, body=body), *events[index + 1 :]]
        other = certify(row, changed)
        assert other is not None
        hashes.add(other.decisions_sha256)
    assert len(hashes) == 1 + found.decisions == 4


def test_events_of_other_releases_change_nothing(ctx: Context) -> None:
    row = a_shadow(ctx, GOOD)
    alone = certify(row, events_of(ctx, row))
    a_shadow(ctx, BAD)
    assert certify(row, ctx.ledger.events()) == alone
