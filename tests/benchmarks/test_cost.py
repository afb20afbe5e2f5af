"""The cost table measures what it says: every variant answers every request well."""

from benchmarks import bench_cost


async def test_every_variant_answers_every_request() -> None:
    whole_us, costs = await bench_cost.measure(rounds=1)
    assert whole_us > 0 and [cost.feature for cost in costs] == list(bench_cost.FEATURES)
