"""Holds `register` and `resolve` for PyTorch: modules, files, and versions that plain MLflow registered."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interlock.core.errors import ConfigError, LoadFailed, UntrustedArtifact
from interlock.core.model import Placement, artifact_path
from interlock.operations import reference
from interlock.operations.context import Context, open_context
from interlock.operations.register import register, register_model
from interlock.operations.resolve import resolve
from interlock.runtime import torch_program
from interlock.runtime.catalog import runtime_of
from tests.runtime import models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROWS = reference.of(models.X)


@pytest.fixture
def ctx(home_with_store: Path) -> Iterator[Context]:
    context = open_context(home_with_store)
    yield context
    context.close()


def answers(ctx: Context, version: Any) -> np.ndarray[Any, Any]:
    folder = artifact_path(ctx.home, version.digest)
    loaded = runtime_of(version.runtime).load(folder, version)
    name = version.signature.inputs[0].name
    rows = models.X.astype(np.float32)
    # One by one where the program was exported with one row.
    parts = [rows] if version.signature.batch_axis == 0 else [rows[at : at + 1] for at in range(len(rows))]
    return np.concatenate([loaded.predict({name: part})["output"] for part in parts])


def wanted() -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found: np.ndarray[Any, Any] = (
            models.torch_mlp().eval()(torch.tensor(models.X, dtype=torch.float32)).numpy()
        )
    return found


def test_a_module_from_python_becomes_a_version(home_with_store: Path, ctx: Context) -> None:
    module = models.torch_mlp()
    done = register_model("mlp", module, models.X, home=home_with_store)
    assert module.training  # as it was
    version, conversion = done.version, done.conversion
    assert conversion is not None and conversion.rows >= 1000 and conversion.difference is not None
    assert version.runtime == ("onnx" if conversion.converted else "torch"), conversion
    assert conversion.reason.startswith("converted" if conversion.converted else "kept as PyTorch")
    assert version.signature.inputs[0].shape == (-1, 4) and version.capabilities.batchable
    np.testing.assert_allclose(answers(ctx, version), wanted(), atol=1e-5)
    with pytest.raises(ConfigError, match=r"interlock\.register\(name, module, X\)"):
        register_model("other", module, home=home_with_store)
    assert ctx.registry.models() == ["mlp"]


def test_files_are_kept_as_they_are_without_rows(ctx: Context, tmp_path: Path) -> None:
    program = tmp_path / "model.pt2"
    program.write_bytes(torch_program.saved(torch_program.export(models.torch_mlp(), {"*": models.X})))
    done = register(ctx, "mlp", program)
    assert done.version.runtime == "torch" and done.version.placement is Placement.EXECUTOR
    assert done.conversion is not None and "without reference data" in done.conversion.reason
    assert (artifact_path(ctx.home, done.version.digest) / "model.pt2").read_bytes() == program.read_bytes()
    np.testing.assert_allclose(answers(ctx, done.version), wanted(), atol=1e-6)
    script = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(models.torch_mlp().eval()), script)
    scripted = register(ctx, "script", script, data=ROWS)
    assert scripted.version.runtime == "torch" and scripted.conversion is None
    np.testing.assert_allclose(answers(ctx, scripted.version), wanted(), atol=1e-6)


def test_pickles_need_trust_and_weights_a_module(ctx: Context, tmp_path: Path) -> None:
    whole, weights = tmp_path / "model.pth", tmp_path / "weights.pt"
    torch.save(models.torch_mlp().eval(), whole)
    torch.save(models.torch_mlp().state_dict(), weights)
    with pytest.raises(UntrustedArtifact, match="--trust"):
        register(ctx, "mlp", whole, data=ROWS)
    for trust in (False, True):
        with pytest.raises(LoadFailed, match="weights only"):
            register(ctx, "mlp", weights, data=ROWS, trust=trust)
    assert ctx.registry.models() == [] and ctx.ledger.versions() == []
    done = register(ctx, "mlp", whole, data=ROWS, trust=True)
    assert set(done.version.options) == {"trusted_sha256"}
    elsewhere = open_context(tmp_path / "home", tracking_uri=ctx.registry.tracking_uri)
    with pytest.raises(UntrustedArtifact, match="--trust"):
        resolve(elsewhere, "mlp")  # that somebody vouched for it here counts here only
    elsewhere.close()
    np.testing.assert_allclose(answers(ctx, done.version), wanted(), atol=1e-6)


@pytest.mark.parametrize("rows", [1, "free"])
def test_a_version_of_mlflows_pytorch_flavor_is_read(rows: Any, ctx: Context) -> None:
    log(ctx, "plain", models.torch_mlp().eval(), rows)
    version = resolve(ctx, "plain")
    assert (version.runtime, version.entry) == ("torch", "data/model.pt2")
    assert version.capabilities.batchable == (rows == "free")
    np.testing.assert_allclose(answers(ctx, version), wanted(), atol=1e-6)


def log(ctx: Context, name: str, module: Any, rows: Any) -> None:
    """As a user of MLflow does, with no word about Interlock."""
    import mlflow
    from mlflow.models import infer_signature

    ctx.registry.models()  # makes the store
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(ctx.registry.tracking_uri)
        mlflow.set_registry_uri(ctx.registry.tracking_uri)
        mlflow.create_experiment("plain", artifact_location=(ctx.home / "plain").as_uri())
        mlflow.set_experiment("plain")
        example = models.X[:1].astype(np.float32) if rows == 1 else models.X[:2].astype(np.float32)
        output = module(torch.tensor(example)).detach().numpy()
        signature = infer_signature(example, output) if rows == "free" else None
        mlflow.pytorch.log_model(
            module, name="model", input_example=example, signature=signature, serialization_format="pt2",
            registered_model_name=name, pip_requirements=["torch"],
        )  # fmt: skip
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(before)
