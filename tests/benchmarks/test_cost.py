"""The cost table measures what it says: every variant answers every request well."""

import pytest

from benchmarks import bench_cost


@pytest.mark.slow
async def test_every_variant_answers_every_request() -> None:
    whole_us, costs = await bench_cost.measure(rounds=1)
    assert whole_us > 0 and [cost.feature for cost in costs] == list(bench_cost.FEATURES)
