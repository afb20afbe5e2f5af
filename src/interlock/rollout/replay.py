"""Derives every past decision again from the snapshots in the event log, and says where the two differ."""

from collections.abc import Iterable
from typing import Any

import msgspec

from interlock.registry.rows import Event
from interlock.rollout.plan import DECISION, Action, next_action
from interlock.rollout.snapshot import Snapshot


class Difference(msgspec.Struct, frozen=True):
    """A decision that today's code would not take. `decision` numbers the code that took it."""

    seq: int
    release: int
    decision: int
    logged: Action
    derived: Action


class _Record(msgspec.Struct, frozen=True):
    decision: int
    snapshot: Snapshot
    action: Action


def decisions(events: Iterable[Event]) -> list[tuple[int, int, Snapshot, Action]]:
    """The decisions in a stretch of the log: (seq, number of the code, what it saw, what it did).

    Raises: msgspec.ValidationError for a record that this code cannot read.
    """
    found = []
    for event in events:
        record: dict[str, Any] | None = event.body.get("snapshot")
        if event.kind.startswith("release.") and record is not None and "decision" in record:
            read = msgspec.convert(record, _Record, str_keys=True)  # JSON has no other keys
            found.append((event.seq, read.decision, read.snapshot, read.action))
    return found


def replay(events: Iterable[Event]) -> list[Difference]:
    """Where `next_action` would decide otherwise than it did; empty when history repeats itself.

    Raises: msgspec.ValidationError for a record that this code cannot read.
    """
    return [
        Difference(seq, snapshot.release.id, decision, logged, derived)
        for seq, decision, snapshot, logged in decisions(events)
        if (derived := next_action(snapshot)) != logged or decision > DECISION
    ]
