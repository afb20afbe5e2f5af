"""Owns the examples: each is a program that a user could have written, run by `python -m examples.NAME.…`."""
