"""The Runtime protocol: how a folder of files becomes something that predicts."""

from pathlib import Path
from typing import Any, Protocol

from interlock.core.model import Signature, Tensors, Version


class Loaded(Protocol):
    """A model in memory. Used by one thread at a time unless the Capabilities say thread-safe."""

    def predict(self, inputs: Tensors, outputs: tuple[str, ...] | None = None) -> Tensors:
        """One batch: every input has the same rows on the batch axis, and so has every output.

        `outputs` limits what is computed; None means all of the signature's.
        Raises: whatever the model raises; the lane turns it into PredictFailed.
        """
        ...

    def close(self) -> None:
        """Give the memory back. Nothing is called afterwards."""
        ...


class Runtime(Protocol):
    """One framework. `name` is what `Version.runtime` holds."""

    name: str

    def load(self, folder: Path, version: Version) -> Loaded:
        """Read `folder / version.entry` into memory, ready for the first predict.

        `version.signature` may be empty (no inputs) while a model is being registered: see `inspect`.
        Raises: LoadFailed, MissingExtra, UntrustedArtifact.
        """
        ...


class Inspector(Protocol):
    """What a runtime knows of an artifact before there is a Version record; every Runtime is one."""

    def inspect(self, folder: Path, version: Version, example: Tensors | None) -> Signature:
        """The signature as the framework tells it, helped by a few rows of reference data.

        Raises: LoadFailed, MissingExtra, UntrustedArtifact.
        """
        ...

    def declared(self, folder: Path, version: Version) -> dict[str, Any]:
        """The Capabilities that are promised, by field name; the check holds the model to them."""
        ...
