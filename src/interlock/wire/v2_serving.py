"""Owns what V2 needs of the serving side (`serving/infer.py`): a request's target, and who chooses it."""

from collections.abc import Awaitable, Sequence
from typing import Any, Literal, Protocol

from interlock.core.errors import Unavailable
from interlock.core.feedback import Feedback
from interlock.core.letters import VersionStatus
from interlock.core.model import ModelSettings, Version
from interlock.core.request import Request, Sink, Ticket
from interlock.core.state import ArmCounts, ArmKey


class Target(Protocol):
    """The version that was chosen for one request. `fixed`: in this turn of the loop the same question is
    answered alike. `unit_field`: the field of the request's parameters that holds its unit, by which the
    target is to be chosen again; None: what chose it was all there is. `codec` is for the protocol to keep
    its own; `submit` returns no tickets where all are answered; `invalid` counts what could not be decoded,
    `unsent` an answer that could not be encoded."""

    codec: Any
    fixed: bool
    unit_field: str | None

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> Version: ...
    @property
    def settings(self) -> ModelSettings: ...
    def submit(self, jobs: Sequence[tuple[Request, Sink]]) -> Sequence[Ticket | None]: ...
    def invalid(self, received_s: float) -> None: ...
    def unsent(self, received_s: float) -> bool: ...


class Infer(Protocol):
    """The front of the serving side in one worker."""

    @property
    def live(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    def choose(self, model: str, number: str | None, unit: bytes | None) -> Target: ...
    def admit(
        self,
        model: str,
        number: str | None,
        timeout_s: float | None,
        received_s: float,
        urgency: int | None = None,
    ) -> Unavailable | None: ...
    def settings(self, model: str) -> ModelSettings: ...
    def model_ready(self, model: str, number: str | None) -> bool: ...
    def index(self) -> list[VersionStatus]: ...
    def version(self, model: str, number: str | None) -> Version: ...
    def stats(self, model: str | None, number: str | None) -> list[tuple[ArmKey, ArmCounts]]: ...
    def feedback(self, items: Sequence[Feedback]) -> None: ...
    def repository(self, action: Literal["load", "unload"], model: str) -> Awaitable[None]: ...
