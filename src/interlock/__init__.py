"""Interlock: a trained model becomes a production service that cannot silently ship a worse version.

This file is the public API: what `__all__` lists, and nothing else. Each name is imported when it is first
used, so that `import interlock` in a worker, or in a notebook that wants one of them, costs next to nothing.
"""

from importlib import import_module

TYPE_CHECKING = False  # importing typing would triple what this file costs a process that starts
if TYPE_CHECKING:
    from interlock.client.aio import AsyncClient as AsyncClient
    from interlock.client.blocking import Client as Client
    from interlock.core import errors as errors
    from interlock.operations.register import register_model as register
    from interlock.operations.releasing import abort as abort
    from interlock.operations.releasing import look as look
    from interlock.operations.releasing import pause as pause
    from interlock.operations.releasing import promote as promote
    from interlock.operations.releasing import release as release
    from interlock.operations.releasing import resume as resume
    from interlock.operations.releasing import rollback as rollback

__version__ = "0.1.0"

# Public name -> where it is defined: "module" for a module itself, "module:attribute" for what one holds.
_EXPORTS = {
    "AsyncClient": "interlock.client.aio:AsyncClient",
    "Client": "interlock.client.blocking:Client",
    "abort": "interlock.operations.releasing:abort",
    "errors": "interlock.core.errors",
    "look": "interlock.operations.releasing:look",
    "pause": "interlock.operations.releasing:pause",
    "promote": "interlock.operations.releasing:promote",
    "register": "interlock.operations.register:register_model",
    "release": "interlock.operations.releasing:release",
    "resume": "interlock.operations.releasing:resume",
    "rollback": "interlock.operations.releasing:rollback",
}

__all__ = [
    "AsyncClient",
    "Client",
    "abort",
    "errors",
    "look",
    "pause",
    "promote",
    "register",
    "release",
    "resume",
    "rollback",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'interlock' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _EXPORTS[name].partition(":")
    found: object = import_module(module)
    if attribute:
        found = getattr(found, attribute)
    globals()[name] = found  # the next access does not come through here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
