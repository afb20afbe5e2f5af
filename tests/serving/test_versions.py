"""The version policy in every interleaving: what answers goes on answering, and all comes to an end."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from interlock.core.letters import ModelDesired, VersionState
from interlock.core.model import Model, Version
from interlock.core.route import Arm, Mirror, Route, single
from interlock.serving.versions import (
    Drain,
    Forget,
    Held,
    Load,
    Revive,
    Swap,
    Unload,
    carried_out,
    is_ready,
    plan,
    why_not_mirrored,
)
from tests.serving.fakes import a_version
from tests.thorough import examples

READY, LOADING, DRAINING = VersionState.READY, VersionState.LOADING, VersionState.DRAINING
FAILED, QUARANTINED = VersionState.FAILED, VersionState.QUARANTINED

ONE, TWO = a_version("a", "1"), a_version("a", "2")
ANEW = a_version("a", "1", digest="ff")
"""The number of ONE with other contents: registered anew after a deletion."""


def wanted(*versions: Version, route: Route | None = None) -> ModelDesired:
    return ModelDesired(Model(versions[0].model), versions, route)


def held(*pairs: tuple[Version, VersionState], outstanding: int = 0) -> dict[str, Held]:
    return {version.key: Held(version, state, outstanding) for version, state in pairs}


TO_ONE, TO_TWO = single("1", 1), single("2", 2)
HALF = Route(3, 0, "s", (Arm(0, "incumbent", "1", 0.5), Arm(1, "candidate", "2", 0.5)))


@pytest.mark.parametrize(
    ("desired", "have", "route", "steps"),
    [
        ([wanted(ONE)], held(), None, [Load(ONE)]),
        ([wanted(ONE)], held((ONE, LOADING)), None, []),
        ([wanted(ONE, route=TO_ONE)], held((ONE, LOADING)), None, []),
        ([wanted(ONE, route=TO_ONE)], held((ONE, READY)), None, [Swap(Model("a"), TO_ONE)]),
        # The second beside the first, which is not drained before the route leaves it.
        ([wanted(TWO, route=TO_TWO)], held((ONE, READY)), TO_ONE, [Load(TWO)]),
        ([wanted(TWO, route=TO_TWO)], held((ONE, READY), (TWO, LOADING)), TO_ONE, []),
        (
            [wanted(TWO, route=TO_TWO)],
            held((ONE, READY), (TWO, READY)),
            TO_ONE,
            [Swap(Model("a"), TO_TWO), Drain(ONE.key)],
        ),
        ([wanted(TWO, route=TO_TWO)], held((ONE, DRAINING), (TWO, READY)), TO_TWO, [Unload(ONE.key)]),
        ([wanted(ONE, TWO, route=HALF)], held((ONE, READY), (TWO, LOADING)), TO_ONE, []),
        (
            [wanted(ONE, TWO, route=HALF)],
            held((ONE, READY), (TWO, READY)),
            TO_ONE,
            [Swap(Model("a"), HALF)],
        ),
        # Back before it was gone.
        ([wanted(ONE, route=TO_ONE)], held((ONE, DRAINING)), None, [Revive(ONE.key)]),
        # Omitted by the Desired: not answered any more, and given back.
        ([], held((ONE, READY)), TO_ONE, [Swap(Model("a"), None), Drain(ONE.key)]),
        ([], held((ONE, FAILED)), None, [Forget(ONE.key)]),
        ([wanted(TWO)], held((ONE, QUARANTINED), (TWO, READY)), None, [Forget(ONE.key)]),
        # The same number with other contents.
        ([wanted(ANEW, route=TO_TWO)], held((ONE, READY)), TO_ONE, [Load(ANEW)]),
        (
            [wanted(ANEW, route=single("1", 2))],
            held((ONE, READY), (ANEW, READY)),
            TO_ONE,
            [Swap(Model("a"), single("1", 2)), Drain(ONE.key)],
        ),
        ([wanted(ANEW, route=TO_ONE)], held((ONE, READY), (ANEW, LOADING)), TO_ONE, []),
    ],
)
def test_the_next_steps(
    desired: list[ModelDesired], have: dict[str, Held], route: Route | None, steps: list[object]
) -> None:
    routes = {"a": route} if route is not None else {}
    assert plan(tuple(desired), 1, have, routes, frozenset()) == steps


def test_a_failed_load_is_tried_again_only_under_a_newer_revision() -> None:
    have = {ONE.key: Held(ONE, FAILED, 0, failed_revision=4)}
    assert plan((wanted(ONE),), 4, have, {}, frozenset()) == []
    assert plan((wanted(ONE),), 5, have, {}, frozenset()) == [Load(ONE)]


def test_a_quarantined_version_is_not_loaded_and_not_swapped_in() -> None:
    given_up = frozenset({TWO.key})
    desired = (wanted(ONE, TWO, route=TO_TWO),)
    assert plan(desired, 1, held((ONE, READY), (TWO, QUARANTINED)), {"a": TO_ONE}, given_up) == []
    assert plan(desired, 1, held((ONE, READY), (TWO, QUARANTINED)), {"a": TO_ONE}, frozenset()) == [Load(TWO)]


def test_what_is_under_way_is_waited_for() -> None:
    assert plan((), 1, held((ONE, DRAINING), outstanding=1), {}, frozenset()) == []
    assert plan((), 1, held((ONE, DRAINING)), {}, frozenset()) == [Unload(ONE.key)]


B = a_version("b", "1")
B_TO_ONE = single("1", 4)


def ready(
    desired: tuple[ModelDesired, ...],
    have: dict[str, Held],
    given_up: tuple[Version, ...] = (),
    was_ready: bool = False,
    **routes: Route,
) -> bool:
    return is_ready(desired, have, routes, frozenset(version.key for version in given_up), was_ready)


def test_ready_means_that_every_live_model_is_answered() -> None:
    desired = (wanted(ONE, TWO, route=TO_TWO),)
    assert ready(desired, held((ONE, READY), (TWO, LOADING)), a=TO_ONE)
    assert ready(desired, held((ONE, DRAINING), (ANEW, READY)), a=TO_ONE)
    for was_ready in (False, True):
        assert not ready(desired, held((ONE, LOADING)), was_ready=was_ready)
        assert not ready(desired, held((TWO, LOADING), (ONE, FAILED)), was_ready=was_ready)
        assert not ready((wanted(ONE, route=TO_ONE),), held(), was_ready=was_ready)
    assert ready((), held()), "nothing is to be answered"


@pytest.mark.parametrize("state", [FAILED, QUARANTINED])
def test_a_version_that_was_given_up_takes_no_other_model_with_it(state: VersionState) -> None:
    both = (wanted(ONE, route=TO_ONE), wanted(B, route=B_TO_ONE))
    assert ready(both, held((ONE, state), (B, READY)), b=B_TO_ONE)
    assert ready(both, held((ONE, state), (B, READY)), was_ready=True, a=TO_ONE, b=B_TO_ONE)
    assert ready(both, held((B, READY)), given_up=(ONE,), b=B_TO_ONE), "never loaded here"
    assert not ready(both, held((ONE, state), (B, LOADING))), "the other is still on its way"
    assert not ready(both[:1], held((ONE, state)), was_ready=True, a=TO_ONE), "nothing else is answered"
    assert not ready(both[:1], held(), given_up=(ONE,))


def test_a_first_release_is_waited_for_until_a_worker_was_ready_once() -> None:
    first = wanted(ONE)
    for have in (held(), held((ONE, LOADING)), held((ONE, READY))):
        assert not ready((first,), have) and ready((first,), have, was_ready=True)
    assert not ready((first, wanted(B, route=B_TO_ONE)), held((B, READY)), b=B_TO_ONE)
    assert ready((first,), held((ONE, FAILED))), "it will never come"


SHADOW = Route(3, 0, "s", (Arm(0, "incumbent", "1", 1.0), Arm(1, "candidate", "2", 0.0)), Mirror(1, 1.0))


@pytest.mark.parametrize("state", [FAILED, QUARANTINED])
def test_a_shadow_that_was_given_up_takes_nobody_with_it(state: VersionState) -> None:
    desired = (wanted(ONE, TWO, route=SHADOW),)
    assert ready(desired, held((ONE, READY), (TWO, state)), a=SHADOW)
    assert not ready(desired, held((ONE, state), (TWO, READY)), a=SHADOW)


@pytest.mark.parametrize("state", [None, LOADING, FAILED, QUARANTINED])
@pytest.mark.parametrize("route", [None, SHADOW])
def test_nobody_who_is_answered_waits_for_a_shadow(state: VersionState | None, route: Route | None) -> None:
    """A worker that starts in the middle of a shadow answers as soon as the incumbent is loaded."""
    desired = wanted(ONE, TWO, route=SHADOW)
    have = held((ONE, READY), *([] if state is None else [(TWO, state)]))
    alone = replace(SHADOW, arms=SHADOW.arms[:1], mirror=None)
    routes = {} if route is None else {"a": route}
    quarantined = frozenset([TWO.key] if state is QUARANTINED else [])
    assert plan((desired,), 1, have, routes, quarantined)[0] == Swap(Model("a"), alone)
    again = [step for step in plan((desired,), 1, have, {"a": alone}, quarantined) if isinstance(step, Swap)]
    assert again == [], "and stays so until the shadow is loaded"
    both = held((ONE, READY), (TWO, READY))
    assert plan((desired,), 1, both, {"a": alone}, frozenset()) == [Swap(Model("a"), SHADOW)]


def test_a_route_that_would_run_side_effects_twice_never_comes_into_force() -> None:
    costly = a_version("a", "2", side_effect_free=False)
    for two, steps in ((TWO, [Swap(Model("a"), SHADOW)]), (costly, [])):
        desired = wanted(ONE, two, route=SHADOW)
        have = held((ONE, READY), (two, READY))
        assert plan((desired,), 1, have, {"a": TO_ONE}, frozenset()) == steps
        reason = why_not_mirrored(desired)
        assert (reason is None) is bool(steps)
        assert carried_out((desired,), have, {"a": TO_ONE}) is False, "so that control sees it is not"
    assert reason is not None and "version 2 of 'a' has side effects" in reason
    assert why_not_mirrored(wanted(ONE, route=SHADOW)) is None, "it is not complete yet"
    assert why_not_mirrored(wanted(ONE, costly, route=HALF)) is None, "a plain canary may"


@pytest.mark.parametrize("state", [FAILED, QUARANTINED])
def test_nothing_is_left_to_do_about_what_was_given_up(state: VersionState) -> None:
    both = (wanted(ONE, route=TO_ONE), wanted(B, route=B_TO_ONE))
    assert carried_out(both, held((ONE, state), (B, READY)), {"b": B_TO_ONE})
    assert carried_out(both, held((ONE, state), (B, READY)), {"a": TO_ONE, "b": B_TO_ONE})
    assert carried_out(both, held((B, READY)), {"b": B_TO_ONE}, frozenset({ONE.key}))
    assert not carried_out(both, held((ONE, state), (B, READY)), {}), "the other's route is not in force"
    assert not carried_out(both, held((ONE, state), (B, LOADING)), {"b": B_TO_ONE})
    assert not carried_out(both[1:], held((ONE, state), (B, READY)), {"b": B_TO_ONE}), "not forgotten yet"
    assert not carried_out(both, held((B, READY)), {"b": B_TO_ONE}), "not begun"


MODELS = ("a", "b")
NUMBERS = ("1", "2", "3")


class PolicyMachine(RuleBasedStateMachine):
    """A worker as the policy sees it: Desired letters, loads that end or fail, requests, quarantines."""

    def __init__(self) -> None:
        super().__init__()
        self.desired: tuple[ModelDesired, ...] = ()
        self.revision = 0
        self.release = 0
        self.held: dict[str, Held] = {}
        self.routes: dict[str, Route] = {}
        self.quarantined: set[str] = set()
        self.given_up: set[str] = set()  # quarantined, and not ready again since
        self.answered: set[str] = set()
        # The version that answers each arm's number, as the loader resolves it when it swaps.
        self.target: dict[tuple[str, str], str] = {}

    @rule(data=st.data())
    def letter(self, data: st.DataObject) -> None:
        models = data.draw(st.lists(st.sampled_from(MODELS), unique=True, max_size=2))
        desired = []
        for name in models:
            numbers = data.draw(st.lists(st.sampled_from(NUMBERS), unique=True, min_size=1, max_size=3))
            versions = tuple(
                a_version(name, n, digest=data.draw(st.sampled_from(["aa", "bb"]))) for n in numbers
            )
            kind = data.draw(st.sampled_from(["none", "single", "both"]))
            self.release += 1
            route: Route | None = None
            if kind == "single" or (kind == "both" and len(versions) == 1):
                route = single(versions[0].number, self.release)
            elif kind == "both":
                arms = (Arm(0, "x", versions[0].number, 0.5), Arm(1, "y", versions[1].number, 0.5))
                route = Route(self.release, 0, "s", arms)
            desired.append(ModelDesired(Model(name), versions, route))
        self.desired = tuple(desired)
        self.revision += 1
        self.advance()

    def advance(self) -> None:
        for _ in range(20):
            steps = plan(self.desired, self.revision, self.held, self.routes, frozenset(self.quarantined))
            if not steps:
                return
            for step in steps:
                self.take(step)
                self.check_availability()
        raise AssertionError("the policy has no end")

    def take(self, step: object) -> None:
        match step:
            case Load(version):
                have = self.held.get(version.key)
                assert have is None or have.state in (FAILED, QUARANTINED), "loaded twice"
                assert version.key not in self.quarantined
                self.held[version.key] = Held(version, LOADING)
            case Swap(model, None):
                assert model.name not in {one.model.name for one in self.desired}, (
                    "only omission takes it away"
                )
                self.routes.pop(model.name)
                self.answered.discard(model.name)
            case Swap(model, route):
                assert route is not None
                self.routes[model.name] = route
                one = next(one for one in self.desired if one.model.name == model.name)
                by_number = {version.number: version.key for version in one.versions}
                for arm in route.arms:
                    assert self.held[by_number[arm.version]].state is READY, "swapped to what is not ready"
                    self.target[model.name, arm.version] = by_number[arm.version]
                self.answered.add(model.name)
            case Drain(key):
                assert self.held[key].state is READY and key not in self.serving(), "drained what answers"
                self.held[key] = replace(self.held[key], state=DRAINING)
            case Revive(key):
                assert self.held[key].state is DRAINING
                self.held[key] = replace(self.held[key], state=READY)
            case Unload(key):
                assert self.held[key].state is DRAINING and self.held[key].outstanding == 0
                del self.held[key]
            case Forget(key):
                assert self.held[key].state in (FAILED, QUARANTINED)
                del self.held[key]
            case _:
                raise AssertionError(step)

    def serving(self) -> set[str]:
        return {self.target[name, arm.version] for name, route in self.routes.items() for arm in route.arms}

    @precondition(lambda self: any(have.state is LOADING for have in self.held.values()))
    @rule(data=st.data(), well=st.sampled_from([True, True, False]))
    def load_ends(self, data: st.DataObject, well: bool) -> None:
        loading = [key for key, have in self.held.items() if have.state is LOADING]
        key = data.draw(st.sampled_from(loading))
        state = READY if well else FAILED
        self.held[key] = replace(self.held[key], state=state, failed_revision=-1 if well else self.revision)
        self.advance()

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def request_begins(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.serving())))
        if key in self.held:
            self.held[key] = replace(self.held[key], outstanding=self.held[key].outstanding + 1)

    @precondition(lambda self: any(have.outstanding for have in self.held.values()))
    @rule(data=st.data())
    def request_ends(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key, have in self.held.items() if have.outstanding]))
        self.held[key] = replace(self.held[key], outstanding=self.held[key].outstanding - 1)
        self.advance()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        self.quarantined.add(key)
        self.given_up.add(key)
        self.held[key] = replace(self.held[key], state=QUARANTINED, outstanding=0)
        self.advance()

    @precondition(lambda self: self.quarantined)
    @rule(data=st.data())
    def lift(self, data: st.DataObject) -> None:
        self.quarantined.discard(data.draw(st.sampled_from(sorted(self.quarantined))))
        self.advance()

    @invariant()
    def check_availability(self) -> None:
        assert self.answered == set(self.routes), "a model once answered has a route"
        for key in self.serving():
            have = self.held.get(key)
            if have is not None and have.state is READY:
                self.given_up.discard(key)
                continue
            # Quarantine is the one thing that may take away what answers; it is tried anew when lifted.
            assert key in self.given_up, f"{key} is routed to and is {have}"

    def teardown(self) -> None:
        """When all loads succeed and all requests end, the Desired is carried out."""
        self.quarantined.clear()
        self.revision += 1
        for _ in range(20):
            self.advance()
            for key, have in self.held.items():
                state = READY if have.state is LOADING else have.state
                self.held[key] = replace(have, state=state, outstanding=0)
        self.advance()
        # A model that is prepared and not routed yet keeps the route that it had.
        kept = {
            one.model.name: replace(one, route=self.routes.get(one.model.name)) if one.route is None else one
            for one in self.desired
        }
        named = {
            (one.model.name, arm.version)
            for one in self.desired
            if one.route is None and one.model.name in self.routes
            for arm in self.routes[one.model.name].arms
        }
        wanted = {version.key for one in self.desired for version in one.versions}
        left = {
            key: have
            for key, have in self.held.items()
            if key in wanted or (have.version.model, have.version.number) not in named
        }
        assert carried_out(tuple(kept.values()), left, self.routes)
        assert is_ready(self.desired, self.held, self.routes, frozenset(), was_ready=True)


TestPolicyMachine = PolicyMachine.TestCase
TestPolicyMachine.settings = settings(max_examples=examples(70), stateful_step_count=30, deadline=None)
