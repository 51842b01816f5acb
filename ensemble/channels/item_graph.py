"""What people want who wanted the same contents lately: one step along the item graph."""

from __future__ import annotations

import numpy as np

from ensemble.channels import Asked, in_turn


def item_graph(asked: Asked, count: int) -> np.ndarray:
    """Contents to which the edges from the latest ones add up most, as `ensemble.channels.Source` says."""
    reach = asked.affinity
    place = asked.shelf.place[reach.content]
    may = asked.allows(reach.row, place)
    row, place, weight = reach.row[may], place[may], reach.weight[may]
    order = np.lexsort((place, -weight, row))
    return in_turn(row[order], place[order], len(asked.time), count)
