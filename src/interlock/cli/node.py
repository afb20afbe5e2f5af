"""The commands of a node as a whole: up, down, status, quarantine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from interlock.cli import show
from interlock.cli.main import Failure
from interlock.cli.options import home_option, json_option, node_options
from interlock.core.settings import LOG_LEVELS, MAX_WORKERS, NodeConfig

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = NodeConfig(home=Path())
_PORT = click.IntRange(0, 65535)


def _workers(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= MAX_WORKERS):
        raise click.BadParameter(f"{value!r}: want 1 to {MAX_WORKERS}, or auto")
    return int(value)


def _setting(key: str, words: str, **options: Any) -> Callable[[F], F]:
    """An option for a setting of the node; absent unless given, so that the app file has its say."""
    flag = "--" + key.removesuffix("_s").replace("_", "-")
    default = getattr(_DEFAULTS, key)
    return click.option(flag, key, default=None, help=f"{words} [default: {default}]", **options)


@click.command(
    epilog="Examples: interlock up --workers auto  |  interlock up --detach --http-port 9000  |  "
    "INTERLOCK_TOKEN=… interlock up --host 0.0.0.0 --admin-host 0.0.0.0"
)
@home_option
@click.option("-d", "--detach", is_flag=True, help="Return when the node is ready; it goes on.")
@_setting("workers", "Processes that answer; auto: one a core.", metavar="N|auto", callback=_workers)
@_setting("host", "Where the data port listens.")
@_setting("http_port", "The data port; 0: any free one.", type=_PORT)
@_setting("admin_host", "Where the admin port listens; beyond loopback it wants a token.")
@_setting("admin_port", "Admin API and metrics; 0: any free one.", type=_PORT)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Holds the token of the admin API (or INTERLOCK_TOKEN).",
)
@click.option("--allow-repository-control", is_flag=True, help="Let V2 clients load and unload models.")
@_setting("server_name", "The server's name in V2 metadata.")
@_setting("log_level", "The least level that is logged.", type=click.Choice(LOG_LEVELS))
@_setting("drain_s", "Seconds to answer what is under way before leaving.", type=float, metavar="SECONDS")
@_setting("max_body_bytes", "The longest request.", type=int, metavar="BYTES")
@_setting("max_json_bytes", "The most JSON in a request.", type=int, metavar="BYTES")
@click.option(
    "--timeout",
    "timeout_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(1, 3600),
    help="Seconds to wait until the node is ready.",
)
@json_option
def up(
    home: Path,
    detach: bool,
    token_file: Path | None,
    allow_repository_control: bool,
    timeout_s: float,
    as_json: bool,
    **settings: Any,
) -> None:
    """Start a node: workers that answer, and the process that controls them.

    Prints the URLs when it is ready. Without --detach it stays in this terminal until Ctrl-C, or until
    SIGTERM arrives, as under a service manager. Options win over app.toml in the home folder.
    """
    from interlock.cli.launch import launch, settings_of

    given = {key: value for key, value in settings.items() if value is not None}
    if allow_repository_control:
        given["allow_repository_control"] = True
    code = launch(settings_of(home, given), token_file, detach=detach, timeout_s=timeout_s, as_json=as_json)
    if code:
        raise click.exceptions.Exit(code)


@click.command(epilog="Example: interlock down --timeout 30")
@home_option
@click.option(
    "--timeout",
    "timeout_s",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    help="Seconds that it may take to answer what is under way.",
)
@click.option("--force", is_flag=True, help="Kill it when the time is over.")
def down(home: Path, timeout_s: float, force: bool) -> None:
    """Stop the node: it answers what it has, then leaves."""
    from interlock.cli.launch import stop

    stop(home, timeout_s, force)


@click.command(epilog="Example: interlock status --json | jq .models[].live")
@node_options
@json_option
def status(home: Path, url: str | None, as_json: bool) -> None:
    """Show the node, its processes, its models, and releases under way.

    Exits with 1 when a node runs and is not ready; a program can wait for 0.
    """
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        found = control.status()
    if as_json:
        show.as_json(found)
    else:
        _show_status(found, home)
    if found.node is not None and found.not_ready:
        raise click.exceptions.Exit(1)


@click.command(epilog="Example: interlock quarantine")
@node_options
@json_option
def quarantine(home: Path, url: str | None, as_json: bool) -> None:
    """List versions that crashed their process too often. Releasing one anew tries it again."""
    from interlock.operations.control import open_control

    with open_control(home, url) as control:
        found = control.quarantine()
        running = control.running
    if as_json:
        show.as_json(found)
    elif found:
        show.table(["version", "reason"], [(q.version_key, q.reason) for q in found])
    elif running:
        show.say("nothing is in quarantine")
    else:
        raise Failure(f"no node runs in {home}", "start one with: interlock up")


def _show_status(found: msgspec.Struct, home: Path) -> None:
    from interlock.operations.status import Status, given_up

    assert isinstance(found, Status)
    node = found.node
    broken = given_up(found)
    if node is None:
        click.echo(f"no node runs in {home}; what follows is what it would serve")
    else:
        how = found.not_ready or ("ready, but not all that is live is answered" if broken else "ready")
        click.echo(f"node {show.printable(node.node)}: {how}")
        click.echo(
            f"  inference {node.http_url}   admin {node.admin_url}   started {show.ago(node.started_s)}"
        )
        click.echo()
        show.table(
            ["process", "pid", "state", "revision", "memory", "restarts"],
            [
                (
                    p.report.process,
                    p.report.pid or "",
                    _process_state(p),
                    p.report.revision if p.report.revision >= 0 else "",
                    show.size(p.report.resident_bytes),
                    p.restarts,
                )
                for p in node.processes
            ],
        )
    click.echo()
    if found.models:
        workers = 0 if node is None else node.workers
        show.table(
            ["model", "live", "newest", "ready", "last release"],
            [
                (
                    model.name,
                    model.live,
                    model.newest,
                    f"{model.ready}/{workers}" if node else "",
                    ""
                    if model.release is None
                    else f"{model.release.state} {show.ago(model.release.changed_s)}",
                )
                for model in found.models
            ],
        )
    else:
        click.echo("no models yet; register one with: interlock register NAME ARTIFACT")
    for row in found.open_releases:
        click.echo(f"release {row.id}: {show.printable(row.model)} version {row.number} is {row.state}")
    for line in broken:
        click.echo(f"not answered: {show.printable(line)}")
    told = "\n".join(broken)
    for entry in found.quarantined:
        if entry.reason not in told:
            click.echo(f"quarantined: {show.printable(entry.version_key)}: {show.printable(entry.reason)}")


def _process_state(process: object) -> str:
    from interlock.operations.status import ProcessStatus

    assert isinstance(process, ProcessStatus)
    if not process.up:
        return "down"
    if process.report.draining:
        return "draining"
    return "ready" if process.report.ready else "not ready"
