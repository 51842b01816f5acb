"""What is true of contents now, by the events that were taken in."""

from __future__ import annotations

import numpy as np

from market.moments import Moment, decayed
from supply.eligibility import Eligibility


class CurrentMoments:
    """As `market.moments.Moments` says, of the present: what the last refresh of `eligibility` knew.

    Args:
        room: bool[N].
    """

    def __init__(self, eligibility: Eligibility, room: np.ndarray) -> None:
        self.eligibility, self.room = eligibility, room

    def __call__(self, room: np.ndarray, time: np.ndarray) -> Moment:
        """As `Moments` says; without a live state the number of viewers and the product are unknown."""
        open_s = time - self.eligibility.opens[room]
        live = self.eligibility.live
        if live is None:
            unknown = np.full(len(room), np.nan, np.float32)
            return Moment(unknown, unknown, np.full(len(room), -1), open_s)
        viewers = live.viewers[room]
        usual = decayed(live.usual[room], viewers, time - live.told[room])
        return Moment(viewers, usual, live.showing[room], open_s)

    def stock(self, content: np.ndarray, time: np.ndarray) -> np.ndarray:
        """As `Moments` says."""
        return self.eligibility.stock[content]
