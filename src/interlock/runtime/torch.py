"""Owns PyTorch models: exported programs, TorchScript, and modules in pickles that somebody vouched for."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interlock.core.errors import LoadFailed, MissingExtra
from interlock.core.model import DATATYPES, Array, Signature, Tensors, TensorSpec, Version, datatype_of
from interlock.runtime import examples, framework_tensors
from interlock.runtime.answers import named
from interlock.runtime.torch_files import PROGRAM, SCRIPT, checked_kind

if TYPE_CHECKING:
    import torch


class TorchModel:
    """`call` takes one tensor an input, in the signature's order."""

    def __init__(self, call: Callable[..., Any], signature: Signature) -> None:
        self._torch = torch_package()
        self._torch.set_num_threads(1)
        self._call = call
        self._inputs = tuple((spec, DATATYPES[spec.datatype]) for spec in signature.inputs)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """Raises: InputMismatch, ShapeMismatch; whatever the module raises."""
        with self._torch.inference_mode():
            answers = named(self._call(*[self._tensor(spec, dtype, inputs) for spec, dtype in self._inputs]))
            return {
                name: as_array(answer)
                for name, answer in answers.items()
                if outputs is None or name in outputs
            }

    def close(self) -> None:
        """Let the module go."""
        del self._call

    def _tensor(self, spec: TensorSpec, dtype: "np.dtype[Any]", inputs: Tensors) -> "torch.Tensor":
        # PyTorch shares memory only with arrays that it may write to; others are copied.
        tensor = self._torch.from_numpy(np.require(framework_tensors.taken(spec, inputs), dtype, ["C", "W"]))
        return tensor.bfloat16() if spec.datatype == "BF16" else tensor


class Torch:
    """The runtime `torch`: `entry` is a .pt2, .pt or .pth file.

    `options["trusted_sha256"]`: the SHA-256 of a file that brings code, if somebody vouched for it.
    """

    name = "torch"

    def load(self, folder: Path, version: Version) -> TorchModel:
        """Raises: LoadFailed, MissingExtra, UntrustedArtifact."""
        call, signature = _open(folder / version.entry, version.options)
        if version.signature.inputs:
            signature = version.signature
        elif signature is None:
            raise LoadFailed(f"{version.entry} does not say its inputs' shapes: give reference data (--data)")
        return TorchModel(call, signature)

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """From the program itself; for TorchScript and modules from one call with two rows of `example`.

        Raises: LoadFailed, MissingExtra, UntrustedArtifact.
        """
        call, signature = _open(folder / version.entry, version.options)
        if signature is not None:
            return signature
        if not example:
            raise LoadFailed(
                f"{version.entry} does not say its inputs' shapes: give reference data (--data), or save "
                "torch.export's program, which does"
            )
        return observed(call, example)

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """Nothing: all is found by measurement."""
        return {}


def torch_package() -> Any:
    """The package. Raises: MissingExtra."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(error.name or "torch", "torch") from None
    return torch


def program_call(program: Any) -> tuple[Callable[..., Any], Signature]:
    """An exported program as a function of one tensor an input, and its signature: rows where the program
    leaves the first dimension of all inputs and outputs free. Raises: LoadFailed."""
    from torch.utils import _pytree as pytree

    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs: list[TensorSpec] = []
    leaves: list[Any] = []
    free: list[int] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name != "USER_INPUT":
            continue
        if hasattr(spec.arg, "value"):
            leaves.append(spec.arg.value)  # an argument that was fixed when the program was made
            continue
        inputs.append(_spec(spec.arg.name, values.get(spec.arg.name)))
        free.append(len(leaves))
        leaves.append(None)
    output = next(node for node in program.graph.nodes if node.op == "output").args[0]
    answers = [
        None if node is None else values.get(getattr(node, "name", ""))
        for node, spec in zip(output, program.graph_signature.output_specs, strict=True)
        if spec.kind.name == "USER_OUTPUT"
    ]
    answered = named(pytree.tree_unflatten(answers, program.call_spec.out_spec))
    outputs = tuple(_spec(name, value) for name, value in answered.items())
    if not inputs or not outputs:
        raise LoadFailed(f"the program has {len(inputs)} inputs and {len(outputs)} outputs that are tensors")
    # Not by calling the module: its hooks take 0.2 ms to check shapes, which we hold to the signature.
    # Its guards are Python text from the file, which nobody needs to run.
    module = program.module(check_guards=False).forward
    in_spec = program.call_spec.in_spec
    positions, named_positions = pytree.tree_unflatten(list(range(len(leaves))), in_spec)
    rows = all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    signature = Signature(tuple(inputs), outputs, 0 if rows else None)
    if not named_positions and list(positions) == free:
        return module, signature

    def call(*tensors: Any) -> Any:
        filled = list(leaves)
        for index, tensor in zip(free, tensors, strict=True):
            filled[index] = tensor
        args, kwargs = pytree.tree_unflatten(filled, in_spec)
        return module(*args, **kwargs)

    return call, signature


def arguments_of(module: Any) -> tuple[tuple[str, ...], int]:
    """The names of the tensors that `forward` takes, and how many of them, from the left, it must have."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:
        found = [(a.name, a.has_default_value()) for a in schema.arguments if a.name != "self"]
    else:
        found = [
            (name, parameter.default is not parameter.empty)
            for name, parameter in inspect.signature(module.forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
    return tuple(name for name, _ in found), sum(not has_default for _, has_default in found)


def as_inputs(module: Any, example: Tensors) -> Tensors:
    """Two rows of reference data as arrays for `forward`'s arguments, in their order; numbers with a point in
    the module's own precision. Raises: LoadFailed if the names do not fit."""
    names, least = arguments_of(module)
    if set(example) == {examples.ONLY} and least == 1:
        example = {names[0]: example[examples.ONLY]}
    wanted = [name for name in names if name in example]
    if (
        wanted[:least] != list(names[:least])
        or set(example) - set(names)
        or tuple(wanted) != names[: len(wanted)]
    ):
        raise LoadFailed(
            f"the module's forward takes {list(names)} ({least} of them required), the reference data have "
            f"{sorted(example)}: give a dict, or an .npz, with one array an argument"
        )
    floats = next((p.dtype for p in module.parameters() if p.dtype.is_floating_point), None)
    precise = DATATYPES[framework_tensors.datatype_of(floats) or "FP32"]
    rows = examples.take({name: np.asarray(example[name]) for name in wanted}, 0, 2)
    return {name: array.astype(precise) if array.dtype.kind == "f" else array for name, array in rows.items()}


def observed(call: Callable[..., Any], example: Tensors) -> Signature:
    """The signature of a module that does not know its own, from one call with two rows.

    Raises: LoadFailed with the module's own words.
    """
    torch = torch_package()
    inputs = as_inputs(call, example)
    try:
        with torch.inference_mode():
            answers = named(
                call(*[torch.from_numpy(np.require(a, None, ["C", "W"])) for a in inputs.values()])
            )
    except Exception as error:
        given = ", ".join(f"{name!r} {array.dtype} {list(array.shape)}" for name, array in inputs.items())
        raise LoadFailed(
            f"the module raised on the reference data: {type(error).__name__}: {str(error)[:500]}; it was "
            f"given {given}"
        ) from error
    batched = all(answer.ndim and len(answer) == 2 for answer in answers.values())
    return Signature(
        tuple(_with_rows(_spec_of_array(name, array), batched) for name, array in inputs.items()),
        tuple(_with_rows(_spec(name, answer), batched) for name, answer in answers.items()),
        0 if batched else None,
    )


def as_array(tensor: Any) -> Array:
    """A tensor's values without a copy, where NumPy has the type; bfloat16 as float32."""
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    array: Array = tensor.numpy(force=True)
    return array


def open_program(path: Path, options: dict[str, Any]) -> tuple[Any, Callable[..., Any], Signature]:
    """The program in a .pt2 file, as a function of its inputs, and its signature.

    Raises: LoadFailed, MissingExtra, UntrustedArtifact.
    """
    checked_kind(path, options)
    torch = torch_package()
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise LoadFailed(
            f"PyTorch cannot load {path.name}: {type(error).__name__}: {str(error)[:600]}"
        ) from error
    return program, *program_call(program)


def _open(path: Path, options: dict[str, Any]) -> tuple[Callable[..., Any], Signature | None]:
    kind = checked_kind(path, options)
    torch = torch_package()
    try:
        if kind == PROGRAM:
            return open_program(path, options)[1:]
        if kind == SCRIPT:
            return torch.jit.load(str(path), map_location="cpu").eval(), None
        module = torch.load(path, map_location="cpu", weights_only=False)  # by digest, or refused above
        if not isinstance(module, torch.nn.Module):
            raise LoadFailed(f"{path.name} holds a {type(module).__name__}, want an nn.Module")
        return module.eval(), None
    except LoadFailed:
        raise
    except Exception as error:
        hint = ""
        if isinstance(error, AttributeError | ImportError):
            hint = "; its class must be importable where it is served: save torch.export's program instead"
        raise LoadFailed(
            f"PyTorch cannot load {path.name}: {type(error).__name__}: {str(error)[:600]}{hint}"
        ) from error


def _spec(name: str, value: Any) -> TensorSpec:
    datatype = framework_tensors.datatype_of(getattr(value, "dtype", ""))
    if datatype is None:
        said = getattr(value, "dtype", None) or type(value).__name__
        known = sorted(set(framework_tensors.DATATYPES_BY_NAME.values()) - {"BYTES"})
        raise LoadFailed(f"{name!r} is {said}, want a tensor of {known}")
    return TensorSpec(name, datatype, tuple(d if isinstance(d, int) else -1 for d in value.shape))


def _spec_of_array(name: str, array: Array) -> TensorSpec:
    return TensorSpec(name, datatype_of(array), array.shape)


def _with_rows(spec: TensorSpec, batched: bool) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:]) if batched else spec.shape)


runtime = Torch()
