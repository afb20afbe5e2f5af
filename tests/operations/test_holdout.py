"""What is gathered of a holdout: metrics, refused rows, caps, and what cannot be asked."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from interlock.core.errors import CheckFailed, ConfigError, Unsupported
from interlock.core.model import Capabilities, Signature, Tensors, TensorSpec, Version, artifact_path
from interlock.operations import holdout, reference
from interlock.operations.holdout import DEFAULTS, LOG_CAP, Answered, Metric, parse_metric
from tests.operations.versions import PAIR, put

TARGET = np.array([0, 1] * 50)
SHARP = np.where(TARGET[:, None] == np.array([0, 1]), 0.999, 0.001).astype(np.float32)


def answered(outputs: Tensors, bad: tuple[int, ...] = ()) -> Answered:
    good = np.ones(len(TARGET), bool)
    good[list(bad)] = False
    return Answered({name: array[good] for name, array in outputs.items()}, good)


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy:0", "roc_auc:0.1", "mae:x%", "accuracy:1%", "r2:0.1", "mae:-1"]
)
def test_metrics_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="metric"):
        parse_metric(text)


def test_a_classifier_is_judged_by_labels_and_probabilities_on_all_rows() -> None:
    one = answered({"p": SHARP})
    losses, judged, left_out = holdout.prepared(TARGET, one, one, ())
    assert [each.metric for each in losses] == ["accuracy", "log_loss"] and not left_out
    assert sorted(judged.tolist()) == list(range(100))
    assert [each.margin for each in losses] == [metric.margin for metric in DEFAULTS["classification"]]


def test_without_probabilities_log_loss_is_left_out_unless_it_was_asked_for() -> None:
    one = answered({"label": TARGET})
    losses, _, left_out = holdout.prepared(TARGET, one, one, ())
    assert [each.metric for each in losses] == ["accuracy"] and "no probabilities" in left_out[0]
    with pytest.raises(ConfigError, match="no probabilities"):
        holdout.prepared(TARGET, one, one, (Metric("log_loss", 0.1),))


def test_refused_rows_cost_as_much_as_a_row_can() -> None:
    one, two = answered({"p": SHARP}), answered({"p": SHARP}, bad=(3, 4))
    losses, judged, _ = holdout.prepared(TARGET, one, two, ())
    bad = np.isin(judged, [3, 4])
    assert losses[0].candidate[bad].tolist() == [1, 1] and not losses[0].candidate[~bad].any()
    assert losses[1].candidate[bad].tolist() == [LOG_CAP, LOG_CAP]
    assert two.refused == 2


def test_rows_that_set_the_cap_of_a_regressor_are_not_judged() -> None:
    random = np.random.default_rng(0)
    target = random.normal(10, 3, 1000)
    errors = random.normal(0, 1, 1000)
    one = Answered({"y": target + errors}, np.ones(1000, bool))
    losses, judged, _ = holdout.prepared(target, one, one, ())
    assert len(judged) == 900 and len(set(judged.tolist())) == 900
    rmse, mae = losses
    assert mae.cap == pytest.approx(6 * 0.674, rel=0.25) and rmse.cap == pytest.approx(mae.cap**2)
    assert rmse.margin == pytest.approx(0.05, rel=0.2) and mae.margin == pytest.approx(0.04, rel=0.2)
    assert rmse.incumbent.max() <= rmse.cap
    again, *_ = holdout.prepared(target, one, one, (), seed=1)
    assert again[0].cap != rmse.cap


def test_an_error_without_bound_counts_as_the_cap() -> None:
    random = np.random.default_rng(1)
    target = random.normal(0, 1, 200)
    one = Answered({"y": target + random.normal(0, 1, 200)}, np.ones(200, bool))
    two = Answered({"y": target + 1e30}, np.ones(200, bool))
    losses, *_ = holdout.prepared(target, one, two, (Metric("mae", 0.5),))
    assert set(losses[0].candidate.tolist()) == {losses[0].cap}


def test_a_perfect_incumbent_wants_a_margin_in_its_unit() -> None:
    target = np.linspace(0, 5, 100)
    one = Answered({"y": target}, np.ones(100, bool))
    with pytest.raises(ConfigError, match="give a margin"):
        holdout.prepared(target, one, one, (Metric("mae", 0.05, True),))
    losses, *_ = holdout.prepared(target, one, one, (Metric("mae", 0.5),))
    assert losses[0].cap == 1.0


def test_a_column_that_only_slices_is_left_out_of_a_models_inputs() -> None:
    rows = reference.of({"a": np.arange(3.0), "b": np.arange(3.0), "region": np.arange(3)}, np.arange(3))
    signature = Signature((TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1))), ())
    assert set(holdout.fitted(signature, rows)) == {"a", "b"}
    import pandas

    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0], "region": ["n", "s"]})
    found = holdout.fitted(PAIR, reference.of(frame, [0, 1]), ("region",))
    assert found["x"].tolist() == [[1, 3], [2, 4]]
    with pytest.raises(CheckFailed):
        holdout.fitted(PAIR, reference.of(frame, [0, 1]))
    with pytest.raises(ConfigError, match="no column 'regoin'"):
        holdout.sliced(("regoin",), reference.of(frame, [0, 1]), np.arange(2))


SOURCE = b"""
import numpy as np
class Model:
    def predict(self, inputs):
        x = inputs["x"]
        if (x[:, 0] == 13).any():
            raise ValueError("thirteen")
        return {"y": np.where(x == 7, np.nan, x).astype("float32")}
"""


@pytest.fixture
def version(interlock_home: Path) -> Iterator[Version]:
    yield put(
        interlock_home, "m", "1", "model.py", SOURCE, entry="model.py:Model", runtime="python", signature=PAIR
    )


@pytest.mark.server
@pytest.mark.beside
def test_rows_without_a_number_or_an_answer_are_refused_rows(interlock_home: Path, version: Version) -> None:
    rows = np.array([[1, 1], [13, 1], [2, 7], [3, 3]], np.float32)
    found = holdout.ask(artifact_path(interlock_home, version.digest), version, {"x": rows})
    assert found.good.tolist() == [True, False, False, True]
    assert found.outputs["y"].tolist() == [[1, 1], [3, 3]] and "thirteen" in found.why


def test_a_version_with_side_effects_is_not_asked(tmp_path: Path, version: Version) -> None:
    real = msgspec.structs.replace(version, capabilities=Capabilities(side_effect_free=False))
    with pytest.raises(Unsupported, match="side effects"):
        holdout.ask(tmp_path, real, {"x": np.zeros((1, 2), np.float32)})
