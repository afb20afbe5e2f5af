"""Runtimes: one file per framework, one contract suite that all of them pass."""
