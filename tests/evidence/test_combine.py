"""Many gates: the union bound for alarms, all of them for promotion, and forecasts that come true."""

from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.errors import ConfigError
from interlock.evidence.attribution import log_e_harm
from interlock.evidence.combine import all_proved, any_alarm, log_mean, requests_needed
from interlock.evidence.epochs import Epoch
from interlock.evidence.paired import Pairs, log_e_safe

log_es = st.lists(st.floats(-20, 20), min_size=1, max_size=6)


@given(found=log_es, alpha=st.floats(0.001, 0.5))
def test_alarms_pay_for_each_gate_and_promotions_do_not(found: list[float], alpha: float) -> None:
    assert any_alarm(found, alpha) == any(value >= log(len(found) / alpha) for value in found)
    assert any_alarm(found, alpha, gates=10) == any(value >= log(10 / alpha) for value in found)
    assert all_proved(found, alpha) == all(value >= log(1 / alpha) for value in found)
    if any_alarm(found, alpha, gates=10):
        assert any_alarm(found, alpha)


@given(found=log_es)
def test_the_mean_is_the_mean(found: list[float]) -> None:
    assert exp(log_mean(found)) == pytest.approx(sum(exp(value) for value in found) / len(found))


def test_no_gates_say_nothing() -> None:
    assert not any_alarm([], 0.01) and not all_proved([], 0.01) and log_mean([]) == 0.0


def test_a_threshold_for_fewer_gates_than_are_looked_at_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 gates are looked at"):
        any_alarm([1.0, 2.0], 0.01, gates=1)


def test_a_forecast_is_where_the_evidence_will_be() -> None:
    seen = Pairs(worse=1, same=400)

    def after(more: float) -> float:
        scale = (seen.count + more) / seen.count
        return log_e_safe(Pairs(seen.worse * scale, seen.same * scale), 0.01)

    needed = requests_needed(after, log(100))
    assert needed is not None and needed > 0
    assert after(needed) >= log(100) > after(0.97 * needed - 1)
    assert requests_needed(lambda more: after(needed + more), log(100)) == 0.0


def test_what_is_not_on_its_way_has_no_forecast() -> None:
    def after(more: float) -> float:
        return log_e_harm([Epoch(0.5, 50 + more * 0.05, 50 + more * 0.05)])

    assert requests_needed(after, log(100)) is None
