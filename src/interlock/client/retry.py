"""Decides whether a request that failed is sent again, and when; pure.

Three rules, all of which must hold. It cannot have run, or may run twice. The deadline leaves time for it.
And the budget has a token: each request earns a tenth of one and each retry costs one, so that a server that
is down gets a tenth more requests, and not several times as many (Finagle's RetryBudget and gRPC's retry
throttling do so).
"""

from enum import StrEnum

import msgspec


class Failure(StrEnum):
    """What is known of a request that failed."""

    UNSENT = "unsent"
    """No whole request left this machine: it cannot have run."""
    REFUSED = "refused"
    """The server answered that it did not begin, and that it may be asked again."""
    MAYBE = "maybe"
    """Sent, and no answer tells what became of it."""


class Policy(msgspec.Struct, frozen=True):
    """`retries`: most of one call. Waits double from `first_s` to `longest_s`, and each is between half of
    that and all of it, by chance. The budget: `share` tokens a request and `per_s` a second, `most_tokens` at
    once."""

    retries: int = 3
    first_s: float = 0.05
    longest_s: float = 2.0
    share: float = 0.1
    per_s: float = 1.0
    most_tokens: float = 10.0


class Budget(msgspec.Struct, frozen=True):
    """What retries may be paid with; shared by all calls of a client. `at_s`: when it was counted."""

    tokens: float
    at_s: float


class Attempt(msgspec.Struct, frozen=True):
    """One that failed. `retried`: how often this call was sent again before. `may_repeat`: whether the
    request may run twice. `retry_after_s`: what the server asked for, if it did."""

    failure: Failure
    retried: int
    may_repeat: bool
    deadline_s: float
    retry_after_s: float = 0.0


class Again(msgspec.Struct, frozen=True):
    """Send it again at `at_s`; `budget` is what is left then."""

    at_s: float
    budget: Budget


def earn(policy: Policy, budget: Budget, now: float) -> Budget:
    """The budget after a new request (no retry) began at `now`."""
    refilled = _refilled(policy, budget, now)
    return Budget(min(refilled.tokens + policy.share, policy.most_tokens), refilled.at_s)


def next_try(policy: Policy, budget: Budget, attempt: Attempt, now: float, chance: float) -> Again | None:
    """When to send again; None for never. `chance` is drawn from [0, 1).

    >>> attempt = Attempt(Failure.REFUSED, retried=0, may_repeat=False, deadline_s=10.0, retry_after_s=2.0)
    >>> next_try(Policy(), Budget(1.0, 5.0), attempt, 5.0, 0.0)
    Again(at_s=7.025, budget=Budget(tokens=0.0, at_s=5.0))
    """
    if attempt.failure is Failure.MAYBE and not attempt.may_repeat:
        return None
    if attempt.retried >= policy.retries:
        return None
    left = _refilled(policy, budget, now)
    if left.tokens < 1.0:
        return None
    backoff_s = min(policy.first_s * 2.0 ** min(attempt.retried, 60), policy.longest_s)
    # On top of what the server asked for: it told all of its clients the same.
    at_s = now + attempt.retry_after_s + backoff_s * (0.5 + chance / 2)
    if at_s >= attempt.deadline_s:
        return None
    return Again(at_s, Budget(left.tokens - 1.0, left.at_s))


def _refilled(policy: Policy, budget: Budget, now: float) -> Budget:
    # Threads may come with times in another order than they took them.
    passed_s = max(now - budget.at_s, 0.0)
    tokens = min(budget.tokens + passed_s * policy.per_s, policy.most_tokens)
    return Budget(tokens, max(now, budget.at_s))
