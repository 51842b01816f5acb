"""What people want who wanted the same contents lately: one step along the item graph."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ensemble.channels import NONE, MarketQueries


def item_graph(asked: MarketQueries, count: int) -> np.ndarray:
    """Contents to which the edges from the latest ones add up most, as `ensemble.channels.Source` says."""
    reach = asked.affinity
    place = asked.shelf.place[reach.content]
    may = asked.allows(reach.row, place)
    row, place, weight = reach.row[may], place[may], reach.weight[may]
    found = np.full((len(asked.time), count), NONE)
    for one, (start, end) in enumerate(pairwise(row.searchsorted(np.arange(len(found) + 1)))):
        own, edges = place[start:end], weight[start:end]
        if 0 < count < len(own):  # most are not among the first, and need no sort
            near = edges >= np.partition(edges, -count)[-count]
            own, edges = own[near], edges[near]
        own = own[np.lexsort((own, -edges))[:count]]
        found[one, : len(own)] = own
    return found
