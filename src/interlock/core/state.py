"""States that merge: counts and histograms whose sum over workers, nodes and time is exact."""

from bisect import bisect_left
from operator import add, sub

import msgspec
from msgspec.structs import astuple

from interlock.core.errors import ConfigError

BOUNDS_S: tuple[float, ...] = tuple(1e-5 * 2 ** (k / 4) for k in range(96))
"""Upper bounds of the latency buckets: 10 us to about 142 s, four an octave (a quantile is off by < 19 %)."""

BUCKETS = len(BOUNDS_S) + 1
"""One more for what is above the last bound."""


_NONE = (0,) * BUCKETS


def bucket(seconds: float) -> int:
    """The index of the bucket that holds a duration.

    >>> bucket(0.0), bucket(1e9) == BUCKETS - 1
    (0, True)
    """
    return bisect_left(BOUNDS_S, seconds)


class Histogram(msgspec.Struct, frozen=True):
    """Durations in the fixed buckets of `BOUNDS_S`; `sum_s` is their exact total."""

    counts: tuple[int, ...] = _NONE
    sum_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.counts) != BUCKETS:
            raise ConfigError(f"a histogram has {BUCKETS} buckets, got {len(self.counts)}")

    @property
    def count(self) -> int:
        return sum(self.counts)

    def merge(self, other: "Histogram") -> "Histogram":
        """The histogram of both populations together."""
        if other.counts is _NONE or self.counts is _NONE:  # of most arms some were never counted
            counts = self.counts if other.counts is _NONE else other.counts
        else:
            counts = tuple(map(add, self.counts, other.counts))
        return Histogram(counts, self.sum_s + other.sum_s)

    def minus(self, earlier: "Histogram") -> "Histogram":
        """What was added since an earlier reading of the same cumulative histogram."""
        return Histogram(tuple(map(sub, self.counts, earlier.counts)), self.sum_s - earlier.sum_s)

    def quantile(self, q: float) -> float | None:
        """The upper bound of the bucket in which quantile `q` lies; None when empty.

        >>> Histogram().quantile(0.5) is None
        True
        """
        total = self.count
        if not total:
            return None
        rank = q * total
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if seen >= rank and count:
                return BOUNDS_S[min(index, len(BOUNDS_S) - 1)]
        return BOUNDS_S[-1]


class ArmKey(msgspec.Struct, frozen=True):
    """What counts are kept apart by; evidence is never mixed between two of these."""

    model: str
    version: str
    release: int
    epoch: int
    arm: int


class PairCounts(msgspec.Struct, frozen=True):
    """Cumulative outcomes of requests that the incumbent and a candidate both ran: in the row of the
    candidate those that it answered (a reverse shadow), in the row of its copies those of a shadow.

    `good`: both answered; `worse`: only the candidate failed or timed out; `better`: only the incumbent did;
    `bad`: both. What the client abandoned, what both found invalid, and what was never copied is no pair.
    Of the good ones, by what they answered: `agreed` or `disagreed` (neither where nothing can be
    compared), and `unsound_worse`, `unsound_better`, `unsound_both` (not finite, or out of range). By how
    long their batches ran, one count for two batches, not for each request in them: `slower` and `faster`.

    `dropped`: requests that were drawn and got no copy, or one that never ran, because its lane was busy.
    `shielded`: clients that got the incumbent's answer; `unshielded`: who needed it and got none in time.
    """

    good: int = 0
    worse: int = 0
    better: int = 0
    bad: int = 0
    agreed: int = 0
    disagreed: int = 0
    unsound_worse: int = 0
    unsound_better: int = 0
    unsound_both: int = 0
    slower: int = 0
    faster: int = 0
    dropped: int = 0
    shielded: int = 0
    unshielded: int = 0

    def merge(self, other: "PairCounts") -> "PairCounts":
        """Both together."""
        return PairCounts(*map(add, astuple(self), astuple(other)))


class ArmCounts(msgspec.Struct, frozen=True):
    """Cumulative counts of one arm. Requests unless the name says otherwise.

    dispatched = ok + invalid + failed + timed_out + cancelled + (still in flight or lost in a crash).
    `invalid` is the client's fault and never counts against an arm. `lost` is filled when a crashed
    incarnation is folded: dispatched but never settled is a failure of that arm.
    `total` is of all that settled; `not_ok_ns` is how much of its sum those took that were not `ok`.
    """

    dispatched: int = 0
    ok: int = 0
    invalid: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    lost: int = 0
    refused: int = 0
    rows: int = 0
    batches: int = 0
    compute_ns: int = 0
    not_ok_ns: int = 0
    total: Histogram = Histogram()
    queue: Histogram = Histogram()
    compute: Histogram = Histogram()
    pairs: PairCounts = PairCounts()

    @property
    def ok_s(self) -> float:
        """Seconds from receipt to answer of all that were `ok` together."""
        return max(self.total.sum_s - self.not_ok_ns / 1e9, 0.0)

    def merge(self, other: "ArmCounts") -> "ArmCounts":
        """Both together."""
        both = zip(astuple(self), astuple(other), strict=True)
        return ArmCounts(*(a + b if type(a) is int else a.merge(b) for a, b in both))
