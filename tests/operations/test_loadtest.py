"""What of a load counts: after the warm-up, from the intended send time; and which plans cannot be."""

import numpy as np
import pytest

from interlock.core.errors import ConfigError
from interlock.operations.arrivals import percentiles
from interlock.operations.load import OpenLoopResult, Timeline
from interlock.operations.loadtest import Plan, seen_after
from interlock.rollout.loadtest import Wanted

WANTED = Wanted(10, 0.2)


def result(failures: dict[str, int] | None = None) -> OpenLoopResult:
    nothing = percentiles([])
    return OpenLoopResult(10, 10, 30, 30, failures or {}, nothing, percentiles([3.0]), 0, 0)


def test_the_warm_up_is_left_out_and_failures_are_no_latency() -> None:
    due = [100 + k / 10 for k in range(30)]
    latency = [500.0 if k < 10 else None if k == 12 else 4.0 for k in range(30)]
    seen = seen_after(Plan(WANTED, 2.0, 1.0), result({"closed": 1}), Timeline(due, latency))
    assert len(seen.latency_s) == 20 and np.isnan(seen.latency_s).sum() == 1
    assert np.nanmax(seen.latency_s) == pytest.approx(0.004)
    assert seen.in_time == 19 and seen.lag_s == pytest.approx(0.003)


def test_an_answer_after_the_end_and_the_budget_is_not_in_time() -> None:
    due = [100 + k / 10 for k in range(30)]
    latency = [4.0] * 29 + [201.0]
    assert seen_after(Plan(WANTED, 2.0, 0.0), result(), Timeline(due, list(latency))).in_time == 29


@pytest.mark.parametrize(
    ("url", "remote", "is_refused"),
    [
        ("http://127.0.0.1:8000", False, False),
        ("http://[::1]:8000", False, False),
        ("http://localhost:8000", False, False),
        ("http://localhost.example.org", False, True),
        ("http://10.1.2.3:8000", False, True),
        ("http://10.1.2.3:8000", True, False),
        ("ftp://127.0.0.1", True, True),
    ],
)
def test_only_this_machine_is_loaded_unless_it_is_said(url: str, remote: bool, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(ConfigError):
            Plan(WANTED, url=url, allow_remote=remote)
    else:
        assert Plan(WANTED, url=url, allow_remote=remote).url == url
