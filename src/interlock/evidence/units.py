"""Decides from bad events of sticky units (users, sessions) whether the candidate has more of them.

Requests of one unit all go to one arm, so they are one assignment, not many: to count them singly claims
more evidence than there is. Here a unit is one trial: its bad events by epoch are its block, and chance
chose on which side the whole block fell. With s(u) a unit's bad events (capped) that the candidate would
be charged with if its position were u,

    E = sum_j pi_j prod_units g_j^s(position) / E_u[g_j^s(u)],

whose mean is 1 where no unit is treated worse: the positions are uniform and independent (a keyed hash).
Null hypothesis: "no unit has more bad events, in any epoch, with the candidate than with the incumbent
would be its own". Nothing is assumed of the units' rates, which may differ and drift, nor of how requests
of a unit depend on each other.

An assignment is revealed once, so between looks this is not a martingale, and Ville's inequality does not
cover it. Looks are therefore counted: look k comes when the bad events of *both* arms together pass a
fixed number (which does not tell on which side they fell), and gets the share 1 / (k (k + 1)) of alpha.

Paired evidence (`paired.py`) needs no assignment and is far stronger: prefer it where units are sticky.

Sources: Fisher (1935), randomisation tests; the e-value is Markov's inequality over the assignments.
"""

from collections.abc import Sequence
from math import log

import msgspec

from interlock.core.errors import ConfigError
from interlock.evidence.mixture import Mixture, log_sum, log_threshold, mixture, times_log

TILTS = mixture((1.01, 1.02, 1.05, 1.1, 1.2, 1.4, 2.0, 4.0))
"""Odds ratios for each bad event of a unit; small ones, since heavy units say little of the candidate."""
MOST_PER_EPOCH = 100
"""Bad events of one unit in one epoch that count; beyond them it is one broken unit, not a worse model."""
FIRST_LOOK = 10
"""Bad events of both arms at the first look."""
GROWTH = 1.4
"""Factor of bad events from one look to the next."""


class UnitHistory(msgspec.Struct, frozen=True):
    """Bad events of one unit by epoch and arm, or of `units` units that have the same ones. In each epoch a
    unit is in one arm, so one of the two numbers is 0. Units without bad events are left out: they change
    nothing."""

    incumbent: tuple[int, ...]
    candidate: tuple[int, ...]
    units: int = 1

    def __post_init__(self) -> None:
        if len(self.incumbent) != len(self.candidate) or any(
            a and b for a, b in zip(self.incumbent, self.candidate, strict=False)
        ):
            raise ConfigError(
                f"a unit's bad events are {self.incumbent} and {self.candidate}: want one arm in each epoch"
            )


def look_due(bad_before: int, bad_now: int) -> int | None:
    """The number (from 1) of the look that came due between two readings of all bad events; None for none.

    >>> look_due(9, 10), look_due(10, 13), look_due(13, 30)
    (1, None, 4)
    """
    before, now = _looks(bad_before), _looks(bad_now)
    return now if now > before else None


def log_threshold_at(look: int, alpha: float) -> float:
    """ln of what E must reach at this look, so that all looks together err with probability at most `alpha`.

    Raises: ConfigError.
    """
    return log_threshold(alpha) + log(look * (look + 1))


def log_e_harm(weights: Sequence[float], units: Sequence[UnitHistory], tilts: Mixture = TILTS) -> float:
    """ln E, at one look, against "no unit is treated worse by the candidate".

    `weights` are the candidate's, by epoch; a unit is the candidate's while its position is below the weight.

    Raises: ConfigError when a history has another number of epochs.

    >>> rows = [UnitHistory((3,), (0,), 60), UnitHistory((0,), (3,), 30)]
    >>> log_e_harm([0.1], rows) > log_threshold_at(9, 0.01)
    True
    """
    edges = sorted({0.0, 1.0, *weights})
    widths = [(high - low, low) for low, high in zip(edges, edges[1:], strict=False)]
    sums = list(tilts.log_weights)
    for unit in units:
        if len(unit.candidate) != len(weights):
            raise ConfigError(f"a unit has {len(unit.candidate)} epochs, the release has {len(weights)}")
        bad = [min(MOST_PER_EPOCH, a + b) for a, b in zip(unit.incumbent, unit.candidate, strict=True)]
        charged = sum(number for number, mine in zip(bad, unit.candidate, strict=True) if mine)
        possible = [
            (log(width), sum(n for n, weight in zip(bad, weights, strict=True) if low < weight))
            for width, low in widths
        ]
        for index, tilt in enumerate(tilts.tilts):
            norm = log_sum([share + times_log(score, tilt) for share, score in possible])
            sums[index] += unit.units * (times_log(charged, tilt) - norm)
    return log_sum(sums)


def _looks(bad: int) -> int:
    """How many looks are due at so many bad events."""
    number, at = 0, float(FIRST_LOOK)
    while bad >= at:
        number, at = number + 1, max(at + 1.0, at * GROWTH)
    return number
