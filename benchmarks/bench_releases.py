"""20 bad and 20 good candidates, released by evidence on a real node under the load of foreign clients.

    python -m benchmarks.bench_releases [--only PATTERN] [--seconds 120] [--list] [--json]

What is released stands in `candidates.py`. One node with two workers; two clients at once, open loop, each
with a model of its own: tritonclient (binary tensors) and k6 (JSON). Every request is one random row. A
release ends promoted, rolled back, or held: it paused, or its time was up; then it is aborted. After a
promotion version 1 is put back. As a row's fault is a hash of the row, it is known of each failed request
whether the live version fails on that row, or only the candidate, or neither. What neither explains within
a second of a move of traffic is charged to the move. Caveat: server and clients share two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import groupby
from pathlib import Path
from threading import Event

import msgspec

from benchmarks.candidates import PLAN, Candidate
from benchmarks.clients import CORES, Load, ensure_k6
from benchmarks.machine import this_machine, write_result
from benchmarks.node import Node
from benchmarks.pairs import say
from benchmarks.peers import JSON, ask, v2_body
from benchmarks.released import Outcome, Record, Released, as_text, blame, gate_of, progress, summed
from interlock.core.errors import InterlockError
from interlock.operations.control import AdminControl
from interlock.operations.discovery import read_token
from interlock.operations.load import Request
from interlock.operations.register import register_model
from interlock.operations.wait import poll_release
from interlock.registry import rows
from interlock.registry.rows import ReleaseRow, ReleaseState
from interlock.rollout.certificate import Certificate

RATE_PER_S = 100.0
WORKERS = 2
WARM_S = 5.0
"""Of load on a model before its first release, so that its latencies are known."""
BETWEEN_S = 3.0
ENDS_S = 60.0
"""How long a release that was aborted, or one with `--now`, may take to end."""
MOVES = ("ramping", "switching", "rolling_back", "done", "failed", "superseded")
SAFE = [0.5, 0.5, 0.5, 0.5]
"""A row that no version fails on, since it is none of traffic."""


class _Lane:
    """One client and its models, released one after another. `broken_off`: the user wants no more."""

    def __init__(
        self, node: Node, admin: AdminControl, folder: Path, limit_s: float, broken_off: Event
    ) -> None:
        self._node = node
        self._admin = admin
        self._folder = folder
        self._limit_s = limit_s
        self._broken_off = broken_off
        self.released: list[Released] = []
        self.unsent: dict[str, int] = {}
        self.error = ""

    def run(self, plan: Sequence[tuple[Candidate, str]]) -> None:
        """Release each, with the number of its version. What goes wrong is kept in `error`."""
        try:
            for model, of_model in groupby(plan, key=lambda item: item[0].model):
                self._under_load(model, list(of_model))
        except (InterlockError, RuntimeError, OSError) as error:
            self.error = f"{type(error).__name__}: {error}"
            say(self.error)

    def _under_load(self, model: str, plan: Sequence[tuple[Candidate, str]]) -> None:
        client, found = plan[0][0].client, list[Released]()
        load = Load(client, self._node.url(""), model, RATE_PER_S, self._folder / model)
        try:
            load.wait()
            self._sleep(WARM_S)
            for candidate, number in plan:
                load.check()
                found.append(self._release(candidate, number))
                say(progress(found[-1]))
                self._sleep(BETWEEN_S)
        finally:
            load.stop()
            seen = load.answers()
            self.unsent[model] = load.unsent()
            self.released += [msgspec.structs.replace(one, blame=blame(one, seen)) for one in found]

    def _release(self, candidate: Candidate, number: str) -> Released:
        admin, model = self._admin, candidate.model
        newest = admin.events(model, None, 1)[-1].seq
        row, held = self._follow(self._ask(candidate, number))
        wanted = number if row.state is ReleaseState.DONE else "1"
        live_is_right = self._live(model) == {wanted}
        certificate: Certificate | None = None
        with suppress(InterlockError):  # there is none where nothing was compared
            certificate = admin.certificate(row.id)
        if wanted != "1":
            poll_release(admin.read_release, admin.release(model, "1").id, ENDS_S)
            live_is_right = live_is_right and self._live(model) == {"1"}
        events = list(_events(admin, model, newest))
        at_s = {event.kind: event.time_s for event in events if event.body.get("release") == row.id}
        outcome: Outcome = "held" if held else "promoted" if row.state is ReleaseState.DONE else "rolled back"
        decided_s, failed_s = at_s.get("release.rolling_back"), at_s.get("release.failed")
        stages = certificate.stages if certificate is not None else ()
        pairs = certificate.pairs if certificate is not None else None
        return Released(
            candidate=candidate,
            number=number,
            release=row.id,
            outcome=outcome,
            seconds=(row.finished_s or row.changed_s) - row.requested_s,
            gate=gate_of(row, certificate, outcome),
            reason=held or (certificate.reason if certificate is not None else row.reason),
            requests=sum(stage.candidate for stage in stages),
            pairs=0 if pairs is None else pairs.good + pairs.worse + pairs.better + pairs.bad,
            weights=[stage.weight for stage in stages],
            to_zero_s=None if decided_s is None or failed_s is None else failed_s - decided_s,
            verdict=certificate.verdict if certificate is not None else "none",
            decided=certificate.decided if certificate is not None else "none",
            live_is_right=live_is_right,
            asked_s=row.requested_s,
            back_s=time.time(),
            promoted_s=at_s.get("release.switching"),
            moved_s=[event.time_s for event in events if event.kind.removeprefix("release.") in MOVES],
        )

    def _ask(self, candidate: Candidate, number: str) -> ReleaseRow:
        """As `interlock release MODEL NUMBER` does, without its start, which would use the cores."""
        wanted = {"version": number, "strategy": "canary", "policy": candidate.policy}
        path = f"{self._admin.url}/api/models/{candidate.model}/release"
        status, body = ask(Request(path, json.dumps(wanted).encode(), JSON))
        if status != 202:
            raise RuntimeError(f"{candidate.what} cannot be released: {status} {body[:500]!r}")
        return msgspec.json.decode(body, type=ReleaseRow)

    def _follow(self, row: ReleaseRow) -> tuple[ReleaseRow, str]:
        """The release when it has ended, and why it was held, "" if it was not."""
        until_s, held = time.monotonic() + self._limit_s, ""
        while not row.state.finished:
            if row.state is ReleaseState.PAUSED:
                held = f"paused: {row.reason}"
            elif time.monotonic() > until_s:
                with suppress(InterlockError):
                    held = self._admin.rollout(row.model).why
                held = f"undecided after {self._limit_s:g} s: {held}"
            if held:
                return self._abort(row, held)
            self._sleep(0.2)
            row = self._admin.read_release(row.id)
        return row, ""

    def _sleep(self, seconds: float) -> None:
        if self._broken_off.wait(seconds):
            raise RuntimeError("broken off")

    def _abort(self, row: ReleaseRow, held: str) -> tuple[ReleaseRow, str]:
        row = self._admin.read_release(row.id)
        if row.state in (ReleaseState.SWITCHING, ReleaseState.ROLLING_BACK) or row.state.finished:
            held = ""  # it was decided meanwhile
        else:
            try:
                self._admin.step(row.model, "abort")
            except InterlockError:
                held = ""
        return poll_release(self._admin.read_release, row.id, ENDS_S), held

    def _live(self, model: str) -> set[str]:
        """Who answers on new connections, so that every worker is asked, and who is said to be live."""
        asked = Request(self._node.url(f"/v2/models/{model}/infer"), v2_body(SAFE), JSON)
        found = {str(json.loads(ask(asked)[1]).get("model_version")) for _ in range(4 * WORKERS)}
        return found | {one.number for one in self._admin.versions(model) if one.live}


def _events(admin: AdminControl, model: str, after: int) -> Iterator[rows.Event]:
    while found := admin.events(model, after, 100):
        yield from found
        after = found[-1].seq


def measure(plan: Sequence[Candidate], limit_s: float, folder: Path) -> Record:
    """Release them all, in an order drawn once and the same in every run, two lanes at a time.

    Raises: RuntimeError; InterlockError.
    """
    machine, began_s = this_machine(), time.monotonic()
    if any(one.client == "k6" for one in plan):
        ensure_k6()
    order = random.Random(1).sample(PLAN, len(PLAN))
    plan = sorted((one for one in order if one in plan), key=lambda one: one.model)
    home = folder / "home"
    numbers: dict[Candidate, str] = {}
    with Node(home, workers=WORKERS, cores=CORES) as node:
        for model, of_model in groupby(plan, key=lambda one: one.model):
            mine = list(of_model)
            say(f"registering {model}: what is live, and {len(mine)} candidates")
            for index, effect in enumerate([mine[0].incumbent, *(one.effect for one in mine)]):
                artifact = effect.write(folder / f"{model}-{index + 1}")
                number = register_model(model, artifact, home=home, progress=lambda step: None).number
                if index:
                    numbers[mine[index - 1]] = number
            node.release(model, "1")
        node.up()
        for model in {one.model for one in plan}:
            node.wait_ready(model)
        node.settle()
        admin = AdminControl(f"http://127.0.0.1:{node.admin_port}", read_token(home))
        broken_off = Event()
        lanes = [_Lane(node, admin, folder / "load", limit_s, broken_off) for _ in range(2)]
        with ThreadPoolExecutor(len(lanes)) as pool:
            ended = [
                pool.submit(lane.run, [(one, numbers[one]) for one in plan if one.client == client])
                for lane, client in zip(lanes, ("tritonclient", "k6"), strict=True)
            ]
            try:
                for lane_ended in ended:
                    lane_ended.result()
            finally:
                broken_off.set()
    return summed(
        machine,
        RATE_PER_S,
        limit_s,
        [one for lane in lanes for one in lane.released],
        {model: count for lane in lanes for model, count in lane.unsent.items()},
        [lane.error for lane in lanes if lane.error],
        time.monotonic() - began_s,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Release all candidates, or those that are named; the exit status is `Record.exit_code`."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_releases", description=(__doc__ or "").partition("\n")[0]
    )
    arguments.add_argument(
        "--only",
        default="",
        metavar="PATTERN",
        help="a regular expression, looked for in the lines of --list",
    )
    arguments.add_argument("--seconds", type=float, default=120.0, help="limit of one release (120)")
    arguments.add_argument("--list", action="store_true", help="print the plan and release nothing")
    arguments.add_argument("--json", action="store_true", help="print the record as JSON, not the table")
    arguments.add_argument("--no-record", action="store_true", help="write nothing under results/")
    arguments.add_argument(
        "--folder", type=Path, help="a new folder that keeps the node's home and what clients saw"
    )
    given = arguments.parse_args(argv)
    plan = [one for one in PLAN if re.search(given.only, one.title)]
    if not plan:
        arguments.error(f"--only {given.only}: nothing in the plan has this; see --list")
    if given.list:
        print("\n".join(one.title for one in plan))
        return 0
    if given.folder is not None:
        given.folder.mkdir(parents=True)
    kept = tempfile.TemporaryDirectory() if given.folder is None else nullcontext(str(given.folder))
    with kept as folder:
        record = measure(plan, given.seconds, Path(folder).resolve())
    if not given.no_record:
        say(f"recorded in benchmarks/results/{write_result('releases', record).name}")
    print(
        msgspec.json.format(msgspec.json.encode(record), indent=1).decode() if given.json else as_text(record)
    )
    return record.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
