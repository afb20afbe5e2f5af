"""Route: which version answers a unit; weighted, sticky, and monotone in the candidate's weight.

It also says which requests a second version runs too (Mirror), so that both can be compared on the same
request.
"""

import hashlib
import math
import random
from collections.abc import Callable, Mapping

import msgspec

from interlock.core.errors import ConfigError
from interlock.core.model import Version

COPY_ARM = 254
"""The arm under which runs of copies are counted: no client's request, and no evidence by itself."""


class Arm(msgspec.Struct, frozen=True):
    """One version's share. `index` goes into the request id; `weight` is a probability."""

    index: int
    name: str
    version: str
    weight: float


class Range(msgspec.Struct, frozen=True):
    """Where every number of one output must lie, ends included; None for an open end."""

    output: str
    least: float | None = None
    greatest: float | None = None

    def __post_init__(self) -> None:
        least = -math.inf if self.least is None else self.least
        greatest = math.inf if self.greatest is None else self.greatest
        if not least <= greatest:
            raise ConfigError(f"range of output '{self.output}': [{least}, {greatest}] holds no number")


class Mirror(msgspec.Struct, frozen=True):
    """Which requests the incumbent (the first arm) and one candidate both run, and how that is judged.

    `candidate` is the index of that arm. `shadow` is the share of the incumbent's requests of which the
    candidate runs a copy; its answers are never used. `reverse` is the share of the candidate's requests of
    which the incumbent runs a copy: the same evidence, on the canary's own traffic. A unit is in the share
    or not for as long as the share lasts, and growing shares only add units; without a unit each request
    is drawn by itself.

    `shielded`: a client whose request the candidate fails, or has not answered when half of its time is
    over, gets the incumbent's answer. Such runs are pairs only where `reverse` had drawn them before.

    Answers agree when the first output of integers, booleans or strings is equal; where there is none, when
    each float output differs by at most `tolerance` * max(1, |incumbent's|). They are unsound where a float
    is not finite or a number lies outside of its range. The candidate counts as slower where its batch ran
    longer than `latency_ratio` times the incumbent's (1.2: 20 % slower is still all right) and 0.1 ms.
    """

    candidate: int
    shadow: float = 0.0
    reverse: float = 0.0
    shielded: bool = False
    tolerance: float = 1e-3
    ranges: tuple[Range, ...] = ()
    latency_ratio: float = 1.2

    def __post_init__(self) -> None:
        for name, share in (("shadow", self.shadow), ("reverse", self.reverse)):
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"mirror share {name}={share}: want a share of the requests, 0 to 1")
        if not (self.shadow or self.reverse or self.shielded):
            raise ConfigError("a mirror without shadow, reverse or shielded copies nothing: leave it out")
        if not (self.tolerance >= 0.0 and 0.0 < self.latency_ratio < math.inf):
            raise ConfigError(
                f"mirror tolerance {self.tolerance}, latency ratio {self.latency_ratio}: want a tolerance of"
                f" 0 or more and a finite ratio above 0, such as 1.2"
            )


class Route(msgspec.Struct, frozen=True):
    """Arms in order of index: the incumbent first, then candidates; weights sum to 1.

    `release` numbers the release in the ledger; `epoch` counts its changes of weight, so that evidence is
    keyed by what was in force when a request was dispatched; `salt` gives each release its own sticky hash,
    so that the same users are not always the first to try. A pure shadow is a candidate of weight 0 with a
    `mirror`; any change of the mirror begins a new epoch, as a change of weight does. Not `sticky`: the arm
    of a unit's request is drawn as if it had none. `unit_field`: the field of a request's own `parameters`
    that holds its unit; None: a header does.
    """

    release: int
    epoch: int
    salt: str
    arms: tuple[Arm, ...]
    mirror: Mirror | None = None
    sticky: bool = True
    unit_field: str | None = None

    def __post_init__(self) -> None:
        total = sum(arm.weight for arm in self.arms)
        if not self.arms or abs(total - 1.0) > 1e-9 or any(not 0.0 <= arm.weight <= 1.0 for arm in self.arms):
            raise ConfigError(
                f"route weights {[arm.weight for arm in self.arms]}: want shares in [0, 1] with sum 1"
            )
        if self.mirror is not None and self.mirror.candidate not in [arm.index for arm in self.arms[1:]]:
            raise ConfigError(
                f"mirror of arm {self.mirror.candidate}: want a candidate's index, one of"
                f" {[arm.index for arm in self.arms[1:]]}"
            )

    @property
    def only_arm(self) -> Arm | None:
        """The arm that answers everybody; None if there are several."""
        open_arms = [arm for arm in self.arms if arm.weight > 0.0]
        return open_arms[0] if len(open_arms) == 1 else None

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
        position = draw() if unit is None or not self.sticky else unit_position(unit, self.salt)
        edge = 0.0
        for arm in arms[1:]:
            edge += arm.weight
            if position < edge:
                return arm
        return arms[0]


def unit_position(unit: bytes, salt: str) -> float:
    """Where a unit lies in [0, 1): a keyed blake2b of it, uniform and independent between salts."""
    key = salt.encode()
    if len(key) > 64:  # what blake2b takes; cut off, the releases of a model with a long name would share one
        key = hashlib.blake2b(key).digest()
    return int.from_bytes(hashlib.blake2b(unit, key=key, digest_size=8).digest(), "big") / 2**64


def single(version: str, release: int, salt: str = "") -> Route:
    """The route of a model with one version live."""
    return Route(release=release, epoch=0, salt=salt, arms=(Arm(0, "incumbent", version, 1.0),))


def check_mirror(route: Route, versions: Mapping[str, Version]) -> None:
    """Whether the route's copies may be made; `versions` has those of its arms, by number.

    Raises: ConfigError if one of the two versions has side effects, for each copy would have them again;
    streams; or cannot take the other's requests (or, for `shielded`, give its answers).
    """
    mirror = route.mirror
    if mirror is None:
        return
    candidate_arm = next(arm for arm in route.arms if arm.index == mirror.candidate)
    incumbent, candidate = versions[route.arms[0].version], versions[candidate_arm.version]
    for version in (incumbent, candidate):
        name = f"version {version.number} of '{version.model}'"
        if not version.capabilities.side_effect_free:
            raise ConfigError(
                f"{name} has side effects (side_effect_free=false), which a copy of a request would have a"
                f" second time: release it as a plain canary, without shadow, reverse shadow or shield"
            )
        if version.capabilities.streaming:
            raise ConfigError(
                f"{name} answers in a stream, which cannot be compared or taken back: release it as a plain"
                f" canary"
            )
    mine, theirs = incumbent.signature, candidate.signature
    numbers = f"versions {incumbent.number} and {candidate.number} of '{incumbent.model}'"
    if mine.batch_axis != theirs.batch_axis or set(mine.inputs) != set(theirs.inputs):
        raise ConfigError(
            f"{numbers} take different inputs, so that neither can run the other's requests: release"
            f" {candidate.number} as a plain canary"
        )
    if mirror.shielded and set(mine.outputs) != set(theirs.outputs):
        raise ConfigError(
            f"{numbers} have different outputs, so that {incumbent.number} cannot answer for"
            f" {candidate.number}: leave shielded out"
        )
