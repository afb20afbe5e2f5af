"""Decides how often our processes look for garbage."""

import gc


def seldom() -> None:
    """Python looks whenever 700 objects are new. Requests and imports make many, and hardly any cycles: it is
    4 % of a request, and a third of a short command."""
    gc.set_threshold(50_000, 20, 50)
