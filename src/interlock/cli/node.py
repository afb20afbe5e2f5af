"""The commands of a node as a whole: up, down, status, quarantine."""

from pathlib import Path

import click
import msgspec

from interlock.cli import show
from interlock.cli.main import Failure
from interlock.cli.options import home_option, json_option, node_options
from interlock.core.settings import NodeConfig

_DEFAULTS = NodeConfig(home=Path())
_PORT = click.IntRange(0, 65535)


def _workers(ctx: click.Context, param: click.Parameter, value: str) -> int:
    if value == "auto":
        from interlock.cli.launch import usable_cores

        return usable_cores()
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 256):
        raise click.BadParameter(f"{value!r}: want 1 to 256, or auto")
    return int(value)


@click.command(epilog="Examples: interlock up --workers auto  |  interlock up --detach --http-port 9000")
@home_option
@click.option("--host", default=_DEFAULTS.host, show_default=True, help="Where the data port listens.")
@click.option("--http-port", default=_DEFAULTS.http_port, show_default=True, type=_PORT, help="0: any free.")
@click.option("--admin-host", default=_DEFAULTS.admin_host, show_default=True, help="Beyond loopback: token.")
@click.option(
    "--admin-port", default=_DEFAULTS.admin_port, show_default=True, type=_PORT, help="0: any free."
)
@click.option(
    "--workers",
    default=str(_DEFAULTS.workers),
    show_default=True,
    metavar="N|auto",
    callback=_workers,
    help="Processes that answer; auto: one a core.",
)
@click.option("-d", "--detach", is_flag=True, help="Return when the node is ready; it goes on.")
@click.option("--allow-repository-control", is_flag=True, help="Let clients load and unload models (V2).")
@click.option("--server-name", default=_DEFAULTS.server_name, show_default=True, help="In V2 metadata.")
@click.option(
    "--log-level",
    default=_DEFAULTS.log_level,
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Least level that is logged.",
)
@click.option(
    "--drain",
    "drain_s",
    default=_DEFAULTS.drain_s,
    show_default=True,
    type=click.FloatRange(0, 3600),
    help="Seconds to answer what is under way before leaving.",
)
@click.option(
    "--max-body-mb",
    default=_DEFAULTS.max_body_bytes // 2**20,
    show_default=True,
    type=click.IntRange(1, 65536),
    help="The longest request, in MiB.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The admin API's token (or INTERLOCK_TOKEN).",
)
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
    host: str,
    http_port: int,
    admin_host: str,
    admin_port: int,
    workers: int,
    detach: bool,
    allow_repository_control: bool,
    server_name: str,
    log_level: str,
    drain_s: float,
    max_body_mb: int,
    token_file: Path | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Start a node: workers that answer, and the process that controls them.

    Prints the URLs when it is ready. Without --detach it stays in this terminal until Ctrl-C, or until
    SIGTERM arrives, as under a service manager.
    """
    from interlock.cli.launch import launch

    config = NodeConfig(
        home=home,
        host=host,
        http_port=http_port,
        admin_host=admin_host,
        admin_port=admin_port,
        workers=workers,
        server_name=server_name,
        allow_repository_control=allow_repository_control,
        max_body_bytes=max_body_mb * 2**20,
        drain_s=drain_s,
        log_level=log_level,
    )
    code = launch(config, token_file, detach=detach, timeout_s=timeout_s, as_json=as_json)
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
    from interlock.cli.control import open_control

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
    from interlock.cli.control import open_control

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
    from interlock.operations.status import Status

    assert isinstance(found, Status)
    node = found.node
    if node is None:
        click.echo(f"no node runs in {home}; what follows is what it would serve")
    else:
        click.echo(f"node {show.printable(node.node)}: {found.not_ready or 'ready'}")
        click.echo(
            f"  inference {node.http_url}   admin {node.admin_url}   started {show.ago(node.started_s)}"
        )
        click.echo()
        show.table(
            ["process", "pid", "state", "revision", "memory"],
            [
                (
                    p.report.process,
                    p.report.pid,
                    _process_state(p),
                    p.report.revision,
                    show.size(p.report.resident_bytes),
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
    for entry in found.quarantined:
        click.echo(f"quarantined: {show.printable(entry.version_key)}: {show.printable(entry.reason)}")


def _process_state(process: object) -> str:
    from interlock.operations.status import ProcessStatus

    assert isinstance(process, ProcessStatus)
    if not process.up:
        return "down"
    if process.report.draining:
        return "draining"
    return "ready" if process.report.ready else "not ready"
