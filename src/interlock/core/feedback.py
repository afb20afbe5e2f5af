"""Feedback: what became of a request, told later by its id: a click, a purchase, a rating, a label."""

import re
from contextlib import suppress
from math import isfinite
from pathlib import Path

import msgspec

from interlock.core.errors import ConfigError, InvalidRequest
from interlock.core.request import RequestId, parse_request_id

MOST_ITEMS = 1000
MOST_BYTES = 256 * 1024
"""Of one message: a worker answers nothing else while it reads one, some 6 ms for 1,000 items."""
MOST_AGE_S = 20 * 86400.0
"""Of a metric; feedback is kept longer than that."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")


class Feedback(msgspec.Struct, frozen=True):
    """One value for one request. `id` is the server's own (`interlock-request-id`), `name` says what the
    value is. Of several values of one name for one request the first one stays."""

    id: str
    name: str
    value: float

    @property
    def of(self) -> RequestId:
        """Raises: MalformedMessage."""
        return parse_request_id(self.id.encode())


def check_metric_name(name: str) -> str:
    """The name itself, if feedback can have it.

    Raises: ConfigError.
    >>> check_metric_name("conversion")
    'conversion'
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name[:80]!r} of feedback: want 1-64 of letters, digits, _ . : -")
    return name


def check_feedback(item: Feedback) -> None:
    """Whether it can be kept.

    Raises: InvalidRequest, with what came and what is wanted.
    """
    of = item.of
    if max(of.release, of.epoch, of.arm, of.origin, of.time_ms, of.sequence, of.unit or 0) >= 2**63 or (
        of.encode() != item.id.encode()
    ):
        raise InvalidRequest(f"'id' is {item.id!r}: want the interlock-request-id of an answer, as it came")
    if not _NAME.fullmatch(item.name):
        raise InvalidRequest(f"'name' is {item.name[:80]!r}: want 1-64 of letters, digits, _ . : -")
    if not isfinite(item.value):
        raise InvalidRequest(f"'value' is {item.value}: want a finite number")


class Note(msgspec.Struct, frozen=True, array_like=True):
    """One line of what a worker writes down. `came_ms` is Unix time."""

    id: str
    name: str
    value: float
    came_ms: int


def newest_incarnation(home: Path) -> int:
    """The highest incarnation of a worker whose feedback has not been read yet; 0 for none. A later one must
    have a higher number, also where the clock was set back: by it, files tell which of them grows."""
    found = 0
    with suppress(OSError):
        for path in inbox_folder(home).iterdir():
            with suppress(ValueError, IndexError):
                found = max(found, int(path.name.rsplit(".", 2)[1], 16))
    return found


def inbox_folder(home: Path) -> Path:
    """Where the workers' files are: `<process>.<incarnation>.<part>`, numbers in hexadecimal of fixed width,
    so that the last one by name of a process is the only one that is still written."""
    return home / "feedback"


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A business metric of a release: a mean of feedback, over all requests of an arm.

    `name` is that of the feedback. `better`: which way is better. Values lie between `least` and `greatest`;
    what lies beyond counts as the end that it passed. `age_s`: every request is scored when it is so old, in
    both arms, with what had come by then. A request without feedback counts as `missing`; or, where
    `only_with_feedback`, not at all (ratings, of which few requests have any). `margin`, in the values' own
    scale: a mean so much worse may still be promoted. `prove`: it must be proved, before a promotion, not to
    be worse by the margin; each metric can stop a release whether or not.
    """

    name: str
    better: str = "higher"
    least: float = 0.0
    greatest: float = 1.0
    age_s: float = 60.0
    missing: float = 0.0
    only_with_feedback: bool = False
    margin: float = 0.01
    prove: bool = False

    def __post_init__(self) -> None:
        check_metric_name(self.name)
        of = f"of metric '{self.name}'"
        if self.better not in ("higher", "lower"):
            raise ConfigError(f"better = {self.better!r} {of}: want higher or lower")
        if not (isfinite(self.least) and isfinite(self.greatest) and self.least < self.greatest):
            raise ConfigError(f"least {self.least} and greatest {self.greatest} {of}: want least < greatest")
        if not self.least <= self.missing <= self.greatest:
            raise ConfigError(
                f"missing = {self.missing} {of}: want what a request without feedback counts as, "
                f"{self.least:g} to {self.greatest:g}"
            )
        if not 0.0 <= self.age_s <= MOST_AGE_S:
            raise ConfigError(f"age_s = {self.age_s} {of}: want seconds from 0 to {MOST_AGE_S:,.0f}")
        if not 0.0 < self.margin < self.greatest - self.least:
            raise ConfigError(
                f"margin = {self.margin} {of}: want more than 0 and less than greatest - least "
                f"({self.greatest - self.least:g})"
            )

    def badness(self, value: float) -> float:
        """A value in [0, 1], where more is worse.

        >>> Metric("stars", least=1.0, greatest=5.0, missing=1.0).badness(4.0)
        0.25
        """
        within = min(max(value, self.least), self.greatest)
        up = (within - self.least) / (self.greatest - self.least)
        return 1.0 - up if self.better == "higher" else up

    def value(self, badness: float) -> float:
        """The inverse of `badness`, within the bounds."""
        up = 1.0 - badness if self.better == "higher" else badness
        return self.least + up * (self.greatest - self.least)


def parse_metric(text: str) -> Metric:
    """A metric in words, as a command line has it: its name, then fields; a flag needs no value.

    Raises: ConfigError.
    >>> parse_metric("stars least=1 greatest=5 missing=1 prove").prove
    True
    """
    name, *fields = text.split() or [""]
    known = {field.name: field.type for field in msgspec.structs.fields(Metric) if field.name != "name"}
    values: dict[str, object] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        if key not in known or (not equals and known[key] is not bool):
            raise ConfigError(f"metric {text!r}: {field!r} is none of {', '.join(known)}; write KEY=VALUE")
        values[key] = value if equals else True
    try:
        return msgspec.convert({"name": name, **values}, Metric, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"metric {text!r}: {error}") from None
