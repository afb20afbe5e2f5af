"""Decides whether a version that was loaded answers: one predict on zeros, held to its signature."""

import itertools

import msgspec
import numpy as np

from interlock.core.errors import LoadFailed, OutputMismatch
from interlock.core.expected import Expected
from interlock.core.model import DATATYPES, Tensors, Version
from interlock.runtime.protocol import Loaded, streams_of
from interlock.serving.executor_model import checked


def warm_up(loaded: Loaded, version: Version) -> None:
    """One predict, or the first part of a stream if it has any, on zeros (empty strings) of the signature's
    shapes, one row. Raises: what the model does; LoadFailed, also for an answer that does not fit the
    signature here."""
    inputs: Tensors = {}
    for spec in version.signature.inputs:
        dtype = DATATYPES[spec.datatype]
        shape = [max(length, 1) for length in spec.shape]
        fill = b"" if spec.datatype == "BYTES" else dtype.type(0)
        inputs[spec.name] = np.full(shape, fill, dtype)
    signature, answers = version.signature, list[Tensors]()
    try:
        if version.capabilities.streaming:
            signature = msgspec.structs.replace(signature, batch_axis=None)  # a part has any number of rows
            parts = streams_of(loaded, version).stream(inputs)
            answers.extend(itertools.islice(parts, 1))
            parts.close()
        elif inputs:
            answers.append(loaded.predict(inputs))
        for answer in answers:
            wrong = Expected(signature).wrong(checked(answer), None, 1)
            if wrong is not None:
                raise wrong
    except OutputMismatch as error:
        why = "its libraries may not be those that it was registered with"
        raise LoadFailed(f"warm-up failed: {error.message}; {why}") from error
