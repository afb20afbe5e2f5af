"""Policy: what the user asks of a release that gathers evidence, in the user's own terms."""

import re
from enum import StrEnum
from math import isfinite

import msgspec

from interlock.core.errors import ConfigError
from interlock.core.feedback import Metric
from interlock.core.route import Range


class Undecided(StrEnum):
    """What to do when the time limit comes before the evidence."""

    HOLD = "hold"
    ROLL_BACK = "roll-back"


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one candidate of an A/B test gets of the requests."""

    version: str
    weight: float


GUARDRAILS = ("errors", "latency", "outputs", "utilisation", "memory")
"""What may stop a release; a sample-ratio mismatch always does, for then no evidence can be trusted."""
FOREIGN: dict[str, tuple[str, tuple[str, ...]]] = {
    "canary": ("a canary has one candidate", ("arms",)),
    "shadow": (
        "a shadow answers no requests",
        ("arms", "reverse", "shielded", "most_weight", "keep_s", "metrics"),
    ),
    "ab": (
        "an A/B test copies nothing, and its shares are fixed",
        ("shadow", "reverse", "shielded", "most_weight", "most_disagreement"),
    ),
}
"""By strategy: the rules that mean nothing there, and why."""
MOST_METRICS = 8
MOST_ARMS = 16
"""Of one release."""

UNITS = ("none", "header", "json:FIELD")
"""What `Policy.unit` may be: each request on its own; or all requests with one `x-interlock-unit`; or all
with one value of a field of the request's own `parameters`, such as `json:user`. The latter two stick."""
_JSON_UNIT = re.compile(r"""json:[^\x00-\x20\x7f"\\]{1,64}""")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a candidate is tried. The defaults need no tuning.

    `budget`: extra failed requests that the trial may cost, beyond those that `margin` allows; when no more
    can be risked, it stops and asks. `margin`: a failure rate so much higher may still be promoted (.005:
    half a point); proof that it is higher at all rolls back, whichever comes first. `alpha`: the chance of
    rolling back a candidate that is no worse, and of promoting one that is worse by the margin.
    `slower`: a latency so many times as long is still all right. `objective_s`:
    answers above it are counted as slow for both versions, as one more gate, and the one that must be
    proved. `most_weight`: the candidate's largest share before it is promoted. `guardrails`: which of
    `GUARDRAILS` may stop it. `unit`: who is assigned to an arm, see `UNITS`. `time_limit_s`: after that,
    `undecided` says what to do. `most_utilisation`: of the node's workers, projected for the
    candidate at full weight; above it, it waits for a person. `larger`: so many times as much memory is still
    all right; more, or a leak, waits for a person. `keep_s`: how long the old version stays in memory after
    the new one answers everything.

    `shadow`: the share of the requests of which the candidate runs a copy before it answers any; 0 begins
    with answers. `reverse`: the share of the candidate's requests of which the incumbent runs a copy.
    `shielded`: a client whom the candidate fails gets the incumbent's answer. `most_disagreement`: the share
    of pairs whose answers may differ; 1 allows all. Left out, each is
    settled when the release is asked for (`rollout/mirroring.py`): on where both versions can run one
    request. `tolerance` and `ranges` say when answers differ and when they are unsound: `Mirror`.

    `metrics`: what feedback says (`Metric`). `arms`: the candidates of an A/B test, whose verdict is on the
    first metric; none for any other release.
    """

    budget: float = 50.0
    margin: float = 0.005
    alpha: float = 0.01
    slower: float = 1.2
    objective_s: float | None = None
    most_weight: float = 0.5
    guardrails: tuple[str, ...] = GUARDRAILS
    unit: str = "none"
    time_limit_s: float = 86400.0
    undecided: Undecided = Undecided.HOLD
    most_utilisation: float = 0.9
    larger: float = 2.0
    keep_s: float = 0.0
    shadow: float | None = None
    reverse: float | None = None
    shielded: bool | None = None
    most_disagreement: float | None = None
    tolerance: float = 1e-3
    ranges: tuple[Range, ...] = ()
    metrics: tuple[Metric, ...] = ()
    arms: tuple[Share, ...] = ()

    def __post_init__(self) -> None:
        for name, least, most in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not (least <= value <= most and isfinite(value)):
                raise ConfigError(f"{name} {value:g} of a release: want {least:g} to {most:g}")
        if self.unit not in ("none", "header") and not _JSON_UNIT.fullmatch(self.unit):
            raise ConfigError(
                f"unit {self.unit[:80]!r} of a release: want none, header, or json:FIELD with the name of a "
                "field of the request's parameters, up to 64 characters, no spaces or quotes"
            )
        unknown = [name for name in self.guardrails if name not in GUARDRAILS]
        if unknown:
            raise ConfigError(f"guardrails {unknown} of a release: want some of {', '.join(GUARDRAILS)}")

        for what, found in (
            ("metrics", [metric.name for metric in self.metrics]),
            ("arms", [arm.version for arm in self.arms]),
        ):
            if len(set(found)) != len(found):
                raise ConfigError(f"{what} {', '.join(found)} of a release: one stands there twice")
        if len(self.metrics) > MOST_METRICS or len(self.arms) > MOST_ARMS:
            raise ConfigError(
                f"{len(self.metrics)} metrics and {len(self.arms)} candidates of a release: want at most "
                f"{MOST_METRICS} and {MOST_ARMS}"
            )
        for metric in self.metrics:
            if metric.age_s >= self.time_limit_s:
                raise ConfigError(
                    f"age_s = {metric.age_s:g} of metric '{metric.name}' of a release: want less than its "
                    f"time_limit_s, {self.time_limit_s:g}; nothing would be scored in time"
                )
        shares = [arm.weight for arm in self.arms]
        if self.arms and not (min(shares) >= 0.001 and sum(shares) <= 0.999):
            raise ConfigError(
                f"weights {', '.join(f'{share:g}' for share in shares)} of the candidates of an A/B test: "
                "want each at least 0.001, and something left for the live version"
            )
        if self.arms and not self.metrics:
            raise ConfigError(
                "an A/B test without a metric has no verdict: name one with --metric, or in the policy file"
            )

    @property
    def is_paired(self) -> bool:
        """Whether some requests are run by both versions and compared."""
        return bool(self.shadow or self.reverse)

    @property
    def is_sticky(self) -> bool:
        """Whether all requests of a unit go to one version, so that they are no assignments of their own."""
        return self.unit != "none"

    @property
    def unit_field(self) -> str | None:
        """The field of a request's `parameters` that holds its unit; None where it is not there.

        >>> Policy(unit="json:user").unit_field, Policy(unit="header").unit_field
        ('user', None)
        """
        return self.unit.removeprefix("json:") if self.unit.startswith("json:") else None


_BOUNDS = (
    ("budget", 1.0, 1e9),
    ("margin", 1e-5, 0.5),
    ("alpha", 1e-9, 0.2),
    ("slower", 1.0, 100.0),
    ("objective_s", 2e-5, 100.0),
    ("most_weight", 0.001, 0.95),
    ("time_limit_s", 1.0, 1e8),
    ("most_utilisation", 0.01, 100.0),
    ("larger", 1.0, 1000.0),
    ("keep_s", 0.0, 1e7),
    ("shadow", 0.0, 1.0),
    ("reverse", 0.0, 1.0),
    ("most_disagreement", 0.0001, 1.0),
    ("tolerance", 0.0, 1e9),
)
