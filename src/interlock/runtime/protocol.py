"""The Runtime protocol: how a folder of files becomes something that predicts."""

from pathlib import Path
from typing import Protocol

from interlock.core.model import Tensors, Version


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
