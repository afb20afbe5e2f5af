"""The Desired from rows: one row a model, so that no model's release touches another."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.letters import ModelDesired
from interlock.core.model import Model, Signature, Version
from interlock.core.policy import Policy
from interlock.core.route import Mirror
from interlock.registry.rows import OPEN_STATES, ReleaseRow, ReleaseState
from interlock.rollout.desired import ModelRow, build_desired

OPEN = list(OPEN_STATES)


def version(model: str, number: str) -> Version:
    return Version(model, number, f"sha256:{number * 64}"[:71], "onnx", "", Signature((), ()))


def release(id: int, model: str, number: str, state: ReleaseState) -> ReleaseRow:
    return ReleaseRow(id, model, number, "now", state, "", None, 0, 0.0, 0.0, None)


@st.composite
def rows(draw: st.DrawFn, name: str) -> ModelRow:
    live = draw(st.none() | st.sampled_from(["1", "2"]))
    state = draw(st.none() | st.sampled_from(OPEN))
    number = draw(st.sampled_from(["1", "2", "3"]))
    return ModelRow(
        Model(name),
        None if live is None else release(4, name, live, ReleaseState.DONE),
        None if state is None else release(8, name, number, state),
        {n: version(name, n) for n in ("1", "2", "3")},
    )


ALL = st.tuples(rows("a"), rows("b"), rows("c"))


@given(ALL, st.permutations([0, 1, 2]))
def test_the_order_of_rows_does_not_matter(found: tuple[ModelRow, ...], order: list[int]) -> None:
    assert build_desired("n", 1, found) == build_desired("n", 1, [found[i] for i in order])


@given(ALL)
def test_each_model_is_built_from_its_own_row_alone(found: tuple[ModelRow, ...]) -> None:
    alone = [model for row in found for model in build_desired("n", 1, [row]).models]
    assert list(build_desired("n", 1, found).models) == alone


@given(ALL, st.sets(st.sampled_from("abc")))
def test_unloaded_is_what_was_live_and_is_not_wanted(found: tuple[ModelRow, ...], once: set[str]) -> None:
    rows = [
        msgspec.structs.replace(row, was_live="2" if row.model.name in once and row.live is None else None)
        for row in found
    ]
    desired = build_desired("n", 1, rows)
    wanted = {model.model.name for model in desired.models}
    assert desired.unloaded == {
        row.model.name: "2" for row in rows if row.was_live and row.model.name not in wanted
    }


@given(rows("a"))
def test_the_route_always_points_to_what_is_loaded(row: ModelRow) -> None:
    for model in build_desired("n", 1, [row]).models:
        numbers = {v.number for v in model.versions}
        assert len(numbers) == len(model.versions) and set(model.releases) == numbers
        assert model.route is None or {arm.version for arm in model.route.arms} <= numbers


@given(rows("a"))
def test_the_live_version_stays_loaded_until_another_is_live(row: ModelRow) -> None:
    if row.live is not None:
        (model,) = build_desired("n", 1, [row]).models
        assert model.versions[0].number == row.live.number
        if row.open is None or row.open.state not in (ReleaseState.SWITCHING, ReleaseState.KEEPING):
            assert model.route is not None and model.route.release == row.live.id


def _one(live: ReleaseRow | None, open_release: ReleaseRow | None) -> ModelDesired | None:
    numbered = {n: version("a", n) for n in ("1", "2")}
    models = build_desired("n", 1, [ModelRow(Model("a"), live, open_release, numbered)]).models
    return models[0] if models else None


def test_what_each_state_of_a_first_release_asks_for() -> None:
    assert _one(None, None) is None
    for state in (ReleaseState.REQUESTED, ReleaseState.PREPARING):
        preparing = _one(None, release(8, "a", "2", state))
        assert preparing is not None and preparing.route is None and preparing.releases == {"2": 8}
    switching = _one(None, release(8, "a", "2", ReleaseState.SWITCHING))
    assert switching is not None and switching.route is not None
    assert (switching.route.release, switching.route.salt) == (8, "a:8")


def test_a_later_release_is_prepared_when_it_has_begun() -> None:
    live = release(4, "a", "1", ReleaseState.DONE)
    asked = _one(live, release(8, "a", "2", ReleaseState.REQUESTED))
    assert asked is not None and asked.releases == {"1": 4}
    begun = _one(live, release(8, "a", "2", ReleaseState.PREPARING))
    assert begun is not None and begun.releases == {"1": 4, "2": 8}


def test_a_live_version_that_is_released_again_is_loaded_once_under_the_newer_release() -> None:
    live = release(4, "a", "2", ReleaseState.DONE)
    again = _one(live, release(8, "a", "2", ReleaseState.PREPARING))
    assert again is not None and len(again.versions) == 1 and again.releases == {"2": 8}
    assert again.route is not None and again.route.release == 4


def test_a_record_that_is_gone_takes_only_its_own_version() -> None:
    row = ModelRow(Model("a"), release(4, "a", "1", ReleaseState.DONE), None, {})
    assert build_desired("n", 1, [row]).models == ()


def test_what_both_versions_run_follows_the_share_and_stops_with_a_pause_without_one() -> None:
    policy = Policy(shadow=1.0, reverse=0.5, shielded=True)

    def mirror(state: ReleaseState, weight: float) -> Mirror | None:
        begun = msgspec.structs.replace(
            release(8, "a", "2", state), strategy="canary", policy=policy, epoch=1, weight=weight
        )
        live = release(4, "a", "1", ReleaseState.DONE)
        row = ModelRow(Model("a"), live, begun, {n: version("a", n) for n in ("1", "2")})
        (model,) = build_desired("n", 1, [row]).models
        assert model.route is not None
        return model.route.mirror

    shadow, canary = mirror(ReleaseState.RAMPING, 0.0), mirror(ReleaseState.RAMPING, 0.2)
    assert shadow is not None and (shadow.shadow, shadow.reverse, shadow.shielded) == (1.0, 0.0, False)
    assert canary is not None and (canary.shadow, canary.reverse, canary.shielded) == (1.0, 0.5, True)
    assert mirror(ReleaseState.PAUSED, 0.2) == canary, "it goes on answering"
    assert mirror(ReleaseState.PAUSED, 0.0) is None, "it may be what costs too much"
    assert mirror(ReleaseState.SWITCHING, 0.2) is None and mirror(ReleaseState.ROLLING_BACK, 0.2) is None


def test_the_route_says_where_the_unit_of_a_request_is() -> None:
    done = release(4, "a", "1", ReleaseState.DONE)
    begun = msgspec.structs.replace(release(8, "a", "2", ReleaseState.RAMPING), epoch=1, weight=0.1)
    found = []
    for unit in ("none", "header", "json:user"):
        asked = msgspec.structs.replace(begun, policy=Policy(unit=unit))
        row = ModelRow(Model("a"), done, asked, {n: version("a", n) for n in ("1", "2")})
        (model,) = build_desired("n", 1, [row]).models
        assert model.route is not None
        found.append((model.route.sticky, model.route.unit_field))
    assert found == [(False, None), (True, None), (True, "user")]
