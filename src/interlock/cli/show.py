"""Decides how results look: tables for people, JSON for programs, progress on standard error."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

PIPE_COLUMNS = 200
"""The width of a table that goes to a file or a pipe."""


def as_json(value: Any) -> None:
    """Structs as indented JSON, to standard output."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def as_json_line(value: Any) -> None:
    """One struct as one line of JSON, at once."""
    click.echo(msgspec.json.encode(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under upper-case headings; None and "" show as a dash."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column.upper(), overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False).print(shown)
    sys.stdout.flush()


def say(words: str) -> None:
    """A line of progress, to standard error."""
    click.echo(words, err=True)


def printable(value: object) -> str:
    """A value as one line that cannot command the terminal."""
    if value is None or value == "":
        return "-"
    return "".join(c if c.isprintable() else " " for c in str(value))


def ago(time_s: float | None, now_s: float | None = None) -> str:
    """How long ago a Unix time was, in its largest unit.

    >>> ago(1000.0, 1000.0 + 7300)
    '2 h ago'
    """
    if time_s is None:
        return "-"
    spent = max((time.time() if now_s is None else now_s) - time_s, 0.0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if spent >= size:
            return f"{spent // size:.0f} {unit} ago"
    return f"{spent:.0f} s ago"


def size(count: int) -> str:
    """Bytes in their unit.

    >>> size(1536), size(0)
    ('1.5 KiB', '0 B')
    """
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("unreachable")
