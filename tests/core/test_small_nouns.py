"""The verdict, the finding and the clock."""

from itertools import permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.core.clock import FakeClock, monotonic
from interlock.core.finding import Finding
from interlock.core.verdict import Verdict, worst


@given(verdicts=st.lists(st.sampled_from(Verdict)))
def test_the_worst_is_one_of_them_and_no_order_changes_it(verdicts: list[Verdict]) -> None:
    found = worst(verdicts)
    assert found == worst(reversed(verdicts)) and all(one <= found for one in verdicts)
    assert found in verdicts or (not verdicts and found is Verdict.PASS)


def test_not_being_able_to_measure_is_worse_than_not_knowing_yet() -> None:
    for order in permutations(Verdict):
        assert sorted(order) == [Verdict.PASS, Verdict.UNDECIDED, Verdict.ERROR, Verdict.FAIL]


def test_a_finding_survives_the_event_log() -> None:
    finding = Finding("drift", "iris", "2", Verdict.ERROR, "no data", 1.5, {"rows": 0})
    assert msgspec.json.decode(msgspec.json.encode(finding), type=Finding) == finding


def test_time_goes_forward() -> None:
    clock = FakeClock(5.0)
    clock.advance(0.0)
    clock.advance(0.25)
    assert clock() == 5.25
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-0.1)
    assert monotonic() <= monotonic()
