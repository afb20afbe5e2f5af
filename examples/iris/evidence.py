"""Owns the demo's second part: three versions that want to go live, and what the evidence says of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from rich.table import Table

from benchmarks.load import OpenLoopProcess
from examples.iris.forests import CANDIDATES, LIVE, Forest
from examples.iris.models import Rows
from examples.iris.node import CommandFailed, DemoNode, Up
from interlock.operations.control import AdminControl
from interlock.operations.discovery import read_token
from interlock.operations.load import OpenLoopResult, Request
from interlock.registry.rows import ReleaseRow
from interlock.rollout.certificate import Certificate

NAME = "forest"
RATE_PER_S = 100.0
WITHIN_S = 180.0
"""How long one release may take; the slowest takes half a minute on two cores."""
Say = Callable[[str], None]


class Ended(msgspec.Struct, frozen=True):
    """How the release of one forest ended, and what its certificate says."""

    forest: Forest
    row: ReleaseRow
    certificate: Certificate
    file: Path

    @property
    def seconds(self) -> float:
        return (self.row.finished_s or self.row.changed_s) - self.row.requested_s

    @property
    def answered(self) -> int:
        """Requests that the route gave to the candidate before it was decided."""
        return sum(stage.candidate for stage in self.certificate.stages)

    @property
    def is_right(self) -> bool:
        return self.row.state == self.forest.verdict and self.certificate.decided == "evidence"


class Evidence(msgspec.Struct, frozen=True):
    """All of the second part."""

    load: OpenLoopResult
    ended: tuple[Ended, ...]

    @property
    def exit_code(self) -> int:
        """0, or 1 if a request failed, or a version did not end as it deserves."""
        return 0 if self.load.ok and not self.load.failed and all(one.is_right for one in self.ended) else 1


def register_forests(node: DemoNode, folder: Path, rows: Rows, step: Say) -> None:
    """Register them all in the order of their numbers, the live one first. Raises: CommandFailed."""
    reference = folder / "irises.npz"
    narrowest = max(forest.narrowest for forest in CANDIDATES)
    np.savez(reference, input=rows[rows[:, 1] >= narrowest])
    for number, forest in enumerate((LIVE, *CANDIDATES), start=1):
        step(f"registering version {number}: {forest.what}")
        artifact = forest.write(folder / f"forest-{number}")
        node.run("register", NAME, str(artifact), "--data", str(reference))


def release_forests(node: DemoNode, up: Up, rows: Rows, say: Say) -> Evidence:
    """Release each candidate under load; the defaults decide.

    Raises: CommandFailed; InterlockError; RuntimeError if the load generator failed.
    """
    node.run("release", NAME, "1", "--now")
    admin = AdminControl(up.admin_url, read_token(node.home))
    load = OpenLoopProcess(_request(up, rows), RATE_PER_S, 3600, spin_us=50, core=None)
    try:
        ended = [_release(node, admin, forest, n, say) for n, forest in enumerate(CANDIDATES, start=2)]
        result, _ = load.end()
    finally:
        load.stop()
    return Evidence(result, tuple(ended))


def table(seen: Evidence) -> Table:
    """One line a version: what it is, how it ended, after how much, and what clients noticed. Saved: those
    that got the live version's answer, where the new one failed."""
    shown = Table(title=f"Three releases by evidence at {seen.load.offered_per_s:g} requests/s, open loop")
    for title in (
        "version",
        "it",
        "ended",
        "after",
        "answered",
        "run by both",
        "saved",
        "saw an error",
    ):
        shown.add_column(title)
    for one in seen.ended:
        pairs = one.certificate.pairs
        shown.add_row(
            one.row.number,
            one.forest.what,
            "live" if one.row.state == "done" else "rolled back",
            f"{one.seconds:.0f} s",
            f"{one.answered:,}",
            f"{pairs.good + pairs.worse + pairs.better + pairs.bad:,}",
            f"{pairs.shielded:,}",
            f"{pairs.unshielded:,}",
        )
    return shown


def _request(up: Up, rows: Rows) -> Request:
    bodies = [
        msgspec.json.encode(
            {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": row.tolist()}]}
        )
        for row in rows
    ]
    url = f"{up.http_url}/v2/models/{NAME}/infer"
    return Request(url, bodies[0], {"content-type": "application/json"}, more=tuple(bodies[1:]))


def _release(node: DemoNode, admin: AdminControl, forest: Forest, number: int, say: Say) -> Ended:
    say(f"interlock release {NAME} {number}: {forest.what}")
    row = msgspec.json.decode(
        node.run("release", NAME, str(number), *forest.options, "--no-wait", "--json"), type=ReleaseRow
    )
    until_s, said = time.monotonic() + WITHIN_S, ""
    while not row.state.finished:
        if time.monotonic() > until_s:
            raise CommandFailed(f"release {row.id} of {NAME} is still {row.state} after {WITHIN_S:g} s")
        time.sleep(0.2)
        row = admin.read_release(row.id)
        where = "runs copies only" if row.weight == 0.0 else f"answers {row.weight:.0%}"
        if row.state == "ramping" and where != said:
            said = where
            say(f"  version {number} {where}")
    if not row.epoch:
        raise CommandFailed(f"release {row.id} of {NAME} ended before anything was compared: {row.reason}")
    certificate = admin.certificate(row.id)
    say(f"  version {number} is {'live' if row.state == 'done' else 'rolled back'}: {certificate.reason}")
    return Ended(forest, row, certificate, node.home / "certificates" / f"release-{row.id}.md")
