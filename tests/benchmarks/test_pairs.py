"""What a comparison makes of its samples: alternation, scores, verdicts, the table."""

import doctest
from types import ModuleType

import msgspec
import pytest

from benchmarks import pairs
from benchmarks.pairs import (
    OTHERS,
    Cost,
    Goal,
    Plan,
    Row,
    Sample,
    Side,
    also,
    compare,
    cost_table,
    judge,
    table,
)


def scripted(title: str, values: list[float], log: list[str], failures: int = 0) -> Side:
    """A side that gives these values, one a measurement, and writes down when it was asked."""
    left = iter(values)

    def measure(seconds: float) -> Sample:
        log.append(f"{title} {seconds:g}")
        value = next(left)
        return Sample(value, failures, {"p99_ms": 10 * value})

    return Side(title, measure)


def compared(failures: int = 0) -> Row:
    ours, theirs = scripted("a", [0, 60, 80, 70], [], failures), scripted("b", [0, 100, 100, 100], [])
    return compare("n", "t", ours, theirs, goal=Goal(0.5, 0.75), plan=Plan(rounds=3, seconds=2))


def test_rounds_alternate_and_the_warm_up_does_not_count() -> None:
    log: list[str] = []
    ours, theirs = scripted("a", [999, 2, 4], log), scripted("b", [999, 1, 1], log)
    row = compare("n", "t", ours, theirs, goal=Goal(), plan=Plan(rounds=2, seconds=3), warm_up_s=1)
    assert log == ["a 1", "b 1", "a 3", "b 3", "a 3", "b 3"]
    assert row.scores == [2, 4]


def test_the_verdict_is_that_of_the_median() -> None:
    row = compared()
    assert row.median == pytest.approx(0.7)
    assert row.verdict == "hard met"


def test_failed_requests_of_ours_make_a_row_invalid() -> None:
    row = compared(failures=1)
    assert row.verdict == "INVALID"
    assert "INVALID: 3 failed" in table([row])  # those of the warm-up do not count


@pytest.mark.parametrize(
    ("score", "goal", "verdict"),
    [
        (0.7, Goal(0.5, 0.7), "stretch met"),
        (0.5, Goal(0.5, 0.7), "hard met"),
        (0.49, Goal(0.5, 0.7), "MISSED"),
        (0.2, Goal(0.4, 0.2, "lower"), "stretch met"),
        (0.3, Goal(0.4, 0.2, "lower"), "hard met"),
        (0.5, Goal(0.4, 0.2, "lower"), "MISSED"),
        (5.0, Goal(4, None), "hard met"),
        (0.0, Goal(), "no goal"),
    ],
)
def test_judge(score: float, goal: Goal, verdict: str) -> None:
    assert judge(score, goal) == verdict


def test_a_second_row_comes_from_the_same_samples() -> None:
    row = also(compared(), "n2", "p99", "p99_ms", lambda a, b: a - b, Goal(3, 1.5, "lower"))
    assert [sample.value for sample in row.ours] == [600, 800, 700]
    assert row.scores == [-400, -200, -300]
    assert row.verdict == "stretch met"


def test_the_table_shows_spread_and_goal() -> None:
    lines = table([compared()]).splitlines()
    assert lines[0].split() == (
        ["row", "against", "unit", "ours", "peer", "score", "[min..max]", "hard", "stretch", "verdict"]
    )
    assert "0.7 x [0.6..0.8]" in lines[2]
    assert ">= 0.5" in lines[2] and ">= 0.75" in lines[2] and lines[2].endswith("hard met")


def test_a_row_says_when_others_took_the_server_s_core() -> None:
    row = compared()
    busy = msgspec.structs.replace(row.theirs[1], detail={OTHERS: 0.4})
    assert not row.disturbed and "disturbed" not in table([row])
    assert table([msgspec.structs.replace(row, theirs=[busy])]).endswith("hard met, disturbed")


def test_a_row_can_be_recorded_and_read_again() -> None:
    row = compared()
    assert msgspec.json.decode(msgspec.json.encode(row), type=Row) == row


def test_the_cost_table_adds_up() -> None:
    text = cost_table([Cost("ids", 0.5, 0.4, 0.7), Cost("counters", 1.25, 1, 2)], 4)
    assert text.splitlines()[-1].split() == ["total", "1.75,", "goal", "<=", "4"]


@pytest.mark.parametrize("module", [pairs])
def test_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    seen = doctest.testmod(module)
    assert seen.attempted > 0 and seen.failed == 0
