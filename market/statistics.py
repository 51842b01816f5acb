"""Statistics of contents that training and serving share: popularity by market, and how old a content is.

Numpy alone: a served request reads them.
"""

from __future__ import annotations

import numpy as np

from market.item_graph import related
from market.moments import MOMENT_FEATURES
from market.offers import OFFER_FEATURES

DAY_S = 86_400
#: Names of the columns that `pair_features` returns, in order.
PAIR_FEATURES = (
    "popularity_market",
    "popularity_world",
    "age",
    "affinity",
    "season",
    *OFFER_FEATURES,
    *MOMENT_FEATURES,
)


#: Events that are counted at once.
BLOCK = 1 << 22


class EventCounts:
    """How often each (market, content) was wanted around a given time, by binary search in sorted events.

    Args:
        market, content: int[E], places of the events.
        time: int64[E], seconds since the epoch.
        contents: number of contents.
        window_s: only events of the `window_s` seconds before count,
        after_s: and of the `after_s` seconds from then on.
    """

    def __init__(
        self,
        market: np.ndarray,
        content: np.ndarray,
        time: np.ndarray,
        contents: int,
        window_s: int,
        after_s: int = 0,
    ) -> None:
        self.contents, self.window_s, self.after_s = contents, window_s, after_s
        self.start = int(time.min(initial=0)) if len(time) else 0
        self.span = (int(time.max()) - self.start if len(time) else 0) + 2
        cell = market.astype(np.int64) * contents + content
        self.by_market = np.sort(cell * self.span + (time - self.start))
        self.by_world = np.sort(content.astype(np.int64) * self.span + (time - self.start))

    def _count(self, keys: np.ndarray, cell: np.ndarray, time: np.ndarray) -> np.ndarray:
        base = cell.astype(np.int64) * self.span
        until = np.clip(time - self.start + self.after_s, 0, self.span - 1)
        since = np.clip(time - self.start - self.window_s, 0, self.span - 1)
        return (np.searchsorted(keys, base + until) - np.searchsorted(keys, base + since)).astype(np.float32)

    def __call__(
        self, market: np.ndarray, content: np.ndarray, time: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Events inside the window, by default strictly before `time`: in the market and in all, float32[P]
        each."""
        here = self.in_market(market, content, time)
        return here, self._count(self.by_world, content.astype(np.int64), time)

    def in_market(self, market: np.ndarray, content: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The first of both, float32[P]."""
        return self._count(self.by_market, market.astype(np.int64) * self.contents + content, time)


def counts(
    market: np.ndarray, content: np.ndarray, weight: np.ndarray | None, shape: tuple[int, ...]
) -> np.ndarray:
    """Summed weights (1 each where None) of events by market and content, float64[M, N]."""
    made = np.zeros(shape, np.float64)
    for part in range(0, len(market), BLOCK):
        here = slice(part, part + BLOCK)
        cell = market[here].astype(np.int64) * shape[1] + content[here]
        made += np.bincount(cell, None if weight is None else weight[here], made.size).reshape(shape)
    return made


def trend(wanted: np.ndarray, available: np.ndarray, region: np.ndarray, prior: float) -> np.ndarray:
    """The share of its market's wanted outcomes that each content gets, shrunk to its region and the world.

    A share is the posterior mean under a Dirichlet prior around the level above: of a market its region, of a
    region the world, and of the world its share of all outcomes. So a market with few outcomes of its own
    wants what its neighbours want, and leaves them as its own data comes. A level counts only the outcomes of
    markets where the content is sold, but for the uppermost: that of all markets, where little is sold in few
    markets that have little data. Under an endless prior every market wants that, its own outcomes once.

    Args:
        wanted: float[M, N], outcomes by market, of any weight each.
        available: bool[M, N], where a content is sold.
        region: int[M], the region of each market.
        prior: outcomes that the level above weighs as much as.

    Returns:
        float32[M, N].
    """
    wanted = np.where(available, wanted, 0.0)
    total = wanted.sum(axis=1, keepdims=True)
    ours = (region[:, None] == region).astype(np.float64)

    def pooled(together: np.ndarray, above: np.ndarray | float) -> np.ndarray:
        """Shares over markets taken `together` float[M, M], drawn to those `above`."""
        return (together @ wanted + prior * above) / (together @ (total * available) + prior)

    world = pooled(np.ones_like(ours), wanted.sum(axis=0) / max(total.sum(), 1e-9))
    by_region = pooled(ours, world)
    return ((wanted + prior * by_region) / (total + prior)).astype(np.float32)


def pair_features(
    in_market: np.ndarray,
    in_world: np.ndarray,
    created_at: np.ndarray | None,
    time: np.ndarray | None,
    affinity: np.ndarray,
    offer: np.ndarray,
    moment: np.ndarray,
    season: np.ndarray | None = None,
) -> np.ndarray:
    """Features of a (query, content) pair that neither side has alone, scaled to about [0, 3].

    Args:
        in_market, in_world: float32[...], wanted outcomes of the content, in the query's market and in all.
        created_at: int64[...], seconds since the epoch, 0 where unknown; None where the data set has none.
        time: int64[...], when the query was made; None where the data set has none.
        affinity: float32[...], summed weights of the item graph's edges from the history to the content.
        offer: float32[..., 3], of `market.offers.Offers`.
        moment: float32[..., 5], of `market.moments.moment_features`.
        season: float32[...], as `in_market` around the latest event of the history; 0 where it is None.

    Returns:
        float32[..., 13], columns as in `PAIR_FEATURES`; age is 0 where unknown.
    """
    if created_at is None or time is None:
        age = np.zeros(np.shape(in_market), np.float32)
    else:
        age = np.log1p(np.maximum(time - created_at, 0) / DAY_S) * (created_at > 0)
    columns = [np.log1p(in_market) / 3, np.log1p(in_world) / 3, age / 2, related(affinity)]
    columns.append(np.float32(0) if season is None else np.log1p(season) / 2)
    made = np.empty((*np.shape(in_market), len(PAIR_FEATURES)), np.float32)
    for place, column in enumerate(columns):
        made[..., place] = column
    mine, theirs = len(columns), len(columns) + np.shape(offer)[-1]
    made[..., mine:theirs], made[..., theirs:] = offer, moment
    return made
