"""The budgets of a gate, its look at the holdout, and at the signatures; the whole is run in tests/cli."""

from pathlib import Path

import msgspec
import numpy as np
import pandas
import pytest

from interlock.core.errors import ConfigError
from interlock.core.model import Profile, Signature, TensorSpec
from interlock.operations import reference
from interlock.operations.gate import Plan, budget_checks, data_check, latency_checks, signature_check
from interlock.operations.holdout import Metric
from interlock.runtime.table import OPTION, Table
from tests.operations.homes import a_version

FAST, SLOW = np.full(200, 0.001), np.full(200, 0.004)


def test_the_p95_of_the_candidate_is_held_against_the_budget() -> None:
    plan = Plan(max_latency_ms=2.0)
    assert [c.outcome for c in latency_checks(SLOW, FAST, plan)] == ["pass"]
    assert [c.outcome for c in latency_checks(FAST, SLOW, plan)] == ["worse"]
    mixed = np.concatenate([np.full(190, 0.001), np.full(10, 0.004)])
    assert [c.outcome for c in latency_checks(FAST, mixed, plan)] == ["undecided"]
    assert latency_checks(FAST, SLOW, Plan()) == ()


def test_the_median_of_the_ratio_is_held_against_its_budget() -> None:
    plan = Plan(max_latency_ratio=2.0)
    assert latency_checks(FAST, FAST, plan)[0].outcome == "pass"
    assert latency_checks(FAST, SLOW, plan)[0].outcome == "worse"
    half = np.where(np.arange(200) % 2, FAST, SLOW)
    found = latency_checks(FAST, half, plan)[0]
    assert found.outcome == "undecided" and found.facts["above"] == 100


def test_size_and_memory(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights").write_bytes(bytes(2_000_000))
    version = msgspec.structs.replace(a_version("m", "1"), profile=Profile(resident_bytes=30_000_000))
    found = budget_checks(version, tmp_path, Plan(max_size_mb=1.9, max_memory_mb=31))
    assert [(c.name, c.outcome) for c in found] == [("size", "worse"), ("memory", "pass")]
    unmeasured = budget_checks(a_version("m", "1"), tmp_path, Plan(max_memory_mb=31))
    assert unmeasured[0].outcome == "undecided"
    assert budget_checks(version, tmp_path, Plan()) == []


@pytest.mark.parametrize(("strange", "outcome"), [(0, "pass"), (1, "pass"), (2, "undecided")])
def test_categories_that_the_version_does_not_know_make_the_holdout_another_one(
    strange: int, outcome: str
) -> None:
    table = Table((("zone", "BYTES"), ("km", "FP64")), {"zone": ("north", "south")})
    version = msgspec.structs.replace(a_version("m", "1"), options={OPTION: msgspec.to_builtins(table)})
    zones = ["north", None, *["south"] * 98]
    zones[10 : 10 + strange] = ["moon"] * strange
    rows = reference.of(pandas.DataFrame({"zone": zones, "km": [np.nan] * 20 + [1.0] * 80}), np.zeros(100))
    found = data_check(version, rows)
    assert found.outcome == outcome
    assert found.facts["unseen"] == ({"zone": strange / 100} if strange else {})
    assert found.facts["missing"] == {"zone": 0.01, "km": 0.2}


def test_a_signature_that_breaks_clients_is_worse_and_one_more_output_is_not() -> None:
    one = a_version("m", "1")
    x, y = one.signature.inputs[0], one.signature.outputs[0]
    wider = msgspec.structs.replace(one, signature=Signature((TensorSpec("x", "FP32", (-1, 5)),), (y,)))
    assert signature_check(one, wider).outcome == "worse"
    more = msgspec.structs.replace(one, signature=Signature((x,), (y, TensorSpec("z", "FP32", (-1,)))))
    assert signature_check(one, more).outcome == "pass"


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        Plan(metrics=(Metric("mae", 1), Metric("mae", 2)))
    with pytest.raises(ConfigError, match="slices"):
        Plan(slice_rows=0)
