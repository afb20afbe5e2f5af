"""Owns what has been scored of the metrics of open releases, from look to look."""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from interlock.core.errors import InterlockError
from interlock.core.state import ArmCounts, ArmKey
from interlock.registry.rows import RampEpoch, ReleaseRow
from interlock.rollout.metrics import MetricTally, Scores, Values
from interlock.rollout.tally import sent_by_arm

log = logging.getLogger("interlock.rollout")


class Feedback(Values, Protocol):
    """Where feedback is kept. All that came by `taken_ms` (Unix time) is visible to `scored`."""

    taken_ms: int


class Scoring:
    """Scores metrics by feedback; by None nothing is ever known of them."""

    def __init__(self, feedback: Feedback | None) -> None:
        self._feedback = feedback
        self._scores: dict[tuple[int, str], Scores] = {}
        self._last: dict[int, tuple[MetricTally, ...]] = {}

    def keep(self, releases: set[int]) -> None:
        """Forget all but these, by id."""
        self._scores = {key: one for key, one in self._scores.items() if key[0] in releases}
        self._last = {id: one for id, one in self._last.items() if id in releases}

    def look(
        self,
        row: ReleaseRow,
        live: str,
        epochs: Sequence[RampEpoch],
        counts: Mapping[ArmKey, ArmCounts],
        now_s: float,
    ) -> tuple[MetricTally, ...]:
        """What feedback says of a release now; what it said before, where it cannot be read.

        `live` is the incumbent's number; `counts` were read before `now_s` (Unix time).
        """
        policy, feedback = row.policy, self._feedback
        if feedback is None or policy is None or not policy.metrics:
            return ()
        versions = [live, *([arm.version for arm in policy.arms] or [row.number])]
        # Of units that stick to an arm one value counts each; how many units asked is not known.
        asked = {} if policy.is_sticky else sent_by_arm(row, versions, epochs, counts)
        found = []
        try:
            for metric in policy.metrics:
                scores = self._scores.setdefault((row.id, metric.name), Scores(row.id, metric, len(versions)))
                found.append(scores.look(feedback, feedback.taken_ms, int(now_s * 1000), asked))
        except (OSError, InterlockError) as error:
            # The other gates go on without: a version that fails is not to stay until a disk is mended.
            log.error("feedback cannot be read", extra={"fields": {"model": row.model, "error": str(error)}})
            return self._last.get(row.id, ())
        self._last[row.id] = tuple(found)
        return tuple(found)
