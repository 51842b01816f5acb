"""Which contents may be shown where and when, in one place: retrieval filters by it, re-ordering again."""

from __future__ import annotations

import numpy as np

from supply.live import UNKNOWN, LiveState

FOREVER = np.iinfo(np.int64).max
CLOSED = np.iinfo(np.int64).min
"""End of what may not be shown at any time."""
BARRED = (
    "forbidden by the market's rules",
    "taken down",
    "of a suspended seller",
    "sold out",
    "ended",
    "not open",
)
"""Why a content that is sold in a market may not be shown there; the first that holds."""


class Eligibility:
    """Hard rules that do not depend on who asks.

    A content may be shown in a market where it is sold and where the market's rules allow it; from its
    publication to its end, where events tell a room's own; with stock left or unknown; not taken down; its
    seller not suspended. All but the first is folded into `opens` and `ends`, so that a filter is two
    comparisons.

    Args:
        available: bool[M, N], sold there and allowed by the rules.
        opens, ends: int64[N], as the release says (s since the epoch).
        stock: int64[N], pieces left, -1 where unknown, as the release says.
        seller: int[N], codes, -1 where unknown.
        live: what events say; None where there are none.

    Attributes:
        opens, ends: int64[N], in force.
        viewers: float32[N], people in each room now; NaN where that is not known.
        stock: int64[N], pieces left now; -1 where that is not known.
    """

    def __init__(
        self,
        available: np.ndarray,
        opens: np.ndarray,
        ends: np.ndarray,
        *,
        stock: np.ndarray,
        seller: np.ndarray,
        live: LiveState | None = None,
    ) -> None:
        self.available = available
        self.live = live
        self._opens, self._ends, self._stock = np.array(opens), np.array(ends), np.array(stock)
        self.stock = self._stock.copy()
        self._seller = np.array(seller, np.int64)
        self.opens = self._opens.copy()
        self.ends = np.where(self._stock == 0, CLOSED, self._ends)
        if live is None:
            self.viewers = np.full(len(opens), np.nan, np.float32)
        else:
            self.refresh()
            self._bring_up_to_date(np.arange(len(opens)))

    def refresh(self) -> np.ndarray:
        """Take in new events; rows of contents whose state may have changed, int64[*]."""
        if self.live is None:
            return np.empty(0, np.int64)
        rows, sellers = self.live.refresh()
        if len(sellers):
            rows = np.union1d(rows, np.flatnonzero(np.isin(self._seller, sellers)))
        if len(rows):
            self._bring_up_to_date(rows)
        return rows

    def _bring_up_to_date(self, rows: np.ndarray) -> None:
        live = self.live
        assert live is not None
        self.viewers = live.viewers
        started, since = live.open[rows] == 1, live.since[rows]
        ends = self._ends[rows]
        self.opens[rows] = np.where(started, since, self._opens[rows])
        ends = np.where(started & (ends <= since), FOREVER, ends)
        stock = np.where(live.stock[rows] == UNKNOWN, self._stock[rows], live.stock[rows])
        self.stock[rows] = stock
        down, suspended = self._removed(rows)
        closed = (live.open[rows] == 0) | (stock == 0) | down | suspended
        self.ends[rows] = np.where(closed, CLOSED, ends)

    def _removed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether contents are taken down, and whether their sellers are suspended, bool[*] each."""
        none = np.zeros(len(rows), bool)
        if self.live is None:
            return none, none
        seller, suspended = self._seller[rows], self.live.suspended
        by_seller = (seller >= 0) & (suspended[np.maximum(seller, 0)] == 1) if len(suspended) else none
        return self.live.down[rows] == 1, by_seller

    def barred(self, rows: np.ndarray, market: int, time: int) -> list[int]:
        """How many contents may not be shown in a market, by `BARRED`; each counts for the first that holds.

        Args:
            rows: int64[C], rows of what is sold there; -1 is none.
            time: s since the epoch.
        """
        rows = rows[rows >= 0]
        forbidden, sold_out = ~self.available[market, rows], self.stock[rows] == 0
        ended, unopened = self.ends[rows] <= time, self.opens[rows] > time
        reasons = [forbidden, *self._removed(rows), sold_out, ended, unopened]
        first = np.select(reasons, range(len(BARRED)), len(BARRED))
        return np.bincount(first, minlength=len(BARRED))[: len(BARRED)].tolist()

    def allows(self, rows: np.ndarray, market: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Whether contents may be shown, bool[B, C].

        Args:
            rows: int64[B, C], rows of the contents table; -1 may not.
            market: int64[B]; time: int64[B], s since the epoch.
        """
        known, at = np.maximum(rows, 0), time[:, None]
        open_ = (self.opens[known] <= at) & (at < self.ends[known])
        return (rows >= 0) & open_ & self.available[market[:, None], known]
