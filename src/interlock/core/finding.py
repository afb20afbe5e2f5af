"""What a monitor found, in the form that rollouts and incidents read."""

from typing import Any

import msgspec

from interlock.core.verdict import Verdict


class Finding(msgspec.Struct, frozen=True):
    """One observation about one version.

    `time_s` is Unix time; `evidence` holds plain JSON values that let a reader check the verdict.
    """

    monitor: str
    model: str
    version: str
    verdict: Verdict
    message: str
    time_s: float
    evidence: dict[str, Any] = {}
