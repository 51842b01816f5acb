"""Whose statistics a market starts from until it has enough of its own: its region's, by language, else the
world's.

Numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from market.profiles import Market, profile

FULL = 200
"""Wanted outcomes of the training part from which on a market is itself alone. With half of them it counts as
much as its neighbours, as with `trending_prior` outcomes in what trends."""


def language_likeness(one: Market, other: Market) -> float:
    """How much two markets share their languages: of each shared one 1 over the product of its places."""
    return sum(
        1 / ((one.languages.index(language) + 1) * (other.languages.index(language) + 1))
        for language in one.languages
        if language in other.languages
    )


def own_shares(outcomes: np.ndarray) -> np.ndarray:
    """How much each market's own rows count beside its neighbours', float64[M] in [0, 1].

    In proportion to its wanted outcomes, from nothing without one to all with `FULL`, so that no outcome
    changes much by itself. Where no market has as many, one with as many as any other is itself: nobody
    knows more.

    Args:
        outcomes: int[M] or bool[M], wanted outcomes of each market.
    """
    outcomes = np.asarray(outcomes, np.float64)
    return np.minimum(outcomes / np.clip(outcomes.max(initial=0), 1, FULL), 1)


def neighbour_shares(markets: Sequence[str], outcomes: np.ndarray) -> np.ndarray:
    """Shares by which each market's row of anything is a mean of its own and its neighbours' rows.

    A market's own row counts as `own_shares` says, and the rest are its neighbours: the markets of its region
    weighted by `language_likeness`, those of its region alike, the markets of the world weighted by
    `language_likeness`, all of them alike. Each of these leaves to the next what the best known market in it
    lacks, so all that is left goes to the first that holds a market of `FULL` outcomes. A neighbour's weight
    is in proportion to its own share, too.

    Args:
        markets: codes of countries, or "XX"; any other raises `UnknownMarket`.
        outcomes: int[M] or bool[M], wanted outcomes of each market.

    Returns:
        float64[M, M], rows sum to 1; all zero where no market has an outcome.
    """
    profiles = [profile(code) for code in markets]
    region = np.array([market.region for market in profiles])
    own = own_shares(outcomes)
    shares = np.diag(own)
    for place in np.flatnonzero(own < 1):
        others = np.where(np.arange(len(own)) == place, 0, own)
        near = others * (region == region[place])
        likeness = np.array([language_likeness(profiles[place], other) for other in profiles])
        left = 1 - own[place]
        for weights in (likeness * near, near, likeness * others, others):
            given = left * own[weights > 0].max(initial=0)
            shares[place] += given * weights / max(weights.sum(), 1e-9)
            left -= given
    return shares
