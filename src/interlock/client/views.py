"""What a server says of itself and of its models, as a client reads it."""

from typing import Any

import msgspec

from interlock.core.model import TensorSpec


class Tensor(msgspec.Struct, frozen=True):
    """One input or output of a model; -1 where any length is allowed."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] | None = None


class Metadata(msgspec.Struct, frozen=True):
    """What a model takes and gives. `versions` are those that can be asked for."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] = ()
    versions: tuple[str, ...] = ()
    platform: str = ""
    parameters: dict[str, Any] | None = None

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        """The columns of a model that takes a table, each as an input [-1, 1]; () for another model."""
        if len(self.inputs) > 1 and all(spec.shape == (-1, 1) for spec in self.inputs):
            return tuple(TensorSpec(spec.name, spec.datatype, spec.shape) for spec in self.inputs)
        names = (self.inputs[0].parameters or {}).get("columns") if len(self.inputs) == 1 else None
        if not isinstance(names, list):
            return ()
        return tuple(TensorSpec(str(name), self.inputs[0].datatype, (-1, 1)) for name in names)

    @property
    def side_effect_free(self) -> bool:
        """Whether a request may run twice; False where the server does not say."""
        return (self.parameters or {}).get("side_effect_free") is True


class ModelStatus(msgspec.Struct, frozen=True):
    """One version of a model on a server; `state` is READY, LOADING, UNLOADING or UNAVAILABLE."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""
