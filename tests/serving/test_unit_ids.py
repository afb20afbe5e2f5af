"""Ids of units that stick to a version: each id has the position of its own request's unit, also where one
between them is refused, is copied, or runs in the very turn in which it came."""

import asyncio
from pathlib import Path

import pytest

from interlock.core.model import Model, ModelSettings
from interlock.core.request import parse_request_id, unit_field
from interlock.core.route import Arm, Mirror, Route, unit_position
from interlock.serving.block import Block
from interlock.serving.infer import Infer
from interlock.serving.lane import Lane
from tests.serving.fakes import FakePlace, FakeSink, a_request, a_version

UNITS = (b"anna", None, b"ben", b"cleo", None, b"anna")


def unit_of(sink: FakeSink) -> int | None:
    assert sink.response is not None
    return parse_request_id(sink.response.request_id).unit


def expected(unit: bytes | None) -> int | None:
    return None if unit is None else unit_field(unit_position(unit, "m:1"))


@pytest.mark.parametrize("mirror", [None, Mirror(1, shadow=1.0, reverse=1.0, shielded=True)])
@pytest.mark.parametrize("sticky", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
async def test_each_id_has_its_own_unit_also_behind_one_that_is_refused(
    tmp_path: Path, mirror: Mirror | None, sticky: bool, at_once: bool
) -> None:
    places = {number: FakePlace() for number in ("1", "2")}
    for place in places.values():
        place.instant, place.answer = at_once, None if at_once else False
    lanes = {number: Lane(a_version("m", number), ModelSettings(), place) for number, place in places.items()}
    infer = Infer(Block.create(tmp_path, "w", 1), 7, dict)
    arms = Arm(0, "incumbent", "1", 0.5), Arm(1, "candidate", "2", 0.5)
    infer.swap(Model("m"), Route(1, 1, "m:1", arms, mirror, sticky), lanes)
    now = asyncio.get_running_loop().time()
    for arm in arms:
        target = infer._entries["m"].by_arm[arm.index]
        jobs = []
        for unit in UNITS:
            late = unit == b"ben"  # its time is over before it begins
            request = a_request([1.0], now, now - 1.0 if late else now + 1e6)
            request.unit = unit
            jobs.append((request, FakeSink()))
        target.submit(jobs)
        while places[arm.version].running:
            for batch in places[arm.version].running:
                batch.end(None)
            await asyncio.sleep(0)
        refused = jobs[UNITS.index(b"ben")][1]
        assert refused.error is not None
        for unit, (_, sink) in zip(UNITS, jobs, strict=True):
            if sink is not refused:
                assert unit_of(sink) == (expected(unit) if sticky else None)
        sequences = [parse_request_id(s.response.request_id).sequence for _, s in jobs if s.response]
        assert len(set(sequences)) == len(sequences) == len(UNITS) - 1
