"""Decides whether the two arms got the shares of traffic that the route gave them: sample-ratio mismatch.

Null hypothesis: each request was dispatched to the candidate with exactly the weight of its epoch,
whatever came before. E = mixture over eta of tilted Bernoulli trials (`mixture.py`), odds(w~) = e^eta
odds(w), in both directions. Assumption: requests are assigned one by one; with sticky units, count units
that were not seen before instead. A mismatch means that some evidence is lost or misrouted: hold and ask,
whatever the other gates say.

Source: Lindon and Malek, NeurIPS 2022 (arXiv 2011.03567).
"""

from collections.abc import Sequence
from math import exp

from interlock.evidence.epochs import Epoch, informative
from interlock.evidence.mixture import Mixture, log_tilted, mixture

_ETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
BOTH_WAYS = mixture([exp(sign * eta) for eta in _ETAS for sign in (1, -1)])
"""Odds ratios from 1 % to a factor of 7, either way."""


def log_e_mismatch(dispatched: Sequence[Epoch], odds_ratios: Mixture = BOTH_WAYS) -> float:
    """ln E against "both arms got their shares"; hold when it reaches ln(1 / alpha).

    `dispatched` holds all requests sent to either arm, not only answered ones.

    >>> log_e_mismatch([Epoch(0.1, 9000, 1000)]) < 0 < 4.6 < log_e_mismatch([Epoch(0.1, 9200, 800)])
    True
    """
    seen = informative(dispatched)
    hits = sum(epoch.candidate for epoch in seen)
    return log_tilted(hits, [(epoch.both, epoch.weight) for epoch in seen], odds_ratios)
