"""The options that commands share: where the node is, and JSON instead of tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

NAME, HOME, URL = "interlock.name", "interlock.home", "interlock.url"
"""What a command was asked about, and where: keys of click's `ctx.meta`."""

ENVIRONMENT = {
    "INTERLOCK_HOME": "the home folder, as --home",
    "INTERLOCK_URL": "the admin API of a node, as --url",
    "INTERLOCK_TOKEN": "the token of the admin API: wanted with --url, set with up",
}
"""All that the command line reads from the environment."""


def default_home() -> Path:
    """Where the home folder is unless --home or INTERLOCK_HOME says otherwise."""
    return Path("~/.interlock").expanduser()


def home_option(function: F) -> F:
    """`--home FOLDER`, as `home: Path`, absolute."""
    return click.option(
        "--home",
        envvar="INTERLOCK_HOME",
        default=default_home,
        show_default="~/.interlock",
        type=click.Path(file_okay=False, path_type=Path),
        callback=lambda ctx, param, value: _noted(ctx, HOME, value.expanduser().absolute()),
        help="The home folder (or INTERLOCK_HOME).",
    )(function)


def node_options(function: F) -> F:
    """`--home FOLDER` and `--url URL`, as `home: Path` and `url: str | None`."""
    with_url = click.option(
        "--url",
        envvar="INTERLOCK_URL",
        callback=lambda ctx, param, value: _noted(ctx, URL, value),
        help="The admin API of a node, instead of --home (or INTERLOCK_URL).",
    )(function)
    return home_option(with_url)


def json_option(function: F) -> F:
    """`--json`, as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def model_argument(function: F) -> F:
    """`NAME`, as `name: str`, completed from the models of the node."""
    return _model_argument(True)(function)


def maybe_model_argument(function: F) -> F:
    """`[NAME]`, as `name: str | None`, completed likewise."""
    return _model_argument(False)(function)


def _model_argument(required: bool) -> Callable[[F], F]:
    return click.argument(
        "name",
        required=required,
        shell_complete=_complete_model,
        callback=lambda ctx, param, value: _noted(ctx, NAME, value),
    )


def _noted(ctx: click.Context, key: str, value: Any) -> Any:
    """The value, noted where the hint of an error finds it: `ctx.meta` is one for all of a command line."""
    ctx.meta[key] = value
    return value


def _complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from interlock.cli.names import names_for_completion

    home = ctx.params.get("home") or default_home()
    return [name for name in names_for_completion(home, ctx.params.get("url")) if name.startswith(incomplete)]
