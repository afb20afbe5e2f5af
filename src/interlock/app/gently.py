"""Does heavy work in a thread that yields to everybody else's; imports nothing that is heavy itself."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def gently(work: Callable[[], T]) -> T:
    """The result of `work`, done at the lowest priority while the calling thread waits.

    For a process that starts beside others that serve: they keep their latency. Only a thread can do it: a
    process that lowered itself could not rise again. Raises: what `work` raises.
    >>> gently(lambda: 7)
    7
    """

    def lowered() -> T:
        if sys.platform == "linux":  # elsewhere a priority belongs to the whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        return work()

    with ThreadPoolExecutor(1, thread_name_prefix="gently") as pool:
        return pool.submit(lowered).result()
