"""Owns the opening of a node's ports: one socket a worker for data, one for the admin API."""

import errno
import socket

from interlock.core.errors import ConfigError

BACKLOG = 1024
"""Connections that wait while a worker is being replaced."""


def open_data_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` listening sockets on one port (0: a free one), among which the system spreads connections.

    Raises: ConfigError if the port is in use, may not be opened, or the host is not of this machine.
    """
    # SO_REUSEPORT would share the port with another node of the same user without a word: a socket without
    # the option finds out, and for port 0 picks one that nobody has.
    probe = _bound(host, port, shared=False)
    chosen = int(probe.getsockname()[1])
    probe.close()
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            found.append(_bound(host, chosen, shared=True))
            found[-1].listen(BACKLOG)
    except BaseException:
        for opened in found:
            opened.close()
        raise
    return found


def open_admin_socket(host: str, port: int) -> socket.socket:
    """The listening socket of the admin API. Raises: ConfigError, as `open_data_sockets`."""
    opened = _bound(host, port, shared=False)
    opened.listen(BACKLOG)
    return opened


def _bound(host: str, port: int, shared: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"host {host!r}: {error.strerror}") from None
    family, _, _, _, address = found[0]
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind(address)
        if not shared:
            opened.listen(1)  # two bound sockets with SO_REUSEADDR only clash when one listens
    except OSError as error:
        opened.close()
        raise ConfigError(_why(error, host, port)) from None
    return opened


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use on {host}: stop what holds it, or choose another port (0: any free)"
    if error.errno == errno.EACCES:
        return f"port {port} may not be opened by this user: choose one from 1024 on"
    return f"{host!r} port {port}: {error.strerror}"
