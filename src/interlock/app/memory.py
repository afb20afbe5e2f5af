"""Decides which processes' memory counts for a version: that of its executor, or of all workers."""

from collections.abc import Callable

from interlock.app.children import executor_name
from interlock.app.children import resident_bytes as resident_now
from interlock.core.letters import ChildStatus, Report
from interlock.core.model import Version
from interlock.rollout.memory import Process
from interlock.serving.memory import available_bytes


def process_memory(
    supervisor: Report | None,
    version: Version | None,
    executor_memory_bytes: int,
    read: Callable[[int], int] = resident_now,
    available: Callable[[], int | None] = available_bytes,
) -> Process | None:
    """The memory of the executor of a version, or (None) of all workers together; None where it is not known.

    The supervisor's Report says which processes there are. How much they hold is read anew where that can be
    done (`read` takes a pid and gives bytes, or 0), for the Report is up to a second old.
    """
    if supervisor is None:
        return None
    wanted = "worker-" if version is None else executor_name(version)
    children = [
        child
        for child in supervisor.children
        if (child.process.startswith(wanted) if version is None else child.process == wanted)
    ]
    sizes = [_size(child, read) for child in children]
    if not sizes or not all(sizes):
        return None
    limit = None if version is None else version.memory_limit_bytes or executor_memory_bytes
    return Process(sum(sizes), max(child.incarnation for child in children), limit, available())


def _size(child: ChildStatus, read: Callable[[int], int]) -> int:
    return (read(child.pid) or child.resident_bytes) if child.pid else 0
