"""Starts an executor process, `python -m interlock.app.executor ARGS`: its imports take 0.2 s of a core."""

import importlib

from interlock.app.gently import gently

if __name__ == "__main__":
    gently(lambda: importlib.import_module("interlock.app.execution")).run()
