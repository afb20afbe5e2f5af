"""Decides how an nn.Module becomes an exported program with free rows, and a program an ONNX graph."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from interlock.core.errors import LoadFailed
from interlock.core.model import Signature, Tensors
from interlock.runtime.convert import first_line
from interlock.runtime.torch import as_inputs, torch_package


def export(module: Any, example: Tensors) -> Any:
    """A module as a torch.export program whose first dimension is free, from two rows of `example`.

    The module comes back in the mode (training or not) that it was in.
    Raises: LoadFailed with PyTorch's words and the remedy; MissingExtra.
    """
    torch = torch_package()
    inputs = as_inputs(module, example)
    # from_numpy would share the user's own rows with what the module may write to
    tensors = tuple(torch.tensor(array) for array in inputs.values())
    rows = torch.export.Dim("rows", min=1)
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with _quiet():
            program = torch.export.export(
                module, tensors, dynamic_shapes=tuple({0: rows} for _ in tensors), strict=False
            )
    except Exception as error:
        given = ", ".join(f"{name!r} {array.dtype} {list(array.shape)}" for name, array in inputs.items())
        raise LoadFailed(
            f"torch.export cannot make a program with free rows of this {type(module).__name__}: "
            f"{type(error).__name__}: {first_line(error)}; it was given {given}. Take branches on values and "
            "fixed row counts out of forward, or call torch.export.export yourself and register its .pt2 file"
        ) from error
    finally:
        for part, was_training in modes:
            part.training = was_training
    # Else the reference rows and the paths of the sources would be in the artifact.
    program._example_inputs = None
    for graph in [part.graph for part in program.graph_module.modules() if hasattr(part, "graph")]:
        for node in graph.nodes:
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                node.meta.pop(key, None)
    return program


def saved(program: Any) -> bytes:
    """The bytes of a .pt2 file."""
    buffer = io.BytesIO()
    with _quiet():
        torch_package().export.save(program, buffer)
    return buffer.getvalue()


def conversions(program: Any, signature: Signature) -> Iterator[bytes]:
    """The program as an ONNX graph, its ends named as in the signature.

    Raises: LoadFailed where it cannot be tried; whatever the exporter raises.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise LoadFailed("onnxscript, which converts it, is not installed")
    inputs, outputs = (tuple(spec.name for spec in specs) for specs in (signature.inputs, signature.outputs))
    yield _to_onnx(program, inputs, outputs)


def _to_onnx(program: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> bytes:
    torch = torch_package()
    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
    return bytes(made.model_proto.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of the exporters' talk: what matters comes back as an error or in the report."""
    loggers = [
        logging.getLogger(name) for name in ("torch.export", "torch.onnx", "torch._export", "onnxscript")
    ]
    before = [(logger, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
