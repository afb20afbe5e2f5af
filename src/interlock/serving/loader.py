"""The shell around the version policy: loads beside what serves, warms up, swaps, drains, gives memory back.

Everything that could hold the event loop (reading, hashing, building a session, freeing one) runs in a
thread, one load at a time; executors load in their own processes, side by side.
"""

import asyncio
import ctypes
import gc
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from pathlib import Path
from time import monotonic

from interlock.core.errors import DigestMismatch, InterlockError, LoadFailed, Quarantined
from interlock.core.letters import Desired, VersionState, VersionStatus, executor_socket
from interlock.core.model import Model, Placement, Version, artifact_path, check_fault, digest_of
from interlock.core.route import Route
from interlock.runtime.catalog import DATA_ONLY, runtime_of, with_fault
from interlock.runtime.protocol import Loaded
from interlock.serving.block import Block
from interlock.serving.executor import ExecutorPlace
from interlock.serving.infer import Infer
from interlock.serving.lane import Lane
from interlock.serving.memory import want_memory
from interlock.serving.placement import Inline, Place, Threaded
from interlock.serving.versions import (
    Drain,
    Forget,
    Held,
    Load,
    Revive,
    Step,
    Swap,
    Unload,
    carried_out,
    is_ready,
    plan,
    why_not_mirrored,
)
from interlock.serving.warm_up import warm_up

LOAD_LIMIT_S = 120.0
DRAIN_POLL_S = 0.02
_log = logging.getLogger(__name__)


class _Resident:
    """One version in this worker, in whatever state."""

    __slots__ = ("failed_revision", "lane", "load_s", "place", "reason", "state", "task", "version")

    def __init__(self, version: Version) -> None:
        self.version = version
        self.state = VersionState.LOADING
        self.reason = ""
        self.load_s = 0.0
        self.failed_revision = -1
        self.lane: Lane | None = None
        self.place: Place | None = None
        self.task: asyncio.Task[None] | None = None

    def held(self) -> Held:
        outstanding = self.lane.outstanding if self.lane is not None else 0
        return Held(self.version, self.state, outstanding, self.failed_revision)

    def status(self) -> VersionStatus:
        version, reason = self.version, self.reason
        if self.place is not None and not self.place.connected and not reason:
            reason = "its executor is gone and expected back"
        return VersionStatus(version.model, version.number, version.digest, self.state, reason, self.load_s)


class Loader:
    """Carries out the Desired of one worker. For its event loop; `changed` is called after each change of
    state, and may not block. `beside` runs what would hold the loop up (loading, giving memory back); by
    default the loop's own threads do."""

    def __init__(
        self,
        home: Path,
        infer: Infer,
        block: Block,
        owner: int,
        changed: Callable[[], None],
        beside: Executor | None = None,
    ) -> None:
        self.seen_revision = -1
        self.done_revision = -1
        self._home = home
        self._infer = infer
        self._block = block
        self._owner = owner
        self._changed = changed
        self._beside = beside
        self._desired: Desired | None = None
        self._quarantined: Mapping[str, str] = {}
        self._residents: dict[str, _Resident] = {}
        self._routes: dict[str, Route] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_load = asyncio.Lock()
        self._loading_key = ""
        self._was_ready = False
        self._poll: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def apply(self, desired: Desired, quarantined: Mapping[str, str]) -> None:
        """Work towards a Desired; `quarantined` maps the keys of versions given up to the reason."""
        self._desired = desired
        self.seen_revision = max(self.seen_revision, desired.revision)
        for one in desired.models:
            reason = why_not_mirrored(one)
            if reason is not None:
                _log.error("route refused", extra={"fields": {"model": one.model.name, "reason": reason}})
        self.quarantine(quarantined)

    def quarantine(self, quarantined: Mapping[str, str]) -> None:
        """The versions given up have changed."""
        self._quarantined = quarantined
        for key, reason in quarantined.items():
            resident = self._residents.get(key)
            if resident is not None and resident.state is not VersionState.QUARANTINED:
                resident.state, resident.reason = VersionState.QUARANTINED, reason
                if resident.lane is not None:
                    version = resident.version
                    resident.lane.give_up(
                        Quarantined(
                            f"version {version.number} of model '{version.model}' is quarantined: {reason}",
                            60.0,
                        )
                    )
                if resident.task is not None:
                    resident.task.cancel()
        self._advance()

    def statuses(self) -> tuple[VersionStatus, ...]:
        """Every version that is wanted or still here."""
        found = {key: resident.status() for key, resident in self._residents.items()}
        for one in self._desired.models if self._desired is not None else ():
            for version in one.versions:
                if version.key not in found:
                    reason = self._quarantined.get(version.key)
                    state = VersionState.PENDING if reason is None else VersionState.QUARANTINED
                    found[version.key] = VersionStatus(
                        version.model, version.number, version.digest, state, reason or ""
                    )
        return tuple(found.values())

    async def close(self) -> None:
        """Give everything back. Nothing is under way any more."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._poll is not None:
            self._poll.cancel()
        for resident in self._residents.values():
            if resident.place is not None:
                await resident.place.close()

    # --- one step after another, until the policy has none ---

    def _advance(self) -> None:
        desired = self._desired
        if desired is None:
            return
        given_up = frozenset(self._quarantined)
        while steps := plan(desired.models, desired.revision, self._held(), self._routes, given_up):
            for step in steps:
                self._take(step, desired)
        held = self._held()
        if carried_out(desired.models, held, self._routes, given_up):
            self.done_revision = desired.revision
        ready = is_ready(desired.models, held, self._routes, given_up, self._was_ready)
        self._infer.ready = ready and not self._infer.leaving
        self._was_ready = self._was_ready or ready
        self._infer.update(
            {one.model.name: one.model for one in desired.models},
            self.statuses(),
            {(v.model, v.number): v for one in desired.models for v in one.versions},
            desired.unloaded,
        )
        if self._poll is None and any(h.state is VersionState.DRAINING for h in held.values()):
            self._poll = self._loop.call_later(DRAIN_POLL_S, self._look_again)
        self._changed()

    def _look_again(self) -> None:
        self._poll = None
        self._advance()

    def _held(self) -> dict[str, Held]:
        return {key: resident.held() for key, resident in self._residents.items()}

    def _take(self, step: Step, desired: Desired) -> None:
        match step:
            case Load(version):
                old = self._residents.get(version.key)
                resident = self._residents[version.key] = _Resident(version)
                model = next(one.model for one in desired.models if one.model.name == version.model)
                resident.task = self._spawn(self._load(resident, model, desired.revision, old))
            case Swap(model, route):
                if route is None:
                    self._routes.pop(model.name, None)
                    self._infer.swap(model, None, {})
                else:
                    self._routes[model.name] = route
                    self._show(model)
            case Drain(key):
                self._residents[key].state = VersionState.DRAINING
                self._refresh(key)
            case Revive(key):
                resident = self._residents[key]
                resident.state = VersionState.READY
                if resident.lane is not None:
                    resident.lane.draining = False
                self._refresh(key)
            case Unload(key):
                resident = self._residents.pop(key)
                if resident.lane is not None:
                    resident.lane.draining = True
                self._spawn(self._release(resident))
            case Forget(key):
                resident = self._residents.pop(key)
                self._spawn(self._release(resident))

    def _refresh(self, key: str) -> None:
        name = self._residents[key].version.model
        for one in self._desired.models if self._desired is not None else ():
            if one.model.name == name and name in self._routes:
                self._show(one.model)

    def _show(self, model: Model) -> None:
        """Tell the front which versions of a model it can name now, under the route in force."""
        route = self._routes[model.name]
        models = self._desired.models if self._desired is not None else ()
        # Of two with one number the older answers until the route that wants the newer one is in force.
        newer = {
            version.key
            for one in models
            if one.model.name == model.name and one.route == route
            for version in one.versions
        }
        lanes: dict[str, Lane] = {}
        for key, resident in self._residents.items():
            if (
                resident.version.model == model.name
                and resident.lane is not None
                and resident.state in (VersionState.READY, VersionState.QUARANTINED)
                and (key in newer or resident.version.number not in lanes)
            ):
                lanes[resident.version.number] = resident.lane
        if all(arm.version in lanes for arm in route.arms):
            self._infer.swap(model, route, lanes)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- loading and giving back ---

    async def _load(self, resident: _Resident, model: Model, revision: int, old: _Resident | None) -> None:
        version = resident.version
        started_s = monotonic()
        try:
            if old is not None and old.place is not None:
                await old.place.close()
            place = await self._place(version)
        except TimeoutError:
            self._failed(resident, revision, f"not loaded within {LOAD_LIMIT_S:.0f} s")
        except InterlockError as error:
            self._failed(resident, revision, error.message)
        except Exception as error:  # a runtime may raise anything; the version fails, the worker serves on
            _log.exception("load of %s failed", version.key)
            self._failed(resident, revision, f"{type(error).__name__}: {str(error)[:500]}")
        else:
            resident.place = place
            if resident.state is not VersionState.LOADING:
                return  # quarantined meanwhile
            # What runs in an executor cannot end this process, and must not be blamed for its end.
            crumb = None if version.placement is Placement.EXECUTOR else self._crumb
            resident.lane = Lane(version, model.settings, place, crumb)
            resident.load_s = monotonic() - started_s
            resident.state = VersionState.READY
            _log.info("version ready", extra={"fields": {"version": version.key, "load_s": resident.load_s}})
            self._refresh(version.key)
            self._advance()

    def _failed(self, resident: _Resident, revision: int, reason: str) -> None:
        _log.error("version failed", extra={"fields": {"version": resident.version.key, "reason": reason}})
        if resident.state is VersionState.LOADING:
            resident.state, resident.reason = VersionState.FAILED, reason
            resident.failed_revision = revision
        self._advance()

    async def _place(self, version: Version) -> Place:
        check_fault(version)
        if version.placement is Placement.EXECUTOR:
            place = ExecutorPlace(
                executor_socket(self._home, version), version, self._owner, self._executor_changed
            )
            await place.connect(monotonic() + LOAD_LIMIT_S)
            return place
        if version.runtime not in DATA_ONLY:
            raise LoadFailed(
                f"runtime '{version.runtime}' runs code of the model's author: want placement executor,"
                f" got {version.placement.value}"
            )
        async with self._one_load, asyncio.timeout(LOAD_LIMIT_S):
            self._loading_key = version.key
            self._block.loading(version.key)
            try:
                loaded = await self._loop.run_in_executor(self._beside, _load_here, self._home, version)
            finally:
                self._loading_key = ""
                self._block.idle()
        if version.placement is Placement.INLINE and not version.capabilities.streaming:
            return Inline(loaded)
        return Threaded(loaded, version.key)

    def _executor_changed(self, connected: bool, reason: str) -> None:
        if reason:
            _log.warning("executor", extra={"fields": {"connected": connected, "reason": reason}})
        self._advance()

    def _crumb(self, key: str, requests: int) -> None:
        # While a version loads, a crash is laid to it: what has run before is less suspicious.
        if not self._loading_key:
            if requests:
                self._block.running(key, requests)
            else:
                self._block.idle()

    async def _release(self, resident: _Resident) -> None:
        if resident.task is not None and not resident.task.done():
            resident.task.cancel()
            await asyncio.gather(resident.task, return_exceptions=True)
        in_circles = False
        if resident.place is not None:
            await resident.place.close()
            in_circles = not resident.place.instant
            resident.place = None
        resident.lane = None
        if in_circles:
            # What such a place refers to refers back to it. With all that was imported frozen, 1 to 2 ms.
            gc.collect()
        await self._loop.run_in_executor(self._beside, give_memory_back)
        _log.info("version unloaded", extra={"fields": {"version": resident.version.key}})


def _load_here(home: Path, version: Version) -> Loaded:
    """Verify, load and warm up, in the calling thread.

    Raises: DigestMismatch, LoadFailed, MissingExtra, UnknownFormat.
    """
    folder = artifact_path(home, version.digest)
    if not folder.is_dir():
        raise LoadFailed(f"artifact {version.digest} is not in the cache; release the version again")
    want_memory(version)
    found = digest_of(folder)
    if found != version.digest:
        raise DigestMismatch(f"artifact of {version.key} has digest {found}, registered was {version.digest}")
    loaded = runtime_of(version.runtime).load(folder, version)
    try:
        warm_up(loaded, version)
    except Exception as error:
        loaded.close()
        if isinstance(error, LoadFailed):
            raise
        raise LoadFailed(f"warm-up failed: {type(error).__name__}: {str(error)[:500]}") from error
    return with_fault(loaded, version)


def give_memory_back() -> None:
    """Hand freed heap pages to the system (glibc keeps them otherwise); elsewhere nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
