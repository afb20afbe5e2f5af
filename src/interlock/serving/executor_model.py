"""Holds a model in an executor to its form: whatever its code does becomes tensors or a Trouble."""

import logging
import resource
from collections.abc import Generator

import numpy as np

from interlock.core.errors import InterlockError, OutputMismatch, PredictFailed
from interlock.core.model import Array, Tensors
from interlock.runtime.protocol import Streams
from interlock.serving.executor_arena import Arena, Run, Trouble, read

_log = logging.getLogger(__name__)


def checked(outputs: object) -> Tensors:
    """What a model returned, if it is tensors. Raises: OutputMismatch."""
    if not isinstance(outputs, dict):
        raise OutputMismatch(f"predict returned {type(outputs).__name__}, want a dict of arrays")
    for name, array in outputs.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise OutputMismatch(f"predict returned {type(array).__name__} for {name!r}, want an array")
    tensors: dict[str, Array] = outputs
    return tensors


def parts_of(model: Streams, arena: Arena, run: Run) -> Generator[Tensors, None, None]:
    """The stream that answers a message: views of its arena are its inputs."""
    yield from model.stream(read(arena, run.pieces, copy=False), run.outputs)


def next_part(parts: Generator[Tensors, None, None]) -> tuple[Tensors | None, Trouble | None]:
    """The next part, or None at the end, or why there is none."""
    try:
        part = next(parts, None)
        return None if part is None else checked(part), None
    except MemoryError as error:
        return None, exhausted("the model wants more memory than it may have", error)
    except BaseException as error:  # SystemExit too: a model may not end the process that way
        return None, trouble_of(error)


def close(parts: Generator[Tensors, None, None]) -> None:
    """Tell a stream that nobody wants the rest."""
    try:
        parts.close()
    except BaseException as error:  # nobody waits for this stream any more
        _log.warning("a stream was stopped, and its model raised: %s", trouble_of(error).message)


def exhausted(what: str, error: MemoryError) -> Trouble:
    """`what` there was no memory for. Python's own MemoryError mostly has no words; the limit is told."""
    most_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
    limit = "" if most_bytes == resource.RLIM_INFINITY else f": its process has {most_bytes >> 20:,} MiB"
    words = f" ({str(error)[:500]})" if str(error) else ""
    hint = "send fewer rows, or raise executor_memory_bytes in the app file"
    return Trouble("MemoryExhausted", f"{what}{limit}{words}; {hint}")


def trouble_of(error: BaseException) -> Trouble:
    """What a model raised, with its type and its words, bounded."""
    if isinstance(error, InterlockError):
        return Trouble(type(error).__name__, error.message[:2000])
    return Trouble(PredictFailed.__name__, f"the model raised {type(error).__name__}: {str(error)[:500]}")
