"""The commands show and diff: their text, their JSON, their exit codes; offline and through a node."""

import json
import re
from collections.abc import Iterator

import msgspec
import pytest
from click.testing import CliRunner, Result

from interlock.cli.main import cli
from interlock.core.letters import VersionState
from interlock.core.model import Profile, Signature, TensorSpec, Version
from interlock.core.provenance import Check, Code, Dataset, Environment, Provenance, Quality, Tracked
from interlock.operations.context import Context
from tests.api.servers import served
from tests.operations.homes import a_home, a_node, a_report, a_status, a_version

NODE = a_node(a_report("worker-0", a_status("iris", "1", VersionState.READY)))
DVC = Tracked("/d/rows.csv.dvc", "/d/rows.csv", "e5eb", False, "abc123", False)


def version(number: str, **changes: object) -> Version:
    profile = Profile({1: 1.25e-5, 32: 4e-5}, 0.0033, 331776, 526, {1: 2301952, 32: 2301952})
    return msgspec.structs.replace(a_version("iris", number), profile=profile, **changes)


FIRST = Provenance(
    dataset=Dataset("sha256:aa", 150, "/d/rows.csv", {"x": "FP64", "kind": "INT64"}, "kind", 4096, DVC),
    code=Code("c0ffee", "/src/iris", "main", True, "https://example.org/iris.git"),
    environment=Environment("3.11.7", "Linux", {"numpy": "2.4.6", "onnx": "1.19"}),
    quality=Quality("classification", 150, {"accuracy": 0.97, "log_loss": 0.12}, {"roc_auc": "no row is of class 2"}),  # noqa: E501
    checks=(Check("loads", True, "3.3 ms"),),
    interlock="0.1.0",
)  # fmt: skip
SECOND = msgspec.structs.replace(
    FIRST,
    dataset=Dataset("sha256:bb", 160, "/d/rows.csv", {"x": "FP64", "kind": "INT64"}, "kind", 4096),
    environment=Environment("3.11.7", "Linux", {"numpy": "2.4.7", "skops": "0.16"}),
    quality=Quality("classification", 160, {"accuracy": 0.98, "log_loss": 0.15}),
)


@pytest.fixture
def ctx(interlock_home: object) -> Iterator[Context]:
    context = a_home(interlock_home)  # type: ignore[arg-type]
    context.ledger.put_version(version("1"), 1000.0, provenance=FIRST)
    wider = Signature((TensorSpec("x", "FP32", (-1, 5)),), a_version("iris", "2").signature.outputs)
    context.ledger.put_version(version("2", signature=wider), 2000.0, provenance=SECOND)
    yield context
    context.close()


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


SHOWN = """\
iris version 1
warning: the data are not those that /d/rows.csv.dvc names (MD5 e5eb): dvc commit, or checkout

version
  registered  WHEN
  digest      DIGEST
  runtime     onnx, inline
  size        526 B

signature
  input x   FP32 [-1, 4]
  output y  INT64 [-1]

quality on the 150 reference rows (classification)
  accuracy  0.97
  log_loss  0.12
  roc_auc   absent: no row is of class 2

measured at registration
  1 rows   12.5 us, at most 2.2 MiB
  32 rows  40.0 us, at most 2.2 MiB
  load     3.3 ms, then 324.0 KiB

capabilities
  batchable         True
  deterministic     True
  side effect free  True
  thread safe       False
  streaming         False
  max batch rows    256
  tolerance         1e-05

checks
  loads  passed  3.3 ms

data
  location      /d/rows.csv
  digest        sha256:aa
  rows          150, 4.0 KiB
  columns       2
  target        kind
  DVC file      /d/rows.csv.dvc
  DVC MD5       e5eb (the data do NOT match it)
  DVC revision  abc123

code
  commit  c0ffee with changes
  branch  main
  remote  https://example.org/iris.git
  folder  /src/iris

environment
  python    3.11.7
  platform  Linux
  packages  2; --json lists them
"""


def test_show_tells_all_that_is_recorded_without_mlflow(ctx: Context) -> None:
    done = run("show", "iris", "1")
    assert done.exit_code == 0, done.output
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "WHEN", done.stdout)
    assert re.sub(r"sha256:[0-9a-f]{64}", "DIGEST", text) == SHOWN
    assert run("show", "iris").stdout.startswith("iris version 2\n")
    assert (
        msgspec.convert(json.loads(run("show", "iris", "1", "--json").stdout)["provenance"], Provenance)
        == FIRST
    )


DIFFERENCE = """\
iris: from version 1 to version 2
warning: version 1: the data are not those that /d/rows.csv.dvc names (MD5 e5eb): dvc commit, or checkout

metrics
  reference_accuracy  0.97 -> 0.98  (+0.01, better)
  reference_log_loss  0.12 -> 0.15  (+0.03, worse)

signature: INCOMPATIBLE
  input x  FP32 [-1, 4] -> FP32 [-1, 5]  (breaks)

size
  files           526 B -> 526 B  (x 1.00)
  after the load  324.0 KiB -> 324.0 KiB  (x 1.00)

latency, one call
  1 rows   12.5 us -> 12.5 us  (x 1.00)
  32 rows  40.0 us -> 40.0 us  (x 1.00)

memory during a call
  1 rows   2.2 MiB -> 2.2 MiB  (x 1.00)
  32 rows  2.2 MiB -> 2.2 MiB  (x 1.00)

data: others
  digest        sha256:aa -> sha256:bb
  rows          150 -> 160
  DVC MD5       e5eb -> none
  DVC revision  abc123 -> none

environment
  numpy  2.4.6 -> 2.4.7
  skops  added 0.16
  onnx   removed 1.19
"""


def test_diff_tells_what_changes_and_ends_as_it_was_asked_to(ctx: Context) -> None:
    done = run("diff", "iris", "1", "2")
    assert (done.exit_code, done.stdout) == (0, DIFFERENCE)
    assert run("diff", "iris", "1", "2", "--exit-code").exit_code == 1
    assert run("diff", "iris", "1", "1", "--exit-code").exit_code == 0
    found = json.loads(run("diff", "iris", "1", "2", "--json").stdout)
    assert (found["compatible"], found["environment"]["added"]) == (False, {"skops": "0.16"})


def test_versions_lists_the_first_metric(ctx: Context) -> None:
    assert "accuracy 0.98" in run("versions", "iris").stdout.splitlines()[1]
    assert json.loads(run("versions", "iris", "--json").stdout)[1]["quality"] == 0.97


def test_what_nobody_knows_is_an_error(ctx: Context) -> None:
    done = run("show", "iris", "7")
    assert done.exit_code == 1 and "no version 7 of model 'iris'" in done.stderr
    assert run("diff", "iris", "1", "7").exit_code == 1


def test_a_node_tells_the_same(ctx: Context) -> None:
    with served(ctx, NODE) as api:
        assert run("show", "iris", "1", "--url", api.url).stdout == run("show", "iris", "1").stdout
        assert run("show", "iris", "--url", api.url).stdout.startswith("iris version 2\n")
        assert run("diff", "iris", "1", "2", "--url", api.url).stdout == DIFFERENCE
        done = run("show", "iris", "7", "--url", api.url)
        assert done.exit_code == 1 and "no version 7 of model 'iris'" in done.stderr
        assert api.ask("GET", "/api/models/iris/versions/newest")[1]["number"] == "2"


@pytest.mark.slow
def test_a_registry_that_is_down_costs_only_its_own_part(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = run("show", "iris", "1")
    assert done.exit_code == 0, done.output
    assert "warning: without MLflow's part: the registry" in done.stdout and "c0ffee" in done.stdout
    assert run("show", "iris", "@champion").exit_code == 1
