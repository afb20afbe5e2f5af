"""Decides which file of this folder a runtime's name means; each is imported when first asked for."""

import importlib

from interlock.core.errors import UnknownFormat
from interlock.core.model import Version
from interlock.runtime.protocol import Inspector, Loaded, Runtime

RUNTIMES = {
    "onnx": "interlock.runtime.onnx",
    "sklearn": "interlock.runtime.sklearn",
    "python": "interlock.runtime.python",
    "torch": "interlock.runtime.torch",
    "keras": "interlock.runtime.keras",
    "tensorflow": "interlock.runtime.tensorflow",
    "huggingface": "interlock.runtime.huggingface",
    "xgboost": "interlock.runtime.xgboost",
    "lightgbm": "interlock.runtime.lightgbm",
    "catboost": "interlock.runtime.catboost",
}

DATA_ONLY = frozenset({"onnx", "xgboost", "lightgbm"})
"""Runtimes that read data, so that a worker may run them. All others run code of the model's author, or of a
package that does not know how to be one of many in a process."""


def runtime_of(name: str) -> Runtime:
    """The runtime of a `Version.runtime`.

    Raises: UnknownFormat for a name that no file has.
    >>> runtime_of("python").name
    'python'
    """
    try:
        module = RUNTIMES[name]
    except KeyError:
        raise UnknownFormat(f"runtime {name!r}: want one of {sorted(RUNTIMES)}") from None
    runtime: Runtime = importlib.import_module(module).runtime
    return runtime


def with_fault(loaded: Loaded, version: Version) -> Loaded:
    """The model as its version wants it: itself or, in a self-test, one that does wrong on purpose."""
    if version.fault is None:
        return loaded
    from interlock.runtime.fault import Faulty  # no process that serves has this code in it

    return Faulty(loaded, version, version.fault)


def inspector_of(name: str) -> Inspector:
    """The same object, for what is asked of it at registration. Raises: UnknownFormat."""
    inspector: Inspector = runtime_of(name)  # type: ignore[assignment]  # every file of RUNTIMES is both
    return inspector
