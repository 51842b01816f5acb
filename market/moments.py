"""What is true of contents at a moment: people in a room, the product it shows, pieces in stock.

It changes by the second, so it belongs to no table of contents. Training reads it from a log of statements,
serving from events (`supply.moments`); both turn it into features here. Numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from market.item_graph import related

#: Names of the columns that `moment_features` returns, in order.
MOMENT_FEATURES = ("viewers", "viewers_trend", "room_age", "shown_affinity", "stock")
HALF_LIFE_S = 600
"""Of what a room's number of viewers is compared with: its own mean, the past fading by this half-life."""
UNKNOWN = -1


@dataclass(frozen=True)
class Moment:
    """What is true of rooms at a time; arrays of one shape.

    Attributes:
        viewers: float32, people in the room; NaN where unknown.
        usual: float32, the decayed mean of that number over the past, see `decayed`; NaN where unknown.
        showing: int64, row of the product that the room shows; -1 for none.
        open_s: int64, seconds since it opened; the time itself, since 1970, where that is unknown.
    """

    viewers: np.ndarray
    usual: np.ndarray
    showing: np.ndarray
    open_s: np.ndarray


class Moments(Protocol):
    """Who knows what is true of contents at a moment.

    Attributes:
        room: bool[N], which contents are live rooms.
    """

    room: np.ndarray

    def __call__(self, room: np.ndarray, time: np.ndarray) -> Moment:
        """Of rooms int64[K], rows of the contents table, at times int64[K] (s since the epoch)."""
        ...

    def stock(self, content: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Pieces of contents int64[...] left at times int64[...] that fit: int64[...], -1 where unknown."""
        ...


def decayed(usual: np.ndarray, level: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """A decayed mean after `seconds` more at a level, all of one shape."""
    left = np.exp2(-np.maximum(seconds, 0) / HALF_LIFE_S)
    return (level + (usual - level) * left).astype(np.float32)


def moment_features(
    moments: Moments,
    content: np.ndarray,
    time: np.ndarray,
    shown_affinity: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Features of contents int64[...] at times int64[...] of that shape, scaled to about [-2, 2].

    Rooms are few among contents, and only they are looked up.

    Args:
        shown_affinity: of products, int64[...] of the shape of `content`, -1 where none is shown, to what
            the person wanted last, float32[...]; 0 at -1.

    Returns:
        float32[..., 5], columns as in `MOMENT_FEATURES`, 0 where unknown and, but for stock, of what is no
        room: viewers, viewers over their decayed mean, time since the room opened, affinity of the product
        shown, and pieces in stock.
    """
    made = np.zeros((content.size, len(MOMENT_FEATURES)), np.float32)
    left = moments.stock(content, time).ravel()
    made[:, 4] = np.log1p(np.maximum(left, 0)) / 4
    flat = content.ravel()
    at = np.flatnonzero(moments.room[flat])
    if len(at):
        then = np.broadcast_to(time, content.shape).ravel()[at]
        now = moments(flat[at], then)
        if (known := ~np.isnan(now.viewers)).any():
            made[at, 0] = np.where(known, np.log1p(now.viewers) / 4, 0)
            trend = np.log((1 + now.viewers) / (1 + now.usual))
            made[at, 1] = np.where(known, np.minimum(np.maximum(trend, -2), 2), 0)
        opened = then - now.open_s
        made[at, 2] = np.where(opened > 0, np.log1p(np.maximum(now.open_s, 0) / 600) / 2, 0)
        if (now.showing >= 0).any():
            shown = np.full(content.size, UNKNOWN)
            shown[at] = now.showing
            made[:, 3] = related(shown_affinity(shown.reshape(content.shape)).ravel())
    return made.reshape(*content.shape, len(MOMENT_FEATURES))


class Timeline:
    """The value of something of each content from each statement on until the next.

    Args:
        content, time, value: [S], statements; of equal times the later one holds.
    """

    def __init__(self, content: np.ndarray, time: np.ndarray, value: np.ndarray) -> None:
        order = np.lexsort((time, content))
        self.content, self.time, self.value = content[order], time[order], value[order]
        self.begin = int(self.time.min(initial=0)) if len(time) else 0
        self.span = (int(self.time.max()) - self.begin if len(time) else 0) + 2
        self.key = self.content.astype(np.int64) * self.span + (self.time - self.begin)

    def place(self, content: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The last statement before a time, int64[...]; -1 where there is none.

        What is said in the very second of a request may be what came of it, such as an order's last piece.
        """
        within = np.clip(time - self.begin, 0, self.span - 1)
        last = np.searchsorted(self.key, content.astype(np.int64) * self.span + within, side="left") - 1
        if not len(self.key):
            return np.full(last.shape, -1)
        return np.where((last >= 0) & (self.content[last] == content), last, -1)


class LoggedMoments:
    """What was true of contents, by a log of statements.

    Args:
        room: bool[N].
        opened: int64[N], when each room opened (s since the epoch), 0 where unknown.
        in_stock: int64[N], pieces before the first statement, -1 where unknown.
        viewers, showing, left: statements of people in rooms, products shown and pieces in stock.
    """

    def __init__(
        self,
        room: np.ndarray,
        opened: np.ndarray,
        in_stock: np.ndarray,
        *,
        viewers: Timeline,
        showing: Timeline,
        left: Timeline,
    ) -> None:
        self.room, self.opened, self.in_stock = room, opened, in_stock
        self.viewers, self.showing, self.left = viewers, showing, left
        self.usual = _decayed_means(viewers)

    def __call__(self, room: np.ndarray, time: np.ndarray) -> Moment:
        """As `Moments` says."""
        said = self.viewers.place(room, time)
        there = said >= 0
        level, usual = np.full((2, len(room)), np.nan, np.float32)
        level[there] = self.viewers.value[said[there]]
        since = time[there] - self.viewers.time[said[there]]
        usual[there] = decayed(self.usual[said[there]], level[there], since)
        shown = self.showing.place(room, time)
        showing = np.full(len(room), UNKNOWN)
        showing[shown >= 0] = self.showing.value[shown[shown >= 0]]
        return Moment(level, usual, showing, time - self.opened[room])

    def stock(self, content: np.ndarray, time: np.ndarray) -> np.ndarray:
        """As `Moments` says."""
        said = self.left.place(content, time)
        made = np.broadcast_to(self.in_stock[content], said.shape).copy()
        made[said >= 0] = self.left.value[said[said >= 0]]
        return made

    def stock_left(self, end: int) -> np.ndarray:
        """Pieces left at the end of a log, or later, when all was told: int64[N], -1 where unknown."""
        every, told = np.arange(len(self.in_stock)), int(self.left.time.max(initial=0)) + 1
        return self.stock(every, np.full(len(every), max(end, told)))


def _decayed_means(viewers: Timeline) -> np.ndarray:
    """At each statement the decayed mean of what held before, float32[S]; at a room's first what it says."""
    level, time = viewers.value.astype(np.float32), viewers.time
    made = level.copy()
    new = np.r_[True, np.diff(viewers.content) != 0] if len(level) else np.zeros(0, bool)
    turn = np.arange(len(level)) - np.maximum.accumulate(np.where(new, np.arange(len(level)), 0))
    by_turn = np.argsort(turn, kind="stable")
    # The k-th statements of all rooms at once: each follows from the one before.
    for rows in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1])[1:] if len(level) else ():
        before = rows - 1
        made[rows] = decayed(made[before], level[before], time[rows] - time[before])
    return made
