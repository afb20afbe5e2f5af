"""Fault: what a self-test does to a copy of a version on purpose, and the only models that may have one.

A self-test runs on a model of its own, whose name nobody can register: ":" is refused in names of models,
here and by MLflow. A version with a fault is refused for every other model where it would be recorded,
released or loaded, each on its own: none has to trust the one before.
"""

from typing import Literal, get_args

import msgspec

from interlock.core.errors import ConfigError

Kind = Literal["fail", "slow", "flip", "nan"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_TIMES = 100.0
_SUFFIX = ":selftest"


class Fault(msgspec.Struct, frozen=True):
    """One way of being worse. `level`: of `slow`, how many times as long a batch computes, above 1; of the
    others, the share of rows that are concerned, in (0, 1]: `fail` raises, `flip` answers something else,
    `nan` gives NaN. Which rows is drawn by a hash of their content and `seed`: the same row again does the
    same, alone or in whatever batch, as a real fault would.

    Raises: ConfigError for a level that cannot be.
    """

    kind: Kind
    level: float
    seed: int = 0

    def __post_init__(self) -> None:
        least, most = (1.0, MOST_TIMES) if self.kind == "slow" else (0.0, 1.0)
        if not least < self.level <= most:
            raise ConfigError(f"fault {self.kind}={self.level:g}: want more than {least:g}, at most {most:g}")

    @property
    def title(self) -> str:
        """In words.

        >>> Fault("fail", 0.05).title, Fault("slow", 3.0).title
        ('fail on 5 %', 'slow, 3 times')
        """
        if self.kind == "slow":
            return f"slow, {self.level:g} times"
        return f"{self.kind} on {100 * self.level:.3g} %"


def parse_fault(text: str) -> Fault:
    """A fault as it is written on a command line.

    Raises: ConfigError.
    >>> parse_fault("slow=3").level
    3.0
    """
    kind, _, level = text.partition("=")
    try:
        return Fault(next(known for known in KINDS if known == kind), float(level))
    except (StopIteration, ValueError):
        raise ConfigError(f"fault {text!r}: want KIND=LEVEL with a kind of {', '.join(KINDS)}") from None


def selftest_model(name: str) -> str:
    """The name of the model on which the self-test of a model runs.

    >>> selftest_model("iris"), is_selftest("iris:selftest"), is_selftest("iris")
    ('iris:selftest', True, False)
    """
    return name + _SUFFIX


def is_selftest(model: str) -> bool:
    """Whether a model is one that a self-test runs on."""
    return model.endswith(_SUFFIX)
