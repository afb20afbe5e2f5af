"""Owns what is remembered of memory while a release goes on: how much the process of each version held, by
how many requests that version had run.

A process's memory goes up and down with the allocator and the garbage collector, and what a leak raises is
the floor. So a point is the least that was held while so many runs began; when there are too many points, two
neighbours become one. What runs in the workers shares their memory with all else that is in them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from interlock.core.model import Placement, Version
from interlock.core.state import ArmCounts, ArmKey
from interlock.registry.rows import ReleaseRow, ReleaseState

MOST_POINTS = 48
"""Of one track: it is in every logged decision."""
BEFORE_S = 600.0
"""Over how long the workers' growth before a release is measured, about; twice that at most."""
_BEFORE_EVERY_S = 5.0


class Process(msgspec.Struct, frozen=True):
    """The memory of an executor, or of all workers together, in bytes. `incarnation` changes when a process
    is replaced; `limit_bytes` is what it may have, None for no limit; `available_bytes` what the machine has
    left, None where it does not tell."""

    resident_bytes: int
    incarnation: int = 0
    limit_bytes: int | None = None
    available_bytes: int | None = None


Memory = Callable[[Version | None], Process | None]
"""Reads the memory of the executor of a version, or (None) of the workers; None where it is not known."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """The least bytes that were resident from run number `run` on until the next point's. Runs count from the
    first point on (turns of five seconds, for what the workers did before a release)."""

    run: int
    least_bytes: int


class Track(msgspec.Struct, frozen=True):
    """Points in order, at least `width` runs apart; `origin` is the count of runs at which they begin."""

    incarnation: int
    origin: int
    points: tuple[Point, ...] = ()
    width: int = 1


class MemoryView(msgspec.Struct, frozen=True):
    """What a decision sees of memory. Bytes.

    `place`: where the candidate runs. `candidate`: the points of its executor, or of all workers, since the
    release has been ramping; `incumbent`: of the incumbent's executor, empty where it has none. The last
    point of each is still open. `process`: the latest reading; `incumbent_bytes`: the most that the
    incumbent's executor held, 0 where it has none; `registered`: what loading the candidate and the incumbent
    took at registration, 0 where it is not known. `spent_s`: since the first point. `rate_per_s`: all
    requests of the model. `before_per_s`: by how many bytes the workers grew a second before the release,
    None where that is not known or does not matter.
    """

    place: Literal["executor", "workers"]
    process: Process
    candidate: tuple[Point, ...]
    incumbent: tuple[Point, ...] = ()
    incumbent_bytes: int = 0
    registered: tuple[int, int] = (0, 0)
    spent_s: float = 0.0
    rate_per_s: float | None = None
    before_per_s: float | None = None


def added(track: Track | None, run: int, process: Process, most: int = MOST_POINTS) -> Track:
    """The track with one more reading, taken when `run` runs had begun; anew for a new incarnation.

    >>> track = added(None, 7, Process(500))
    >>> added(added(track, 9, Process(300)), 9, Process(200)).points
    (Point(run=0, least_bytes=500), Point(run=2, least_bytes=200))
    """
    # Counts only shrink where somebody moved the file of the retired ones away.
    if track is None or track.incarnation != process.incarnation or run < track.origin:
        return Track(process.incarnation, run, (Point(0, process.resident_bytes),))
    at, last = run - track.origin, track.points[-1]
    if at < last.run + track.width:
        least = Point(last.run, min(last.least_bytes, process.resident_bytes))
        return msgspec.structs.replace(track, points=(*track.points[:-1], least))
    points, width = (*track.points, Point(at, process.resident_bytes)), track.width
    if len(points) > most:
        width = max(2 * width, 2 * at // most)
        points = _joined(points, width)
    return msgspec.structs.replace(track, points=points, width=width)


def _joined(points: Iterable[Point], width: int) -> tuple[Point, ...]:
    found: list[Point] = []
    for point in points:
        if found and point.run < found[-1].run + width:
            found[-1] = Point(found[-1].run, min(found[-1].least_bytes, point.least_bytes))
        else:
            found.append(point)
    return tuple(found)


def runs_of(model: str, number: str, counts: Mapping[ArmKey, ArmCounts]) -> int:
    """How many runs of a version have begun so far: for clients and of copies, under whatever release."""
    return sum(arm.dispatched for key, arm in counts.items() if (key.model, key.version) == (model, number))


class Watch:
    """Remembers the tracks of the open releases, and how the workers grew before. One thread at a time."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._turn = -1
        self._before: list[Track] = []
        self._most: dict[int, int] = {}
        self._tracks: dict[int, dict[str, Track]] = {}
        self._begun: dict[tuple[int, str], tuple[float, float | None]] = {}

    def look(self, now_s: float) -> None:
        """Note the workers' memory; while no release is open."""
        turn = int(now_s / _BEFORE_EVERY_S)
        if turn == self._turn:
            return
        self._turn = turn
        process = self._memory(None)
        if process is None:
            self._before = []
            return
        # Two tracks, the older of which is dropped when the newer one is old enough to tell.
        tracks = [added(track, turn, process) for track in self._before]
        if not tracks or turn - tracks[-1].origin >= BEFORE_S / _BEFORE_EVERY_S:
            tracks = [*tracks[-1:], added(None, turn, process)]
        self._before = tracks

    def forget(self, open_releases: Iterable[int]) -> None:
        """Drop what is remembered of releases that have ended."""
        kept = set(open_releases)
        self._tracks = {id: tracks for id, tracks in self._tracks.items() if id in kept}
        self._begun = {key: begun for key, begun in self._begun.items() if key[0] in kept}
        self._most = {id: most for id, most in self._most.items() if id in kept}

    def views(
        self,
        row: ReleaseRow,
        live: ReleaseRow,
        version_of: Callable[[str, str], Version | None],
        counts: Mapping[ArmKey, ArmCounts],
        rate_per_s: float | None,
        now_s: float,
    ) -> tuple[MemoryView | None, ...]:
        """The views of all candidates of a release, empty unless they run; `version_of` finds the record of a
        model's version."""
        if row.state not in (ReleaseState.RAMPING, ReleaseState.PAUSED):
            return ()
        arms = row.policy.arms if row.policy is not None else ()
        numbers = [arm.version for arm in arms] or [row.number]
        incumbent = version_of(row.model, live.number)
        return tuple(
            None if version is None else self.view(row.id, version, incumbent, counts, rate_per_s, now_s)
            for version in [version_of(row.model, number) for number in numbers]
        )

    def view(
        self,
        release: int,
        candidate: Version,
        incumbent: Version | None,
        counts: Mapping[ArmKey, ArmCounts],
        rate_per_s: float | None,
        now_s: float,
    ) -> MemoryView | None:
        """Read the memory of a release that is ramping; None where it cannot be read. `now_s`: monotonic."""
        in_executor = candidate.placement is Placement.EXECUTOR
        process = self._memory(candidate if in_executor else None)
        if process is None:
            return None
        tracks = self._tracks.setdefault(release, {})
        track = self._added(tracks, candidate, process, counts)
        key = release, candidate.key
        before = self._begun.get(key)
        if before is None or len(track.points) == 1:
            before = self._begun[key] = (now_s, before[1] if before else self._growth_before())
        view = MemoryView(
            place="executor" if in_executor else "workers",
            process=process,
            candidate=track.points,
            registered=(
                candidate.profile.resident_bytes,
                0 if incumbent is None else incumbent.profile.resident_bytes,
            ),
            spent_s=round(now_s - before[0], 3),
            rate_per_s=rate_per_s,
            before_per_s=None if in_executor else before[1],
        )
        if incumbent is None or not in_executor or incumbent.placement is not Placement.EXECUTOR:
            return view
        other = self._memory(incumbent)
        if other is None:
            return view
        theirs = self._added(tracks, incumbent, other, counts)
        # The most: while its executor is replaced it holds little, and the candidate would look large.
        most = self._most[release] = max(other.resident_bytes, self._most.get(release, 0))
        return msgspec.structs.replace(view, incumbent=theirs.points, incumbent_bytes=most)

    def _added(
        self,
        tracks: dict[str, Track],
        version: Version,
        process: Process,
        counts: Mapping[ArmKey, ArmCounts],
    ) -> Track:
        runs = runs_of(version.model, version.number, counts)
        track = tracks[version.key] = added(tracks.get(version.key), runs, process)
        return track

    def _growth_before(self) -> float | None:
        """Bytes a second, from floor to floor; None where the time was too short to say."""
        if not self._before:
            return None
        points = self._before[0].points[:-1]
        if len(points) < 8:
            return None
        half = len(points) // 2
        floors = [min(point.least_bytes for point in part) for part in (points[:half], points[half:])]
        return max(floors[1] - floors[0], 0) / ((points[half].run - points[0].run) * _BEFORE_EVERY_S)
