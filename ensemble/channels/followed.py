"""What the sellers have that the user follows or bought from."""

from __future__ import annotations

import numpy as np

from ensemble.channels import MarketQueries, in_turn


def followed(asked: MarketQueries, count: int) -> np.ndarray:
    """Contents of followed sellers, newest first, as `ensemble.channels.Source` says."""
    shelf = asked.shelf
    row, place = shelf.of(asked.followed)
    may = asked.allows(row, place)
    row, place = row[may], place[may]
    order = np.argsort(row * len(shelf.rows) + shelf.turn[place])
    longest = int(np.bincount(row).max(initial=0))
    return in_turn(row[order], place[order], len(asked.time), min(count, longest))
