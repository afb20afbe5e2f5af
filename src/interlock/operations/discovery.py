"""Decides whether a node runs in a home folder, and how to reach it: run/node.json, held by run/node.lock."""

import fcntl
import os
from pathlib import Path

import msgspec

from interlock.core.errors import NodeUnreachable, SchemaTooNew
from interlock.core.settings import run_folder

SCHEMA = 1


class NodeFile(msgspec.Struct, frozen=True):
    """run/node.json, as the supervisor writes it once its ports are open. `started_s` is Unix time."""

    node: str
    pid: int
    host: str
    http_port: int
    admin_port: int
    workers: int = 1
    started_s: float = 0.0
    incarnation: int = 0
    admin_host: str = ""
    schema: int = SCHEMA

    @property
    def http_url(self) -> str:
        return url_of(self.host, self.http_port)

    @property
    def admin_url(self) -> str:
        return url_of(self.admin_host or self.host, self.admin_port)


def url_of(host: str, port: int) -> str:
    """How a client on this machine reaches a listener.

    >>> url_of("0.0.0.0", 8000), url_of("::1", 8000)
    ('http://127.0.0.1:8000', 'http://[::1]:8000')
    """
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def read_node_file(home: Path) -> NodeFile | None:
    """What run/node.json says, whether or not that node still lives; None without the file.

    Raises: NodeUnreachable if the file is damaged; SchemaTooNew.
    """
    path = run_folder(home) / "node.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(data, type=NodeFile)
    except msgspec.DecodeError as error:
        raise NodeUnreachable(f"{path} cannot be read ({error}): stop the node and remove the file") from None
    if found.schema > SCHEMA:
        raise SchemaTooNew(
            f"{path} has schema {found.schema}, this Interlock reads {SCHEMA}: upgrade it first"
        )
    return found


def find_node(home: Path) -> NodeFile | None:
    """The node that is alive in a home folder, or None.

    The lock decides, as a dead supervisor leaves its file behind and the system takes its lock.
    """
    found = read_node_file(home)
    return found if found is not None and is_locked(home) else None


def is_locked(home: Path) -> bool:
    """Whether some process holds run/node.lock.

    The look takes the lock for an instant, shared: two lookers never see each other.
    """
    try:
        lock = os.open(run_folder(home) / "node.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def read_token(home: Path) -> str | None:
    """The token of the admin API that the node in a home folder wants, or None."""
    try:
        return (run_folder(home) / "token").read_text().strip() or None
    except FileNotFoundError:
        return None


def read_webhook_secret(home: Path) -> str | None:
    """The secret with which MLflow signs its webhooks, from `webhook-secret` in a home folder, or None."""
    try:
        return (home / "webhook-secret").read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
