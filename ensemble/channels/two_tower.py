"""Contents whose vector is nearest to the query's, by the market's index."""

from __future__ import annotations

import numpy as np

from ensemble.channels import NONE, MarketQueries, first_kept

#: Contents that are searched for, as multiples of those wanted: some were seen, or have ended.
SEARCHED = 1.5


def two_tower(asked: MarketQueries, count: int) -> np.ndarray:
    """Contents of the highest cosine with the query, as `ensemble.channels.Source` says."""
    index = asked.shelf.index
    if index.tuning is None:
        return index.exact(asked.query_vector, count, asked.eligible)
    places = index.search(asked.query_vector, round(SEARCHED * count))
    kept = asked.may(places)
    places = first_kept(places, kept, min(count, len(index)))
    few = np.flatnonzero(places[:, -1] == NONE)
    if len(few):
        short = asked.of(few)
        places[few] = index.exact(short.query_vector, count, short.eligible)
    return places
