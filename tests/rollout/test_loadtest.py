"""Verdicts under load: p99 by order statistics, failures, the rate, and a generator that was late itself."""

import numpy as np
import pytest

from interlock.core.errors import ConfigError
from interlock.core.model import Array
from interlock.rollout.checks import worst
from interlock.rollout.loadtest import Seen, Wanted, judge

WANTED = Wanted(rps=100, p99_s=0.02)


def latencies(rows: int, slow: float = 0.0) -> Array:
    """So much of them 50 ms, the others 5 ms."""
    found = np.full(rows, 0.005)
    found[: round(slow * rows)] = 0.05
    return found


def outcomes(seen: Seen, wanted: Wanted = WANTED) -> dict[str, str]:
    return {check.name: check.outcome for check in judge(wanted, seen)}


def test_fast_passes_and_slow_is_worse() -> None:
    assert set(outcomes(Seen(latencies(1000), 1000, 1e-5)).values()) == {"pass"}
    found = outcomes(Seen(latencies(1000, 0.05), 1000, 1e-5))
    assert found["p99"] == "worse" and found["rate"] == "pass"


def test_too_few_requests_are_undecided_and_the_duration_that_is_told_would_do() -> None:
    p99 = judge(WANTED, Seen(latencies(200), 200, 1e-5))[1]
    assert p99.outcome == "undecided" and f"--duration {p99.facts['seconds_needed']}s" in p99.words
    rows = int(p99.facts["seconds_needed"] * WANTED.rps)
    assert outcomes(Seen(latencies(rows), rows, 1e-5))["p99"] == "pass"


def test_a_share_at_the_level_is_told_to_be_hopeless() -> None:
    p99 = judge(WANTED, Seen(latencies(1000, 0.01), 1000, 1e-5))[1]
    assert p99.outcome == "undecided" and "no duration" in p99.words


def test_failures_count_as_failures_and_as_slow() -> None:
    seen = latencies(1000)
    seen[:30] = np.nan
    found = outcomes(Seen(seen, 970, 1e-5, failures={"status 503": 30}))
    assert found == {"generator": "pass", "p99": "worse", "failures": "worse", "rate": "worse"}
    seen[3:30] = 0.005
    allowed = Wanted(100, 0.02, max_failures=3)
    assert set(outcomes(Seen(seen, 997, 1e-5), allowed).values()) == {"pass"}


def test_answers_that_come_too_late_are_a_rate_that_was_not_reached() -> None:
    assert outcomes(Seen(latencies(1000), 989, 1e-5))["rate"] == "worse"
    assert outcomes(Seen(latencies(1000), 990, 1e-5))["rate"] == "pass"


@pytest.mark.parametrize("slow", [0.0, 0.5])
def test_a_late_generator_voids_the_verdict(slow: float) -> None:
    checks = judge(WANTED, Seen(latencies(1000, slow), 1000, 0.005))
    assert worst(checks) == "undecided" and "free a core" in checks[0].words
    assert all("void" in check.words for check in checks[1:])


def test_the_verdicts_are_wrong_at_most_alpha_of_the_time_where_the_p99_is_the_budget() -> None:
    random, found = np.random.default_rng(0), []
    wanted = Wanted(100, 1.0)
    at = float(np.quantile(random.lognormal(0, 1, 1_000_000), 0.99))
    for _ in range(1000):
        seen = random.lognormal(0, 1, 800) / at
        found.append(outcomes(Seen(seen, 800, 0.0), wanted)["p99"])
    assert found.count("pass") / 1000 <= 0.072 and found.count("worse") / 1000 <= 0.072


def test_no_request_is_no_pass() -> None:
    assert worst(judge(WANTED, Seen(np.zeros(0), 0, 0.0))) != "pass"


@pytest.mark.parametrize("values", [(0, 0.1), (1, 0.0), (1, 0.1, -1), (1, 0.1, 0, 0.5)])
def test_what_cannot_be_wanted_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="want numbers"):
        Wanted(*values)  # type: ignore[arg-type]
