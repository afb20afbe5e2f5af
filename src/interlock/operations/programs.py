"""The part of `register` for PyTorch: a module becomes a program, and a program ONNX where that is better."""

from pathlib import Path

from interlock.core.errors import ConfigError, LoadFailed
from interlock.core.model import Tensors
from interlock.operations import reference as data_of
from interlock.operations.artifact import Given
from interlock.operations.reference import Reference
from interlock.runtime import convert, torch_program
from interlock.runtime.torch import torch_package


def prepare(given: Given, rows: Reference | None) -> tuple[Given, convert.Conversion]:
    """`given.module` as ONNX if that answers the same and faster, else as a program's .pt2 file.

    Raises: ConfigError for a module without reference rows; LoadFailed if it cannot be exported; CheckFailed
    if the rows do not fit; MissingExtra.
    """
    module = given.module
    is_file = isinstance(module, Path)
    torch = torch_package()
    if is_file and rows is not None:
        try:
            program = torch.export.load(module)
        except Exception as error:
            raise LoadFailed(
                f"PyTorch cannot load {module.name}: {type(error).__name__}: {str(error)[:600]}"
            ) from error
    elif isinstance(module, torch.nn.Module):
        if rows is None:
            raise ConfigError(
                "a PyTorch module does not say what it takes: give reference rows, "
                "interlock.register(name, module, X), with X an array or a dict of one array an argument"
            )
        program = torch_program.export(module, rows.inputs)
    else:
        program = module
    if rows is None:
        found = convert.Conversion(None, "without reference data (--data) the conversion cannot be compared")
    else:
        found = torch_program.convert(program, _compared(rows))
    if found.onnx is not None:
        graph = found.onnx
        return Given("onnx", "model.onnx", fill=lambda folder: _write(folder / "model.onnx", graph)), found
    if is_file:
        return given, found  # byte for byte as it was given
    data = torch_program.saved(program)
    return Given("torch", given.entry, fill=lambda folder: _write(folder / given.entry, data)), found


def _compared(rows: Reference) -> Tensors:
    """The rows, with extremes where they are one matrix of numbers."""
    if len(rows.inputs) == 1:
        ((name, matrix),) = rows.inputs.items()
        if matrix.ndim == 2 and matrix.dtype.kind == "f":
            return {name: data_of.widened(matrix, convert.LEAST_ROWS)}
    return rows.inputs


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
