"""What the sellers have that the user follows or bought from."""

from __future__ import annotations

import numpy as np

from ensemble.channels import NONE, Asked


def followed(asked: Asked, count: int) -> np.ndarray:
    """Contents of followed sellers, newest first, as `ensemble.channels.Source` says."""
    shelf = asked.shelf
    row, place = shelf.of(asked.followed)
    may = asked.eligible[row, place]
    row, place = row[may], place[may]
    order = np.argsort(row * len(shelf.rows) + shelf.turn[place])
    row, place = row[order], place[order]
    turn = np.arange(len(row)) - np.searchsorted(row, row)
    kept = turn < count
    found = np.full((len(asked.time), int(turn[kept].max(initial=-1)) + 1), NONE)
    found[row[kept], turn[kept]] = place[kept]
    return found
