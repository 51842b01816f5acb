"""What the user put into the cart and did not buy."""

from __future__ import annotations

import numpy as np

from ensemble.channels import MarketQueries, in_turn


def cart(asked: MarketQueries, count: int) -> np.ndarray:
    """Contents of the own history that may be shown again, newest first, as `ensemble.channels.Source` says.

    Of what somebody wanted only contents that are no further than a cart are not among those already seen.
    """
    shelf = asked.shelf
    newest_first = asked.recent[:, ::-1]
    place = np.where(newest_first >= 0, shelf.place[newest_first], len(shelf.rows))
    row, column = np.nonzero(asked.allows(np.arange(len(place))[:, None], place))
    place = place[row, column]
    first = np.sort(np.unique(row * len(shelf.rows) + place, return_index=True)[1])
    longest = int(np.bincount(row[first]).max(initial=0))
    return in_turn(row[first], place[first], len(asked.time), min(count, longest))
