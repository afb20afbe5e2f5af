"""The comparison of release rules runs, and the rules of others do what their documentation says."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import bench_rules as sim

pytestmark = pytest.mark.slow


def means(rule: str, case: str, runs: int = 30) -> sim.Row:
    return sim.play((rule, case, runs, 1))


@pytest.mark.parametrize(
    ("rule", "rate", "extra", "seconds"),
    [
        ("Argo Rollouts", "52 %", 18_000, 1200),
        ("Argo Rollouts", "12 %", 3600, 1200),
        ("Flagger", "52 %", 1500, 600),
        ("Flagger", "12 %", 300, 600),
    ],
)
def test_a_timetable_costs_what_its_shares_and_intervals_say(
    rule: str, rate: str, extra: float, seconds: float
) -> None:
    """Worked out by hand: 20 % for 10 minutes and 40 % for 10; 5 % for 10. Fails where a share, an interval
    or a limit differs from the documented one."""
    found = means(rule, rate)
    assert found.rolled_back == 1.0 and found.seconds == seconds
    assert found.extra == pytest.approx(extra, rel=0.03)


def test_timetables_promote_what_is_below_their_threshold() -> None:
    for rule, extra in (("Argo Rollouts", 600), ("Flagger", 83)):
        found = means(rule, "2.5 %")
        assert found.promoted == 1.0 and found.extra == pytest.approx(extra, rel=0.3)


@pytest.mark.slow
def test_the_fixed_sample_decides_once_and_errs_as_often_as_it_says() -> None:
    same, worse = means("z at 50 %, fixed sample", "2 %", 200), means("z at 50 %, fixed sample", "2.5 %", 200)
    assert same.rolled_back <= 0.03 and 0.8 <= worse.rolled_back <= 0.97
    assert same.seconds == worse.seconds == pytest.approx(2 * sim.SAMPLE / 100, abs=1)


@pytest.mark.slow
def test_a_ramp_with_drift_fools_what_pools_the_epochs() -> None:
    """Else this traffic would show nothing."""
    for rule in ("mSPRT at 50 %", "z at 50 %, fixed sample"):
        assert means(rule, "drift").rolled_back > 0.9 and means(rule, "2 %").rolled_back < 0.2


def test_users_count_as_the_requests_that_they_are() -> None:
    traffic = sim.Traffic(sim.FALSE_ALARMS["users"], 100.0, np.random.default_rng(2))
    served = [traffic.serve(0.0, 100.0, 0.5) for _ in range(20)]
    assert sum(asked.sum() for asked, _, _ in served) == pytest.approx(200_000, rel=0.02)
    assert sum(bad[1] for _, bad, _ in served) == pytest.approx(sum(due for _, _, due in served), rel=0.05)


@pytest.mark.slow
def test_the_report_has_every_rule_and_the_picture_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim, "MOST_S", 15.0)  # most are still undecided: it is only to run
    drawn = tmp_path / "rules.svg"
    assert sim.main(["--runs", "1", "--svg", str(drawn)]) == 0
    said = capsys.readouterr().out
    assert all(said.count(f"\n| {rule} |") == 2 for rule in sim.RULES)
    assert all(said.count(f"\n| {candidate} |") == 1 for candidate in sim.DETAILS)
    names = {of.text for of in ElementTree.parse(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert names >= {*sim.RULES, "52 %", "0.1 or less", "100,000"}


def test_the_figures_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one = sim.Row(1, 0.0, 1.0, 0.0, 5.0, 0.0, 5.0, 5.0, 100.0, 20.0)
    monkeypatch.setattr(sim, "measure", lambda runs, seed: {("ours", "52 %"): one})
    assert sim.main(["--runs", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["rule"], row["case"], row["rolled_back"], row["extra_90"]) == ("ours", "52 %", 1.0, 5.0)


def test_the_picture_is_the_same_each_time_and_names_what_it_draws() -> None:
    extra = {rule: [0.0, 10.0, 100.0, 1000.0, 20_000.0] for rule in sim.RULES}
    assert sim.picture(extra) == sim.picture(extra)
    ElementTree.fromstring(sim.picture(extra))
    assert "error rate of the candidate" in sim.picture(extra) and sim.picture(extra).count("<polyline") == 8
