"""Decides how an nn.Module becomes an exported program with free rows, and whether that runs as ONNX."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from interlock.core.errors import LoadFailed
from interlock.core.model import Tensors
from interlock.runtime import examples
from interlock.runtime.check_limit import rows_within
from interlock.runtime.convert import Conversion, compare, first_line, onnx_session, race
from interlock.runtime.torch import TorchModel, as_inputs, program_call, torch_package

_COMPARED_BYTES = 64 * 1024**2
_CALL_ROWS = 32
"""Rows of one call while the two are compared: images of 1,000 rows at once would not fit."""


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


def convert(program: Any, example: Tensors) -> Conversion:
    """Convert a program to ONNX and compare the two on `example`, its rows repeated or cut to fit in 64 MiB.

    Raises: CheckFailed if the example does not fit the program's inputs.
    """
    call, signature = program_call(program)
    if signature.batch_axis is None:
        return Conversion(None, "its rows are fixed: it was exported without dynamic_shapes")
    if importlib.util.find_spec("onnxscript") is None:
        return Conversion(None, "onnxscript, which converts it to ONNX, is not installed")
    names = tuple(spec.name for spec in signature.outputs)
    rows = examples.fit(signature, example)
    count = min(max(1000, examples.rows_of(rows)), rows_within(rows, _COMPARED_BYTES))
    rows = examples.take(rows, 0, count)
    try:
        made = _to_onnx(program, tuple(rows), names)
        session = onnx_session(made)
        cuts = [examples.take(rows, at, min(_CALL_ROWS, count - at)) for at in range(0, count, _CALL_ROWS)]
        converted = examples.join([dict(zip(names, session.run(names, cut), strict=True)) for cut in cuts])
    except Exception as error:  # onnxscript, the exporter and ONNX Runtime share no root
        return Conversion(
            None, f"it cannot be converted to ONNX: {type(error).__name__}: {first_line(error)}"
        )
    with _one_thread():
        kept = TorchModel(call, signature)
        gap, reason = compare(examples.join([kept.predict(cut) for cut in cuts]), converted, "PyTorch")
        if reason:
            return Conversion(None, reason, count, gap)
        batches = {size: examples.take(rows, 0, size) for size in (1, _CALL_ROWS)}
        kept_s, onnx_s = race(
            lambda chosen: kept.predict(batches[len(chosen)]),
            lambda chosen: session.run(names, batches[len(chosen)]),
            np.arange(_CALL_ROWS),
        )
    slower = [size for size in kept_s if onnx_s[size] >= kept_s[size]]
    if slower:
        return Conversion(None, f"ONNX is not faster at {slower[0]} rows", count, gap, kept_s, onnx_s)
    reason = f"ONNX gives the same answers on {count} rows (largest difference {gap:.2g}), and is faster"
    return Conversion(made, reason, count, gap, kept_s, onnx_s)


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
def _one_thread() -> Iterator[None]:
    """As a model is served; the user's process gets its own number back."""
    torch = torch_package()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


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
