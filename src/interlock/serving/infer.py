"""Infer: route to version to lane, with the request id and the counts; what every protocol calls."""

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from time import monotonic, time
from typing import Any, Literal

from interlock.core.errors import (
    Draining,
    Forbidden,
    InterlockError,
    ModelNotFound,
    NotReady,
    Quarantined,
    Unavailable,
    VersionNotFound,
)
from interlock.core.feedback import Feedback
from interlock.core.letters import VersionState, VersionStatus
from interlock.core.model import Model, ModelSettings, Version
from interlock.core.request import PRIORITY_HIGH, Request, Sink, Ticket, id_prefix, unit_field
from interlock.core.request import deadline as deadline_of
from interlock.core.route import COPY_ARM, Arm, Mirror, Route, unit_position
from interlock.core.state import ArmCounts, ArmKey
from interlock.serving.admission import decide
from interlock.serving.block import INVALID, Block, Slot
from interlock.serving.lane import Lane
from interlock.serving.mirror import Mirrored

DIRECT_ARM = 255
"""The arm of requests that name their version: no evidence for or against a release."""

Counts = Callable[[], dict[ArmKey, ArmCounts]]
Repository = Callable[[Literal["load", "unload"], str], Awaitable[None]]


class Target:
    """The version that one request goes to, under the arm that it is counted for."""

    __slots__ = (
        "_infer",
        "_prefix",
        "_salt",
        "arm",
        "codec",
        "fixed",
        "lane",
        "model",
        "settings",
        "slot",
        "unit_field",
        "version",
    )

    def __init__(
        self,
        model: str,
        lane: Lane,
        settings: ModelSettings,
        route: Route,
        arm: Arm,
        slot: Slot,
        prefix: bytes,
        infer: "Infer",
    ) -> None:
        self.model = model
        self.lane = lane
        self.version = lane.version
        self.settings = settings
        self.arm = arm
        self.slot = slot
        self.codec: Any = None
        self.unit_field = route.unit_field if arm.index != DIRECT_ARM else None
        self.fixed = arm.index == DIRECT_ARM or (route.only_arm is arm and self.unit_field is None)
        # Where units stick, ids say which requests are of one; not where a single arm answers all of them.
        is_one_of_several = route.only_arm is None and arm in route.arms
        self._salt = route.salt if route.sticky and is_one_of_several else None
        self._prefix = prefix
        self._infer = infer

    def submit(self, jobs: Sequence[tuple[Request, Sink]]) -> Sequence[Ticket | None]:
        """Begin what one turn of the loop brought: a ticket for each that was not refused; none at all where
        all of them have been answered already.

        A sink may hear of its request before this returns: why it was refused (without an id), or the answer
        where the model runs in this very turn.
        """
        ids = self.ids(jobs)
        tickets = self.lane.at_once(jobs, ids, self.slot)
        if tickets is None:
            tickets = self.lane.start(jobs, ids, self.slot)
            self.lane.step()
        return tickets

    def ids(self, jobs: Sequence[tuple[Request, object]]) -> Iterator[bytes]:
        """An id for each request of this turn of the loop, in their order."""
        form = b"%b%x-%%x" % (self._prefix, int(time() * 1000))
        if self._salt is None:
            return map(form.__mod__, self._infer.sequence)
        return self._ids_of_units(form, self._salt, jobs)

    def _ids_of_units(
        self, form: bytes, salt: str, jobs: Sequence[tuple[Request, object]]
    ) -> Iterator[bytes]:
        for (request, _), number in zip(jobs, self._infer.sequence, strict=False):
            unit = request.unit
            end = b"" if unit is None else b"-%x" % unit_field(unit_position(unit, salt))
            yield form % number + end

    def invalid(self, received_s: float) -> None:
        """A request was refused while it was decoded: the client's fault, and over."""
        self.slot.dispatched()
        self.slot.settled(INVALID, monotonic() - received_s)

    def unsent(self, received_s: float) -> bool:
        """Outputs that the lane took for good could not be encoded: a failure, not a success. Returns whether
        this is the first one of the version, which is worth a line in the log."""
        # The same totals, and within one turn of the loop of the lane's own count.
        self.slot.unsent(monotonic() - received_s)
        return self._infer.is_first_unsent(self.version.key)

    def is_first_unsent(self, version_key: str) -> bool:
        """See `Infer.is_first_unsent`; for who stands in for this target."""
        return self._infer.is_first_unsent(version_key)


Answers = Target | Mirrored
"""What answers the requests of one arm: its version, alone or mirrored to another one."""


class _Entry:
    """How one model is answered: a route with a target for each arm, and one for each version by number."""

    __slots__ = ("by_arm", "by_number", "model", "only", "route")

    def __init__(
        self, model: Model, route: Route, by_arm: dict[int, Answers], by_number: dict[str, Answers]
    ) -> None:
        self.model = model
        self.route = route
        self.by_arm = by_arm
        self.by_number = by_number
        # With one arm, or all others at weight 0, the route has nothing to choose.
        only = route.only_arm
        self.only = by_arm[only.index] if only is not None else None


class Infer:
    """The front of the data plane in one worker. For its event loop; swapping a route is one assignment."""

    def __init__(
        self,
        block: Block,
        origin: int,
        counts: Counts,
        repository: Repository | None = None,
        keep: Callable[[Sequence[Feedback]], None] | None = None,
    ) -> None:
        self._block = block
        self._origin = origin
        self._counts = counts
        self._repository = repository
        self._keep = keep
        self._entries: dict[str, _Entry] = {}
        self._known: dict[str, Model] = {}
        self._statuses: tuple[VersionStatus, ...] = ()
        self._versions: dict[tuple[str, str], Version] = {}
        self._unloaded: dict[str, str] = {}
        self._unsent: set[str] = set()
        self.sequence = count()
        self._draw = random.random
        self.live = True
        self.ready = False
        self.leaving = False
        """This worker is about to leave: not ready any more, but it still answers."""
        self.draining = False
        """It answers nothing new."""

    def is_first_unsent(self, version_key: str) -> bool:
        """Whether this version's answers could all be encoded until now."""
        first = version_key not in self._unsent
        self._unsent.add(version_key)
        return first

    # --- what protocols call ---

    def choose(self, model: str, number: str | None, unit: bytes | None) -> Answers:
        """The target of one request.

        Raises: ModelNotFound, VersionNotFound, NotReady, Quarantined, Draining.
        """
        entry = self._entries.get(model)
        if entry is None or self.draining:
            raise self._absent(model, number)
        if number is None:
            if entry.only is not None:
                return entry.only
            return entry.by_arm[entry.route.choose(unit, self._draw).index]
        target = entry.by_number.get(number)
        if target is None:
            raise self._absent(model, number)
        return target

    def admit(
        self,
        model: str,
        number: str | None,
        timeout_s: float | None,
        received_s: float,
        urgency: int | None = None,
    ) -> Unavailable | None:
        """Stage one of admission, before the body is read: None, or why a request of one row cannot be
        answered in time. Raises: ModelNotFound, VersionNotFound, DeadlineInvalid."""
        entry = self._entries.get(model)
        if entry is None or self.draining:
            error = self._absent(model, number)
            if isinstance(error, Unavailable):
                return error
            raise error
        target = entry.only if number is None else entry.by_number.get(number)
        if target is None or not target.lane.congested:
            return None
        now = monotonic()
        until_s = deadline_of(received_s, timeout_s, target.settings)
        # Its priority may be in the body: the room that is kept for high priority is open to all here. But
        # who is to go before others says so in a header, or is expected behind all of them.
        view = target.lane.view(now, target.settings.priority if urgency is None else urgency)
        refusal = decide(view, 1, until_s, PRIORITY_HIGH, now)
        if isinstance(refusal, Unavailable):
            target.slot.refused()
            return refusal
        return None

    def settings(self, model: str) -> ModelSettings:
        """Raises: ModelNotFound."""
        known = self._known.get(model)
        if known is None:
            raise self._absent(model, None)
        return known.settings

    def model_ready(self, model: str, number: str | None) -> bool:
        """Raises: ModelNotFound, VersionNotFound."""
        if model in self._unloaded:
            return False
        if model not in self._known or (number is not None and (model, number) not in self._versions):
            raise self._absent(model, number)
        entry = self._entries.get(model)
        if entry is None or self.draining:
            return False
        if number is None:  # what nobody is sent to (a shadow) may be broken
            targets = [entry.by_arm[arm.index] for arm in entry.route.arms if arm.weight > 0.0]
        else:
            targets = [entry.by_number[number]] if number in entry.by_number else []
        return bool(targets) and all(t.lane.broken is None and t.lane.place.connected for t in targets)

    def index(self) -> list[VersionStatus]:
        """All versions that this worker knows of, and of models that were unloaded those that were live."""
        here = {status.model for status in self._statuses}
        gone = [
            VersionStatus(model, number, "", VersionState.FAILED, "unloaded")
            for model, number in self._unloaded.items()
            if model not in here  # else it is being drained
        ]
        return [*self._statuses, *gone]

    def version(self, model: str, number: str | None) -> Version:
        """The version that a number names, or the incumbent.

        Raises: ModelNotFound, VersionNotFound, NotReady.
        """
        if number is None:
            entry = self._entries.get(model)
            if entry is None:
                raise self._absent(model, None)
            return entry.by_arm[entry.route.arms[0].index].version
        try:
            return self._versions[model, number]
        except KeyError:
            raise self._absent(model, number) from None

    def stats(self, model: str | None, number: str | None) -> list[tuple[ArmKey, ArmCounts]]:
        """Cumulative counts of what clients asked of the whole node, by arm."""
        return [
            (key, counts)
            for key, counts in self._counts().items()
            if key.model
            and key.arm != COPY_ARM
            and model in (None, key.model)
            and number in (None, key.version)
        ]

    def feedback(self, items: Sequence[Feedback]) -> None:
        """Keep all items, on disk when this returns. Raises: Unavailable; then they are to be sent again."""
        if self._keep is None:
            raise Unavailable("nothing keeps feedback here")
        self._keep(items)

    def repository(self, action: Literal["load", "unload"], model: str) -> Awaitable[None]:
        """Ask control to load or unload. Raises: Forbidden unless the node was started with permission."""
        if self._repository is None:
            raise Forbidden(
                f"{action} of '{model}' over the data port is switched off, for it would pass by the release"
                f" gates; use `interlock release`, or start the node with --allow-repository-control"
            )
        return self._repository(action, model)

    # --- what the worker calls ---

    def swap(self, model: Model, route: Route | None, lanes: dict[str, Lane]) -> None:
        """Answer a model by a route; `lanes` are those of its versions that are ready, by number."""
        if route is None:
            self._entries.pop(model.name, None)
            return
        by_arm: dict[int, Answers] = {}
        for arm in route.arms:
            by_arm[arm.index] = self._target(model, lanes[arm.version], route, arm)
        direct: dict[str, Answers] = {
            number: self._target(model, lane, route, Arm(DIRECT_ARM, "direct", number, 0.0))
            for number, lane in lanes.items()
        }
        # A version that is the only one of its route is counted under it, by whichever path it was asked.
        if len(route.arms) == 1:
            direct[route.arms[0].version] = by_arm[route.arms[0].index]
        if route.mirror is not None:
            by_arm |= self._mirrored(route, route.mirror, by_arm)
        self._entries[model.name] = _Entry(model, route, by_arm, direct)

    def update(
        self,
        known: dict[str, Model],
        statuses: tuple[VersionStatus, ...],
        versions: dict[tuple[str, str], Version],
        unloaded: dict[str, str] | None = None,
    ) -> None:
        """What the worker knows of now: for the index, metadata and error messages."""
        self._known = known
        self._statuses = statuses
        self._versions = versions
        self._unloaded = unloaded or {}
        self._unsent &= {version.key for version in versions.values()}

    def _mirrored(self, route: Route, mirror: Mirror, by_arm: dict[int, Answers]) -> dict[int, Mirrored]:
        """The arms whose requests, or a share of them, another lane runs too."""
        incumbent, candidate = by_arm[route.arms[0].index], by_arm[mirror.candidate]
        copy_id = id_prefix(route.release, route.epoch, COPY_ARM, self._origin) + b"0-0"
        made: dict[int, Mirrored] = {}
        for client, other, share in (
            (incumbent, candidate, mirror.shadow),
            (candidate, incumbent, mirror.reverse),
        ):
            if isinstance(client, Target) and (share or (mirror.shielded and client is candidate)):
                key = ArmKey(client.model, other.version.number, route.release, route.epoch, COPY_ARM)
                copies = self._block.slot(key)
                made[client.arm.index] = Mirrored(
                    client,
                    other.lane,
                    mirror,
                    share,
                    route.salt,
                    copies,
                    # What the candidate answered is told apart from what it ran a copy of.
                    candidate.slot if client is candidate else copies,
                    copy_id,
                    self._draw,
                )
        return made

    def _target(self, model: Model, lane: Lane, route: Route, arm: Arm) -> Target:
        key = ArmKey(model.name, arm.version, route.release, route.epoch, arm.index)
        prefix = id_prefix(route.release, route.epoch, arm.index, self._origin)
        return Target(model.name, lane, model.settings, route, arm, self._block.slot(key), prefix, self)

    def _absent(self, model: str, number: str | None) -> InterlockError:
        """Why a model or version does not answer, as precisely as this worker knows."""
        if self.draining:
            return Draining("this worker is about to leave; try again")
        if model in self._unloaded:
            return NotReady(
                f"model '{model}' is unloaded; load it (V2 repository control), or: interlock release"
                f" '{model}' --now"
            )
        if model not in self._known:
            known = ", ".join(f"'{name}'" for name in sorted(self._known)[:8]) or "none"
            return ModelNotFound(f"model '{model}' is not served here; served: {known}")
        mine = [status for status in self._statuses if status.model == model]
        if number is not None:
            mine = [status for status in mine if status.number == number]
            if not mine:
                loaded = sorted(s.number for s in self._statuses if s.model == model)
                return VersionNotFound(
                    f"version '{number}' of model '{model}' is not loaded; loaded: {loaded}"
                )
        for status in mine:
            if status.state is VersionState.QUARANTINED:
                return Quarantined(
                    f"version {status.number} of model '{model}' is quarantined: {status.reason}", 60.0
                )
        state = "; ".join(status.words for status in mine)
        return NotReady(f"model '{model}' is not ready: {state or 'no version is loaded yet'}")
