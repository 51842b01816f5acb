"""A market's shelf and requests to it, of whatever a channel's test gives; the rest does not matter."""

from __future__ import annotations

import numpy as np

from ensemble.channels import MarketQueries, Shelf
from ensemble.search import MarketIndex
from market.item_graph import ItemGraph

NOW = 1_000_000
NEVER = np.iinfo(np.int64).max


def shelf(contents: int, index: MarketIndex | None = None, **given: object) -> Shelf:
    """A shelf of contents 0 … `contents` - 1, all sold here, open since second 1 and for ever."""
    usual = {
        "opens": np.ones(contents, np.int64),
        "ends": np.full(contents, NEVER),
        "popularity": np.zeros(contents, np.float32),
        "trend": np.zeros(contents, np.float32),
        "worth": np.full(contents, np.nan, np.float32),
        "fresh": np.zeros(contents, bool),
        "seller": np.full(contents, -1),
        "kind": np.zeros(contents, np.int8),
        "category": np.full(contents, -1),
        "language": np.full(contents, -1),
    }
    assert set(given) <= set(usual)
    index = index or MarketIndex(np.zeros((contents, 2), np.float32), None, None)
    arrays = usual | {name: np.array(value) for name, value in given.items()}
    return Shelf(np.ones(contents, bool), index=index, **arrays)


def asked(
    of: Shelf,
    *,
    recent: object = ((),),
    seen: object = ((),),
    followed: object = ((),),
    tired: object = ((),),
    time: int = NOW,
) -> MarketQueries:
    """Requests of a market at one moment, as many as one of the tables has rows."""
    rows = max(len(recent), len(seen), len(followed), len(tired))

    def table(values: object) -> np.ndarray:
        return np.broadcast_to(np.array(values, np.int64), (rows, len(values[0])))

    nothing = ItemGraph(np.full((len(of.rows), 1), -1), np.zeros((len(of.rows), 1), np.float32))
    return MarketQueries(
        of,
        np.zeros((rows, 2), np.float32),
        np.full(rows, time),
        table(recent),
        nothing.reach(np.full((rows, 1), -1)),
        table(seen),
        table(followed),
        table(tired),
    )
