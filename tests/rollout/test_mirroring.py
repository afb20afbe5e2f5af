"""What both versions run: settled from what they can do, and from what the user asked for."""

from typing import Any

import msgspec
import pytest

from interlock.core.errors import ConfigError
from interlock.core.model import Capabilities, Signature, TensorSpec, Version
from interlock.core.policy import Policy
from interlock.core.route import Range
from interlock.rollout.mirroring import MOST_DISAGREEMENT, mirror_of, settled
from interlock.rollout.tally import CANDIDATE

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 3))
LABEL = TensorSpec("label", "INT64", (-1,))


def version(number: str = "1", outputs: tuple[TensorSpec, ...] = (LABEL, Y), **can: Any) -> Version:
    signature = Signature((X,), outputs)
    return Version("iris", number, "sha256:" + "a" * 64, "onnx", "", signature, Capabilities(**can))


def test_what_is_left_out_is_on_where_both_versions_allow_it() -> None:
    found = settled(Policy(budget=7), version("1"), version("2"))
    assert (found.shadow, found.reverse, found.shielded) == (1.0, 1.0, True)
    assert (found.most_disagreement, found.budget) == (MOST_DISAGREEMENT, 7.0)
    assert settled(found, version("1"), version("2")) == found


@pytest.mark.parametrize("can", [{"side_effect_free": False}, {"streaming": True}])
def test_what_the_versions_do_not_allow_is_off_and_refused_if_it_was_asked_for(can: dict[str, Any]) -> None:
    for versions in ((version("1", **can), version("2")), (version("1"), version("2", **can))):
        found = settled(Policy(), *versions)
        assert (found.shadow, found.reverse, found.shielded, found.most_disagreement) == (0, 0, False, 1)
        assert not found.is_paired and mirror_of(found, 0.0) is None and mirror_of(found, 0.5) is None
        for asked in (Policy(shadow=0.1), Policy(reverse=1.0), Policy(shielded=True)):
            with pytest.raises(ConfigError, match="plain"):
                settled(asked, *versions)
        with pytest.raises(ConfigError):
            settled(Policy(), *versions, answers=False)


def test_versions_with_other_outputs_are_compared_and_not_shielded() -> None:
    found = settled(Policy(), version("1"), version("2", (LABEL,)))
    assert (found.shadow, found.reverse, found.shielded) == (1.0, 1.0, False)
    with pytest.raises(ConfigError, match="leave shielded out"):
        settled(Policy(shielded=True), version("1"), version("2", (LABEL,)))


def test_what_the_user_says_is_kept() -> None:
    asked = Policy(shadow=0.0, reverse=0.25, shielded=False, most_disagreement=0.5)
    assert settled(asked, version("1"), version("2")) == asked
    none = settled(Policy(shadow=0.0, reverse=0.0), version("1"), version("2"))
    assert not none.is_paired and none.most_disagreement == 1.0


@pytest.mark.parametrize(
    ("outputs", "can"), [((Y,), {}), ((LABEL, Y), {"deterministic": False})], ids=["numbers", "chance"]
)
def test_only_labels_that_chance_does_not_change_are_judged_by_default(
    outputs: tuple[TensorSpec, ...], can: dict[str, Any]
) -> None:
    assert settled(Policy(), version("1", outputs, **can), version("2", outputs)).most_disagreement == 1.0


def test_a_shadow_copies_and_answers_nobody() -> None:
    found = settled(Policy(shadow=0.5), version("1"), version("2"), answers=False)
    assert (found.shadow, found.reverse, found.shielded) == (0.5, 0.0, False)
    with pytest.raises(ConfigError, match="share above 0"):
        settled(Policy(shadow=0.0), version("1"), version("2"), answers=False)


def test_without_a_live_version_nothing_is_compared() -> None:
    found = settled(Policy(shadow=1.0), None, version("1"))
    assert not found.is_paired and not found.shielded


def test_the_mirror_of_a_share() -> None:
    policy = msgspec.structs.replace(
        settled(Policy(slower=1.5, tolerance=0.1), version("1"), version("2")), ranges=(Range("y", 0.0, 1.0),)
    )
    shadow, canary = mirror_of(policy, 0.0), mirror_of(policy, 0.05)
    assert shadow is not None and canary is not None
    assert (shadow.candidate, shadow.shadow, shadow.reverse, shadow.shielded) == (CANDIDATE, 1.0, 0.0, False)
    assert (canary.shadow, canary.reverse, canary.shielded) == (1.0, 1.0, True), (
        "both stay as busy as each other"
    )
    assert (canary.latency_ratio, canary.tolerance, canary.ranges) == (1.5, 0.1, policy.ranges)
    assert mirror_of(Policy(), 0.0) is None, "a policy of an older release, which says nothing of it"


@pytest.mark.parametrize(
    ("output", "word"), [("z", "which has label, y"), ("text", "want outputs of numbers")]
)
def test_ranges_are_of_outputs_of_numbers(output: str, word: str) -> None:
    outputs = (LABEL, Y) if output == "z" else (TensorSpec("text", "BYTES", (-1,)), Y)
    with pytest.raises(ConfigError, match=word):
        settled(Policy(ranges=(Range(output, 0.0, 1.0),)), version("1", outputs), version("2", outputs))


@pytest.mark.parametrize(
    "output",
    [
        TensorSpec("text", "BYTES", (-1,)),
        TensorSpec("ids", "INT64", (-1, 10)),
        TensorSpec("mask", "BOOL", (-1, 8)),
    ],
    ids=lambda spec: spec.name,
)
def test_texts_and_lists_may_differ_everywhere(output: TensorSpec) -> None:
    found = settled(Policy(), version("1", (output,)), version("2", (output,)))
    assert (found.shadow, found.most_disagreement) == (1.0, 1.0)
