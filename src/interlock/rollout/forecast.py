"""Decides how what is still needed reads for people."""

from interlock.rollout.judgement import Judgement


def forecast(judgement: Judgement, rate_per_s: float | None) -> str:
    """How much more traffic until it is promoted, for people."""
    if judgement.requests_needed is None:
        return "not on its way to being promoted at the present rates"
    return in_words(judgement.requests_needed, rate_per_s, "until it is promoted")


def in_words(needed: float | None, rate_per_s: float | None, until: str) -> str:
    """So many more requests, and how long that takes.

    >>> in_words(500, 100, "until it is promoted")
    'about 500 more requests until it is promoted, 5 s at 100/s'
    """
    if needed is None:
        return f"not on its way at the present rates ({until})"
    words = f"about {needed:,.0f} more requests {until}"
    pace = f"{duration(needed / rate_per_s)} at {rate_per_s:.3g}/s" if rate_per_s else "and none come"
    return f"{words}, {pace}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them.

    >>> duration(90), duration(12), duration(200_000)
    ('1.5 min', '12 s', '2.3 days')
    """
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
