"""Who is answered by which arm: the same one each time, moving only to the candidate as it grows."""

from collections import Counter
from math import inf, nan
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.core.letters import Desired, ModelDesired, decode_desired, encode
from interlock.core.model import Capabilities, Model, Signature, TensorSpec, Version
from interlock.core.route import Arm, Mirror, Range, Route, check_mirror, single, unit_position

units = st.binary(min_size=0, max_size=40)
weights = st.floats(0.0, 1.0)


def two_arms(weight: float, salt: str = "s") -> Route:
    return Route(1, 0, salt, (Arm(0, "incumbent", "1", 1.0 - weight), Arm(1, "candidate", "2", weight)))


@given(unit=units, weight=weights)
def test_a_unit_sticks_to_its_arm_whatever_is_drawn(unit: bytes, weight: float) -> None:
    route = two_arms(weight)
    chosen = route.choose(unit, lambda: 0.0)
    assert chosen == route.choose(unit, lambda: 0.999) == two_arms(weight).choose(unit)
    later = Route(9, 5, route.salt, route.arms)
    assert later.choose(unit) == chosen, "the epoch moves nobody"


@given(unit=units, less=weights, more=weights)
def test_as_the_candidate_grows_units_move_only_to_it(unit: bytes, less: float, more: float) -> None:
    less, more = sorted((less, more))
    if two_arms(less).choose(unit).name == "candidate":
        assert two_arms(more).choose(unit).name == "candidate"


@given(unit=units, first=st.floats(0.0, 0.5), less=st.floats(0.0, 0.5), more=st.floats(0.0, 0.5))
def test_with_two_candidates_the_last_one_grows_at_the_incumbents_cost_alone(
    unit: bytes, first: float, less: float, more: float
) -> None:
    less, more = sorted((less, more))

    def route(second: float) -> Route:
        rest = 1.0 - first - second
        return Route(1, 0, "s", (Arm(0, "a", "1", rest), Arm(1, "b", "2", first), Arm(2, "c", "3", second)))

    before, after = route(less).choose(unit).index, route(more).choose(unit).index
    assert after == before or (before, after) == (0, 2)


@given(unit=st.none() | units)
def test_all_or_nothing_is_exact(unit: bytes | None) -> None:
    assert two_arms(0.0).choose(unit).index == 0
    assert two_arms(1.0).choose(unit).index == 1
    assert single("7", 3).choose(unit).version == "7"


@given(draw=st.floats(0.0, 1.0, exclude_max=True), weight=weights)
def test_without_a_unit_the_draw_decides(draw: float, weight: float) -> None:
    assert two_arms(weight).choose(None, lambda: draw).index == int(draw < weight)


def chi_square(counts: list[int], expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize("salt", ["", "release-1", "x" * 200])
def test_positions_are_uniform(salt: str) -> None:
    positions = [unit_position(b"user-%d" % k, salt) for k in range(20_000)]
    assert all(0.0 <= position < 1.0 for position in positions)
    bins = Counter(int(position * 50) for position in positions)
    # 49 degrees of freedom: 99.99 % lie below 93. The units are fixed, so this passes always or never.
    assert chi_square([bins[k] for k in range(50)], 400.0) < 93


def test_positions_under_two_salts_are_independent() -> None:
    cells = Counter(
        (int(unit_position(b"user-%d" % k, "one") * 10), int(unit_position(b"user-%d" % k, "two") * 10))
        for k in range(20_000)
    )
    # 99 degrees of freedom: 99.99 % lie below 161.
    assert chi_square([cells[a, b] for a in range(10) for b in range(10)], 200.0) < 161


def test_the_share_of_units_is_the_weight() -> None:
    for weight in (0.01, 0.1, 0.5):
        route = two_arms(weight)
        hits = sum(route.choose(b"%d" % k).index for k in range(20_000))
        assert abs(hits - 20_000 * weight) < 5 * (20_000 * weight * (1 - weight)) ** 0.5


@pytest.mark.parametrize("shares", [[], [0.5], [0.6, 0.6], [1.5, -0.5], [float("nan")]])
def test_weights_that_are_no_shares_are_refused(shares: list[float]) -> None:
    with pytest.raises(ConfigError, match="want shares in"):
        Route(1, 0, "s", tuple(Arm(k, "a", str(k), share) for k, share in enumerate(shares)))


def mirrored(**changes: Any) -> Route:
    return msgspec.structs.replace(
        two_arms(0.1), mirror=Mirror(**{"candidate": 1, "reverse": 1.0, **changes})
    )


@pytest.mark.parametrize("ends", [(1.0, 0.0), (nan, 0.0)])
def test_a_range_holds_a_number(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"range of output 'p': .* holds no number"):
        Range("p", *ends)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reverse": 1.5}, "reverse=1.5: want a share"),
        ({"shadow": -0.1}, "shadow=-0.1: want a share"),
        ({"shadow": nan}, "shadow=nan: want a share"),
        ({"reverse": 0.0}, "copies nothing"),
        ({"tolerance": -1.0}, "tolerance -1.0"),
        ({"latency_ratio": 0.0}, "latency ratio 0.0"),
        ({"latency_ratio": inf}, "latency ratio inf"),
        ({"candidate": 0}, r"arm 0: want a candidate's index, one of \[1\]"),
        ({"candidate": 2}, "arm 2: want a candidate's index"),
    ],
)
def test_a_mirror_that_makes_no_sense_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        mirrored(**changes)


def version(number: str, **changes: Any) -> Version:
    x, label = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("label", "INT64", (-1,))
    made = Version("m", number, "sha256:" + number * 64, "onnx", "m.onnx", Signature((x,), (label,)))
    return msgspec.structs.replace(made, **changes)


OTHER = (TensorSpec("x", "FP32", (-1, 5)),)


@pytest.mark.parametrize("number", ["1", "2"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"capabilities": Capabilities(side_effect_free=False)}, "has side effects"),
        ({"capabilities": Capabilities(streaming=True)}, "answers in a stream"),
        ({"signature": Signature(OTHER, version("1").signature.outputs)}, "take different inputs"),
        ({"signature": Signature(version("1").signature.inputs, OTHER)}, "leave shielded out"),
    ],
)
def test_only_what_may_run_twice_is_mirrored(number: str, changes: dict[str, Any], told: str) -> None:
    versions = {"1": version("1"), "2": version("2")}
    check_mirror(mirrored(shielded=True), versions)
    versions[number] = version(number, **changes)
    with pytest.raises(ConfigError, match=told):
        check_mirror(mirrored(shielded=True), versions)
    check_mirror(two_arms(0.1), versions)  # a plain canary may do all of it


def test_other_outputs_can_be_compared_though_not_passed_on() -> None:
    other = version("2", signature=Signature(version("1").signature.inputs, OTHER))
    check_mirror(mirrored(), {"1": version("1"), "2": other})


def test_a_mirror_travels_in_the_letter() -> None:
    route = mirrored(shadow=0.25, shielded=True, ranges=(Range("p", 0.0, 1.0),))
    letter = Desired("n", 1, (ModelDesired(Model("m"), (version("1"), version("2")), route),))
    assert decode_desired(encode(letter)) == letter


def test_an_open_range_travels_too() -> None:
    route = mirrored(ranges=(Range("p", least=0.0),))
    assert msgspec.json.decode(msgspec.json.encode(route), type=Route) == route


def test_releases_of_a_model_with_a_long_name_choose_other_units() -> None:
    name = "m" * 128
    units = [b"%d" % number for number in range(200)]
    first, second = ({unit_position(unit, f"{name}:{release}") for unit in units} for release in (7, 8))
    assert not first & second
