"""What one call of a boosted model costs by rows: the package's ways, our runtimes, ONNX, and what is chosen.

    python -m benchmarks.bench_boosters [--rounds 200] [--json]

100 trees of depth 6 (XGBoost), 100 of 31 leaves (LightGBM), 20 columns, two classes, one thread. Every way in
turns in every round, so that a busy machine slows all alike; medians in microseconds. No server.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import xgboost

from interlock.core.model import Signature, Version
from interlock.runtime.boosted_prepare import prepare
from interlock.runtime.by_rows import ByRows
from interlock.runtime.catalog import runtime_of

ROWS = (1, 8, 32, 128, 256)
Way = Callable[[Any], object]


def version(runtime: str, entry: str, **options: Any) -> Version:
    return Version("bench", "1", "", runtime, entry, Signature((), ()), options=options)


def ours(folder: Path, draft: Version, rows: Any) -> tuple[dict[str, Way], str]:
    """The native runtime, ONNX alone, and the version that registration makes, with what it decided."""
    out = folder / f"{draft.runtime}-prepared"
    out.mkdir()
    made = prepare(folder, draft, {"*": rows}, out)
    chosen = runtime_of(made.runtime).load(out, version(made.runtime, made.entry, **made.options))
    native = runtime_of(draft.runtime).load(folder, draft)
    ways: dict[str, Way] = {
        "our C API": lambda batch: native.predict({"input": batch}),
        "chosen": lambda batch: chosen.predict({"input": batch}),
    }
    if (out / "model.onnx").exists():
        # A range of all rows is ONNX alone.
        draft = msgspec.structs.replace(
            draft, options={**draft.options, "onnx": "model.onnx", "onnx_rows": [1, None]}
        )
        graph = runtime_of(draft.runtime).load(_with(folder, out), draft)
        assert isinstance(graph, ByRows)
        ways["ONNX"] = lambda batch: graph.predict({"input": batch})
    return ways, "" if made.conversion is None else made.conversion.reason


def _with(folder: Path, out: Path) -> Path:
    """The native file beside the converted one."""
    (folder / "model.onnx").write_bytes((out / "model.onnx").read_bytes())
    return folder


def medians_us(ways: dict[str, Way], rows: Any, rounds: int) -> dict[str, dict[int, float]]:
    """By way and rows."""
    found: dict[str, dict[int, float]] = {name: {} for name in ways}
    for count in ROWS:
        batch = np.ascontiguousarray(rows[:count])
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                way(batch)
                taken[name].append(time.perf_counter() - started)
        for name, times in taken.items():
            found[name][count] = statistics.median(times[2:]) * 1e6
    return found


def measure(rounds: int) -> dict[str, Any]:
    """Both frameworks."""
    random = np.random.default_rng(0)
    X = random.standard_normal((5000, 20))
    y = (X[:, 0] + X[:, 1] ** 2 + random.standard_normal(5000) > 0.5).astype(int)
    X32 = X.astype(np.float32)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        xgb = xgboost.XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1).fit(X32, y)
        xgb.save_model(folder / "model.ubj")
        booster = xgb.get_booster()
        booster.set_param({"nthread": 1})
        ways, reason = ours(folder, version("xgboost", "model.ubj"), X32)
        package: dict[str, Way] = {
            "sklearn wrapper": xgb.predict_proba,
            "inplace_predict": booster.inplace_predict,
        }
        result["xgboost"] = {"reason": reason, "us": medians_us({**package, **ways}, X32, rounds)}
        lgb = lightgbm.LGBMClassifier(n_estimators=100, verbose=-1, n_jobs=1).fit(X, y)
        lgb.booster_.save_model(folder / "model.txt")
        ways, reason = ours(folder, version("lightgbm", "model.txt", classes=[0, 1]), X)
        package = {
            "sklearn wrapper": lgb.predict_proba,
            "Booster.predict": lambda batch: lgb.booster_.predict(batch, num_threads=1),
        }
        result["lightgbm"] = {"reason": reason, "us": medians_us({**package, **ways}, X, rounds)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    for framework, one in found.items():
        print(f"{framework}: {one['reason']}")
        print(
            f"{'us a call':18}"
            + "".join(f"{count:>8}" for count in ROWS)
            + "   ratio to the wrapper at 1, 32, 256"
        )
        wrapper = one["us"]["sklearn wrapper"]
        for way, times in one["us"].items():
            ratios = ", ".join(f"{times[count] / wrapper[count]:.2f}" for count in (1, 32, 256))
            print(f"{way:18}" + "".join(f"{times[count]:8.0f}" for count in ROWS) + f"   {ratios}")


if __name__ == "__main__":
    main()
