"""Judges a candidate's memory: whether it is much larger than the incumbent's, and whether it leaks.

Both are estimates and no tests: what is found here waits for a person. Much larger: the candidate's executor
holds more than `larger` times what the incumbent's does (where one of them has none: what loading them took
at registration), and 64 MiB more; or nearly all that it may have.

A leak: the floor of its memory rises steadily with its runs. The points after the first quarter, which may
be warm-up, are cut into eight blocks, and the least of each is its floor. Of the 28 pairs of floors at least
25 must rise (3 in 1000 by chance, were all orders of eight floors as likely), and not by steps; the second
half about as much as the first; by a quarter of it all and 16 MiB in sum: an allocator that swings by 10 % to
either side stays below that. Then the median slope of the pairs, at all requests of the model, says how soon
the limit or the machine is exhausted; sooner than in a day is too soon. A slope that is not above `larger`
times that of the incumbent's executor (of the workers before the release) is none of the candidate's.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from math import log10
from statistics import median

import msgspec

from interlock.core.policy import Policy
from interlock.core.verdict import Verdict
from interlock.rollout.judgement import Gate, Kind
from interlock.rollout.memory import MemoryView, Point

LEAST_POINTS = 17
"""Before a candidate's growth can be told; the last one is still open."""
LEAST_LARGER_BYTES = 64 << 20
MOST_OF_LIMIT = 0.9
BLOCKS = 8
LEAST_RISING = 25
"""Of the 28 pairs of floors."""
LEAST_OF_SHARE = 0.25
"""Of what a pair would rise were the whole even: a plateau with noise does not."""
LEAST_RISE = 0.25
LEAST_RISE_BYTES = 16 << 20
LEAST_STEADY = 0.75
"""What the second half rises may be so much less than what the first one does."""
DAY_S = 86400.0
NAME = "memory"


class Growth(msgspec.Struct, frozen=True):
    """Bytes a run, and the floors from which it is known: the first, the last, and how many runs between."""

    bytes_per_run: float
    first_bytes: int
    last_bytes: int
    runs: int


class _Found(msgspec.Struct, frozen=True):
    """One look at memory: too much if `value` is above `limit`."""

    value: float
    limit: float
    words: str


def judge(view: MemoryView, policy: Policy) -> Gate:
    """Hold a candidate that is much larger, or leaks; undecided until there are enough points to tell.

    `policy` says how much larger is still all right.
    """
    found = [*_full(view)]
    if len(view.candidate) >= LEAST_POINTS:
        found = [*_larger(view, policy), *found, *_leaking(view, policy)]
    over = [one for one in found if one.value > one.limit]
    if not over and len(view.candidate) < LEAST_POINTS:
        message = f"{NAME}: {len(view.candidate)} readings, it is judged from {LEAST_POINTS} on"
        return Gate(NAME, Kind.HOLD, Verdict.UNDECIDED, 0.0, 0.0, message)
    shown = over or found[:1]
    words = "; ".join(one.words for one in shown) or f"{_size(view.process.resident_bytes)}, not growing"
    worst = max(shown, key=lambda one: one.value / one.limit, default=_Found(1e-9, 1.0, ""))
    verdict = Verdict.FAIL if over else Verdict.PASS
    # As for the utilisation: a share of what may be, so that it can be drawn beside the others.
    evidence, limit = (round(log10(max(each, 1e-9)), 4) for each in (worst.value, worst.limit))
    return Gate(NAME, Kind.HOLD, verdict, evidence, limit, f"{NAME}: {words}")


def _larger(view: MemoryView, policy: Policy) -> Iterator[_Found]:
    mine, theirs, how = view.process.resident_bytes, view.incumbent_bytes, "its executor holds"
    if not theirs:
        (mine, theirs), how = view.registered, "loading it took, at registration,"
    if theirs > 0:
        value = mine / theirs if mine - theirs > LEAST_LARGER_BYTES else min(mine / theirs, 1.0)
        words = f"{how} {_size(mine)}, the incumbent's {_size(theirs)}, limit {policy.larger:g} times that"
        yield _Found(value, policy.larger, words)


def _full(view: MemoryView) -> Iterator[_Found]:
    limit = view.process.limit_bytes
    if view.place == "executor" and limit:
        share = view.process.resident_bytes / limit
        yield _Found(
            share,
            MOST_OF_LIMIT,
            f"{_size(view.process.resident_bytes)} of the {_size(limit)} that it may have ({share:.0%}), "
            f"limit {MOST_OF_LIMIT:.0%}",
        )


def _leaking(view: MemoryView, policy: Policy) -> Iterator[_Found]:
    found = steady_growth(view.candidate)
    room = _room(view)
    if found is None or room is None:
        return
    runs_per_s = view.candidate[-1].run / view.spent_s if view.spent_s > 0 else 0.0
    if view.place == "executor":
        usual, whose = max(slope(view.incumbent), 0.0), "the incumbent's"
    else:
        usual, whose = (view.before_per_s or 0.0) / runs_per_s if runs_per_s else 0.0, "before"
    if found.bytes_per_run <= policy.larger * usual:
        return
    per_s = found.bytes_per_run * max(view.rate_per_s or 0.0, runs_per_s)
    until_s = room / per_s if per_s else DAY_S
    what = "" if view.place == "executor" else "the workers, which all their models share: "
    words = (
        f"{what}{_size(found.bytes_per_run)} more with each of its runs ({_size(found.first_bytes)} to "
        f"{_size(found.last_bytes)} in {found.runs:,} runs, steadily; {whose} {_size(usual)}): with all "
        f"requests nothing is left of {_size(room)} in {_duration(until_s)}, limit a day"
    )
    yield _Found(DAY_S / max(until_s, 1.0), 1.0, words)


def steady_growth(points: Sequence[Point]) -> Growth | None:
    """How much more memory each run takes; None unless the floor rises steadily, and beyond noise."""
    if len(points) < LEAST_POINTS:
        return None
    floors = _floors(points)
    first, last = floors[0], floors[-1]
    rise, half = last.least_bytes - first.least_bytes, BLOCKS // 2
    due = LEAST_OF_SHARE * rise / max(last.run - first.run, 1)
    rising = sum(b.least_bytes - a.least_bytes > due * (b.run - a.run) for a, b in combinations(floors, 2))
    early = floors[half - 1].least_bytes - first.least_bytes
    late = last.least_bytes - floors[half].least_bytes
    runs = floors[half - 1].run - first.run, last.run - floors[half].run
    if (
        rise < max(LEAST_RISE_BYTES, LEAST_RISE * first.least_bytes)
        or rising < LEAST_RISING
        or late / runs[1] < LEAST_STEADY * early / runs[0]
    ):
        return None
    return Growth(_slope(floors), first.least_bytes, last.least_bytes, last.run - first.run)


def slope(points: Sequence[Point]) -> float:
    """Bytes a run from floor to floor, whatever they look like; 0 where there are too few points."""
    return _slope(_floors(points)) if len(points) >= LEAST_POINTS else 0.0


def _floors(points: Sequence[Point]) -> list[Point]:
    """The least of each block of the points that are complete, without the first quarter."""
    whole = points[:-1]
    late = whole[len(whole) // 4 :]
    edges = [len(late) * k // BLOCKS for k in range(BLOCKS + 1)]
    blocks = [late[a:b] for a, b in pairwise(edges)]
    return [Point(block[0].run, min(point.least_bytes for point in block)) for block in blocks]


def _slope(floors: Sequence[Point]) -> float:
    # Theil (1950), Sen (1968): the median of the slopes of all pairs.
    return median((b.least_bytes - a.least_bytes) / (b.run - a.run) for a, b in combinations(floors, 2))


def _room(view: MemoryView) -> float | None:
    """Bytes until the process has all that it may, or the machine has no more."""
    process = view.process
    left = [] if process.limit_bytes is None else [process.limit_bytes - process.resident_bytes]
    left += [] if process.available_bytes is None else [process.available_bytes]
    return float(max(min(left), 0)) if left else None


def _size(size: float) -> str:
    """Bytes for people.

    >>> _size(1500), _size(100 << 20), _size(4 << 30)
    ('1.46 KiB', '100 MiB', '4 GiB')
    """
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(size) >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def _duration(seconds: float) -> str:
    for unit, factor in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds:.0f} s"
