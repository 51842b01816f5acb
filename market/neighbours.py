"""Whose statistics a market starts from before it has its own: its region's, by language, else the world's.

Numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from market.profiles import Market, profile


def language_likeness(one: Market, other: Market) -> float:
    """How much two markets share their languages: of each shared one 1 over the product of its places."""
    return sum(
        1 / ((one.languages.index(language) + 1) * (other.languages.index(language) + 1))
        for language in one.languages
        if language in other.languages
    )


def neighbour_shares(markets: Sequence[str], known: np.ndarray) -> np.ndarray:
    """Shares by which each market's row of anything is a mean of known markets' rows.

    A known market is itself. Any other is the mean of the known markets of its region, or of all where its
    region has none, weighted by `language_likeness`, or equally where none shares a language.

    Args:
        markets: codes with a profile; any other raises `UnknownMarket`.
        known: bool[M], which have data of their own.

    Returns:
        float64[M, M], rows sum to 1; all zero where no market is known.
    """
    profiles = [profile(code) for code in markets]
    region = np.array([market.region for market in profiles])
    shares = np.diag(np.asarray(known, np.float64))
    for place in np.flatnonzero(~np.asarray(known)):
        near = known & (region == region[place])
        near = near if near.any() else known
        likeness = np.array([language_likeness(profiles[place], other) for other in profiles]) * near
        weights = likeness if likeness.any() else np.asarray(near, np.float64)
        shares[place] = weights / max(weights.sum(), 1e-9)
    return shares
