"""Decides what many gates say together, and how much more evidence is needed.

Alarms: roll back when some E_k >= K / alpha (union bound). Valid under any dependence, also between kinds
of evidence that arrive in other orders (paired, late, deduplicated): each has its own filtration.
Promotion: only when every promotion gate has E >= 1 / alpha (intersection-union test, no correction): a
candidate that is bad in one respect passes with probability at most alpha, whatever the others say.

Sources: Berger (1982), intersection-union; Vovk and Wang (2021), "E-values: calibration, combination and
applications" (arXiv 1912.06116): the mean of e-values.
"""

from collections.abc import Callable, Sequence
from math import log

from interlock.core.errors import ConfigError
from interlock.evidence.mixture import log_sum, log_threshold

MOST_REQUESTS = 1e10
"""A forecast above this is none."""


def any_alarm(log_es: Sequence[float], alpha: float, gates: int | None = None) -> bool:
    """Whether some gate reached ln(gates / alpha). Null hypothesis: that of every gate.

    `gates` is the number of all gates that may ever be looked at, these by default. Raises: ConfigError.

    >>> any_alarm([0.1, 5.5], 0.01), any_alarm([0.1, 5.0], 0.01)  # ln(2 / .01) = 5.3
    (True, False)
    """
    if not log_es:
        return False
    if gates is not None and gates < len(log_es):
        raise ConfigError(f"{len(log_es)} gates are looked at, but the threshold is for {gates}")
    return max(log_es) >= log_threshold(alpha, gates or len(log_es))


def all_proved(log_es: Sequence[float], alpha: float) -> bool:
    """Whether every promotion gate reached ln(1 / alpha); False for none, which proves nothing.

    >>> all_proved([4.7, 5.0], 0.01), all_proved([4.7, 4.0], 0.01), all_proved([], 0.01)
    (True, False, False)
    """
    threshold = log_threshold(alpha)
    return bool(log_es) and min(log_es) >= threshold


def log_mean(log_es: Sequence[float]) -> float:
    """ln of the mean of e-processes: one e-process again, sharper than the union bound.

    Valid only where all are counted on the same requests in the same order (several cuts of one latency).

    >>> round(log_mean([log(1.0), log(3.0)]), 6) == round(log(2.0), 6)
    True
    """
    if not log_es:
        return 0.0
    return log_sum(log_es) - log(len(log_es))


def requests_needed(log_e_after: Callable[[float], float], threshold: float) -> float | None:
    """About how many more requests until ln E reaches `threshold`, at the present rates: a forecast, no
    guarantee.

    `log_e_after(n)` is ln E as it would be if n more requests came with the present weight and rates
    (counts may be fractions). 0 when it is there already; None when it is not on its way. Good to 1 %.

    >>> requests_needed(lambda n: n * 0.01 - 1, 4.0)
    500.0
    """
    if log_e_after(0.0) >= threshold:
        return 0.0
    high = 1.0
    while log_e_after(high) < threshold:
        high *= 2.0
        if high > MOST_REQUESTS:
            return None
    low = high / 2.0 if high > 1.0 else 0.0
    while high - low > max(1.0, 0.01 * high):
        middle = (low + high) / 2.0
        low, high = (low, middle) if log_e_after(middle) >= threshold else (middle, high)
    return high
