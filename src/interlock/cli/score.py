"""The command that scores a Parquet file: score. It works on the home folder; no node is needed."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from interlock.cli import show
from interlock.cli.options import NAME, home_option, json_option

EVERY_S = 5.0
"""How often a line tells how far it is, where no terminal shows a bar."""
EXIT_ERROR_ROWS = 3


@click.command(
    epilog="Examples: interlock score churn@champion in.parquet out.parquet --keep id  |  "
    "interlock score churn@3 in.parquet out.parquet --errors null. "
    "Exit code 3 if --errors null left rows without an answer."
)
@click.argument("model", metavar="NAME[@VERSION|@ALIAS]")
@click.argument("input", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--keep", multiple=True, metavar="COLUMN", help="Copy this column of the input, too; or all.")
@click.option(
    "--errors",
    type=click.Choice(["stop", "null"]),
    default="stop",
    show_default=True,
    help="At a row without an answer: stop, or leave it empty and say why in the column error.",
)
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes with the model; default: the cores.")
@click.option(
    "--timeout",
    "call_s",
    type=click.FloatRange(0.001),
    default=60.0,
    show_default=True,
    help="What one call of the model may take, in seconds.",
)
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@home_option
@json_option
@click.pass_context
def score(
    ctx: click.Context,
    model: str,
    input: Path,
    output: Path,
    keep: tuple[str, ...],
    errors: str,
    workers: int | None,
    call_s: float,
    force: bool,
    home: Path,
    as_json: bool,
) -> None:
    """Answer every row of a Parquet file with a version of a model, on all cores.

    The newest version, unless @ names another. One row comes out for each that goes in, in order. A run
    that was ended goes on where it was when the command is given again; the output appears when it is whole.
    """
    from interlock.operations.context import opened
    from interlock.operations.score import score as operation

    name, selector = selected(model)
    ctx.meta[NAME] = name
    with opened(home) as context, _Progress() as progress:
        done = operation(
            context,
            name,
            selector,
            input.absolute(),
            output.absolute(),
            workers=workers,
            keep=keep,
            errors="null" if errors == "null" else "stop",
            force=force,
            call_s=call_s,
            say=show.say,
            progress=progress,
        )
    if as_json:
        show.as_json(done)
    else:
        click.echo(
            f"{done.rows:,} rows by {done.model} version {done.version} in {done.seconds:.1f} s"
            f" ({done.rows_per_s:,.0f} rows/s, workers: {done.workers}): {output}"
        )
    if done.error_rows:
        show.say(f"{done.error_rows:,} rows have no answer: see the column error")
        raise click.exceptions.Exit(EXIT_ERROR_ROWS)


def selected(model: str) -> tuple[str, str | None]:
    """The name, and the number or "@alias", if any.

    >>> selected("churn"), selected("churn@3"), selected("churn@champion")
    (('churn', None), ('churn', '3'), ('churn', '@champion'))
    """
    name, at, selector = model.rpartition("@")
    if not at or not name or not selector:
        return model, None
    return name, selector if selector.isdigit() else f"@{selector}"


class _Progress:
    """A bar on a terminal, else a line now and then; on standard error."""

    def __init__(self) -> None:
        self._started_s = self._told_s = time.monotonic()
        self._first: int | None = None
        self._bar: Callable[[int, float], object] | None = None

    def __enter__(self) -> "_Progress":
        return self

    def __call__(self, done: int, rows: int) -> None:
        now_s = time.monotonic()
        if self._first is None:
            self._first, self._started_s = done, now_s
            if sys.stderr.isatty():
                self._open(rows)
        rate = (done - self._first) / max(now_s - self._started_s, 1e-9)
        if self._bar is not None:
            self._bar(done, rate)
        elif now_s - self._told_s >= EVERY_S:
            self._told_s = now_s
            left = f", {(rows - done) / rate:,.0f} s left" if rate else ""
            show.say(f"{done:,} of {rows:,} rows, {rate:,.0f} rows/s{left}")

    def _open(self, rows: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        self._rich = Progress(
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows, {task.fields[rate]:,.0f} rows/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        task: TaskID = self._rich.add_task("", total=rows, completed=self._first or 0, rate=0.0)
        self._rich.start()
        self._bar = lambda done, rate: self._rich.update(task, completed=done, rate=rate)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._rich.stop()
