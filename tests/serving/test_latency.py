"""What is believed of l(b): it follows what is learned, and what is unknown is bounded by what is known."""

from hypothesis import given
from hypothesis import strategies as st

from interlock.serving.latency import LatencyModel

seconds = st.floats(1e-6, 10.0)
rows = st.integers(1, 100_000)


def test_nothing_known_is_no_time_at_all() -> None:
    assert LatencyModel().predict(1) == 0.0 and LatencyModel({}).predict(4096) == 0.0


def test_a_size_between_two_known_ones_is_bounded_by_both() -> None:
    model = LatencyModel({1: 0.001, 64: 0.004})
    assert model.predict(2) == 0.002
    assert model.predict(16) == 0.004, "no more than a larger batch takes"
    assert model.predict(128) == 0.008 and model.predict(1024) == 0.064


def test_a_jump_is_followed_and_its_unsteadiness_is_added() -> None:
    model = LatencyModel({4: 0.010})
    assert model.predict(4) == 0.010
    model.learn(4, 0.050)
    assert 0.018 < model.predict(4) < 0.050
    for _ in range(60):
        model.learn(4, 0.050)
    assert abs(model.predict(4) - 0.050) < 0.001
    for k in range(200):
        model.learn(4, 0.050 if k % 2 else 0.010)
    assert 0.045 < model.predict(4) < 0.060, "mean 0.030 and mean deviation 0.020"


@given(known=st.dictionaries(st.sampled_from([1, 2, 4, 8, 32, 256, 4096]), seconds, min_size=1))
def test_with_measurements_that_grow_predictions_grow(known: dict[int, float]) -> None:
    grown = dict(zip(sorted(known), sorted(known.values()), strict=True))
    model = LatencyModel(grown)
    predicted = [model.predict(size) for size in range(1, 9000, 7)]
    assert predicted == sorted(predicted) and predicted[0] > 0


@given(known=st.dictionaries(rows, seconds, min_size=1, max_size=5), size=rows)
def test_a_prediction_is_never_below_all_that_was_seen_of_smaller_batches(
    known: dict[int, float], size: int
) -> None:
    model = LatencyModel()
    for seen in known:
        model.learn(seen, known[seen])
    assert model.predict(size) >= min(known.values())


@given(samples=st.lists(seconds, min_size=1, max_size=50), size=rows)
def test_what_is_learnt_of_one_size_stays_within_what_was_measured(samples: list[float], size: int) -> None:
    model = LatencyModel()
    for sample in samples:
        model.learn(size, sample)
    spread = max(samples) - min(samples)
    assert min(samples) * 0.999999 <= model.predict(size) <= (max(samples) + spread) * 1.000001
