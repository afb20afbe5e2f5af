"""Which versions a worker loads, swaps in, drains and unloads: the pure policy, availability first.

A model that answers goes on answering: its route changes only to versions that are ready, and what the route
names is never drained. Only a Desired that omits the model takes it away. (The idea of aspired versions and
the availability-preserving policy: TensorFlow Serving.)
"""

import msgspec

from interlock.core.errors import ConfigError
from interlock.core.letters import ModelDesired, VersionState
from interlock.core.model import Model, Version
from interlock.core.route import Arm, Route, check_mirror


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
        target = _within_reach(one, held, quarantined)
        if target is not None and target != current:
            arms = [by_number.get(arm.version) for arm in target.arms]
            ready = all(arm is not None and _ready(held, arm.key, quarantined) for arm in arms)
            if ready and (target.mirror is None or why_not_mirrored(one) is None):
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


def carried_out(
    desired: tuple[ModelDesired, ...],
    held: dict[str, Held],
    routes: dict[str, Route],
    quarantined: frozenset[str] = frozenset(),
) -> bool:
    """Whether nothing is left to do: all wanted versions ready or given up, routes as desired, the rest gone.

    A route to what was given up cannot be in force; no release of another model waits for that.
    """
    wanted = {version.key for one in desired for version in one.versions}
    given_up = {key for key in wanted if _is_given_up(key, held, quarantined)}
    return (
        all(key in given_up or (key in held and held[key].state is VersionState.READY) for key in wanted)
        and set(held) <= wanted
        and set(routes) <= {one.model.name for one in desired}
        and all(
            routes.get(one.model.name) == one.route
            or any(version.key in given_up for version in _routed(one))
            for one in desired
        )
    )


def is_ready(
    desired: tuple[ModelDesired, ...],
    held: dict[str, Held],
    routes: dict[str, Route],
    quarantined: frozenset[str],
    was_ready: bool,
) -> bool:
    """Whether a worker may be sent requests: each model that is live is answered, or has been given up.

    What is being prepared beside a version that answers does not matter. A version that failed or is
    quarantined speaks for its own model alone (whose readiness says so): a load balancer that left this
    worker for it would take the others' models away, on every node at once. Where nothing at all is
    answered, nobody is served by coming here. A model that is released for the first time is waited for
    until the worker `was_ready` once.
    """
    answered = given_up = 0
    for one in desired:
        if _answers(one.model.name, held, routes):
            answered += 1
        elif any(_is_given_up(version.key, held, quarantined) for version in _routed(one)):
            given_up += one.route is not None
        elif one.route is not None or not was_ready:
            return False
    return answered > 0 or given_up == 0


def why_not_mirrored(one: ModelDesired) -> str | None:
    """Why a model's route must not come into force: it would run requests twice that may run only once."""
    if one.route is None or one.route.mirror is None:
        return None
    by_number = {version.number: version for version in one.versions}
    if not all(arm.version in by_number for arm in one.route.arms):
        return None  # not ready anyway
    try:
        check_mirror(one.route, by_number)
    except ConfigError as error:
        return error.message
    return None


def _within_reach(one: ModelDesired, held: dict[str, Held], quarantined: frozenset[str]) -> Route | None:
    """The route of a model, without what only runs copies if that is not ready here: no client waits for a
    shadow."""
    route = one.route
    if route is None:
        return None
    keys = {version.number: version.key for version in one.versions}

    def is_ready(arm: Arm) -> bool:
        return arm.version in keys and _ready(held, keys[arm.version], quarantined)

    answering = tuple(arm for arm in route.arms if arm.weight > 0.0 or is_ready(arm))
    if answering == route.arms or not all(map(is_ready, answering)):
        return route
    return msgspec.structs.replace(route, arms=answering, mirror=None)


def _answers(model: str, held: dict[str, Held], routes: dict[str, Route]) -> bool:
    ready = {
        have.version.number
        for have in held.values()
        if have.version.model == model and have.state is VersionState.READY
    }
    # An arm that nobody is sent to runs copies alone.
    return model in routes and ready.issuperset(a.version for a in routes[model].arms if a.weight > 0.0)


def _routed(one: ModelDesired) -> list[Version]:
    """The versions that shall answer; all of them where none does yet."""
    numbers = None if one.route is None else {arm.version for arm in one.route.arms}
    return [version for version in one.versions if numbers is None or version.number in numbers]


def _is_given_up(key: str, held: dict[str, Held], quarantined: frozenset[str]) -> bool:
    have = held.get(key)
    gone = (VersionState.FAILED, VersionState.QUARANTINED)
    return key in quarantined or (have is not None and have.state in gone)


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
