"""Starts a node as a process of its own and waits until it is ready; stops the one that runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec

from interlock.cli import show
from interlock.cli.begun import until_done
from interlock.cli.last_error import last_error
from interlock.cli.main import Failure
from interlock.core.appfile import app_file, node_config
from interlock.core.errors import ConfigError, InterlockError, NodeUnreachable
from interlock.core.letters import VersionState
from interlock.core.settings import NodeConfig, run_folder
from interlock.operations.access import check_access
from interlock.operations.control import AdminControl
from interlock.operations.cores import usable_cores
from interlock.operations.discovery import NodeFile, find_node, is_locked, read_node_file, read_token
from interlock.operations.settings_file import read_app_file
from interlock.operations.status import Status, given_up, is_worker

POLL_S = 0.05
LOOK_S = 2.0
"""How long a look at a starting node may take: its port is open before anybody is there to answer."""
LOG_LINES = 15
"""How many lines of a log a failed start shows."""


def launch(
    config: NodeConfig, token_file: Path | None, *, detach: bool, timeout_s: float, as_json: bool
) -> int:
    """Start a node; returns the exit code of the command. In the foreground it returns when the node ends.

    Raises: ConfigError; Failure when a node runs already, the new one ends before it is ready, or is not
    ready in time with `detach`, which leaves no node then, nor when a signal ends it.
    """
    token = _token(token_file)
    check_access(config.admin_host, token)
    running = find_node(config.home)
    if running is not None:
        raise Failure(
            f"a node runs in {config.home} already (pid {running.pid}): {running.http_url}",
            "stop it with: interlock down, or choose another --home",
        )
    config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    _put_token(config.home, token)
    log = config.home / "logs" / "node.log"
    if detach:
        node = until_done(
            lambda: _spawn(config, log),
            lambda child: _wait_ready(child, config, timeout_s, log),
            config.home,
            config.drain_s,
        )
        _announce(config, node, log.parent, as_json)
        return 0
    return _follow(_spawn(config, None), config, timeout_s, as_json)


def settings_of(home: Path, given: dict[str, Any]) -> NodeConfig:
    """The settings of a node: what was given on the command line, then app.toml, then the defaults.

    Raises: ConfigError, SchemaTooNew.
    """
    return node_config(home, read_app_file(home), given, usable_cores(), str(app_file(home)))


def stop(home: Path, timeout_s: float, force: bool) -> None:
    """Stop the node of a home folder and wait until it has left.

    Raises: NodeUnreachable if none runs; Failure if it has not left in time.
    """
    node = find_node(home)
    if node is None:
        raise NodeUnreachable(f"no node runs in {home}")
    _check_is_node(node, home)
    os.kill(node.pid, signal.SIGTERM)
    if _left(home, timeout_s):
        show.say(f"the node (pid {node.pid}) has stopped")
        return
    if not force:
        raise Failure(
            f"the node (pid {node.pid}) has not left after {timeout_s:g} s",
            "wait longer with --timeout, or kill it with --force",
        )
    os.kill(node.pid, signal.SIGKILL)
    if not _left(home, 10.0):
        raise Failure(f"the node (pid {node.pid}) is still there after SIGKILL")
    show.say(f"the node (pid {node.pid}) was killed")


def _token(token_file: Path | None) -> str | None:
    if token_file is not None:
        token = token_file.read_text().strip()
        if not token:
            raise ConfigError(f"the token file {token_file} is empty")
        return token
    return os.environ.get("INTERLOCK_TOKEN") or None


def _put_token(home: Path, token: str | None) -> None:
    """Leave the token where only this user reads it: a command line can be read by every user."""
    folder = run_folder(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "token"
    path.unlink(missing_ok=True)
    if token is not None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w") as opened:
            opened.write(token)


def _spawn(config: NodeConfig, log: Path | None) -> subprocess.Popen[bytes]:
    """The supervisor in a session of its own: Ctrl-C reaches it once, through us, and not its workers too."""
    # -P: the folder in which one happens to be must not lend modules to a service.
    command = [
        sys.executable,
        "-P",
        "-m",
        "interlock.app.node",
        msgspec.json.encode(config, enc_hook=str).decode(),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "INTERLOCK_TOKEN"}
    if log is None:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True, env=environment
        )
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=environment,
        )


def _wait_ready(child: subprocess.Popen[bytes], config: NodeConfig, timeout_s: float, log: Path) -> NodeFile:
    until_s, since_s = time.monotonic() + timeout_s, time.time()
    show.say("starting the node …")
    reason = "its ports are not open yet"
    while time.monotonic() < until_s:
        if child.poll() is not None:
            raise Failure(f"the node ended with code {child.returncode}; {log} ends with:\n{_tail(log)}")
        node, reason, broken = _look(child, config.home)
        if node is not None and not reason:
            _tell(broken)
            return node
        time.sleep(POLL_S)
    raise Failure(
        f"the node was not ready after {timeout_s:g} s and is stopped: {_because(reason, config, since_s)}",
        f"give it longer with --timeout, or see why in {log.parent}",
    )


def _follow(child: subprocess.Popen[bytes], config: NodeConfig, timeout_s: float, as_json: bool) -> int:
    def forward(number: int, frame: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    show.say("starting the node …")
    late_s, since_s = time.monotonic() + timeout_s, time.time()
    announced = False
    told_late = False
    while not announced and child.poll() is None:
        node, reason, broken = _look(child, config.home)
        if node is not None and not reason:
            _tell(broken)
            _announce(config, node, config.home / "logs", as_json)
            announced = True
        elif not told_late and time.monotonic() > late_s:
            show.say(
                f"the node is not ready after {timeout_s:g} s: {_because(reason, config, since_s)};"
                f" it goes on (stop it with Ctrl-C; its logs are in {config.home / 'logs'})"
            )
            told_late = True
        else:
            time.sleep(POLL_S)
    code = child.wait()
    if code == 0:
        return 0
    show.say(f"interlock: the node ended with code {code}; its logs are in {config.home / 'logs'}")
    return 1


def _because(reason: str, config: NodeConfig, since_s: float) -> str:
    """What the node says, or that it says nothing; and what its disk and its logs say."""
    told = show.printable(last_error(config.home, since_s))
    return f"{reason}; {told}" if told else reason


def _look(child: subprocess.Popen[bytes], home: Path) -> tuple[NodeFile | None, str, tuple[str, ...]]:
    """The child's node file, why it is not ready ("" when it is), and what it will not answer."""
    try:
        node = read_node_file(home)
    except NodeUnreachable as error:
        return None, error.message, ()
    if node is None or node.pid != child.pid:
        return None, "its ports are not open yet", ()
    try:
        found = AdminControl(node.admin_url, read_token(home), LOOK_S).status()
    except InterlockError as error:
        return node, error.message, ()
    return node, found.not_ready or _under_way(found), given_up(found)


def _tell(broken: tuple[str, ...]) -> None:
    for line in broken:
        show.say(f"not answered: {show.printable(line)}")


def _under_way(found: Status) -> str:
    """What a node that has just started still does: releases that waited for it, versions that it loads."""
    for row in found.open_releases:
        return f"release {row.id} of {row.model} (version {row.number}) is {row.state}"
    for process in found.node.processes if found.node is not None else ():
        report = process.report
        if not is_worker(process) or found.node is None:
            continue
        # What failed or is quarantined is waited for in vain, and others are served without it.
        on_the_way = [v for v in report.versions if v.state in (VersionState.PENDING, VersionState.LOADING)]
        if report.seen_revision < found.node.revision or on_the_way:
            return f"{report.process} is loading"
    return ""


def _announce(config: NodeConfig, node: NodeFile, logs: Path, as_json: bool) -> None:
    if as_json:
        show.as_json(
            {
                "pid": node.pid,
                "http_url": node.http_url,
                "admin_url": node.admin_url,
                "home": str(config.home),
                "logs": str(logs),
            }
        )
        return
    click.echo(f"interlock is up (pid {node.pid}, workers: {config.workers})")
    click.echo(f"  inference (V2)   {node.http_url}")
    click.echo(f"  admin, metrics   {node.admin_url}")
    click.echo(f"  home             {config.home}")
    click.echo(f"  logs             {logs}")
    click.echo("  stop it with     interlock down")
    sys.stdout.flush()


def _check_is_node(node: NodeFile, home: Path) -> None:
    """Nothing, unless the process under that number is visibly something else than a node."""
    try:
        words = Path(f"/proc/{node.pid}/cmdline").read_bytes()
    except OSError:
        return  # no /proc on this system, or it has just left
    if b"interlock" not in words:
        raise Failure(
            f"{run_folder(home) / 'node.json'} names pid {node.pid}, which is not a node of Interlock",
            "try again in a moment: a node may just be starting",
        )


def _left(home: Path, timeout_s: float) -> bool:
    until_s = time.monotonic() + timeout_s
    while is_locked(home):
        if time.monotonic() >= until_s:
            return False
        time.sleep(POLL_S)
    return True


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (nothing)"
