"""Decides from bad events of sticky units (users, sessions) whether the candidate has more of them.

Requests of one unit all go to one arm, so they are one assignment, not many: to count them singly claims
more evidence than there is. Here a unit is one block: all that it did, by epoch; chance chose which arm got
the block. With b_e the bad events of a unit in the epochs e in which it was seen, and u its position (a
keyed hash, uniform in [0, 1)), the candidate would be charged with s(u), the sum of b_e over the epochs with
u < w_e, and

    E = sum_j pi_j prod_units f_j(position) / E_u[f_j(u)],
    f_j(u) = c_j g_j^s(u) where u < w_e for some e, else 1.

Null hypothesis: "no unit has more bad events with the candidate than it would have with the incumbent, in
any epoch". Then the mean of E at a look is at most 1: positions are independent of what units do. Nothing is
assumed of the units' rates, which may differ and drift, nor of how a unit's requests depend on each other.
c < 1 is for units that differ much: few bad events of a unit then speak for the candidate.

Assumptions: the weights follow a plan, not these outcomes; a unit's arm is told by its hash alone. Exact
where units fare the same with both versions (then the time of a look tells nothing of the arms); fewer alarms
where the candidate is better, by simulation.

An assignment is revealed once, so between looks this is not a martingale, and Ville's inequality does not
cover it. Looks are therefore counted: look k comes when the bad events of *both* arms together pass a fixed
number (which does not tell on which side they fell), and each of `LOOKS` looks has the same share of alpha
(Markov's inequality).

What can be learned is limited by the number of units of the candidate, not by requests:
docs/explanation/evidence.md has the power. Paired evidence (`paired.py`) needs no assignment and is far
stronger: prefer it where units are sticky.

Source: Fisher (1935), "The Design of Experiments", chapter 2 (randomisation as the only basis of a test).
"""

from collections.abc import Sequence
from functools import lru_cache
from math import log

import msgspec

from interlock.core.errors import ConfigError
from interlock.evidence.mixture import log_sum, log_threshold, mixture

TILTS = mixture((1.01, 1.02, 1.05, 1.1, 1.2, 1.4, 2.0, 4.0))
"""g: odds ratios for each bad event of a unit; small ones, since heavy units say little of the candidate."""
STARTS = (0.7, 0.7, 0.7, 0.7, 0.75, 0.9, 1.0, 1.0)
"""c, the odds ratio for a unit without bad events, for each tilt."""
MOST_PER_EPOCH = 100
"""Bad events of one unit in one epoch that count; beyond them it is one broken unit, not a worse model."""
FIRST_LOOK = 20
"""Bad events of both arms at the first look; each further look comes at twice as many."""
LOOKS = 12
"""The last comes at 40,960 bad events; after it this gate says nothing more."""


class UnitHistory(msgspec.Struct, frozen=True):
    """What one unit did by epoch, or `units` units that did the same.

    `bad` counts its bad events, None where it was not seen. `candidate` says whether that arm served it.
    Units without bad events count too. Leave some out only by a hash that is independent of the assignment.
    """

    bad: tuple[int | None, ...]
    candidate: tuple[bool, ...]
    units: int = 1


def look_due(bad_before: int, bad_now: int) -> int | None:
    """The number (from 1) of the look that came due between two readings of all bad events; None for none.

    >>> look_due(19, 20), look_due(20, 39), look_due(20, 90)
    (1, None, 3)
    """
    before, now = _looks(bad_before), _looks(bad_now)
    return now if now > before else None


def log_threshold_at_look(alpha: float) -> float:
    """ln of what E must reach at a look, so that all looks together err with probability at most `alpha`.

    Raises: ConfigError.
    """
    return log_threshold(alpha, LOOKS)


def log_e_harm(weights: Sequence[float], units: Sequence[UnitHistory]) -> float:
    """ln E, at one look, against "no unit is treated worse by the candidate".

    `weights` are the candidate's, by epoch; a unit is the candidate's while its position is below the weight.

    Raises: ConfigError when a history has another number of epochs.

    >>> rows = [UnitHistory((3,), (False,), 600), UnitHistory((3,), (True,), 120)]
    >>> log_e_harm([0.1], rows) > log_threshold_at_look(0.01)
    True
    """
    by_epoch = tuple(weights)
    sums = list(TILTS.log_weights)
    for unit in units:
        if not len(unit.bad) == len(unit.candidate) == len(weights):
            raise ConfigError(f"a unit has {len(unit.bad)} epochs, the release has {len(weights)}")
        factors = _log_factors(_charged(unit.bad, unit.candidate))
        norms = _log_norms(by_epoch, unit.bad)
        sums = [
            total + unit.units * (factor - norm)
            for total, factor, norm in zip(sums, factors, norms, strict=True)
        ]
    return log_sum(sums)


@lru_cache(maxsize=4096)  # most units had one of a few counts, in either arm and at each look
def _log_norms(weights: tuple[float, ...], bad: tuple[int | None, ...]) -> tuple[float, ...]:
    """ln of the mean of f_j over all positions of a unit, by tilt."""
    edges = sorted({0.0, 1.0, *weights})
    parts = [(log(high - low), low) for low, high in zip(edges, edges[1:], strict=False)]
    possible = [(size, _log_factors(_charged(bad, [low < w for w in weights]))) for size, low in parts]
    return tuple(log_sum([size + factors[j] for size, factors in possible]) for j in range(len(STARTS)))


def _charged(bad: Sequence[int | None], candidate: Sequence[bool]) -> int | None:
    """Bad events under the candidate; None if it never served the unit."""
    found = [min(n, MOST_PER_EPOCH) for n, mine in zip(bad, candidate, strict=True) if mine and n is not None]
    return sum(found) if found else None


@lru_cache(maxsize=4096)
def _log_factors(charged: int | None) -> tuple[float, ...]:
    """ln f_j of a unit with which the candidate is charged so much, by tilt."""
    if charged is None:
        return (0.0,) * len(STARTS)
    return tuple(log(start) + charged * log(tilt) for tilt, start in zip(TILTS.tilts, STARTS, strict=True))


def _looks(bad: int) -> int:
    """How many looks are due at so many bad events."""
    return min(LOOKS, (bad // FIRST_LOOK).bit_length())
