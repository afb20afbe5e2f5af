"""The Runtime protocol: how a folder of files becomes something that predicts."""

from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from interlock.core.errors import LoadFailed
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


@runtime_checkable
class Streams(Loaded, Protocol):
    """A model that answers in parts; the lane asks it for nothing else where the Capabilities say streaming.

    One stream at a time, from `stream` until the generator ends or is closed.
    """

    def stream(
        self, inputs: Tensors, outputs: tuple[str, ...] | None = None
    ) -> Generator[Tensors, None, None]:
        """One request. Each part holds all outputs (those in `outputs`, if given), each with the datatype and
        rank of the signature, -1 meaning any length, rows included. A part is the caller's from then on: do
        not write to its arrays again. `close` on the generator means that nobody wants the rest.

        Raises: whatever the model raises, before the first part or between two.
        """
        ...


def streams_of(loaded: Loaded, version: Version) -> Streams:
    """The model itself, if it can stream. Raises: LoadFailed."""
    if not isinstance(loaded, Streams):
        raise LoadFailed(
            f"{version.key} is recorded as streaming, and what its runtime '{version.runtime}' loaded has no"
            " `stream`; register it again"
        )
    return loaded


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


@runtime_checkable
class WithExample(Protocol):
    """A runtime whose artifacts may bring rows of their own, on which they are checked."""

    def example(self, folder: Path, version: Version) -> Tensors | None:
        """Those rows by input or column, None if there are none. It runs nothing of the model's."""
        ...
