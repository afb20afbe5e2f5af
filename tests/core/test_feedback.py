"""Metrics: what their words mean, what cannot be, and how values turn into badness and back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError, InvalidRequest, MalformedMessage
from interlock.core.feedback import Feedback, Metric, check_feedback, parse_metric

ID = "7-1-0-a-18c2f-3"
values = st.floats(-50.0, 50.0)


@given(values, st.sampled_from(["higher", "lower"]))
def test_badness_lies_between_0_and_1_and_comes_back_within_the_bounds(value: float, better: str) -> None:
    metric = Metric("stars", better, least=-10.0, greatest=20.0)
    bad = metric.badness(value)
    assert 0.0 <= bad <= 1.0
    assert metric.value(bad) == pytest.approx(min(max(value, -10.0), 20.0), abs=1e-9)


@given(values, values)
def test_the_better_value_is_never_the_worse_one(one: float, other: float) -> None:
    for better, order in (("higher", -1), ("lower", 1)):
        metric = Metric("m", better, least=-10.0, greatest=20.0)
        assert order * (one - other) * (metric.badness(one) - metric.badness(other)) >= 0.0


def test_words_name_every_field() -> None:
    found = parse_metric(
        "stars better=lower least=1 greatest=5 age_s=60 missing=1 margin=0.2 only_with_feedback prove"
    )
    assert found == Metric("stars", "lower", 1.0, 5.0, 60.0, 1.0, True, 0.2, True)
    assert parse_metric("conversion") == Metric("conversion")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stars best=high", "'best=high' is none of better"),
        ("stars least", "write KEY=VALUE"),
        ("stars least=x", "Expected `float`"),
        ("stars least=5 greatest=1", "want least < greatest"),
        ("stars least=1 greatest=5", "missing = 0.0 of metric 'stars'"),
        ("stars better=up", "want higher or lower"),
        ("stars margin=2", "margin = 2.0"),
        ("stars age_s=-1", "age_s = -1.0"),
        ("st/ars", "want 1-64 of letters"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(words: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_metric(words)
    assert said in error.value.message


def test_feedback_that_cannot_be_kept_says_why() -> None:
    check_feedback(Feedback(ID, "clicked", 1.0))
    with pytest.raises(MalformedMessage):
        check_feedback(Feedback("mine", "clicked", 1.0))
    with pytest.raises(InvalidRequest, match="'name' is 'a b'"):
        check_feedback(Feedback(ID, "a b", 1.0))
    for value in (math.nan, math.inf):
        with pytest.raises(InvalidRequest, match="finite"):
            check_feedback(Feedback(ID, "clicked", value))
