"""Owns the state of all evidence about two arms: counts by weight epoch, which merge by addition."""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

import msgspec

from interlock.core.errors import ConfigError


class Epoch(msgspec.Struct, frozen=True):
    """Counts of events of both arms while the candidate's weight was constant.

    `weight`: the candidate's share in [0, 1], set before the requests came. `incumbent`, `candidate`: how
    many of the events (bad answers, exceedances, dispatched requests) each arm had, under the epoch of
    their dispatch. Fractions are allowed: forecasts need them. A weight of 0 or 1 leaves nothing to
    compare.
    """

    weight: float
    incumbent: float
    candidate: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ConfigError(f"the weight of an epoch is {self.weight}: want a share in [0, 1]")
        if not (0 <= self.incumbent and 0 <= self.candidate and isfinite(self.incumbent + self.candidate)):
            raise ConfigError(f"counts of an epoch are {self.incumbent}, {self.candidate}: want numbers >= 0")

    @property
    def both(self) -> float:
        return self.incumbent + self.candidate

    @property
    def is_informative(self) -> bool:
        """Whether chance decided which arm had an event."""
        return 0.0 < self.weight < 1.0


def merge(mine: Sequence[Epoch], theirs: Sequence[Epoch]) -> tuple[Epoch, ...]:
    """The sum of two lists of the same epochs, from two workers or nodes.

    Raises: ConfigError when the epochs are not the same ones.

    >>> merge([Epoch(0.1, 2, 3)], [Epoch(0.1, 1, 0)])
    (Epoch(weight=0.1, incumbent=3, candidate=3),)
    """
    return tuple(
        Epoch(a.weight, a.incumbent + b.incumbent, a.candidate + b.candidate) for a, b in same(mine, theirs)
    )


def same(left: Sequence[Epoch], right: Sequence[Epoch]) -> Iterator[tuple[Epoch, Epoch]]:
    """Pairs of entries of two lists about the same epochs.

    Raises: ConfigError when they have other lengths or weights.
    """
    if [epoch.weight for epoch in left] != [epoch.weight for epoch in right]:
        raise ConfigError(
            f"epochs with weights {[e.weight for e in left]} and {[e.weight for e in right]}: want the same"
        )
    return zip(left, right, strict=True)


def informative(epochs: Iterable[Epoch]) -> list[Epoch]:
    """Those in which chance decided which arm had an event."""
    return [epoch for epoch in epochs if epoch.is_informative]
