"""Holds what counts as a difference between two versions, and which of them break a client."""

import msgspec
import pytest

from interlock.core.model import Profile, Signature, TensorSpec, Version
from interlock.core.provenance import Code, Dataset, Environment, Provenance, Quality
from interlock.operations.description import Description, Run
from interlock.operations.difference import difference, signature_changes

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1,))
ONE = Signature((X,), (Y,))
TABLE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (Y,), columns=("a", "b"))
MIXED = Signature(
    (TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "BYTES", (-1, 1))), (Y,), columns=("a", "b")
)


def inputs(*specs: TensorSpec) -> Signature:
    return Signature(specs, (Y,))


@pytest.mark.parametrize(
    ("a", "b", "breaks"),
    [
        (ONE, ONE, []),
        (ONE, inputs(TensorSpec("x", "FP64", (-1, 4))), [("input", "x", True)]),
        (ONE, inputs(TensorSpec("x", "FP32", (-1, 5))), [("input", "x", True)]),
        (ONE, inputs(TensorSpec("x", "FP32", (-1, -1))), [("input", "x", False)]),
        (ONE, inputs(TensorSpec("x", "FP32", (-1, 4, 1))), [("input", "x", True)]),
        (inputs(TensorSpec("x", "FP32", (-1, -1))), ONE, [("input", "x", True)]),
        (ONE, inputs(X, TensorSpec("z", "FP32", (-1, 1))), [("input", "z", True)]),
        (inputs(X, Y), ONE, [("input", "y", True)]),
        (ONE, Signature((X,), (Y, TensorSpec("p", "FP32", (-1, 2)))), [("output", "p", False)]),
        (ONE, Signature((X,), ()), [("output", "y", True)]),
        (ONE, Signature((X,), (TensorSpec("y", "INT64", (-1,)),)), [("output", "y", True)]),
        (ONE, Signature((X,), (Y,), None), [("batch axis", "", True)]),
        (Signature((X,), (Y,), None), ONE, [("batch axis", "", False)]),
        (TABLE, msgspec.structs.replace(TABLE, columns=("b", "a")), [("column", "(order)", True)]),
        (TABLE, msgspec.structs.replace(TABLE, columns=("a", "c")), [("column", "b", True), ("column", "c", True)]),  # noqa: E501
        (TABLE, MIXED, [("column", "b", True)]),
        (None, ONE, []),
    ],
)  # fmt: skip
def test_what_breaks_a_client(
    a: Signature | None, b: Signature | None, breaks: list[tuple[str, str, bool]]
) -> None:
    found = signature_changes(a, b)
    assert [(change.place, change.name, change.breaks) for change in found] == breaks


def described(number: str, **changes: object) -> Description:
    version = Version("m", number, f"sha256:{number * 64}", "onnx", "model.onnx", ONE)
    return msgspec.structs.replace(Description("m", number, signature=ONE, version=version), **changes)


def with_record(number: str, found: Provenance) -> Description:
    return described(number, provenance=found)


def test_metrics_say_which_way_is_better() -> None:
    a = with_record("1", Provenance(quality=Quality("classification", 9, {"accuracy": 0.9, "log_loss": 0.5})))
    b = with_record("2", Provenance(quality=Quality("classification", 9, {"accuracy": 0.8, "log_loss": 0.4, "brier": 0.1})))  # fmt: skip  # noqa: E501
    found = {metric.name: metric for metric in difference(a, b).metrics}
    assert found["reference_accuracy"].direction == "worse"
    assert found["reference_accuracy"].change == pytest.approx(-0.1)
    assert found["reference_log_loss"].direction == "better"
    assert (found["reference_brier"].a, found["reference_brier"].change) == (None, None)
    assert difference(a, a).metrics[0].direction == "same"


def test_runs_of_plain_mlflow_code_are_compared_by_their_own_metrics() -> None:
    a, b = (
        described(n, run=Run("r", metrics={"val_rmse": v, "odd": v})) for n, v in (("1", 1.0), ("2", 2.0))
    )
    found = {metric.name: metric.direction for metric in difference(a, b).metrics}
    assert found == {"val_rmse": "worse", "odd": ""}


def test_latency_and_memory_have_ratios_by_rows() -> None:
    a, b = described("1"), described("2")
    assert a.version is not None and b.version is not None
    old = msgspec.structs.replace(a.version, profile=Profile({1: 1e-5, 8: 2e-5}, 0, 100, 10, {1: 50}))
    new = msgspec.structs.replace(b.version, profile=Profile({1: 2e-5, 32: 3e-5}, 0, 150, 30, {1: 75}))
    found = difference(msgspec.structs.replace(a, version=old), msgspec.structs.replace(b, version=new))
    assert [(change.rows, change.ratio) for change in found.latency] == [(1, 2.0), (8, None), (32, None)]
    assert found.memory[0].ratio == 1.5 and found.resident_bytes is not None
    assert found.resident_bytes.ratio == 1.5


def test_data_code_and_packages() -> None:
    a = with_record("1", Provenance(
        Dataset("sha256:a", 10, "/a.csv", {"x": "FP64", "y": "INT64"}),
        Code("c1", "/r", "main", False), Environment("3.11.1", "linux", {"numpy": "1", "old": "1"}),
    ))  # fmt: skip
    b = with_record("2", Provenance(
        Dataset("sha256:b", 12, "/a.csv", {"x": "BYTES", "z": "INT64"}),
        Code("c2", "/r", "main", True), Environment("3.11.2", "linux", {"numpy": "2", "new": "1"}),
    ))  # fmt: skip
    found = difference(a, b)
    assert found.data.same is False
    assert {change.name for change in found.data.changes} == {"digest", "rows", "column x"}
    assert (found.data.columns_added, found.data.columns_removed) == (("z",), ("y",))
    packages = found.environment
    assert (packages.added, packages.removed) == ({"new": "1"}, {"old": "1"})
    assert [(c.name, c.a, c.b) for c in packages.changed] == [
        ("python", "3.11.1", "3.11.2"),
        ("numpy", "1", "2"),
    ]
    assert {change.name for change in found.code} == {"commit", "dirty"}
    assert difference(a, described("2")).environment == type(packages)()


def test_nothing_differs_from_itself() -> None:
    found = difference(described("1"), described("1"))
    assert found.same_artifact and found.compatible
    assert not any((found.metrics, found.signature, found.latency, found.code, found.options))
    assert found.data.same is None


def test_requirements_stand_for_a_lock_that_is_not_there() -> None:
    a = described("1", requirements=("mlflow", "numpy==1"), python="3.11.1")
    found = difference(a, described("2", requirements=("numpy==2", "onnx==1"), python="3.11.1"))
    assert found.environment.added == {"onnx": "1"} and found.environment.removed == {"mlflow": ""}
    assert [change.name for change in found.environment.changed] == ["numpy"]
