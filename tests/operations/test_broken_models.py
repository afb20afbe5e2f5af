"""Holds what is said of broken models and data, each in its own words, and that nothing of them stays."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.linear_model import LinearRegression

import interlock
from interlock.core.errors import (
    ArtifactError,
    CheckFailed,
    ConfigError,
    DigestMismatch,
    LoadFailed,
    UntrustedArtifact,
)
from interlock.core.model import artifact_path
from interlock.operations import reference
from interlock.operations.context import Context, open_context
from interlock.operations.register import Registered, register
from interlock.registry import artifacts
from interlock.runtime import check_process
from tests.operations.broken import (
    CASES,
    DATA,
    FITTED,
    GIVEN,
    IDENTITY,
    ROWS,
    SUM,
    X,
    on_load,
    python,
    write,
)
from tests.operations.refusals import said_on_the_page

pytestmark = pytest.mark.slow

PAGE, PAGE_OF_DATA = said_on_the_page()


@pytest.fixture(scope="module")
def shared(empty_store: Path) -> Iterator[Context]:
    """One home for all: each finds it as empty as the first did."""
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        (home / "mlflow.db").write_bytes(empty_store.read_bytes())
        context = open_context(home)
        yield context
        context.close()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the temporary folders of this test go."""
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Where the model and its data lie."""
    folder = tmp_path / "given"
    folder.mkdir()
    return folder


def processes_of(desk: Path) -> list[str]:
    """Those that a check which had its folder in `desk` has left, wherever they belong now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("INTERLOCK_CHECK", "").startswith(str(desk)):
                found.append(str(process))
        except psutil.Error:
            continue
    return found


def assert_nothing_left(ctx: Context, desk: Path) -> None:
    assert ctx.ledger.versions() == [] and ctx.ledger.events() == [] and ctx.registry.models() == []
    cache = ctx.home / "artifacts"
    assert not cache.exists() or os.listdir(cache) == []
    assert os.listdir(desk) == []
    assert processes_of(desk) == []


@pytest.mark.parametrize("name", CASES)
def test_a_broken_model_is_refused_in_its_own_words(
    shared: Context, given: Path, desk: Path, name: str
) -> None:
    case = CASES[name]
    artifact = case.make(given)
    rows = None if case.data is None else reference.of(case.data)
    with pytest.raises(case.kind) as caught:
        register(shared, "m", artifact, data=rows, **case.options)
    assert type(caught.value) is case.kind
    message = caught.value.message
    assert [word for word in (*case.words, *PAGE[name]) if word not in message] == [], message
    others = [other for other in CASES if other != name and all(w in message for w in CASES[other].words)]
    assert others == [], "another case's words"
    assert len(message) < 1200
    assert_nothing_left(shared, desk)


@pytest.mark.parametrize("name", DATA)
def test_broken_data_are_refused_in_their_own_words(
    shared: Context, given: Path, desk: Path, name: str
) -> None:
    make, target, words = DATA[name]
    data = make(given)
    with pytest.raises(ConfigError) as caught:
        if isinstance(data, Path):
            register(shared, "m", FITTED, data=data, target=target)
        else:
            reference.of(data)
    message = caught.value.message
    assert [word for word in (*words, *PAGE_OF_DATA[name]) if word not in message] == [], message
    others = [other for other in DATA if other != name and all(w in message for w in DATA[other][2])]
    assert others == [], "another case's words"
    assert_nothing_left(shared, desk)


@pytest.mark.parametrize("model", ["", "a/b", "a\nb", "\udc80", "a" * 129, ".."])
def test_names_of_models_that_cannot_stand_in_urls(shared: Context, desk: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="1-128 characters"):
        register(shared, model, FITTED)
    assert_nothing_left(shared, desk)


class _Harm:
    def __init__(self, function: Callable[[str], Any], word: str) -> None:
        self.call = function, (word,)

    def __reduce__(self) -> Any:
        return self.call


def _harmful(touched: Path, kind: str) -> Any:
    if kind == "eval":
        return _Harm(eval, f"open({str(touched)!r}, 'w')")
    return _Harm(os.system, f"touch {touched}")


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("plain.pkl", "system"),
        ("plain.pkl", "eval"),
        ("in-an-array.joblib", "system"),
        ("zlib.joblib", "eval"),
        ("xz.joblib", "system"),
    ],
)
def test_trust_does_not_run_a_pickles_commands(
    shared: Context, given: Path, desk: Path, file: str, kind: str
) -> None:
    path, touched = given / file, given / "touched"
    thing = _harmful(touched, kind)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(thing))
    elif path.stem == "in-an-array":
        joblib.dump([np.zeros(1000), np.array([thing], object)], path)
    else:
        joblib.dump([thing], path, compress=(path.stem, 3))
    with pytest.raises(UntrustedArtifact, match=rf"{file} names \w+\.{kind}.*--trust does not change that"):
        register(shared, "m", path, trust=True)
    assert not touched.exists()
    assert_nothing_left(shared, desk)


def test_a_type_that_skops_does_not_know_needs_trust(shared: Context, given: Path, desk: Path) -> None:
    import skops.io

    skops.io.dump({"a": pd.Timestamp}, given / "odd.skops")
    with pytest.raises(ArtifactError, match=r"odd\.skops builds objects of .*pandas.*--trust"):
        register(shared, "m", given / "odd.skops")
    assert_nothing_left(shared, desk)


# What looks odd and is no fault.


@pytest.fixture
def ctx(home_with_store: Path) -> Iterator[Context]:
    context = open_context(home_with_store)
    yield context
    context.close()


def test_a_random_model_registers_and_says_so(ctx: Context, given: Path) -> None:
    path = python("return {'y': np.random.rand(len(i['x']))}")(given)
    done = register(ctx, "dice", path, data=reference.of(GIVEN))
    assert not done.version.capabilities.deterministic and not done.version.capabilities.batchable
    assert any("found not deterministic" in result.detail for result in done.report.results)


def test_some_answers_may_be_no_number(ctx: Context, given: Path) -> None:
    gappy = ROWS.copy()
    gappy[::2] = np.nan
    path = python(SUM)(given)
    register(ctx, "gaps", path, data=reference.of({"x": gappy}))  # a gap for each gap
    gappy[1::2] = np.nan
    register(ctx, "gaps", path, data=reference.of({"x": gappy}))  # no row without one: nothing is known
    path = python("return {'y': np.where(i['x'][:, 0] > 100, np.nan, 1.0)}")(given)
    done = register(ctx, "some", path, data=reference.of(GIVEN))
    assert any("'y' NaN in 32 of 128" in result.detail for result in done.report.results), done.report


def test_what_takes_long_is_told(ctx: Context, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_process, "TOLD_EVERY_S", 0.5)
    said: list[str] = []
    done = register(
        ctx,
        "slow",
        on_load("time.sleep(1.6)")(given),
        data=reference.of(GIVEN),
        time_s=60,
        progress=said.append,
    )
    assert done.version.profile.load_s >= 1.6
    assert len([words for words in said if "s of at most 60 s" in words]) >= 2, said


def test_what_prints_megabytes_registers(ctx: Context, given: Path) -> None:
    path = on_load("[print('x' * 1_000_000) for _ in range(20)]")(given)
    assert register(ctx, "loud", path, data=reference.of(GIVEN)).number == "1"


def test_letters_of_all_languages(ctx: Context, given: Path) -> None:
    frame = pd.DataFrame({"größe": [1.0, 2.0, 3.0], "名前": ["a", "b", "ü"], "naïve 🙂": [1, 2, 3]})
    (given / "数据.csv").write_text(frame.to_csv(index=False))
    path = python("return {'größe²': i['größe'] ** 2}", signature=False)(given).rename(given / "模型.py")
    done = register(ctx, "модель 🙂", path, data=given / "数据.csv", target="naïve 🙂")
    assert done.version.signature.columns == ("größe", "名前")
    assert ctx.ledger.version("модель 🙂", "1") == done.version
    assert done.version.entry == "模型.py:A" and [o.name for o in done.version.signature.outputs] == [
        "größe²"
    ]


@pytest.mark.parametrize(
    ("width", "named"),
    [
        (10_000, True),
        pytest.param(10_000, False, marks=pytest.mark.soak),
    ],
)
def test_thousands_of_columns_of_numbers(ctx: Context, width: int, named: bool) -> None:
    random = np.random.default_rng(0)
    rows: Any = random.normal(size=(60, width))
    if named:
        rows = pd.DataFrame(rows, columns=[f"c{index}" for index in range(width)])
    began = time.perf_counter()
    done = register(ctx, "wide", LinearRegression().fit(rows, np.arange(60.0)), data=reference.of(rows))
    assert done.version.signature.inputs[0].shape == (-1, width)
    assert len(done.version.signature.columns) == (width if named else 0)
    assert time.perf_counter() - began < 100


# What changes behind the back of a registration.


def one_more(ctx: Context, given: Path) -> Registered:
    return register(ctx, "line", write("line.onnx", IDENTITY)(given))


def spoil(folder: Path) -> None:
    path = folder / "line.onnx"
    path.chmod(0o600)
    path.write_bytes(IDENTITY + b"\x00")


def test_changed_bytes_in_the_cache_are_not_loaded_and_are_mended(ctx: Context, given: Path) -> None:
    done = one_more(ctx, given)
    folder = artifact_path(ctx.home, done.version.digest)
    spoil(folder)
    with pytest.raises(DigestMismatch, match=r"has digest sha256.*registered was .*remove the folder"):
        artifacts.verify(ctx.home, done.version.digest)
    again = one_more(ctx, given)  # the same bytes: the bad ones give way
    assert again.version.digest == done.version.digest
    assert artifacts.verify(ctx.home, done.version.digest) == folder
    assert [path.name for path in (ctx.home / "artifacts").iterdir()] == [folder.name]


# The command, as people call it.


def command(home: Path, desk: Path, *arguments: str, code: str = "") -> "subprocess.Popen[str]":
    start = "from interlock.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}\n{start}", "register", "--home", str(home), *arguments],
        env={**os.environ, "TMPDIR": str(desk)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ["it leaves at row 7", "words that cannot be had", "a device"])
def test_the_command_says_it_in_one_line(shared: Context, given: Path, desk: Path, name: str) -> None:
    case = CASES[name]
    arguments = ["m", str(case.make(given))]
    if case.data is not None:
        np.savez(given / "rows.npz", **case.data)
        arguments += ["--data", str(given / "rows.npz")]
    done = command(shared.home, desk, *arguments)
    out, err = done.communicate(timeout=100)
    assert done.returncode == 1 and out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("interlock: ")]
    assert err.splitlines()[-1] == line and "Traceback (most" not in err.replace(line, "")
    assert all(word in line for word in case.words), line
    assert_nothing_left(shared, desk)


def test_a_full_disk_is_said(shared: Context, given: Path, desk: Path) -> None:
    path = write("large.onnx", IDENTITY + bytes(3_000_000))(given)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    done = command(shared.home, desk, "m", str(path), code=limit)
    _, err = done.communicate(timeout=100)
    assert done.returncode == 1
    assert "large.onnx cannot be copied" in err and "File too large" in err and "make room" in err
    assert_nothing_left(shared, desk)


def test_permission_denied_is_said(shared: Context, given: Path, desk: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path = write("closed.onnx", IDENTITY)(given)
    path.chmod(0)
    with pytest.raises(LoadFailed, match=r"closed\.onnx may not be read by this user"):
        register(shared, "m", path)
    assert_nothing_left(shared, desk)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_registration_leaves_nothing(
    shared: Context, given: Path, desk: Path, number: signal.Signals
) -> None:
    begun = given / "begun"
    path = on_load(f"open({str(begun)!r}, 'w'); time.sleep(300)")(given)
    running = command(shared.home, desk, "m", str(path))
    until = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < until and running.poll() is None
    running.send_signal(number)
    running.communicate(timeout=30)
    assert running.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -9)
    while processes_of(desk):
        assert time.monotonic() < until, "the check goes on without anybody to wait for it"
    if number is signal.SIGKILL:
        return  # nobody was left to clear the folder of what it had begun
    assert_nothing_left(shared, desk)


def test_from_python_it_is_the_same_error(shared: Context, given: Path, desk: Path) -> None:
    with pytest.raises(CheckFailed, match="NaN in 128 of 128") as caught:
        interlock.register("m", CASES["NaN alone"].make(given), GIVEN, home=shared.home)
    assert json.dumps(caught.value.message)
    with pytest.raises(UntrustedArtifact):
        interlock.register("m", write("m.pkl", pickle.dumps(FITTED))(given), X, home=shared.home)

    assert_nothing_left(shared, desk)
