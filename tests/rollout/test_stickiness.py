"""Who meets which version while releases come, grow, shrink, pause, finish and go back: sticky units move
only with the weight, to the candidate as it grows and from it as it shrinks."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from interlock.core.model import Capabilities, Model, Signature, TensorSpec, Version
from interlock.core.policy import Policy
from interlock.core.route import Route
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.desired import ModelRow, build_desired
from tests.thorough import examples

UNITS = [b"unit-%d" % number for number in range(60)]
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),), 0)


def version(number: str) -> Version:
    digest = "sha256:" + number.rjust(64, "0")
    return Version("m", number, digest, "onnx", "model.onnx", SIGNATURE, Capabilities())


class Releases(RuleBasedStateMachine):
    """The ledger's rows of one model, turned into the route that workers are told after each change."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.newest = 1, 1
        self.state: ReleaseState | None = None  # of the open release, which is the newest
        self.weight, self.epoch = 0.0, 0
        self.met = self.meet()

    def route(self) -> Route:
        def row(number: int, state: ReleaseState, **more: object) -> ReleaseRow:
            return ReleaseRow(
                number, "m", str(number), "canary", state, "", None, finished_s=None, requested_s=0.0,
                changed_s=0.0, **({"epoch": 0} | more),  # type: ignore[arg-type]
            )  # fmt: skip

        begun = None
        if self.state is not None:
            policy = Policy(unit="header")
            begun = row(self.newest, self.state, epoch=self.epoch, weight=self.weight, policy=policy)
        versions = {str(n): version(str(n)) for n in (self.live, self.newest)}
        done = row(self.live, ReleaseState.DONE)
        model = build_desired("node", 1, [ModelRow(Model("m"), done, begun, versions)]).models[0]
        assert model.route is not None and {a.version for a in model.route.arms} <= set(versions)
        return model.route

    def meet(self) -> dict[bytes, int]:
        route = self.route()
        met = {unit: int(route.choose(unit, lambda: 0.0).version) for unit in UNITS}
        assert met == {unit: int(route.choose(unit, lambda: 0.999).version) for unit in UNITS}
        return met

    def moved(self) -> set[tuple[int, int]]:
        """From which version to which units have moved by the last change."""
        before, self.met = self.met, self.meet()
        return {(before[unit], self.met[unit]) for unit in UNITS if before[unit] != self.met[unit]}

    @precondition(lambda self: self.state is None)
    @rule()
    def prepare(self) -> None:
        self.newest += 1
        self.state, self.weight, self.epoch = ReleaseState.PREPARING, 0.0, 0
        assert self.moved() == set()

    @precondition(lambda self: self.state in (ReleaseState.PREPARING, ReleaseState.RAMPING))
    @rule(weight=st.floats(0.0, 1.0))
    def change_weight(self, weight: float) -> None:
        grows = weight >= self.weight
        self.state, self.weight, self.epoch = ReleaseState.RAMPING, weight, self.epoch + 1
        way = (self.live, self.newest) if grows else (self.newest, self.live)
        assert self.moved() <= {way}

    @precondition(lambda self: self.state is ReleaseState.RAMPING)
    @rule()
    def new_cuts(self) -> None:
        self.epoch += 1
        assert self.moved() == set()

    @precondition(lambda self: self.state is ReleaseState.RAMPING)
    @rule()
    def pause(self) -> None:
        self.state = ReleaseState.PAUSED
        assert self.moved() == set()

    @precondition(lambda self: self.state is ReleaseState.PAUSED)
    @rule()
    def resume(self) -> None:
        self.state = ReleaseState.RAMPING
        assert self.moved() == set()

    @precondition(lambda self: self.state in (ReleaseState.RAMPING, ReleaseState.PAUSED))
    @rule()
    def promote(self) -> None:
        self.state = ReleaseState.SWITCHING
        assert self.moved() <= {(self.live, self.newest)}
        assert set(self.met.values()) == {self.newest}
        self.live, self.state = self.newest, None
        assert self.moved() == set()

    @precondition(lambda self: self.state is not None)
    @rule()
    def roll_back(self) -> None:
        self.state = ReleaseState.ROLLING_BACK
        assert self.moved() <= {(self.newest, self.live)}
        assert set(self.met.values()) == {self.live}
        self.state = None
        assert self.moved() == set()

    @invariant()
    def the_share_is_the_weight(self) -> None:
        share = sum(number != self.live for number in self.met.values()) / len(UNITS)
        bound = 0.35  # five standard deviations of 60 units, and all or nothing exactly
        assert abs(share - self.weight * (self.state is not None and self.epoch > 0)) <= bound


TestReleases = Releases.TestCase
TestReleases.settings = settings(max_examples=examples(100), stateful_step_count=30, deadline=None)


def test_another_release_tries_other_units_first() -> None:
    tried: list[set[bytes]] = []
    machine = Releases()
    for _ in range(2):
        machine.prepare()
        machine.change_weight(0.5)
        tried.append({unit for unit, number in machine.met.items() if number == machine.newest})
        machine.roll_back()
    assert 5 < len(tried[0] & tried[1]) < 25, "about a quarter of 60 by chance"
