"""Decides which versions `bench_releases.py` releases, and how bad or good each is: fixed before any run.

Each is a Python model whose every fault is drawn by a hash of the row, so that the same row fails again,
also in another version: an incumbent with a rate of 5 % and a candidate with 6 % fail on nested sets.
`shared` below 1 gives the candidate draws of its own for the other rows. One batch takes as long as its
slowest row. Faults are on rows of traffic only (the first value at or above `LEAST`): no check of a
registration has seen them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

LEAST = 10.0
"""The first value of a row of traffic is in [LEAST, LEAST + 1); at registration it is a standard normal."""
BASE_S = 0.0015
SIGMA = 0.3
"""The times of rows are lognormal: median BASE_S, this sigma."""

Client = Literal["tritonclient", "k6"]

_SOURCE = '''"""What it does is drawn by a hash of the row: the same row again does the same."""

import hashlib
import math
import os
import statistics
import time

import numpy as np

FAILS, SHARED, SEED = {fails!r}, {shared!r}, {seed!r}
SLOWER, FLIPS, OFF, NANS, EXITS, HANGS = {slower!r}, {flips!r}, {off!r}, {nans!r}, {exits!r}, {hangs!r}
normal = statistics.NormalDist().inv_cdf


def draw(row, what):
    """Uniform in (0, 1), by the bytes of the row and what is drawn."""
    found = hashlib.blake2b(row, digest_size=8, person=what.encode()).digest()
    return (int.from_bytes(found, "little") + 0.5) / 2**64


def fails(row):
    mine = draw(row, "mix") >= SHARED
    return draw(row, f"fails {{SEED}}" if mine else "fails") < FAILS


def leaves(row):
    return draw(row, "exit") < EXITS


def stands(row):
    return draw(row, "hang") < HANGS


class Drawn:
    signature = {{
        "inputs": {{"x": ("FP32", [-1, 4])}},
        "outputs": {{"label": ("INT64", [-1]), "score": ("FP32", [-1])}},
    }}
    deterministic = True
    side_effect_free = True
    max_batch_rows = 32

    def predict(self, inputs):
        x = np.ascontiguousarray(inputs["x"], "<f4")
        rows = [row.tobytes() for row in x]
        longest = max((normal(draw(row, "time")) for row in rows), default=0.0)
        time.sleep({base_s!r} * SLOWER * math.exp({sigma!r} * longest))
        live = [row for row, first in zip(rows, x[:, 0].tolist()) if first >= {least!r}]
        if any(leaves(row) for row in live):
            os._exit(3)
        if any(stands(row) for row in live):
            time.sleep(3600)
        if any(fails(row) for row in live):
            raise ValueError("a row that this version cannot answer")
        label = np.array([draw(row, "label") < 0.5 for row in rows], np.int64)
        score = np.array([draw(row, "score") for row in rows], np.float32)
        live = x[:, 0] >= {least!r}
        label ^= live & [draw(row, "flip") < FLIPS for row in rows]
        score += np.float32(OFF)
        score[live & [draw(row, "nan") < NANS for row in rows]] = np.nan
        return {{"label": label, "score": score}}
'''


class Effect(msgspec.Struct, frozen=True):
    """What a version does. `fails`, `flips` (labels), `nans`, `exits`, `hangs`: shares of the rows; `shared`:
    of the rows whose failure is drawn as it is for every other version, the others by `seed`. `slower`: times
    as long; `off`: added to scores."""

    fails: float = 0.0
    shared: float = 1.0
    seed: int = 0
    slower: float = 1.0
    flips: float = 0.0
    off: float = 0.0
    nans: float = 0.0
    exits: float = 0.0
    hangs: float = 0.0

    @property
    def source(self) -> str:
        """The Python file of this version."""
        return _SOURCE.format(**msgspec.structs.asdict(self), base_s=BASE_S, sigma=SIGMA, least=LEAST)

    def write(self, folder: Path) -> Path:
        """The artifact: one Python file in the new folder."""
        folder.mkdir(parents=True)
        path = folder / "drawn.py"
        path.write_text(self.source)
        return path


@cache
def answers(effect: Effect) -> Callable[[bytes], bool]:
    """Whether a version with this effect answers a row of traffic (its bytes), by the version's own code."""
    defined: dict[str, Any] = {}
    exec(effect.source, defined)
    breaks = [defined[name] for name in ("fails", "leaves", "stands")]
    return lambda row: not any(does(row) for does in breaks)


class Candidate(msgspec.Struct, frozen=True):
    """One release. The live version fails on a share `live` of the rows; `allowed`: so many times as slow is
    all right, where the user says so; the rest of the policy is the default."""

    what: str
    is_bad: bool
    client: Client
    live: float
    effect: Effect
    allowed: float | None = None

    @property
    def model(self) -> str:
        """Which model it is a version of: one for each rate of the incumbent and each client."""
        return f"{self.client}-{self.live * 100:g}"

    @property
    def title(self) -> str:
        """How `--list` shows it."""
        return f"{'bad' if self.is_bad else 'good':4}  {self.client:12}  {self.what}"

    @property
    def policy(self) -> dict[str, float]:
        """What the user says, as the admin API takes it."""
        return {} if self.allowed is None else {"slower": self.allowed}

    @property
    def incumbent(self) -> Effect:
        """What the live version does."""
        return Effect(self.live)


ONE_IN_500 = 1 / 500

BAD = (
    Candidate("fails 5 -> 6 %", True, "k6", 0.05, Effect(0.06)),
    Candidate("fails 5 -> 7 %", True, "tritonclient", 0.05, Effect(0.07)),
    Candidate("fails 5 -> 8 %", True, "k6", 0.05, Effect(0.08)),
    Candidate("fails 5 -> 10 %", True, "tritonclient", 0.05, Effect(0.10)),
    Candidate("fails 5 -> 15 %, on rows of its own", True, "k6", 0.05, Effect(0.15, shared=0.0, seed=1)),
    Candidate("fails 1 -> 2 %", True, "tritonclient", 0.01, Effect(0.02)),
    Candidate("fails 1 -> 3 %", True, "k6", 0.01, Effect(0.03)),
    Candidate("fails 1 -> 5 %, on rows of its own", True, "tritonclient", 0.01, Effect(0.05, 0.0, 2)),
    Candidate("fails 0 -> 1 %", True, "k6", 0.0, Effect(0.01)),
    Candidate("fails 0 -> 2 %", True, "tritonclient", 0.0, Effect(0.02)),
    Candidate("fails 0 -> 5 %", True, "k6", 0.0, Effect(0.05)),
    Candidate("fails 0 -> 100 %", True, "tritonclient", 0.0, Effect(1.0)),
    Candidate("1.2 times slower, 1 allowed", True, "k6", 0.0, Effect(slower=1.2), 1.0),
    Candidate("1.5 times slower", True, "tritonclient", 0.0, Effect(slower=1.5)),
    Candidate("2 times slower", True, "k6", 0.0, Effect(slower=2.0)),
    Candidate("3 times slower", True, "tritonclient", 0.0, Effect(slower=3.0)),
    Candidate("labels flipped on 50 %", True, "k6", 0.0, Effect(flips=0.5)),
    Candidate("NaN on 3 %", True, "tritonclient", 0.0, Effect(nans=0.03)),
    Candidate("ends its process on 1 row of 500", True, "k6", 0.0, Effect(exits=ONE_IN_500)),
    Candidate("hangs on 1 row of 500", True, "tritonclient", 0.0, Effect(hangs=ONE_IN_500)),
)

GOOD = (
    Candidate("fails 0 % again", False, "tritonclient", 0.0, Effect(seed=1)),
    Candidate("fails 0 % again, second", False, "k6", 0.0, Effect(seed=2)),
    Candidate("fails 0 % again, third", False, "tritonclient", 0.0, Effect(seed=3)),
    Candidate("fails 1 % again", False, "k6", 0.01, Effect(0.01, seed=9)),
    Candidate("fails 1 % again, 9 of 10 shared", False, "tritonclient", 0.01, Effect(0.01, 0.9, 4)),
    Candidate("fails 1 % again, on rows of its own", False, "k6", 0.01, Effect(0.01, 0.0, 5)),
    Candidate("fails 5 % again", False, "tritonclient", 0.05, Effect(0.05, seed=10)),
    Candidate("fails 5 % again, 9 of 10 shared", False, "k6", 0.05, Effect(0.05, 0.9, 6)),
    Candidate("fails 5 % again, 9 of 10 shared, second", False, "tritonclient", 0.05, Effect(0.05, 0.9, 7)),
    Candidate("fails 5 % again, on rows of its own", False, "k6", 0.05, Effect(0.05, 0.0, 8)),
    Candidate("fails 5 -> 3 %", False, "tritonclient", 0.05, Effect(0.03)),
    Candidate("fails 1 -> 0 %", False, "k6", 0.01, Effect(0.0)),
    Candidate("fails 5 -> 1 %", False, "tritonclient", 0.05, Effect(0.01)),
    Candidate("takes .8 times as long", False, "k6", 0.0, Effect(slower=0.8)),
    Candidate("1.05 times slower", False, "tritonclient", 0.0, Effect(slower=1.05)),
    Candidate("labels differ on 3 %", False, "k6", 0.0, Effect(flips=0.03)),
    Candidate("labels differ on 10 %", False, "tritonclient", 0.0, Effect(flips=0.10)),
    Candidate("1.3 times slower, 1.5 allowed", False, "k6", 0.0, Effect(slower=1.3), 1.5),
    Candidate("scores differ by 0.0001", False, "tritonclient", 0.0, Effect(off=1e-4)),
    Candidate("fails 1 % again, takes .5 times as long", False, "k6", 0.01, Effect(0.01, slower=0.5)),
)

PLAN = (*BAD, *GOOD)
