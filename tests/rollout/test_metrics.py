"""Business metrics: what is scored, and that the printed chances of an error hold under late feedback, drift,
missing feedback and sticky units."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from interlock.core.feedback import Metric
from interlock.core.verdict import Verdict
from interlock.evidence.bounded import Moments
from interlock.evidence.mixture import log_threshold
from interlock.rollout import metrics
from interlock.rollout.metrics import (
    FIRST_CENTRE,
    MetricTally,
    Part,
    Scores,
    better,
    gates,
    log_e_within,
    log_e_worse,
    versus,
)

pytestmark = pytest.mark.slow

ALPHA = 0.05
TRIALS = 400
CLICK = Metric("click", age_s=10.0)


@dataclass
class One:
    id: str
    epoch: int
    arm: int
    sent_ms: int
    value: float
    came_ms: int


@dataclass
class Values:
    """What `FeedbackStore.scored` gives, from a list."""

    rows: list[One] = field(default_factory=list)

    def scored(
        self, release: int, name: str, after: tuple[int, str], until_ms: int, age_ms: int, most: int = 10**9
    ) -> list[One]:
        found = list(self._all(after, until_ms, age_ms))
        return found[:most]

    def _all(self, after: tuple[int, str], until_ms: int, age_ms: int) -> Iterator[One]:
        for row in sorted(self.rows, key=lambda one: (one.sent_ms, one.id)):
            if (
                after < (row.sent_ms, row.id)
                and row.sent_ms <= until_ms
                and row.came_ms - row.sent_ms <= age_ms
            ):
                yield row


def said(number: int, sent_ms: int, value: float, arm: int = 0, delay_ms: int = 0, epoch: int = 1) -> One:
    return One(f"{number:04d}", epoch, arm, sent_ms, value, sent_ms + delay_ms)


def test_a_request_is_scored_when_it_is_of_age_and_what_comes_later_is_not() -> None:
    values = Values([said(1, 1_000, 1.0), said(2, 2_000, 0.0, 1, 4_000), said(3, 2_500, 0.0, 1, 11_000)])
    scores = Scores(7, CLICK, 2)
    assert scores.look(values, 10_500, 10_500, {}) == MetricTally("click")
    (part,) = scores.look(values, 11_000, 11_000, {}).parts
    assert part.arms == (Moments(1, 0.0, 0.0), Moments())
    (part,) = scores.look(values, 20_000, 20_000, {}).parts
    assert part.arms == (Moments(1, 0.0, 0.0), Moments(1, 1.0, 1.0))


def test_look_by_look_or_all_at_once_it_is_the_same() -> None:
    rng = np.random.default_rng(5)
    rows = [
        said(n, 10 * n, float(v), int(a), int(d), 1 + n // 150)
        for n, (v, a, d) in enumerate(
            zip(rng.uniform(size=400), rng.integers(0, 2, 400), rng.integers(0, 12_000, 400), strict=True)
        )
    ]
    for metric in (CLICK, Metric("click", age_s=10.0, only_with_feedback=True)):
        slow, at_once = Scores(7, metric, 2), Scores(7, metric, 2)
        for now_ms in range(0, 20_000, 700):
            found = slow.look(Values(rows), now_ms, now_ms, {})
        whole = at_once.look(Values(rows), now_ms, now_ms, {})
        assert found == whole
        centres = {part.centre for part in whole.parts}
        assert len(centres) == 1 if metric is CLICK else len(centres) > 2


def test_centres_are_set_before_what_they_judge() -> None:
    metric = Metric("stars", age_s=0.0, only_with_feedback=True)
    scores = Scores(7, metric, 2)
    values = Values([said(n, n, 0.8) for n in range(FIRST_CENTRE)])
    assert [part.centre for part in scores.look(values, 500, 500, {}).parts] == [0.5]
    values.rows.append(said(999, 1_000, 0.0, 1))
    parts = scores.look(values, 10**6, 10**6, {}).parts
    assert [part.centre for part in parts] == [0.5, pytest.approx(0.2)]
    assert parts[1].arms[1] == Moments(1, 1.0, 1.0)


def test_only_requests_that_were_of_age_at_an_earlier_look_count_for_a_margin() -> None:
    scores = Scores(7, CLICK, 2)
    for now_ms, sent in ((1_000, 100), (6_000, 600), (12_000, 1_200)):
        tally = scores.look(Values(), now_ms, now_ms, {1: (sent, sent // 10)})
    assert tally.parts[0].requests == (100, 10)
    assert scores.look(Values(), 16_500, 16_500, {1: (1_700, 170)}).parts[0].requests == (600, 60)


def test_what_was_sent_after_the_feedback_was_taken_in_is_not_of_age_too_early() -> None:
    """The counts of requests are those of now, and all feedback is known up to a while ago."""
    scores = Scores(7, CLICK, 2)
    scores.look(Values(), 10_000, 12_000, {1: (500, 500)})
    assert scores.look(Values(), 21_000, 23_000, {1: (900, 900)}).parts == ()
    assert scores.look(Values(), 22_000, 24_000, {1: (950, 950)}).parts[0].requests == (500, 500)


def test_what_is_much_is_scored_in_several_looks_and_comes_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [said(n, 10 * n, n % 3 / 2, n % 2) for n in range(500)]
    whole = Scores(7, CLICK, 2).look(Values(rows), 10**6, 10**6, {})
    monkeypatch.setattr(metrics, "MOST_A_LOOK", 64)
    in_parts = Scores(7, CLICK, 2)
    in_parts.look(Values(rows), 0, 0, {1: (0, 0)})
    first = in_parts.look(Values(rows), 10**6, 2_000, {1: (101, 100)})
    # Nobody knows yet whether those of the second look had feedback.
    assert sum(arm.count for arm in first.parts[0].arms) == 64 and first.parts[0].requests == (0, 0)
    for _ in range(10):
        found = in_parts.look(Values(rows), 10**6, 2_000, {1: (101, 100)})
    assert found.parts[0].arms == whole.parts[0].arms and found.parts[0].requests == (101, 100)


def test_words_tell_means_in_the_users_scale() -> None:
    metric = Metric("stars", least=1.0, greatest=5.0, missing=1.0)
    part = Part(1, 1.0, (Moments(2, 0.5, 0.125), Moments(1, 1.0, 1.0)), (20, 10))
    assert versus(metric, MetricTally("stars", (part,))) == (
        "candidate mean 1 of 1 values of 10 requests, incumbent mean 4 of 2 values of 20 requests"
    )


# --- simulations: `requests` a look, each with a chance of feedback, in both arms ---


@dataclass
class World:
    """Requests of two arms at a weight, by look; a value of badness for some of them."""

    metric: Metric
    weight: float
    given: tuple[float, float] = (0.3, 0.3)
    mean: tuple[float, float] = (0.2, 0.2)
    drift: float = 0.0
    per_look: int = 500
    looks: int = 30

    def run(self, seed: int) -> Iterator[MetricTally]:
        rng = np.random.default_rng(seed)
        centre = 0.5 if self.metric.only_with_feedback else self.metric.badness(self.metric.missing)
        arms, requests = [Moments(), Moments()], [0, 0]
        for look in range(self.looks):
            shift = self.drift * look / self.looks
            counts = rng.multinomial(self.per_look, [1.0 - self.weight, self.weight])
            for arm, count in enumerate(counts):
                labelled = rng.binomial(count, min(self.given[arm] + shift, 1.0))
                ones = float(rng.binomial(labelled, min(self.mean[arm] + shift, 1.0)))
                arms[arm] = arms[arm].merge(Moments(labelled, ones, ones))
                requests[arm] += int(count)
            known = (0, 0) if self.metric.only_with_feedback else (requests[0], requests[1])
            yield MetricTally(self.metric.name, (Part(1, centre, (arms[0], arms[1]), known),))


RATED = Metric("stars", only_with_feedback=True)
NULLS = {
    "most have none": World(CLICK, 0.5, (0.02, 0.02), (0.0, 0.0)),
    "a small share": World(CLICK, 0.05, (0.1, 0.1), (0.5, 0.5)),
    "drift": World(CLICK, 0.2, (0.1, 0.1), (0.1, 0.1), drift=0.5),
    "ratings": World(RATED, 0.5, (0.1, 0.1), (0.3, 0.3)),
    "ratings, drift": World(RATED, 0.3, (0.1, 0.1), (0.1, 0.1), drift=0.6),
}


@pytest.mark.parametrize("world", NULLS.values(), ids=NULLS.keys())
def test_a_candidate_that_is_the_same_is_called_worse_or_better_at_most_so_often(world: World) -> None:
    limit, worse, above = log_threshold(ALPHA), 0, 0
    for seed in range(TRIALS):
        tallies = list(world.run(seed))
        worse += any(log_e_worse(tally, {1: world.weight}) >= limit for tally in tallies)
        above += any(
            better(world.metric, tally, {1: world.weight}, ALPHA, 1).verdict is Verdict.PASS
            for tally in tallies
        )
    most = ALPHA * TRIALS + 3.0 * math.sqrt(ALPHA * (1.0 - ALPHA) * TRIALS)
    assert worse <= most and above <= most, (worse, above)


@pytest.mark.parametrize("metric", [CLICK, RATED], ids=["of all requests", "of those with feedback"])
def test_a_candidate_on_its_margin_is_let_through_at_most_so_often(metric: Metric) -> None:
    # Badness of all requests: with feedback 0 or 1, without it 1 (no click).
    metric = Metric(metric.name, age_s=10.0, margin=0.02, only_with_feedback=metric.only_with_feedback)
    given, mean = (1.0, 1.0), (0.2, 0.22)
    world = World(metric, 0.5, given, mean, per_look=2000)
    passed = sum(
        any(log_e_within(tally, metric, {1: 0.5}) >= log_threshold(ALPHA) for tally in world.run(seed))
        for seed in range(TRIALS)
    )
    assert passed <= ALPHA * TRIALS + 3.0 * math.sqrt(ALPHA * (1.0 - ALPHA) * TRIALS)


def test_a_margin_of_requests_without_feedback_counts_too_and_a_good_one_passes() -> None:
    metric = Metric("click", age_s=10.0, margin=0.02, prove=True)
    world = World(metric, 0.5, (0.05, 0.05), (0.0, 0.0), per_look=2000)
    last = [list(world.run(seed))[-1] for seed in range(20)]
    found = [gates(metric, tally, {1: 0.5}, log_threshold(0.01), log_threshold(0.01))[1] for tally in last]
    assert all(gate.verdict is Verdict.PASS for gate in found)
    # With the same clicks of fewer requests that are known, less is proved.
    fewer = MetricTally(last[0].name, (Part(1, 1.0, last[0].parts[0].arms, (0, 0)),))
    assert log_e_within(fewer, metric, {1: 0.5}) < log_e_within(last[0], metric, {1: 0.5})


def test_a_worse_candidate_is_found_and_so_is_a_better_one() -> None:
    fewer = World(CLICK, 0.2, (0.10, 0.07), (0.0, 0.0))  # 10 % click with the incumbent, 7 % with it
    more = World(CLICK, 0.2, (0.10, 0.14), (0.0, 0.0))
    stars = World(RATED, 0.5, (0.1, 0.1), (0.3, 0.17))
    limit = log_threshold(0.01)

    def worse(tally: MetricTally) -> float:
        return log_e_worse(tally, {1: 0.2})

    def clicked_more(tally: MetricTally) -> float:
        return log_e_within(tally, CLICK, {1: 0.2}, margin=0.0)

    def starred_more(tally: MetricTally) -> float:
        return log_e_within(tally, RATED, {1: 0.5}, margin=0.0)

    for world, of in ((fewer, worse), (more, clicked_more), (stars, starred_more)):
        found = sum(any(of(tally) >= limit for tally in world.run(seed)) for seed in range(60))
        assert found >= 54, (world, found)


def test_with_units_that_differ_much_one_value_each_keeps_the_promise() -> None:
    """20 requests of one unit all click or do not: counted singly they would alarm; the first value of each
    does not."""
    rng, singly, by_unit = np.random.default_rng(1), 0, 0
    limit, metric = log_threshold(ALPHA), RATED
    for _ in range(TRIALS):
        arm = (rng.uniform(size=300) < 0.5).astype(int)
        value = (rng.uniform(size=300) < 0.5).astype(float)
        for each in (1, 20):
            alarmed = False
            for upto in range(30, 301, 30):
                arms = [
                    Moments(
                        each * int(at.sum()),
                        each * float(value[:upto][at].sum()),
                        each * float(value[:upto][at].sum()),
                    )
                    for at in (arm[:upto] == 0, arm[:upto] == 1)
                ]
                tally = MetricTally(metric.name, (Part(1, 0.5, (arms[0], arms[1]), (0, 0)),))
                alarmed = alarmed or log_e_worse(tally, {1: 0.5}) >= limit
            if each == 1:
                by_unit += alarmed
            else:
                singly += alarmed
    assert by_unit <= ALPHA * TRIALS
    assert singly > 5 * ALPHA * TRIALS, "else nothing would be gained by counting units"
