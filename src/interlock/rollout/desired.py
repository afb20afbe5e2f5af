"""Decides what a node shall run, from one row a model: its live release, and the one under way."""

from collections.abc import Iterable

import msgspec

from interlock.core.letters import Desired, ModelDesired
from interlock.core.model import Model, Version
from interlock.core.policy import Share
from interlock.core.route import Arm, Mirror, Route, single
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.mirroring import mirror_of
from interlock.rollout.tally import CANDIDATE, INCUMBENT


class ModelRow(msgspec.Struct, frozen=True):
    """All that the ledger says about one model: which release is live, which is open, and the records of
    the versions that they name, by number."""

    model: Model
    live: ReleaseRow | None
    open: ReleaseRow | None
    versions: dict[str, Version]
    was_live: str | None = None
    """The number that was live last, where nothing is live now."""


def build_desired(node: str, revision: int, rows: Iterable[ModelRow]) -> Desired:
    """The letter for a node, complete. A model with nothing live and nothing asked for is not in it.

    The order of rows does not matter: models stand by name, versions with the live one first.
    """
    ordered = sorted(rows, key=lambda row: row.model.name)
    found = {row.model.name: _model(row) for row in ordered}
    return Desired(
        node=node,
        revision=revision,
        models=tuple(model for model in found.values() if model is not None),
        unloaded={
            row.model.name: row.was_live
            for row in ordered
            if row.was_live is not None and found[row.model.name] is None
        },
    )


def _model(row: ModelRow) -> ModelDesired | None:
    begun = row.open
    # A first release is in the first letter already: a node that starts with it is not ready without it.
    if begun is not None and begun.state is ReleaseState.REQUESTED and row.live is not None:
        begun = None
    # What is rolled back is drained at once: it may be the fault of its being there.
    if begun is not None and begun.state is ReleaseState.ROLLING_BACK and row.live is not None:
        begun = None
    # Where the ledger has lost a version's record there is nothing to load; the others go on.
    asked = [(r.number, r.id) for r in (row.live, begun) if r is not None]
    if begun is not None and not _is_switched(begun):
        asked += [(arm.version, begun.id) for arm in _shares(begun)]
    releases: dict[str, int] = {}
    for number, id in asked:
        if number in row.versions:
            releases[number] = max(id, releases.get(number, 0))
    if not releases:
        return None
    return ModelDesired(
        model=row.model,
        versions=tuple(row.versions[number] for number in releases),
        route=_route(row, begun),
        releases=releases,
    )


def _route(row: ModelRow, begun: ReleaseRow | None) -> Route | None:
    switched = begun is not None and _is_switched(begun)
    release = begun if switched else row.live
    if release is None or release.number not in row.versions:
        return None
    salt = f"{row.model.name}:{release.id}"
    if begun is None or begun.epoch == 0 or switched or begun.number not in row.versions:
        return single(release.number, release.id, salt)
    # Both arms under the new release's number: its epochs begin at 1, and 0 is where it has all requests.
    return Route(
        release=begun.id,
        epoch=begun.epoch,
        salt=f"{row.model.name}:{begun.id}",
        arms=(Arm(INCUMBENT, "incumbent", release.number, 1.0 - begun.weight), *_candidates(begun)),
        mirror=_mirror(begun),
        sticky=begun.policy is not None and begun.policy.is_sticky,
        unit_field=None if begun.policy is None else begun.policy.unit_field,
    )


def _candidates(begun: ReleaseRow) -> Iterable[Arm]:
    shares = _shares(begun)
    if not shares:
        yield Arm(CANDIDATE, "candidate", begun.number, begun.weight)
    for index, arm in enumerate(shares, start=CANDIDATE):
        # All have their shares, or none has while the test waits for a person.
        yield Arm(index, f"candidate-{index}", arm.version, arm.weight if begun.weight else 0.0)


def _is_switched(begun: ReleaseRow) -> bool:
    return begun.state in (ReleaseState.SWITCHING, ReleaseState.KEEPING)


def _shares(begun: ReleaseRow) -> tuple[Share, ...]:
    return begun.policy.arms if begun.policy is not None else ()


def _mirror(begun: ReleaseRow) -> Mirror | None:
    """What both versions run; nothing where it has no share and waits for a person: it may be too much."""
    if begun.policy is None or (begun.state is ReleaseState.PAUSED and begun.weight == 0.0):
        return None
    return mirror_of(begun.policy, begun.weight)
