"""Holds batch scoring: one answer for each row, the same as online, whenever the run is killed."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock import Client
from interlock.core.errors import ConfigError, InputMismatch, ModelFailed
from interlock.core.model import (
    Capabilities,
    Placement,
    Signature,
    TensorSpec,
    Version,
    artifact_path,
    digest_of,
)
from interlock.operations.context import Context, opened
from interlock.operations.score import score
from interlock.operations.score_batch import ScoreBatch
from interlock.operations.score_columns import columns_kept, columns_wanted, inputs_of, table_of
from interlock.operations.score_parts import Parts, Plan, chunks, rows_a_part
from interlock.runtime.sklearn import signature_of
from interlock.runtime.table import OPTION, Table
from tests.app.nodes import RunningNode, put_onnx

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
server = [pytest.mark.server, pytest.mark.beside]

WORDS = """
import os, time
import numpy as np
class Model:
    def predict(self, inputs):
        time.sleep(0.005)
        km, zone = inputs["km"][:, 0], inputs["zone"][:, 0]
        if (km == -1).any(): raise ValueError("no negative ways")
        if (km == -2).any(): os._exit(13)
        text = [b"\\xff" if z == b"\\xff" else z + b"!" for z in zone]
        return {"price": km * 2, "zone_of": np.array(text, object), "both": np.stack([km, -km], 1)}
"""
TABLE = Signature(
    (TensorSpec("km", "FP64", (-1, 1)), TensorSpec("zone", "BYTES", (-1, 1))),
    (
        TensorSpec("price", "FP64", (-1,)),
        TensorSpec("zone_of", "BYTES", (-1,)),
        TensorSpec("both", "FP64", (-1, 2)),
    ),
    0,
    ("km", "zone"),
)


def put_words(ctx: Context, name: str = "fåre") -> Version:
    """A Python model of a table with a number and a text, recorded as registration would."""
    folder = ctx.home / "artifacts" / "new"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(WORDS)
    digest = digest_of(folder)
    folder.rename(artifact_path(ctx.home, digest))
    capabilities = Capabilities(max_batch_rows=64)
    version = Version(name, "1", digest, "python", "model.py:Model", TABLE, capabilities, Placement.EXECUTOR)
    ctx.ledger.put_version(version, time.time())
    return version


def a_file(
    path: Path, rows: int = 2000, row_group_size: int = 700, bad: dict[int, float] | None = None
) -> Any:
    km = np.random.default_rng(0).uniform(0, 9, rows)
    for row, value in (bad or {}).items():
        km[row] = value
    zones = pa.array([None if row % 7 == 0 else f"Zöne {row}" for row in range(rows)], pa.string())
    table = pa.table({"id": pa.array(range(rows)), "zone": zones.dictionary_encode(), "km": km})
    pq.write_table(table, path, row_group_size=row_group_size)
    return table


# --- what is pure ---


@given(st.integers(0, 10**9), st.floats(0, 1e6), st.integers(1, 5000), st.floats(0, 100))
def test_a_part_is_whole_calls(rows: int, row_bytes: float, call_rows: int, row_s: float) -> None:
    found = rows_a_part(rows, row_bytes, call_rows, row_s)
    assert found > 0 and found % call_rows == 0
    assert found <= 65_536 + call_rows


@given(st.data(), st.integers(0, 120), st.integers(1, 40), st.integers(1, 60))
def test_whatever_is_done_already_the_rest_is_read_once_in_order(
    data: st.DataObject, rows: int, part_rows: int, group_rows: int
) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": range(rows), "y": range(rows)}), sink, row_group_size=group_rows)
    plan = Plan(0, 0, "", rows, "", "", ("y",), ("x",), "stop", part_rows)
    done = data.draw(st.sets(st.integers(0, plan.parts - 1)))
    found = dict(chunks(pq.ParquetFile(sink.getvalue()), plan, done))
    assert sorted(found) == ([index for index in range(plan.parts) if index not in done] if rows else [])
    for index, part in found.items():
        assert part["x"].to_pylist() == part["y"].to_pylist() == list(range(*plan.part(index)))


def test_columns_that_are_missing_are_named() -> None:
    with pytest.raises(
        InputMismatch, match=r"no column 'km', .*did you mean 'Km' for 'km'\?; it has 'Km', 'zone'"
    ):
        columns_wanted(TABLE, ["Km", "zone"])
    with pytest.raises(InputMismatch, match="no column 'km', 'zone'"):
        columns_wanted(TABLE, [])
    assert columns_kept(["all"], ["id", "x"], TABLE, True) == ["id", "x"]
    with pytest.raises(ConfigError, match="'price' would be there twice"):
        columns_kept(["price"], ["price"], TABLE, False)
    with pytest.raises(ConfigError, match="no column 'no'"):
        columns_kept(["no"], ["id"], TABLE, False)


@pytest.mark.parametrize(
    ("shape", "column", "wanted"),
    [
        ((-1, 2), pa.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ((-1, 2), pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)), [[1, 2], [3, 4]]),
        ((-1,), pa.array([1, 2]), [1, 2]),
        ((-1, 1), pa.array([1, 2]), [[1], [2]]),
        ((-1, 2, 2), pa.array([[1, 2, 3, 4]]), [[[1, 2], [3, 4]]]),
        ((-1, 2, 2), pa.array([[[1, 2], [3, 4]]]), [[[1, 2], [3, 4]]]),
        ((-1, -1), pa.array([[1, 2, 3]]), [[1, 2, 3]]),
    ],
)
def test_inputs_by_name(shape: tuple[int, ...], column: Any, wanted: Any) -> None:
    signature = Signature((TensorSpec("x", "FP32", shape),), ())
    found = inputs_of(signature, pa.table({"x": column}))["x"]
    assert found.dtype == np.float32 and found.tolist() == wanted


@given(
    st.sampled_from([pa.int8(), pa.uint16(), pa.int64(), pa.float16(), pa.float32(), pa.float64()]),
    st.lists(st.lists(st.none() | st.integers(0, 100), max_size=20), max_size=4),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_numbers_are_those_that_arrow_would_give(
    kind: Any, chunked: list[list[int | None]], start: int, stop: int
) -> None:
    """Slices, chunks, missing numbers; without pandas, which Arrow's own way imports."""
    parts = [pa.array(part, pa.int64()).cast(kind) for part in chunked]
    column = pa.chunked_array(parts, kind).slice(start, stop)
    signature = Signature((TensorSpec("x", "FP64", (-1, 1)),), ())
    found = inputs_of(signature, pa.table({"x": column}))["x"]
    wanted = [float("nan") if value is None else float(value) for value in column.to_pylist()]
    assert np.array_equal(found[:, 0], np.array(wanted, float), equal_nan=True)


def test_numbers_are_read_and_written_without_what_is_slow_to_import() -> None:
    code = (
        "import sys, numpy as np\n"
        "from interlock.core.model import Signature, TensorSpec\n"
        "from interlock.operations.arrow import pyarrow as pa\n"
        "from interlock.operations.score_columns import inputs_of, table_of\n"
        "specs = (TensorSpec('a', 'FP32', (-1, 1)), TensorSpec('b', 'INT64', (-1, 2)))\n"
        "group = {'a': np.ones((2, 1), 'f4'), 'b': np.ones((2, 2), 'i8')}\n"
        "made = table_of(Signature((), specs), [group] * 2)\n"
        "assert inputs_of(Signature((specs[0],), ()), made.select(['a']))['a'].tolist() == [[1]] * 4\n"
        "print([name for name in ('pandas', 'pyarrow.compute') if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert said.stdout == "[]\n", said.stderr


def test_outputs_keep_their_shapes_and_texts() -> None:
    specs = (
        TensorSpec("one", "FP32", (-1, 1)),
        TensorSpec("two", "INT64", (-1, 2)),
        TensorSpec("any", "FP64", (-1, -1)),
        TensorSpec("text", "BYTES", (-1,)),
        TensorSpec("raw", "BYTES", (-1,)),
    )
    texts, raw = np.array(["é", b"\xff"], object), np.array([b"\xfe", b"a"], object)
    group: dict[str, Any] = {
        "one": np.ones((2, 1), np.float32),
        "two": np.arange(4).reshape(2, 2),
        "any": np.ones((2, 3)),
    }
    found = table_of(Signature((), specs), [{**group, "text": texts, "raw": raw}])
    assert found.schema.types == [
        pa.float32(),
        pa.list_(pa.int64(), 2),
        pa.list_(pa.float64()),
        pa.string(),
        pa.binary(),
    ]
    assert found["text"].to_pylist() == ["é", None]
    assert found["two"].to_pylist() == [[0, 1], [2, 3]]


# --- real runs ---


@pytest.fixture
def ctx(interlock_home: Path) -> Any:
    with opened(interlock_home) as context:
        yield context


def run(ctx: Context, source: Path, output: Path, **options: Any) -> Any:
    return score(ctx, "fåre", "1", source, output, workers=2, **options)


class TestRuns:
    pytestmark = server

    def test_one_row_out_for_each_in_with_texts_nulls_and_kept_columns(
        self, ctx: Context, tmp_path: Path
    ) -> None:
        put_words(ctx)
        given_rows = a_file(tmp_path / "in.parquet", row_group_size=10**6)
        heard: list[tuple[int, int]] = []
        done = run(
            ctx,
            tmp_path / "in.parquet",
            tmp_path / "öut.parquet",
            keep=["id"],
            progress=lambda *n: heard.append(n),
        )
        found = pq.read_table(tmp_path / "öut.parquet")
        assert found.column_names == ["id", "price", "zone_of", "both"]
        assert found["id"].to_pylist() == list(range(2000)) and done.rows == 2000
        assert found["price"].to_pylist() == (given_rows["km"].to_numpy() * 2).tolist()
        zones = given_rows["zone"].cast(pa.string()).to_pylist()
        assert found["zone_of"].to_pylist() == [None if zone is None else zone + "!" for zone in zones]
        assert heard[-1] == (2000, 2000)
        assert not (tmp_path / ".öut.parquet.parts").exists()

    def test_an_output_is_not_replaced_unasked_nor_written_twice_at_once(
        self, ctx: Context, tmp_path: Path
    ) -> None:
        put_words(ctx)
        a_file(tmp_path / "in.parquet", 100)
        output = tmp_path / "out.parquet"
        output.write_text("mine")
        with pytest.raises(ConfigError, match="--force"):
            run(ctx, tmp_path / "in.parquet", output)
        assert output.read_text() == "mine"
        held = Parts(output)
        with pytest.raises(ConfigError, match="another process is writing it"):
            run(ctx, tmp_path / "in.parquet", output, force=True)
        held.close()
        run(ctx, tmp_path / "in.parquet", output, force=True)
        assert pq.read_table(output).num_rows == 100
        with pytest.raises(ConfigError, match="there is no folder"):
            run(ctx, tmp_path / "in.parquet", tmp_path / "no" / "out.parquet")

    def test_no_rows_and_no_columns(self, ctx: Context, tmp_path: Path) -> None:
        put_words(ctx)
        a_file(tmp_path / "in.parquet", 0)
        run(ctx, tmp_path / "in.parquet", tmp_path / "out.parquet", errors="null", keep=["id"])
        found = pq.read_table(tmp_path / "out.parquet")
        assert found.num_rows == 0 and found.column_names == ["id", "price", "zone_of", "both", "error"]
        pq.write_table(pa.table({}), tmp_path / "none.parquet")
        with pytest.raises(InputMismatch, match="no column 'km', 'zone'"):
            run(ctx, tmp_path / "none.parquet", tmp_path / "none-out.parquet")
        (tmp_path / "text.parquet").write_text("id,km")
        with pytest.raises(ConfigError, match="no Parquet file"):
            run(ctx, tmp_path / "text.parquet", tmp_path / "none-out.parquet")

    def test_a_bad_row_stops_the_run_or_is_left_empty(self, ctx: Context, tmp_path: Path) -> None:
        put_words(ctx)
        given_rows = a_file(tmp_path / "in.parquet", bad={1333: -1, 1400: -2})
        with pytest.raises(ModelFailed, match=r"row 1333: .*no negative ways"):
            run(ctx, tmp_path / "in.parquet", tmp_path / "out.parquet")
        assert not (tmp_path / "out.parquet").exists()
        said: list[str] = []
        done = run(ctx, tmp_path / "in.parquet", tmp_path / "out.parquet", errors="null", say=said.append)
        assert said == ["starting anew: --errors changed since the run before"] and done.error_rows == 2
        found = pq.read_table(tmp_path / "out.parquet").to_pylist()
        bad = {row: each for row, each in enumerate(found) if each["error"] is not None}
        assert sorted(bad) == [1333, 1400] and "exit code 13" in bad[1400]["error"]
        assert all(each["price"] is None and each["both"] is None for each in bad.values())
        good = given_rows["km"].to_numpy() * 2
        assert all(each["price"] == good[row] for row, each in enumerate(found) if row not in bad)

    def test_a_batch_of_columns_is_scored_by_a_callable_that_can_be_sent(self, ctx: Context) -> None:
        version = put_words(ctx)
        made = pickle.loads(pickle.dumps(ScoreBatch(artifact_path(ctx.home, version.digest), version)))
        found = made(
            {"km": np.array([1.0, 2.0]), "zone": np.array(["a", None], object), "other": np.zeros(2)}
        )
        made.close()
        assert found["price"].tolist() == [2.0, 4.0] and found["zone_of"].tolist() == ["a!", None]

    def test_a_full_disk_leaves_nothing_half(self, ctx: Context, tmp_path: Path) -> None:
        put_words(ctx)
        a_file(tmp_path / "in.parquet")
        ctx.ledger.close()
        code = command(ctx.home, tmp_path)[2]
        limited = f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{code}".replace(
            "score(", "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)); score("
        )
        done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
        assert not (tmp_path / "out.parquet").exists()
        assert not list((tmp_path / ".out.parquet.parts").glob("*.partial"))

    def test_killed_and_started_again_it_makes_the_same_file(self, ctx: Context, tmp_path: Path) -> None:
        kill_and_resume(ctx, tmp_path, kills=3, seed=1, rows=6000)

    @pytest.mark.soak
    @pytest.mark.timeout(900)
    @pytest.mark.parametrize("seed", range(10))
    def test_killed_again_and_again(self, ctx: Context, tmp_path: Path, seed: int) -> None:
        kill_and_resume(ctx, tmp_path, kills=10, seed=seed, rows=20_000)

    def test_a_changed_input_is_scored_anew(self, ctx: Context, tmp_path: Path) -> None:
        put_words(ctx)
        a_file(tmp_path / "in.parquet", bad={1999: -1})
        with pytest.raises(ModelFailed):
            run(ctx, tmp_path / "in.parquet", tmp_path / "out.parquet")
        a_file(tmp_path / "in.parquet")
        said: list[str] = []
        done = run(ctx, tmp_path / "in.parquet", tmp_path / "out.parquet", say=said.append)
        assert said == ["starting anew: the input changed since the run before"] and done.resumed_rows == 0

    def test_row_by_row_it_answers_as_a_node_does(self, interlock_home: Path, tmp_path: Path) -> None:
        """An ONNX graph in the worker; texts in Python, and scikit-learn as it is kept, in executors."""
        put_onnx(interlock_home, "m", "1", 3.0)
        x = np.random.default_rng(0).normal(size=(60, 2))
        pq.write_table(pa.table({"x": list(x.astype(np.float32))}), tmp_path / "m.parquet")
        a_file(tmp_path / "fåre.parquet", 60)
        pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1]}), tmp_path / "kept.parquet")
        with opened(interlock_home) as context:
            put_words(context)
            put_kept(context, x)
            for name in ("m", "fåre", "kept"):
                context.ledger.request_release(name, "1", "now", time.time())
                score(context, name, "1", tmp_path / f"{name}.parquet", tmp_path / f"{name}-out.parquet")
        with RunningNode(interlock_home) as node:
            node.wait_ready()
            client = Client(f"http://127.0.0.1:{node.node.http_port}")
            for name in ("m", "fåre", "kept"):
                given_rows = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
                found = pq.read_table(tmp_path / f"{name}-out.parquet").to_pylist()
                for sent, offline in zip(given_rows, found, strict=True):
                    data = {column: [value] for column, value in sent.items() if column != "id"}
                    online = client.predict(name, data).outputs
                    answer = {output: array.tolist()[0] for output, array in online.items()}
                    if name == "kept":  # BLAS adds up the columns of one row and of many in another order
                        exact, offline["probabilities"] = offline["probabilities"], None
                        assert answer["probabilities"] == pytest.approx(exact, abs=1e-12)
                        answer["probabilities"] = None
                    assert answer == offline
            client.close()


def put_kept(ctx: Context, x: Any) -> None:
    """A scikit-learn model of two columns, recorded as registration keeps it."""
    from sklearn.linear_model import LogisticRegression
    from skops.io import dump

    estimator = LogisticRegression().fit(x, x[:, 0] > x[:, 1] ** 2)
    folder = ctx.home / "artifacts" / "new"
    folder.mkdir(parents=True)
    dump(estimator, folder / "model.skops")
    digest = digest_of(folder)
    folder.rename(artifact_path(ctx.home, digest))
    columns = Table((("a", "FP64"), ("b", "FP64")))
    signature = signature_of(estimator, None, "FP64", columns)
    options = {"input_datatype": "FP64", OPTION: columns}
    ctx.ledger.put_version(
        Version(
            "kept",
            "1",
            digest,
            "sklearn",
            "model.skops",
            signature,
            placement=Placement.EXECUTOR,
            options=options,
        ),
        time.time(),
    )


def command(home: Path, folder: Path) -> list[str]:
    """A run in a process of its own."""
    code = (
        "from pathlib import Path\nfrom interlock.operations.context import opened\n"
        "from interlock.operations.score import score\n"
        f"with opened(Path({str(home)!r})) as ctx:\n"
        f"    score(ctx, 'fåre', '1', Path({str(folder / 'in.parquet')!r}),"
        f" Path({str(folder / 'out.parquet')!r}), workers=2, keep=['id'])\n"
    )
    return [sys.executable, "-c", code]


def kill_and_resume(ctx: Context, folder: Path, kills: int, seed: int, rows: int) -> None:
    """kill -9 when a drawn number of parts is there, or a drawn time later; then to the end."""
    put_words(ctx)
    a_file(folder / "in.parquet", rows)
    whole = folder / "whole.parquet"
    run(ctx, folder / "in.parquet", whole, keep=["id"])
    draw = random.Random(seed)
    parts = folder / ".out.parquet.parts"
    output = folder / "out.parquet"
    done_before = 0
    for kill in range(kills):
        child = subprocess.Popen(command(ctx.home, folder), start_new_session=True)
        wanted = min(done_before + draw.randint(0, 2), -(-rows // 1024))
        until(lambda: len(list(parts.glob("*.arrow"))) >= wanted or child.poll() is not None)  # noqa: B023
        until_s = time.monotonic() + draw.uniform(0, 0.2)
        while time.monotonic() < until_s and child.poll() is None:
            os.sched_yield()
        child.kill()
        child.wait()
        if output.exists() and not parts.exists():  # it had done all
            assert kill
            break
        assert child.returncode == -signal.SIGKILL
        assert not output.exists() or output.read_bytes() == whole.read_bytes()
        left = len(list(parts.glob("*.arrow")))
        assert left >= done_before or output.exists()
        done_before = left
    if not output.exists():
        done = run(ctx, folder / "in.parquet", output, keep=["id"])
        assert (done.resumed_rows > 0) == (done_before > 0)
    assert output.read_bytes() == whole.read_bytes()


def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.002)
