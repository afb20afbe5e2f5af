"""How a check ended, ordered so that the worst of several is their maximum."""

from collections.abc import Iterable
from enum import IntEnum


class Verdict(IntEnum):
    """PASS < UNDECIDED < ERROR < FAIL: not being able to measure is worse than not knowing yet."""

    PASS = 0
    UNDECIDED = 1
    ERROR = 2
    FAIL = 3


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of several gates together; PASS for none.

    >>> worst([Verdict.PASS, Verdict.ERROR, Verdict.UNDECIDED]).name
    'ERROR'
    """
    return max(verdicts, default=Verdict.PASS)
