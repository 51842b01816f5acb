"""Live rooms that are open now, by how many people are in them."""

from __future__ import annotations

import numpy as np

from ensemble.channels import NONE, MarketQueries, first_kept, nearest

PRIOR_S = 600
"""Seconds for which a room must have been open until its own viewers count as much as those of the others."""


def live(asked: MarketQueries, count: int) -> np.ndarray:
    """Open rooms by viewers, as `ensemble.channels.Source` says; of equal ones the newest first.

    A room that has just opened has few viewers whatever it is worth, so its number is drawn to the mean of
    the market's open rooms, the more the shorter it has been open. A room of unknown number has the mean.
    """
    shelf = asked.shelf
    rooms = shelf.running(asked.time)[1]
    open_ = asked.may(rooms)
    some = np.flatnonzero(open_.any(axis=0))
    rooms, open_ = rooms[some], open_[:, some]
    viewers = shelf.viewers[rooms]
    known = open_ & ~np.isnan(viewers)
    if not known.any():
        return first_kept(rooms, open_, min(count, len(rooms)))
    # In float64 whole numbers add up the same in every order: rooms open to others stand between in a batch.
    total = np.sum(np.broadcast_to(viewers, open_.shape), axis=1, where=known, dtype=np.float64)
    usual = total / np.maximum(known.sum(axis=1), 1)
    age = np.maximum(asked.time[:, None] - shelf.opens[rooms], 0)
    weight = np.where(known, age / (age + PRIOR_S), 0)
    score = usual[:, None] + weight * (np.where(known, viewers, 0) - usual[:, None])
    place = nearest(np.where(open_, score, -np.inf), count)
    return np.where(place >= 0, rooms[place], NONE)
