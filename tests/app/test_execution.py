"""A real node's executor refuses, before any swap, a version that could not serve; the old one goes on."""

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from interlock.core.model import Placement, Profile, Signature, TensorSpec, artifact_path
from interlock.registry.ledger import Ledger
from interlock.registry.rows import ReleaseState
from tests.app.nodes import SIGNATURE, RunningNode, put_onnx

pytestmark = [pytest.mark.server, pytest.mark.beside, pytest.mark.timeout(180)]

UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "no memory": ({"profile": Profile(resident_bytes=1 << 60)}, "MB of memory, "),
    "outputs": (
        {"signature": Signature(SIGNATURE.inputs, (TensorSpec("y", "FP64", (-1, 2)),))},
        "warm-up failed: output 'y' has dtype float32, the signature wants float64",
    ),
}


def put_changed(home: Path, number: str, **changes: Any) -> None:
    """Record a version whose record is not what its artifact would have given."""
    aside = home.with_name(f"aside-{number}")
    version = put_onnx(aside, "big", number, 1.0 + int(number), Placement.EXECUTOR)
    artifact_path(aside, version.digest).rename(artifact_path(home, version.digest))
    ledger = Ledger(home / "ledger.db")
    ledger.put_version(replace(version, **changes), time.time())
    ledger.close()


def test_a_version_that_could_not_serve_fails_its_release_and_the_old_one_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    put_onnx(home, "big", "1", 2.0, Placement.EXECUTOR)
    for number, (changes, _) in enumerate(UNFIT.values(), 2):
        put_changed(home, str(number), **changes)
    with RunningNode(home) as node:
        node.wait_ready()
        assert node.release("big", "1").state is ReleaseState.DONE
        for number, (_, said) in enumerate(UNFIT.values(), 2):
            row = node.release("big", str(number))
            assert row.state is ReleaseState.FAILED and said in row.reason, row
            assert node.answers("big", 4.0)
