"""Releases that run both versions on one request, on a real node: shadows that pass or fail, canaries that
begin as a shadow, and what is left of them when control is killed."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from interlock.core.route import COPY_ARM
from interlock.core.settings import run_folder
from interlock.core.state import ArmCounts, PairCounts
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.certificate import Certificate
from interlock.rollout.plan import SHADOW
from interlock.rollout.tally import CANDIDATE, INCUMBENT
from interlock.rollout.view import RolloutView
from interlock.serving.counters import read_all
from tests.app.nodes import RunningNode, until
from tests.app.traffic import FAILS, QUICK, WITHIN_S, Traffic, as_asked, ended, has_epochs, kinds, serving

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

FAILS_ON_5_PERCENT = (
    "plain = self.predict; self.predict = lambda i: "
    "1 / 0 if any(v > 19 and v % 20 == 0 for v in i['x'][:, 0]) else plain(i)"
)
SLOW = "plain = self.predict; self.predict = lambda i: (time.sleep(0.1), plain(i))[1]"
NARROW = msgspec.structs.replace(QUICK, margin=0.01)
"""Its shadow lasts until it is known to fail on less than 4 %, so that one that fails on 5 % stays there."""
ALWAYS = msgspec.structs.replace(QUICK, shadow=0.0, reverse=1.0, shielded=True)
"""No shadow before its first answers: its failures meet clients."""


def counted(home: Path, release: int, version: str, arm: int) -> ArmCounts:
    """What one arm did in all epochs of a release."""
    found = ArmCounts()
    for key, counts in read_all(run_folder(home)).items():
        if (key.model, key.version, key.release, key.arm) == ("m", version, release, arm):
            found = found.merge(counts)
    return found


def ran(pairs: PairCounts) -> int:
    return pairs.good + pairs.worse + pairs.better + pairs.bad


def certificate(home: Path, release: int) -> Certificate:
    """The one that control left; its page says the same."""
    page = home / "certificates" / f"release-{release}.md"
    until(page.exists, "the certificate")
    found = msgspec.json.decode(page.with_suffix(".json").read_bytes(), type=Certificate)
    assert page.read_text().startswith(f"# Release {release}: version 2 of m, {found.verdict}\n")
    assert found.decisions_sha256 in page.read_text()
    return found


def watching(home: Path) -> subprocess.Popen[bytes]:
    """`interlock watch` as a program reads it, beside the release."""
    command = [sys.executable, "-m", "interlock.cli.main", "watch", "m", "--json", "--interval", "0.3"]
    return subprocess.Popen(
        [*command, "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def watched(process: subprocess.Popen[bytes], row: ReleaseRow) -> list[RolloutView]:
    """What it saw of a release that came through, once it has left by itself."""
    told, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert f"see: interlock certificate {row.id}" in said.decode()
    found = [msgspec.json.decode(line, type=RolloutView) for line in told.splitlines()]
    assert found and {one.release.id for one in found} == {row.id}
    epochs = [one.release.epoch for one in found]
    assert epochs == sorted(epochs)
    return found


def check_log(ledger: Ledger, row: ReleaseRow) -> None:
    """Nothing is decided otherwise by a replay, and no epoch has the number of another."""
    kinds(ledger, row.id)
    numbers = [epoch.number for epoch in ledger.epochs(row.id)]
    assert numbers == list(range(1, len(numbers) + 1))


def check_nobody_heard_of_it(traffic: Traffic) -> None:
    traffic.stop()
    assert traffic.failed == 0 and set(traffic.answers) == {(200, 3)}, traffic.answers


@pytest.mark.beside
def test_a_shadow_of_a_good_version_passes_and_answers_nobody(interlock_home: Path) -> None:
    with serving(interlock_home, "pass") as (node, ledger, traffic):
        row = ended(ledger, as_asked(ledger, strategy=SHADOW))
        assert row.state is ReleaseState.PASSED, row
        live = ledger.live("m")
        assert live is not None and live.number == "1"
        assert traffic.factors() == {3}, "what passed is not live"
        check_nobody_heard_of_it(traffic)
        check_log(ledger, row)
        found = certificate(interlock_home, row.id)
        assert (found.verdict, found.decided, found.incumbent) == ("passed", "evidence", "1")
        assert ran(found.pairs) > 100 and (found.pairs.worse, found.pairs.better, found.pairs.bad) == (
            0,
            0,
            0,
        )
        (stage,) = found.stages
        assert (stage.weight, stage.candidate) == (0.0, 0) and stage.incumbent > 100
        until(lambda: node.infer("m") == (200, 6.0), "an answer of version 1")
        assert counted(interlock_home, row.id, "2", CANDIDATE).dispatched == 0


@pytest.mark.beside
def test_a_shadow_of_a_version_that_fails_on_three_requests_in_ten_fails_unheard(
    interlock_home: Path,
) -> None:
    with serving(interlock_home, FAILS) as (_, ledger, traffic):
        row = ended(ledger, as_asked(ledger, strategy=SHADOW))
        assert row.state is ReleaseState.FAILED, row
        assert "paired errors: only the candidate" in row.reason
        assert row.reason.endswith("version 1 stays live")
        check_nobody_heard_of_it(traffic)
        check_log(ledger, row)
        found = certificate(interlock_home, row.id)
        assert (found.verdict, found.decided) == ("failed", "evidence")
        assert found.pairs.worse > 0 and (found.pairs.better, found.pairs.bad) == (0, 0)
        assert counted(interlock_home, row.id, "2", CANDIDATE).dispatched == 0


@pytest.mark.beside
def test_the_default_canary_of_a_version_that_fails_on_one_request_in_twenty_is_caught_in_its_shadow(
    interlock_home: Path,
) -> None:
    with serving(interlock_home, FAILS_ON_5_PERCENT) as (_, ledger, traffic):
        row = ended(ledger, as_asked(ledger, NARROW))
        assert row.state is ReleaseState.FAILED and "paired errors: only the candidate" in row.reason, row
        check_nobody_heard_of_it(traffic)
        check_log(ledger, row)
        assert [epoch.weight for epoch in ledger.epochs(row.id)] == [0.0]
        mine = counted(interlock_home, row.id, "2", CANDIDATE)
        copies = counted(interlock_home, row.id, "2", COPY_ARM)
        assert mine.dispatched == 0, "its requests were copies"
        pairs = copies.pairs
        assert mine.pairs == PairCounts(), "it answered nobody"
        assert (pairs.better, pairs.bad, pairs.shielded, pairs.unshielded) == (0, 0, 0, 0)
        assert 0 < pairs.worse <= copies.failed and pairs.good <= copies.ok
        # Each is of a client's request, and either it ran or it was dropped.
        theirs = counted(interlock_home, row.id, "1", INCUMBENT)
        assert ran(pairs) + pairs.dropped <= theirs.ok
        assert 0.01 < pairs.worse / ran(pairs) < 0.15


@pytest.mark.beside
def test_the_shield_answers_for_a_candidate_that_fails_and_each_failure_is_counted(
    interlock_home: Path,
) -> None:
    with serving(interlock_home, FAILS) as (_, ledger, traffic):
        row = ended(ledger, as_asked(ledger, ALWAYS))
        assert row.state is ReleaseState.FAILED, row
        traffic.stop()
        assert traffic.failed == 0 and set(traffic.answers) == {(200, 3), (200, 5)}, traffic.answers
        check_log(ledger, row)
        mine = counted(interlock_home, row.id, "2", CANDIDATE)
        pairs = mine.pairs
        assert mine.failed > 0 and (pairs.shielded, pairs.unshielded) == (mine.failed, 0)
        assert traffic.answers[200, 5] == mine.ok, "a client heard what was counted"
        assert pairs.worse <= mine.failed and (pairs.better, pairs.bad) == (0, 0)
        assert ran(pairs) + pairs.dropped <= mine.ok + mine.failed
        others = counted(interlock_home, row.id, "1", COPY_ARM)
        assert others.ok >= pairs.shielded, "each was the incumbent's answer"
        found = certificate(interlock_home, row.id)
        assert found.harm == 0.0 and found.pairs.unshielded == 0
        assert 0 < sum(stage.candidate_bad for stage in found.stages) <= mine.failed


def test_the_default_canary_of_a_good_version_goes_from_a_shadow_to_shares_and_live(
    interlock_home: Path,
) -> None:
    with serving(interlock_home, "pass") as (_, ledger, traffic):
        row = ended(ledger, as_asked(ledger))
        assert row.state is ReleaseState.DONE, row
        assert traffic.factors() == {5} and traffic.failed == 0
        check_log(ledger, row)
        weights = [epoch.weight for epoch in ledger.epochs(row.id)]
        assert weights[0] == 0.0 and len(weights) > 1 and min(weights[1:]) > 0.0
        found = certificate(interlock_home, row.id)
        assert (found.verdict, found.decided, found.harm) == ("done", "evidence", 0.0)
        assert [stage.weight for stage in found.stages] == weights
        assert found.stages[0].candidate == 0 and found.stages[0].pairs > 0
        assert all(stage.candidate_bad == stage.incumbent_bad == 0 for stage in found.stages)
        # In the ramp the incumbent runs beside the candidate.
        assert 0 < sum(stage.pairs for stage in found.stages[1:])
        assert counted(interlock_home, row.id, "1", COPY_ARM).ok > 0


def test_a_version_several_times_slower_is_caught_with_few_requests_of_its_own(interlock_home: Path) -> None:
    with serving(interlock_home, SLOW) as (_, ledger, traffic):
        row = ended(ledger, as_asked(ledger))
        assert row.state is ReleaseState.FAILED, row
        assert "latency" in row.reason or "compute" in row.reason
        traffic.stop()
        assert traffic.failed == 0
        check_log(ledger, row)
        mine = counted(interlock_home, row.id, "2", CANDIDATE)
        assert mine.dispatched <= 200 and traffic.answers[200, 5] <= mine.dispatched
        assert certificate(interlock_home, row.id).stages[-1].candidate <= mine.dispatched


def kill_control_in(
    node: RunningNode, ledger: Ledger, release: int, epochs: int
) -> tuple[ArmCounts, ArmCounts]:
    """Kill control once an epoch has evidence; what both arms had done in the first one by then."""
    until(lambda: has_epochs(ledger, release, epochs), f"epoch {epochs}", WITHIN_S)
    home = node.home

    def first(version: str, arm: int) -> ArmCounts:
        counts = read_all(run_folder(home))
        mine = [
            one
            for key, one in counts.items()
            if (key.version, key.release, key.epoch, key.arm) == (version, release, 1, arm)
        ]
        return mine[0] if mine else ArmCounts()

    until(lambda: first("1", INCUMBENT).ok > 20, "evidence of the first epoch")
    seen = first("1", INCUMBENT), first("2", COPY_ARM)
    assert ledger.release(release).state is ReleaseState.RAMPING
    node.kill("control")
    after = first("1", INCUMBENT), first("2", COPY_ARM)
    assert after[0].ok >= seen[0].ok and ran(after[1].pairs) >= ran(seen[1].pairs)
    return seen


def test_a_release_goes_on_with_its_evidence_though_control_is_killed_in_the_shadow_and_in_the_ramp(
    interlock_home: Path,
) -> None:
    # A file where the folder should be: no control can leave a certificate, as if each were killed before.
    blocked = interlock_home / "certificates"
    with serving(interlock_home, "pass", workers=2) as (node, ledger, traffic):
        blocked.touch()
        release = as_asked(ledger)
        watch = watching(interlock_home)
        for epochs in (1, 2):
            incumbent, candidate = kill_control_in(node, ledger, release, epochs)
        row = ended(ledger, release)
        assert row.state is ReleaseState.DONE, row
        seen = watched(watch, row)
        assert any(one.judgement is not None and ran(one.judgement.pairs) for one in seen)
        assert traffic.factors() == {5} and traffic.failed == 0
        check_log(ledger, row)
        blocked.unlink()
        node.kill("control")
        found = certificate(interlock_home, release)
        assert (found.release, found.verdict) == (release, "done")
        first = found.stages[0]
        assert (first.epoch, first.weight) == (1, 0.0)
        assert first.incumbent >= incumbent.ok and first.pairs >= ran(candidate.pairs)
