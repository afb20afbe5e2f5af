"""Which versions a worker loads, swaps in, drains and unloads: the pure policy, availability first.

A model that answers goes on answering: its route changes only to versions that are ready, and what the route
names is never drained. Only a Desired that omits the model takes it away. (The idea of aspired versions and
the availability-preserving policy: TensorFlow Serving.)
"""

import msgspec

from interlock.core.letters import ModelDesired, VersionState
from interlock.core.model import Model, Version
from interlock.core.route import Route


class Held(msgspec.Struct, frozen=True):
    """One version in this worker. `failed_revision`: the Desired under which its load failed."""

    version: Version
    state: VersionState
    outstanding: int = 0
    failed_revision: int = -1


class Load(msgspec.Struct, frozen=True):
    """Read it into memory and warm it up, beside what is there."""

    version: Version


class Swap(msgspec.Struct, frozen=True):
    """From now on the model is answered by this route; None: not at all."""

    model: Model
    route: Route | None


class Drain(msgspec.Struct, frozen=True):
    """Give it no more requests."""

    key: str


class Revive(msgspec.Struct, frozen=True):
    """It is wanted again before it was unloaded."""

    key: str


class Unload(msgspec.Struct, frozen=True):
    """Nothing is under way in it: give its memory back."""

    key: str


class Forget(msgspec.Struct, frozen=True):
    """A version that failed and that nobody wants any more."""

    key: str


Step = Load | Swap | Drain | Revive | Unload | Forget


def plan(
    desired: tuple[ModelDesired, ...],
    revision: int,
    held: dict[str, Held],
    routes: dict[str, Route],
    quarantined: frozenset[str],
) -> list[Step]:
    """The steps that bring a worker nearer to what is desired; called again after each change of state.

    `held` is by version key, `routes` what each model is answered by now. Loads of all models come in the
    order of the Desired; one that failed is tried again only under a newer revision.
    """
    steps: list[Step] = []
    wanted: dict[str, Version] = {}
    used: set[str] = set()
    names = {one.model.name for one in desired}
    for one in desired:
        by_number = {version.number: version for version in one.versions}
        wanted.update({version.key: version for version in one.versions})
        current = routes.get(one.model.name)
        target = one.route
        if target is not None and target != current:
            arms = [by_number.get(arm.version) for arm in target.arms]
            if all(arm is not None and _ready(held, arm.key, quarantined) for arm in arms):
                steps.append(Swap(one.model, target))
                current = target
        for arm in current.arms if current is not None else ():
            newer = by_number.get(arm.version)
            if current != target or newer is None or not _ready(held, newer.key, quarantined):
                used |= _keys_of(held, one.model.name, arm.version)
    for name in routes:
        if name not in names:
            steps.append(Swap(Model(name), None))
    for key, version in wanted.items():
        have = held.get(key)
        if key in quarantined:
            continue
        if (
            have is None
            or have.state is VersionState.QUARANTINED
            or (have.state is VersionState.FAILED and have.failed_revision < revision)
        ):
            steps.append(Load(version))
        elif have.state is VersionState.DRAINING:
            steps.append(Revive(key))
    for key, have in held.items():
        if key in wanted or key in used:
            continue
        if have.state is VersionState.READY:
            steps.append(Drain(key))
        elif have.state is VersionState.DRAINING and have.outstanding == 0:
            steps.append(Unload(key))
        elif have.state in (VersionState.FAILED, VersionState.QUARANTINED):
            steps.append(Forget(key))
    return steps


def carried_out(desired: tuple[ModelDesired, ...], held: dict[str, Held], routes: dict[str, Route]) -> bool:
    """Whether nothing is left to do: all wanted versions ready, routes as desired, the rest gone."""
    wanted = {version.key for one in desired for version in one.versions}
    return (
        all(key in held and held[key].state is VersionState.READY for key in wanted)
        and set(held) <= wanted
        and {one.model.name: one.route for one in desired if one.route is not None} == routes
    )


def answers(desired: tuple[ModelDesired, ...], held: dict[str, Held], routes: dict[str, Route]) -> bool:
    """Readiness: every model that is to be answered is, by versions in memory, whatever is being prepared."""
    return all(
        one.model.name in routes
        and {arm.version for arm in routes[one.model.name].arms}
        <= {
            have.version.number
            for have in held.values()
            if have.version.model == one.model.name and have.state is VersionState.READY
        }
        for one in desired
        if one.route is not None
    )


def _ready(held: dict[str, Held], key: str, quarantined: frozenset[str]) -> bool:
    have = held.get(key)
    return have is not None and have.state is VersionState.READY and key not in quarantined


def _keys_of(held: dict[str, Held], model: str, number: str) -> set[str]:
    # There may be two with one number (registered anew after a deletion): whichever answers, both stay.
    return {
        key
        for key, have in held.items()
        if have.version.number == number
        and have.version.model == model
        and have.state in (VersionState.READY, VersionState.DRAINING)
    }
