"""Route: which version answers a unit; weighted, sticky, and monotone in the candidate's weight."""

import hashlib
import random
from collections.abc import Callable

import msgspec

from interlock.core.errors import ConfigError


class Arm(msgspec.Struct, frozen=True):
    """One version's share. `index` goes into the request id; `weight` is a probability."""

    index: int
    name: str
    version: str
    weight: float


class Route(msgspec.Struct, frozen=True):
    """Arms in order of index: the incumbent first, then candidates; weights sum to 1.

    `release` numbers the release in the ledger; `epoch` counts its changes of weight, so that evidence is
    keyed by what was in force when a request was dispatched; `salt` gives each release its own sticky hash,
    so that the same users are not always the first to try.
    """

    release: int
    epoch: int
    salt: str
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        total = sum(arm.weight for arm in self.arms)
        if not self.arms or abs(total - 1.0) > 1e-9 or any(not 0.0 <= arm.weight <= 1.0 for arm in self.arms):
            raise ConfigError(
                f"route weights {[arm.weight for arm in self.arms]}: want shares in [0, 1] with sum 1"
            )

    def choose(self, unit: bytes | None, draw: Callable[[], float] = random.random) -> Arm:
        """The arm for one request: by the unit's fixed position in [0, 1), or by `draw` without a unit.

        Candidates take [0, w1), [w1, w1 + w2), …; the incumbent takes the rest. As one candidate's weight
        grows, units move only from the incumbent to it, and nobody flips back.

        >>> route = Route(1, 0, "s", (Arm(0, "incumbent", "1", 0.5), Arm(1, "candidate", "2", 0.5)))
        >>> route.choose(b"alice") == route.choose(b"alice")
        True
        """
        arms = self.arms
        if len(arms) == 1:
            return arms[0]
        position = draw() if unit is None else unit_position(unit, self.salt)
        edge = 0.0
        for arm in arms[1:]:
            edge += arm.weight
            if position < edge:
                return arm
        return arms[0]


def unit_position(unit: bytes, salt: str) -> float:
    """Where a unit lies in [0, 1): a keyed blake2b of it, uniform and independent between salts."""
    key = salt.encode()[:64]
    return int.from_bytes(hashlib.blake2b(unit, key=key, digest_size=8).digest(), "big") / 2**64


def single(version: str, release: int, salt: str = "") -> Route:
    """The route of a model with one version live."""
    return Route(release=release, epoch=0, salt=salt, arms=(Arm(0, "incumbent", version, 1.0),))
