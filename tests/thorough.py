"""Decides how many examples a property test takes: all that its author chose, or a share in `make check`."""

from hypothesis import settings

FULL = 100
"""What the profile of `make test` takes where a test says nothing."""


def examples(number: int) -> int:
    """The share of `number` that the profile in force asks for, at least one.

    `settings(max_examples=examples(500))` is 500 examples in `make test` and 100 in `make check`.
    """
    return max(number * settings().max_examples // FULL, 1)
