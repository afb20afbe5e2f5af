"""Owns how a gate in CI tells what it found: checks, their outcomes, the worst of them."""

from typing import Any, Literal

import msgspec

Outcome = Literal["pass", "undecided", "worse"]
OUTCOMES: tuple[Outcome, ...] = ("pass", "undecided", "worse")
"""From the best to the worst: the outcome of several is their worst."""

EXIT_CODES: dict[Outcome, int] = {"pass": 0, "worse": 1, "undecided": 2}


class Check(msgspec.Struct, frozen=True):
    """One thing that was judged. `words` says why; `facts` are its numbers, None for what there is not."""

    name: str
    outcome: Outcome
    words: str
    facts: dict[str, Any] = {}


class Report(msgspec.Struct, frozen=True):
    """All that a gate found. `command` is the one that was asked; `facts` are those of the whole; `notes`:
    what somebody should know who relies on it."""

    command: str
    model: str
    version: str
    outcome: Outcome
    checks: tuple[Check, ...]
    alpha: float
    facts: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    schema: int = 1


def worst(checks: tuple[Check, ...]) -> Outcome:
    """The outcome of checks together; undecided where nothing was judged.

    >>> worst((Check("a", "pass", ""), Check("b", "worse", ""), Check("c", "undecided", "")))
    'worse'
    """
    if not checks:
        return "undecided"
    return max((check.outcome for check in checks), key=OUTCOMES.index)
