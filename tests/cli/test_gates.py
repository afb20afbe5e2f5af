"""gate and loadtest as a CI system runs them: real versions, real nodes, exit codes, report and JUnit."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas
import pytest
from click.testing import CliRunner, Result

from interlock.cli.main import cli
from tests.app.nodes import put_onnx
from tests.operations.versions import put_sklearn, put_slow

pytestmark = pytest.mark.slow  # for those who share the versions, made once


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


@pytest.fixture(scope="module")
def cancer(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A home with four versions: two alike, one that is worse, one with another input; and two holdouts."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    home = tmp_path_factory.mktemp("cancer")
    shutil.copy(empty_store, home / "mlflow.db")
    X, y = load_breast_cancer(return_X_y=True)
    trained, held = slice(0, 200), slice(200, None)
    good = make_pipeline(StandardScaler(), LogisticRegression()).fit(X[trained], y[trained])
    # One column tells little: measured 0.62 of the holdout right, and 0.96 with all.
    bad = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        X[trained] * (np.arange(30) == 9), y[trained]
    )
    for number, model in (("1", good), ("2", good), ("3", bad)):
        put_sklearn(home, "cancer", number, model, X)
    put_sklearn(
        home, "cancer", "4", LogisticRegression(max_iter=5000).fit(X[trained][:, :29], y[trained]), X[:, :29]
    )
    rows = pandas.DataFrame(np.concatenate([X[held]] * 2), columns=[f"c{k}" for k in range(30)])
    rows = rows.assign(site=["a", "b"] * (len(rows) // 2), benign=np.concatenate([y[held]] * 2))
    rows.to_csv(home / "holdout.csv", index=False)
    rows.head(40).to_csv(home / "small.csv", index=False)
    return home


def gate(home: Path, version: str, data: str, *words: str) -> Result:
    asked = (
        "cancer",
        version,
        "--against",
        "1",
        "--data",
        str(home / data),
        "--target",
        "benign",
        "--slice",
        "site",
    )
    return run("gate", *asked, "--home", str(home), *words)


@pytest.mark.server
@pytest.mark.beside
def test_an_equal_version_passes_within_its_budgets(cancer: Path, tmp_path: Path) -> None:
    report, junit = tmp_path / "gate.json", tmp_path / "gate.xml"
    budgets = ("--max-size-mb", "1", "--max-latency-ms", "5000", "--max-latency-ratio", "3")
    found = gate(cancer, "2", "holdout.csv", *budgets,
                 "--slice-factor", "2", "--report", str(report), "--junit", str(junit))  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "gate of cancer version 2 against 1: PASS" in found.output
    said = json.loads(report.read_bytes())
    assert said["outcome"] == "pass" and said["facts"]["metrics"]["candidate"]["accuracy"] > 0.9
    names = [check["name"] for check in said["checks"]]
    assert names[:5] == ["signature", "answers", "data", "accuracy", "log_loss"]
    assert {"accuracy where site = a", "latency", "latency ratio", "size"} <= set(names)
    cases = ElementTree.parse(junit).findall(".//testcase")
    assert [case.get("name") for case in cases] == names


@pytest.mark.server
@pytest.mark.beside
def test_a_worse_version_ends_with_1_and_says_where(cancer: Path, tmp_path: Path) -> None:
    junit = tmp_path / "gate.xml"
    found = gate(cancer, "3", "holdout.csv", "--json", "--junit", str(junit))
    assert found.exit_code == 1, found.output
    said = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    assert said["accuracy"]["outcome"] == "worse"
    assert said["accuracy"]["facts"]["least"] > said["accuracy"]["facts"]["margin"] == 0.01
    failed = [
        case.get("name")
        for case in ElementTree.parse(junit).iter("testcase")
        if case.find("failure") is not None
    ]
    assert "accuracy" in failed and "signature" not in failed


@pytest.mark.server
@pytest.mark.beside
def test_few_rows_are_undecided_with_2_and_told_how_many_would_do(cancer: Path) -> None:
    found = gate(cancer, "2", "small.csv")
    assert found.exit_code == 2, found.output
    assert "UNDECIDED" in found.output and "rows would probably tell" in found.output


@pytest.mark.server
@pytest.mark.beside
def test_a_version_with_another_input_is_worse_without_an_answer(cancer: Path) -> None:
    found = gate(cancer, "4", "small.csv", "--json")
    assert found.exit_code == 1, found.output
    said = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    assert said["signature"]["outcome"] == said["answers"]["outcome"] == "worse"
    assert "cannot answer the holdout" in said["answers"]["words"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nonsense",), "No such option"),
        (("--metric", "accuracy:x"), "want NAME:MARGIN"),
        (("--metric", "mae:1", "--metric", "mae:2"), "name one twice"),
        (("--alpha", "0.7"), "alpha"),
    ],
)
def test_what_is_no_verdict_ends_with_3(cancer: Path, words: tuple[str, ...], said: str) -> None:
    found = gate(cancer, "2", "small.csv", *words)
    assert found.exit_code == 3 and said in found.output


def test_data_and_versions_that_are_not_there_end_with_3_too(cancer: Path) -> None:
    assert gate(cancer, "2", "absent.csv").exit_code == 3
    assert (
        run("gate", "cancer", "2", "--data", str(cancer / "small.csv"), "--home", str(cancer)).exit_code == 3
    )
    found = run(
        "gate", "cancer", "2", "--against", "1", "--data", str(cancer / "small.csv"), "--home", str(cancer)
    )
    assert found.exit_code == 3 and "--target COLUMN" in found.output


def test_the_exit_codes_of_other_commands_are_as_they_were(interlock_home: Path) -> None:
    assert run("models", "--nonsense").exit_code == 2
    assert run("show", "absent").exit_code == 1


@pytest.mark.server
@pytest.mark.beside
def test_a_fast_version_keeps_its_p99_and_nothing_of_its_home_changes(
    interlock_home: Path, tmp_path: Path
) -> None:
    put_onnx(interlock_home, "fast", "1", 2.0)
    before = sorted(path.name for path in interlock_home.iterdir())
    load = ("--rps", "150", "--p99", "2s", "--duration", "4s", "--warm-up", "500ms")
    junit = tmp_path / "load.xml"
    found = run(
        "loadtest", "fast", "1", *load, "--home", str(interlock_home), "--json", "--junit", str(junit)
    )
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert [check["name"] for check in said["checks"]] == ["generator", "p99", "failures", "rate"]
    assert 500 <= said["checks"][1]["facts"]["requests"] <= 700
    assert len(list(ElementTree.parse(junit).iter("testcase"))) == 4
    assert sorted(path.name for path in interlock_home.iterdir()) == before
    events = json.loads(run("events", "--home", str(interlock_home), "--json").stdout)
    assert [event["kind"] for event in events] == ["version.registered"]


@pytest.mark.server
@pytest.mark.beside
def test_a_slow_python_model_does_not_and_ends_with_1(interlock_home: Path) -> None:
    put_slow(interlock_home, "slow", "1")
    load = ("--rps", "12", "--p99", "200ms", "--duration", "2s", "--warm-up", "0s")
    found = run("loadtest", "slow", "1", *load, "--home", str(interlock_home))
    assert found.exit_code == 1, found.output
    assert "WORSE" in found.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--p99", "20"), "a number and its unit"),
        (("--p99", "20ms", "--url", "http://192.0.2.1:8000"), "--allow-remote"),
        (("--p99", "20ms", "--url", "https://127.0.0.1"), "the data port of a node"),
        (("--p99", "20ms", "--url", "http://127.0.0.1:1"), "does not answer"),
        (("--p99", "20ms", "--duration", "0s"), "want up to a day"),
    ],
)
def test_loads_that_cannot_be_end_with_3(interlock_home: Path, words: tuple[str, ...], said: str) -> None:
    put_onnx(interlock_home, "fast", "1", 2.0)
    found = run("loadtest", "fast", "1", "--rps", "10", "--home", str(interlock_home), *words)
    assert found.exit_code == 3 and said in found.output, found.output
