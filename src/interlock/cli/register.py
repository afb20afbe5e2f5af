"""The command that makes a model file a version: register. It always works where the file is."""

import signal
import sys
from pathlib import Path

import click

from interlock.cli import show
from interlock.cli.options import home_option, json_option


def _there(_context: click.Context, _parameter: click.Parameter, artifact: str) -> str:
    """A path, or "file.py:Class"."""
    if not Path(artifact).exists() and not Path(artifact.rpartition(":")[0] or artifact).exists():
        raise click.BadParameter(f"Path '{artifact}' does not exist.")
    return artifact


@click.command(
    epilog="Examples: interlock register iris model.onnx  |  "
    "interlock register churn model.pkl --trust --data train.csv --target churned"
)
@click.argument("name")
@click.argument("artifact", callback=_there)
@click.option("--data", help="Reference data, a CSV or Parquet file: for the checks, and to convert by.")
@click.option("--target", metavar="COL", help="The column of the data that is the answer, not an input.")
@click.option("--trust", is_flag=True, help="Load it although loading runs code that it holds (pickle).")
@click.option("--run", metavar="RUN_ID", help="The MLflow run that trained it: its run becomes a child.")
@home_option
@json_option
def register(
    name: str,
    artifact: str,
    data: str | None,
    target: str | None,
    trust: bool,
    run: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Make a model file the next version of NAME: checked, measured and kept. It is not live yet.

    Scikit-learn models are converted to ONNX where that is as exact and faster.
    """
    from interlock.operations.context import open_context
    from interlock.operations.register import register as operation

    if target is not None and data is None:
        raise click.UsageError("--target names a column of --data, and there is no --data")
    # What asks it to end, as a CI system does, ends it in order: nothing of it stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    context = open_context(home)
    try:
        done = operation(
            context, name, artifact, data=data, target=target, trust=trust, run=run, progress=show.say
        )
    finally:
        context.close()
    if as_json:
        show.as_json(done)
        return
    version = done.version
    click.echo(
        f"registered {version.model} version {version.number} ({version.runtime}, {version.placement})"
    )
    click.echo(f"  release it with: interlock release {version.model} --now")
