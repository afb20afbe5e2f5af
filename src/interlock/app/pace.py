"""Decides who goes first when cores are few: answers before loads. Imports nothing that is heavy itself.

A load at the lowest of priorities (SCHED_IDLE) runs when nobody else wants the core, and leaves it at once to
who wakes. Only a thread can be lowered so: a normal user's process could never rise again to serve.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import cache

TYPE_CHECKING = False  # importing typing would cost as much as all of the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, TypeVar

    T = TypeVar("T")

ALL_GENTLY = "all-gently"
DATA_GENTLY = "data-gently"
"""Last words of a process's command line: what of its start may be done gently. Without one, nothing."""

PATIENCE_S = 5.0
LEAST_SHARE = 0.25
"""Gentle work that has had less of a core over so many seconds is in the hands of those who never rest."""

TURN_S = 0.0003
"""The turn of who serves; what is usual is 0.7 to 2.8 ms, by the number of cores."""
PATIENT_NICE = 5
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


def at_once(work: Callable[[], T]) -> T:
    """The result of `work`, done by the calling thread.

    >>> at_once(lambda: 7)
    7
    """
    return work()


def gently(work: Callable[[], T], starved: Callable[[], object] | None = None) -> T:
    """The result of `work`, done while nobody else wants the core; the calling thread waits.

    Threads that `work` starts stay as low as it is: leave to `at_once` what starts any that serve later.
    `starved` is called when the work got less than `LEAST_SHARE` of a core for `PATIENCE_S`; without it the
    process begins anew (`begin_anew`).
    Raises: what `work` raises.
    >>> gently(lambda: 7)
    7
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def lowered() -> None:
        try:
            idly()
            results.append(work())
        except BaseException as error:  # the caller's to handle, whatever it is
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=lowered, name="gently", daemon=True)
    thread.start()
    had_s = 0.0
    while not done.wait(PATIENCE_S):
        before_s, had_s = had_s, _core_s(thread.native_id or 0)
        if had_s - before_s < LEAST_SHARE * PATIENCE_S and not done.is_set():
            (starved or begin_anew)()
    # As long as a lowered thread lives, the process would end as slowly as it.
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def idly(process: int = 0) -> None:
    """The calling thread, or the first of a process, and those that it starts, run when nobody else wants the
    core. Raises: ProcessLookupError."""
    if sys.platform == "linux":
        os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))


def rise() -> bool:
    """The calling thread runs as others do again; whether that is granted (to root; within `RLIMIT_NICE`)."""
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_IDLE:
        # A node that was started so as a whole stays so.
        if os.sched_getscheduler(os.getppid()) == os.SCHED_IDLE:
            return False
        try:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except PermissionError:
            return False
    return True


@cache
def can_rise() -> bool:
    """Whether a process with this one's rights that was lowered could rise again; a thread tries it, once."""
    found: list[bool] = []

    def try_it() -> None:
        idly()
        found.append(rise())

    thread = threading.Thread(target=try_it, name="can-rise", daemon=True)
    thread.start()
    thread.join()
    return found == [True]


def promptly() -> bool:
    """The calling thread, and those that it starts, take turns of `TURN_S`; whether the system grants it.

    Linux since 6.12: a thread that wakes, and wants a shorter turn than the one that runs, runs at once, as
    long as it has had no more than its share. It gets no more of the core by that.
    """
    return _take_turns(int(TURN_S * 1e9), os.getpriority(os.PRIO_PROCESS, 0))


def patiently() -> bool:
    """The calling thread lets go first who serves in the same process: it takes turns of the usual length,
    and has a quarter of a core of which those want all; whether the system grants it.

    More than control has: what it holds, the interpreter's lock, is waited for by who serves.
    """
    if sys.platform != "linux":
        return False
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + PATIENT_NICE, 19)
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    except OSError:  # a sandbox may forbid even that
        return False
    return _take_turns(0, nice)


def _take_turns(turn_ns: int, nice: int) -> bool:
    """Of the calling thread, with the niceness that it has; 0: of the usual length."""
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER or sys.maxsize < 2**32:
        return False
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return False
    import ctypes  # a process that only loads never needs it
    import struct

    # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
    wanted = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, turn_ns, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, wanted, 0) == 0)


def begin_anew() -> NoReturn:
    """The same process from its beginning, with the same arguments less the word that lets it be gentle.

    Whoever has been lowered cannot rise: what it did is done again at the priority that everybody has.
    """
    sys.stderr.write(f"less than {LEAST_SHARE:.0%} of a core for {PATIENCE_S:g} s: begins anew, in a hurry\n")
    sys.stderr.flush()
    words = [word for word in sys.orig_argv[1:] if word not in (ALL_GENTLY, DATA_GENTLY)]
    os.execv(sys.executable, [sys.executable, *words])


def _core_s(thread_id: int) -> float:
    """Seconds of a core that a thread of this process has had; without end where nobody is lowered.

    By the number of its clock, as pthread_getcpuclockid makes it, and not from /proc/self/task: the kernel
    takes such files back when the thread ends, at the thread's pace, while the parent spins and waits for it.
    """
    if sys.platform != "linux":
        return time.monotonic()
    try:
        return time.clock_gettime((~thread_id << 3) | 6)
    except OSError:
        return time.monotonic()  # it has just ended
