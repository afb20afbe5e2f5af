"""Decides in what calls rows are asked offline, and which row is to blame for a call that failed; pure."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from interlock.core.errors import InterlockError, Unsupported
from interlock.core.model import Signature, Version

T = TypeVar("T")


def check_by_rows(version: Version) -> None:
    """Nothing, if the version gives one answer for each row.

    Raises: Unsupported for a version that answers in parts, and for inputs or outputs without a row axis.
    """
    if version.capabilities.streaming:
        raise Unsupported(f"{version.key} answers in parts: there is not one answer for each row")
    signature = version.signature
    for role, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] not in (-1, 1):
                raise Unsupported(
                    f"{version.key}: {role} '{spec.name}' has shape {list(spec.shape)}; to be asked"
                    " row by row its first axis must be -1 or 1"
                )


def rows_a_call(version: Version) -> int:
    """How many rows go into one call: as many as a lane would join, or one where they may not be joined.

    A version that has side effects is asked row by row: when a call of many rows fails, none of them may be
    tried again, and nobody could say which of them was to blame.
    """
    capabilities, signature = version.capabilities, version.signature
    joinable = capabilities.batchable and signature.batch_axis == 0 and capabilities.side_effect_free
    return max(1, capabilities.max_batch_rows) if joinable else 1


def as_asked(signature: Signature) -> Signature:
    """The signature that a call is held to: one row of a model without a batch axis still has one row."""
    return Signature(signature.inputs, signature.outputs, 0, signature.columns)


def calls(rows: int, most_rows: int) -> list[tuple[int, int]]:
    """The rows of each call, [start, stop), in order.

    >>> calls(5, 2), calls(0, 2)
    ([(0, 2), (2, 4), (4, 5)], [])
    """
    return [(start, min(start + most_rows, rows)) for start in range(0, rows, most_rows)]


def separate(
    ask: Callable[[int, int], T | InterlockError], start: int, stop: int
) -> Iterator[tuple[int, int, T | InterlockError]]:
    """Ask for [start, stop), and where that fails for its halves, down to single rows; in order.

    What fails all the same is one row each time. Lazy: whoever has seen enough asks for no more.
    >>> ask = lambda start, stop: InterlockError("2") if start <= 2 < stop else "ok"
    >>> [(start, stop, str(found)) for start, stop, found in separate(ask, 0, 4)]
    [(0, 2, 'ok'), (2, 3, '2'), (3, 4, 'ok')]
    """
    found = ask(start, stop)
    if stop - start <= 1 or not isinstance(found, InterlockError):
        yield start, stop, found
        return
    middle = (start + stop) // 2
    yield from separate(ask, start, middle)
    yield from separate(ask, middle, stop)
