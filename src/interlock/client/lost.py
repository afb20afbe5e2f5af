"""Decides what an exception of the transport means: what to raise, and whether the request can have run."""

import httpcore

from interlock.client.message import Body
from interlock.client.retry import Failure
from interlock.client.steps import Lost, Send
from interlock.core.errors import DeadlineExceeded, InvalidRequest, NodeUnreachable

TRANSPORT = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    TimeoutError,
    NodeUnreachable,
)
"""What a transport raises for a request that got no answer."""


def lost(error: Exception, send: Send, body: Body, url: str) -> Lost:
    """What came of a request that got no answer. `error` is one of TRANSPORT."""
    where = f"{url}{send.path}"
    if isinstance(error, NodeUnreachable):
        return Lost(error, None)  # an answer came, and cannot be used
    if isinstance(error, httpcore.PoolTimeout):
        return Lost(
            DeadlineExceeded(f"{where}: all connections of the client were busy until the deadline"), None
        )
    if isinstance(error, httpcore.ConnectTimeout):
        return Lost(DeadlineExceeded(f"{where}: no connection until the deadline"), None)
    if isinstance(error, TimeoutError | httpcore.TimeoutException):
        return Lost(DeadlineExceeded(f"{where}: no answer until the deadline"), None)
    why = str(error) or type(error).__name__
    if isinstance(error, httpcore.ConnectError):
        return Lost(NodeUnreachable(f"no node answers at {url}: {why}"), Failure.UNSENT)
    if isinstance(error, httpcore.LocalProtocolError):
        return Lost(InvalidRequest(f"{where}: this request cannot be sent: {why}"), None)
    if not body.whole:
        return Lost(
            NodeUnreachable(f"{where}: the connection was closed before all was sent: {why}"), Failure.UNSENT
        )
    return Lost(
        NodeUnreachable(f"{where}: no answer could be read, and the request may have run: {why}"),
        Failure.MAYBE,
    )
