"""Decides what the supervisor does next: which processes to start, stop and kill, which versions to give up.

Pure: time, what is wanted and what was seen come in, actions go out. A crash is attributed to the version
that the dead process's breadcrumb names, under the release that asked for that version, so that an explicit
new release of a quarantined version gets new tries.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """What a process is; also the name of its module in this folder."""

    CONTROL = "control"
    WORKER = "worker"
    EXECUTOR = "executor"


class Doing(StrEnum):
    """What a process's breadcrumb says it does."""

    IDLE = "idle"
    LOADING = "loading"
    RUNNING = "running"


class ProcessSpec(msgspec.Struct, frozen=True):
    """A process that should run. An executor has the key of its version, the release that asks for it, the
    resident size above which it is killed, and what of its start it does gently (a word of `pace.py`)."""

    name: str
    kind: Kind
    version_key: str = ""
    release: int = 0
    memory_limit_bytes: int | None = None
    pace: str = ""


class RunningView(msgspec.Struct, frozen=True):
    """A process that runs, as its mapped block and the system show it. Times are monotonic seconds.

    `heartbeat_s` is None before the first; `doing_version` is the key in the breadcrumb; `kill_at_s` is when
    the batch under way counts as hung, 0 for never; `stopping_s` is when it was told to leave; `survived`,
    of an executor: how many batches it ran to their end before this one.
    """

    spec: ProcessSpec
    started_s: float
    heartbeat_s: float | None = None
    doing: Doing = Doing.IDLE
    doing_version: str = ""
    requests: int = 0
    kill_at_s: float = 0.0
    resident_bytes: int = 0
    stopping_s: float | None = None
    survived: int = 0


class Crash(msgspec.Struct, frozen=True):
    """One unwanted end of a process. `version_key` is "" when no version can be blamed; `is_search`: an
    executor's, in a batch of several requests, of which the culprit is being looked for."""

    process: str
    at_s: float
    version_key: str
    release: int
    doing: Doing
    requests: int
    why: str
    survived: int = 0
    is_search: bool = False


class Quarantined(msgspec.Struct, frozen=True):
    """Why a version is not tried again under `release` and those before it."""

    release: int
    reason: str


class History(msgspec.Struct, frozen=True):
    """What is remembered of the past: crashes inside the window, oldest first, and quarantines by key."""

    crashes: tuple[Crash, ...] = ()
    quarantined: dict[str, Quarantined] = {}

    def crashes_of(self, releases: Mapping[str, int]) -> dict[str, int]:
        """How often each version ended its process inside the window, under the release that asks for it."""
        found: dict[str, int] = {}
        for crash in self.crashes:
            if crash.version_key and releases.get(crash.version_key) == crash.release:
                found[crash.version_key] = found.get(crash.version_key, 0) + 1
        return found


class Limits(msgspec.Struct, frozen=True):
    """The bounds that decide. Times in seconds; `tries_*` are crashes inside `window_s`."""

    window_s: float = 60.0
    backoff_s: float = 0.1
    longest_backoff_s: float = 5.0
    start_s: float = 60.0
    heartbeat_s: float = 5.0
    control_heartbeat_s: float = 20.0
    load_s: float = 120.0
    hang_grace_s: float = 0.5
    stop_s: float = 12.0
    tries_load: int = 3
    tries_isolated: int = 5
    tries_any: int = 40


class Start(msgspec.Struct, frozen=True, tag=True):
    """Start a process."""

    spec: ProcessSpec


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Ask a process to drain and leave."""

    name: str


class Kill(msgspec.Struct, frozen=True, tag=True):
    """End a process at once."""

    name: str
    why: str


class Quarantine(msgspec.Struct, frozen=True, tag=True):
    """Give a version up until a release after `release` asks for it."""

    version_key: str
    release: int
    reason: str


Action = Start | Stop | Kill | Quarantine


def decide(
    now_s: float,
    wanted: Sequence[ProcessSpec],
    running: Mapping[str, RunningView],
    history: History,
    releases: Mapping[str, int],
    limits: Limits,
    watched_since_s: float = 0.0,
) -> list[Action]:
    """What to do now, quarantines first.

    `releases` maps the key of each version in the Desired to the newest release that asks for it.
    `watched_since_s`: since when the supervisor itself has not been stalled; before that nobody can be blamed
    for a missing heartbeat.
    """
    actions: list[Action] = list(_quarantines(history, releases, limits, now_s))
    given_up = {action.version_key for action in actions if isinstance(action, Quarantine)}
    given_up |= {key for key in history.quarantined if is_quarantined(history.quarantined, key, releases)}
    specs = {spec.name: spec for spec in wanted if spec.version_key not in given_up}
    for name, view in running.items():
        if (why := _why_kill(now_s, view, limits, watched_since_s)) is not None:
            actions.append(Kill(name, why))
        elif view.stopping_s is None and not _is_same(view.spec, specs.get(name)):
            actions.append(Stop(name))
    for name, spec in specs.items():
        if name not in running and now_s >= not_before_s(name, history, limits):
            actions.append(Start(spec))
    return actions


def not_before_s(name: str, history: History, limits: Limits) -> float:
    """From when on a process may be started: at once after its first crash inside the window, then after
    doubling pauses. At once, too, while a culprit is looked for: its neighbours wait meanwhile, and how often
    that may happen is bounded by `tries_any`."""
    crashes = [crash for crash in history.crashes if crash.process == name]
    times = [crash.at_s for crash in crashes if not crash.is_search]
    if len(times) < 2 or crashes[-1].is_search:
        return 0.0
    # The exponent is bounded: 2.0**1024 would overflow.
    pause_s = limits.backoff_s * 2.0 ** min(len(times) - 2, 30)
    return times[-1] + min(pause_s, limits.longest_backoff_s)


def crashed(
    history: History,
    now_s: float,
    view: RunningView,
    why: str,
    releases: Mapping[str, int],
    limits: Limits,
) -> History:
    """The history after a process ended that should not have; what left the window is forgotten.

    An executor is always its version's fault, a worker that of the version it was loading or running.
    """
    key = view.spec.version_key or (view.doing_version if view.doing is not Doing.IDLE else "")
    release = releases.get(key, view.spec.release)
    is_search = view.spec.kind is Kind.EXECUTOR and view.doing is Doing.RUNNING and view.requests > 1
    crash = Crash(
        view.spec.name, now_s, key, release, view.doing, view.requests, why, view.survived, is_search
    )
    recent = tuple(c for c in history.crashes if now_s - c.at_s < limits.window_s)
    return msgspec.structs.replace(history, crashes=(*recent, crash))


def quarantine(history: History, action: Quarantine) -> History:
    """The history with one more version given up."""
    entry = Quarantined(action.release, action.reason)
    return msgspec.structs.replace(history, quarantined={**history.quarantined, action.version_key: entry})


def forget(history: History, releases: Mapping[str, int]) -> History:
    """The history without quarantines that no longer hold: unloaded versions, and those asked for anew."""
    held = {
        key: entry
        for key, entry in history.quarantined.items()
        if is_quarantined(history.quarantined, key, releases)
    }
    return history if held == history.quarantined else msgspec.structs.replace(history, quarantined=held)


def is_quarantined(
    quarantined: Mapping[str, Quarantined], version_key: str, releases: Mapping[str, int]
) -> bool:
    """Whether a version that is in the Desired was given up under the release that asks for it, or later."""
    entry = quarantined.get(version_key)
    return entry is not None and version_key in releases and entry.release >= releases[version_key]


def _quarantines(
    history: History, releases: Mapping[str, int], limits: Limits, now_s: float
) -> Iterable[Quarantine]:
    for key, release in releases.items():
        if is_quarantined(history.quarantined, key, releases):
            continue
        crashes = [
            crash
            for crash in history.crashes
            if crash.version_key == key and crash.release == release and now_s - crash.at_s < limits.window_s
        ]
        if not crashes:
            continue
        loads = sum(crash.doing is Doing.LOADING for crash in crashes)
        alone = sum(crash.doing is Doing.RUNNING and crash.requests == 1 for crash in _in_vain(crashes))
        if loads >= limits.tries_load:
            times = f"crashed {loads} times while it was loaded"
        elif alone >= limits.tries_isolated:
            times = f"crashed {alone} times within {limits.window_s:g} s on a request of its own"
        elif len(crashes) >= limits.tries_any:
            times = f"crashed {len(crashes)} times within {limits.window_s:g} s"
        else:
            continue
        why = f"{times} under release {release} (last: {crashes[-1].why})"
        yield Quarantine(key, release, f"{why}; release it again to try it anew")


def _in_vain(crashes: Sequence[Crash]) -> Sequence[Crash]:
    """The crashes since the version last answered anything, the one that ended that included.

    An executor that answers others between its crashes dies of certain requests, not of every one: it is
    restarted, at growing intervals, and whoever sends them does not take the version from all others. A
    worker's crash harms its other models: there `survived` is always 0, and every one counts.
    """
    answered = [index for index, crash in enumerate(crashes) if crash.survived]
    return crashes[answered[-1] :] if answered else crashes


def _why_kill(now_s: float, view: RunningView, limits: Limits, watched_since_s: float) -> str | None:
    if view.stopping_s is not None and now_s - view.stopping_s > limits.stop_s:
        return f"did not leave within {limits.stop_s:g} s of being told to"
    limit = view.spec.memory_limit_bytes
    if limit is not None and view.resident_bytes > limit:
        return f"used {view.resident_bytes:,} bytes of memory, the limit is {limit:,}"
    if view.doing is Doing.RUNNING and view.kill_at_s > 0:
        # Its own deadline governs: a long predict may stop the heartbeat and still be in time.
        late_s = now_s - view.kill_at_s
        return f"hung: still running {late_s:.1f} s after its limit" if late_s > limits.hang_grace_s else None
    if view.heartbeat_s is None:
        silent_s, limit_s, what = (
            now_s - max(view.started_s, watched_since_s),
            limits.start_s,
            "did not start",
        )
    else:
        silent_s = now_s - max(view.heartbeat_s, watched_since_s)
        limit_s, what = _heartbeat_limit_s(view, limits), "hung: no heartbeat"
    return f"{what} for {silent_s:.1f} s, the limit is {limit_s:g} s" if silent_s > limit_s else None


def _heartbeat_limit_s(view: RunningView, limits: Limits) -> float:
    if view.doing is Doing.LOADING:
        return limits.load_s
    return limits.control_heartbeat_s if view.spec.kind is Kind.CONTROL else limits.heartbeat_s


def _is_same(running: ProcessSpec, wanted: ProcessSpec | None) -> bool:
    """Whether a running process is the wanted one: by its version, whatever release asks for that."""
    return wanted is not None and running.version_key == wanted.version_key
