"""Decides what a path of the Open Inference Protocol, or the one of feedback, asks for; pure."""

from enum import IntEnum, auto
from urllib.parse import unquote_to_bytes

import msgspec


class Action(IntEnum):
    """What is asked of the server."""

    INFER = auto()
    SERVER = auto()
    LIVE = auto()
    READY = auto()
    METADATA = auto()
    MODEL_READY = auto()
    CONFIG = auto()
    STATISTICS = auto()
    INDEX = auto()
    LOAD = auto()
    UNLOAD = auto()
    FEEDBACK = auto()
    UNSUPPORTED = auto()


class Ask(msgspec.Struct, frozen=True):
    """One path, understood. `model` is "" where none is named, `number` None where no version is.
    `is_infer` repeats `action`, because looking up a member of an enum costs 0.05 us."""

    action: Action
    model: str = ""
    number: str | None = None
    is_infer: bool = False


READS = (b"GET", b"HEAD")
"""The methods of everything that is not a POST."""

POSTS = frozenset((Action.INFER, Action.INDEX, Action.LOAD, Action.UNLOAD, Action.FEEDBACK))

_MODEL_TAILS = {
    (): Action.METADATA,
    ("ready",): Action.MODEL_READY,
    ("infer",): Action.INFER,
    ("config",): Action.CONFIG,
    ("stats",): Action.STATISTICS,
    ("trace", "setting"): Action.UNSUPPORTED,
    ("generate",): Action.UNSUPPORTED,
    ("generate_stream",): Action.UNSUPPORTED,
}
_FIXED = {
    (): Action.SERVER,
    ("health", "live"): Action.LIVE,
    ("health", "ready"): Action.READY,
    ("models", "stats"): Action.STATISTICS,
    ("repository", "index"): Action.INDEX,
    ("logging",): Action.UNSUPPORTED,
    ("trace", "setting"): Action.UNSUPPORTED,
}
_SHARED_MEMORY = ("systemsharedmemory", "cudasharedmemory")


def understand(path: bytes) -> Ask | None:
    """What `path` (percent-escapes as sent) asks for; None if it is none of ours.

    As in Triton, the statistics of all models shadow the metadata of a model that is called 'stats'.
    >>> understand(b"/v2/models/my%20model/versions/3/infer")
    Ask(action=<Action.INFER: 1>, model='my model', number='3', is_infer=True)
    """
    try:
        parts = tuple(unquote_to_bytes(part).decode() for part in path.rstrip(b"/").split(b"/"))
    except UnicodeDecodeError:
        return None
    if parts == ("", "feedback"):
        return Ask(Action.FEEDBACK)
    if parts[:2] != ("", "v2"):
        return None
    parts = parts[2:]
    fixed = _FIXED.get(parts)
    if fixed is not None:
        return Ask(fixed)
    match parts:
        case (memory, *_) if memory in _SHARED_MEMORY:
            return Ask(Action.UNSUPPORTED)
        case ("repository", "models", model, "load") if model:
            return Ask(Action.LOAD, model)
        case ("repository", "models", model, "unload") if model:
            return Ask(Action.UNLOAD, model)
        case ("models", model, "versions", number, *tail) if model and number:
            action = _MODEL_TAILS.get(tuple(tail))
            return None if action is None else Ask(action, model, number, action is Action.INFER)
        case ("models", model, *tail) if model:
            action = _MODEL_TAILS.get(tuple(tail))
            return None if action is None else Ask(action, model, None, action is Action.INFER)
    return None
