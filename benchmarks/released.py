"""Decides what the releases of `bench_releases.py` say: why requests failed, how often it was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

from benchmarks.candidates import Candidate, answers
from benchmarks.clients import Answer
from benchmarks.machine import Machine
from interlock.core.verdict import Verdict
from interlock.evidence.binomial import Share, share
from interlock.registry.rows import ReleaseRow
from interlock.rollout.certificate import Certificate
from interlock.rollout.judgement import Kind

NEAR_S = 1.0
"""A failure so close to a move of traffic is charged to it."""

Outcome = Literal["promoted", "rolled back", "held"]


class Blame(msgspec.Struct, frozen=True):
    """Requests while both versions were in play, and why those failed that did: the live version fails on
    that row (`own`); only the candidate does (`candidate`); neither does, near a move of traffic
    (`moves`), or not (`unexplained`). `saw_candidate`: answered by the candidate."""

    sent: int = 0
    own: int = 0
    candidate: int = 0
    moves: int = 0
    unexplained: int = 0
    saw_candidate: int = 0
    examples: list[str] = []

    @property
    def beyond(self) -> int:
        """Failures that the live version would not have had."""
        return self.candidate + self.moves + self.unexplained


class Released(msgspec.Struct, frozen=True):
    """One release. `gate`: what spoke against it, or what is not proved of one that was held. `requests`:
    of its own; `pairs`: requests that both versions ran. `to_zero_s`: from the decision to roll it
    back until all workers had acknowledged. `live_is_right`: the version answers that should, before
    and after version 1 was put back. Unix times: from `asked_s` to `back_s` both were in play; at
    `promoted_s` the candidate was to go live; at `moved_s` traffic moved."""

    candidate: Candidate
    number: str
    release: int
    outcome: Outcome
    seconds: float
    gate: str
    reason: str
    requests: int
    pairs: int
    weights: list[float]
    to_zero_s: float | None
    verdict: str
    decided: str
    live_is_right: bool
    asked_s: float
    back_s: float
    promoted_s: float | None
    moved_s: list[float]
    blame: Blame = Blame()

    @property
    def is_wrong(self) -> bool:
        return self.outcome == ("promoted" if self.candidate.is_bad else "rolled back")


class Totals(msgspec.Struct, frozen=True):
    """What all releases of one kind came to; `wrong`: bad ones promoted, good ones rolled back."""

    promoted: int
    rolled_back: int
    held: int
    wrong: Share


class Record(msgspec.Struct, frozen=True):
    """What is kept of one run."""

    machine: Machine
    rate_per_s: float
    limit_s: float
    releases: list[Released]
    bad: Totals
    good: Totals
    to_zero_median_s: float | None
    to_zero_most_s: float | None
    moves_failed: int
    unexplained: int
    unsent: dict[str, int]
    errors: list[str]
    took_s: float

    @property
    def exit_code(self) -> int:
        """1 if a bad one was promoted, a wrong version was live, a move failed a request, or it broke off."""
        live = all(one.live_is_right for one in self.releases)
        return 1 if self.bad.wrong.hits or not live or self.moves_failed or self.errors else 0


def totals(releases: Sequence[Released]) -> Totals:
    """Count them; the interval is that of the wrong share."""
    ended = [one.outcome for one in releases]
    wrong = sum(one.is_wrong for one in releases)
    found = share(wrong, len(ended))
    return Totals(ended.count("promoted"), ended.count("rolled back"), ended.count("held"), found)


def gate_of(row: ReleaseRow, certificate: Certificate | None, outcome: Outcome) -> str:
    """What spoke against it, or what is not proved of a candidate that was held."""
    gates = certificate.gates if certificate is not None else ()
    if outcome == "held":
        open_ = [
            gate.name for gate in gates if gate.kind is Kind.PROMOTION and gate.verdict is not Verdict.PASS
        ]
        return "not proved: " + (", ".join(open_) or "nothing compared")
    if outcome == "promoted":
        return ""
    spoke = [gate.name for gate in gates if gate.kind is Kind.ALARM and gate.verdict is Verdict.FAIL]
    for word, gate in (("quarantined", "quarantine"), ("ended its process", "crash")):
        if word in row.reason:
            spoke.append(gate)
    return ", ".join(spoke) or row.reason


def blame(one: Released, seen: Sequence[Answer]) -> Blame:
    """Why requests failed while both versions were in play; a candidate that was promoted is live then."""
    lives, tries = answers(one.candidate.incumbent), answers(one.candidate.effect)
    within = [answer for answer in seen if one.asked_s <= answer.sent_s < one.back_s]
    counts = {"own": 0, "candidate": 0, "moves": 0, "unexplained": 0}
    examples = []
    for answer in within:
        if answer.ok:
            continue
        done_s = answer.sent_s + answer.took_ms / 1e3
        why = "unexplained"
        is_live = one.promoted_s is not None and done_s >= one.promoted_s
        if not lives(answer.row_bytes):
            why = "own"
        elif not tries(answer.row_bytes):
            why = "own" if is_live else "candidate"
        elif any(answer.sent_s - NEAR_S <= at_s <= done_s + NEAR_S for at_s in one.moved_s):
            why = "moves"
        counts[why] += 1
        if why != "own":
            at = f"{answer.sent_s - one.asked_s:.2f} s after it was asked for"
            examples.append(f"{why}: status {answer.status} after {answer.took_ms:.0f} ms, sent {at}")
    theirs = sum(answer.version == one.number for answer in within)
    return Blame(len(within), **counts, saw_candidate=theirs, examples=examples[:10])


def progress(one: Released) -> str:
    """One line about a release that has ended."""
    what = f"{one.candidate.client}: {one.candidate.what}"
    mark = "" if not one.is_wrong else " WRONG"
    return f"{what}: {one.outcome}{mark} after {one.seconds:.0f} s {one.gate}"


def summed(
    machine: Machine,
    rate_per_s: float,
    limit_s: float,
    releases: list[Released],
    unsent: dict[str, int],
    errors: list[str],
    took_s: float,
) -> Record:
    """All of one run."""
    to_zero_s = [one.to_zero_s for one in releases if one.candidate.is_bad and one.to_zero_s is not None]
    return Record(
        machine=machine,
        rate_per_s=rate_per_s,
        limit_s=limit_s,
        releases=releases,
        bad=totals([one for one in releases if one.candidate.is_bad]),
        good=totals([one for one in releases if not one.candidate.is_bad]),
        to_zero_median_s=median(to_zero_s) if to_zero_s else None,
        to_zero_most_s=max(to_zero_s, default=None),
        moves_failed=sum(one.blame.moves for one in releases),
        unexplained=sum(one.blame.unexplained for one in releases),
        unsent=unsent,
        errors=errors,
        took_s=round(took_s, 1),
    )


_HEAD = ("candidate", "client", "ended", "s", "own", "pairs", "gate", "beyond", "to 0, s", "certificate")


def as_text(record: Record) -> str:
    """The table, bad ones first, and the totals, for people."""
    lines = [_HEAD]
    for one in sorted(record.releases, key=lambda one: (not one.candidate.is_bad, one.candidate.what)):
        lines.append(
            (
                one.candidate.what,
                one.candidate.client,
                f"{one.outcome}{'!' * one.is_wrong}{'' if one.live_is_right else ', WRONG VERSION LIVE'}",
                f"{one.seconds:.0f}",
                f"{one.requests:,}",
                f"{one.pairs:,}",
                one.gate or "-",
                f"{one.blame.beyond:,} of {one.blame.sent:,}",
                "-" if one.to_zero_s is None else f"{one.to_zero_s:.2f}",
                f"{one.verdict}, {one.decided}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    text.append("")
    for name, found, word in (("bad", record.bad, "promoted"), ("good", record.good, "rolled back")):
        wrong = found.wrong
        text.append(
            f"{wrong.of} {name}: {found.promoted} promoted, {found.rolled_back} rolled back, "
            f"{found.held} held; wrongly {word}: {wrong.hits} of {wrong.of}, "
            f"95 % interval {wrong.low:.1%} to {wrong.high:.1%}"
        )
    if record.to_zero_median_s is not None and record.to_zero_most_s is not None:
        text.append(
            "bad ones, from the decision until all workers had acknowledged: "
            f"median {record.to_zero_median_s:.2f} s, at most {record.to_zero_most_s:.2f} s"
        )
    beyond = sum(one.blame.beyond for one in record.releases)
    sent = sum(one.blame.sent for one in record.releases)
    text.append(
        f"of {sent:,} requests {beyond:,} failed that the live version would have answered: "
        f"{beyond - record.moves_failed - record.unexplained:,} on rows that the candidate fails on, "
        f"{record.moves_failed:,} near a move, {record.unexplained:,} for no reason known; "
        f"not sent: {sum(record.unsent.values()):,}"
    )
    machine = record.machine
    text.append(
        f"{record.rate_per_s:g} requests/s a client; {record.took_s:,.0f} s; {machine.cpu}, "
        f"{machine.cores} cores, {machine.kernel}, Python {machine.python}, "
        f"load before {machine.load_before}, commit {machine.commit}"
    )
    return "\n".join([*text, *(f"did not finish: {error}" for error in record.errors)])
