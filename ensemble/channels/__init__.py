"""Retrieval channels, one file each: ways to find candidates that others miss.

A channel is a function that proposes eligible contents of one market for a batch of requests, best first. The
retrieval stage merges the channels by quota and keeps their provenance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntFlag
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from market.item_graph import Reach
from market.kinds import KINDS

if TYPE_CHECKING:
    from ensemble.search import MarketIndex

NONE = -1
"""Fills places without a candidate."""
_LOOKED_AT = 1024
"""Contents of a language that are looked at in one go for one that is open."""


class Channel(IntFlag):
    """Where a candidate came from; one that several channels found has all their bits."""

    TWO_TOWER = 1
    TRENDING = 2
    ITEM_GRAPH = 4
    FRESH = 8
    LIVE = 16
    FOLLOWED = 32
    CART = 64
    WORTH = 128


@dataclass(frozen=True)
class Wishes:
    """What requests say of the contents that they ask for; each None where none of them says anything.

    Attributes:
        kinds: int64[b], bits of the only kinds asked for, by their places in `market.kinds.KINDS`; 0 asks for
            all.
        categories: int64[b, K], codes of the only categories asked for, -1 fills; what has none is in none of
            them. Who names none asks for all; a code above all others is of a category that nothing is in.
        excluded_categories: int64[b, X], codes of those not asked for, -1 fills.
        reads: int64[b, L], codes of languages, -1 fills. Who names none reads all, and so does who names
            those alone in which nothing of the kinds and categories may be shown at the time. All read
            contents of unknown language.
    """

    kinds: np.ndarray | None = None
    categories: np.ndarray | None = None
    excluded_categories: np.ndarray | None = None
    reads: np.ndarray | None = None

    def of(self, rows: np.ndarray | slice) -> Wishes:
        """Those of some of the requests."""
        every = (self.kinds, self.categories, self.excluded_categories, self.reads)
        return Wishes(*(None if said is None else said[rows] for said in every))


ANYTHING = Wishes()


class Shelf:
    """The contents of one market, side by side in memory.

    Attributes:
        rows: int64[n], rows of the contents table.
        place: int64[N], where each content stands in `rows`; n where it is not sold here.
        opens, ends: int64[n], from when to when each may be shown (s since the epoch).
        index: of their vectors, by place.
        by_trend: int64[n], places in `rows`, most wanted first by `market.statistics.trend`.
        by_worth: int64[*], places of contents of known worth here, the highest first.
        turn: int64[n], how many contents are newer than each, of equal age those before it.
        fresh: int64[*], places of little exposed contents of known age, newest first; see `running`.
        rooms: int64[*], places of live rooms; `running` has them newest first.
        viewers: float32[n], people in each room now; NaN where that is not known.
        of_sellers: int64[*], places by seller and, of one seller, newest first; those of the seller s are
            `of_sellers[first_of[s]:first_of[s + 1]]`.
        kind: int[n], places in `market.kinds.KINDS`.
        category, language: int[n], codes, -1 where unknown.
    """

    def __init__(
        self,
        available: np.ndarray,
        *,
        index: MarketIndex,
        opens: np.ndarray,
        ends: np.ndarray,
        popularity: np.ndarray,
        trend: np.ndarray,
        worth: np.ndarray,
        fresh: np.ndarray,
        seller: np.ndarray,
        kind: np.ndarray,
        category: np.ndarray,
        language: np.ndarray,
    ) -> None:
        """
        Args:
            available, fresh: bool[N], sold here; little exposed here.
            index: of the vectors of the contents sold here, by place.
            opens, ends: int64[N].
            popularity, trend: float32[N], how much each is wanted in this market.
            worth: float32[N], its mean value to people of this market (USD), NaN where unknown.
            kind: int[N], places in `market.kinds.KINDS`.
            seller, category, language: int[N], codes from 0 on, -1 where unknown.
        """
        self.rows = np.flatnonzero(available)
        self.index = index
        self.place = np.full(len(available), len(self.rows))
        self.place[self.rows] = np.arange(len(self.rows))
        self.opens, self.ends = opens[self.rows], ends[self.rows]
        self._popularity = popularity
        self.by_trend = np.argsort(-trend[self.rows], kind="stable")
        known = np.flatnonzero(~np.isnan(worth[self.rows]))
        self.by_worth = known[np.argsort(-worth[self.rows[known]], kind="stable")]
        newest = np.argsort(-self.opens, kind="stable")
        self.turn = np.argsort(newest)
        self.fresh = newest[(fresh[self.rows] & (self.opens > 0))[newest]]
        self.kind, self.category = kind[self.rows], category[self.rows]
        self._categories = int(category.max(initial=-1)) + 1
        self.rooms = np.flatnonzero(self.kind == KINDS.index("live"))
        self._hour, self._running = NONE, (self.fresh, self.rooms)
        self.viewers = np.full(len(self.rows), np.nan, np.float32)
        of = seller[self.rows][newest]
        self.of_sellers = newest[np.argsort(of, kind="stable")]
        self.first_of = np.searchsorted(np.sort(of), np.arange(int(seller.max(initial=-1)) + 2))
        self.language = language[self.rows]
        by_language = np.argsort(self.language, kind="stable")
        first = np.searchsorted(self.language[by_language], np.arange(int(language.max(initial=-1)) + 2))
        #: Places of what is in each language; the last, of unknown ones, is empty.
        self._in_language = [*(by_language[start:end] for start, end in pairwise(first)), by_language[:0]]

    @cached_property
    def by_popularity(self) -> np.ndarray:
        """int64[n], places in `rows`, most wanted first; no request reads it."""
        return np.argsort(-self._popularity[self.rows], kind="stable")

    def update(self, rows: np.ndarray, opens: np.ndarray, ends: np.ndarray, viewers: np.ndarray) -> None:
        """Take over the state of contents `rows` int64[*]; arrays of that length."""
        here = self.place[rows] < len(self.rows)
        place = self.place[rows[here]]
        longer, moved = (ends[here] > self.ends[place]).any(), (opens[here] != self.opens[place]).any()
        self.opens[place], self.ends[place], self.viewers[place] = opens[here], ends[here], viewers[here]
        if longer:
            self._hour = NONE
        elif moved:
            fresh, rooms = self._running
            self._running = fresh, self._newest(rooms)

    def running(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`fresh` and `rooms`, the newest first, without what had ended when the hour of the first of these
        times began.

        Of all rooms that there ever were few are left, and the requests of an hour need not look for them
        anew.
        """
        hour = int(time.min()) // 3600
        if hour != self._hour:
            fresh, rooms = (places[self.ends[places] > hour * 3600] for places in (self.fresh, self.rooms))
            self._hour, self._running = hour, (fresh, self._newest(rooms))
        return self._running

    def _newest(self, rooms: np.ndarray) -> np.ndarray:
        """Places of rooms int64[*], those first that opened last: events say when, so it changes."""
        return rooms[np.lexsort((rooms, -self.opens[rooms]))]

    def of(self, sellers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Contents of sellers int64[b, F], -1 fills: rows of `sellers` int64[*] and places int64[*]."""
        row, column = np.nonzero(sellers >= 0)
        seller = sellers[row, column]
        first = self.first_of[seller]
        length = self.first_of[seller + 1] - first
        row = np.repeat(row, length)
        within = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
        return row, self.of_sellers[np.repeat(first, length) + within]

    def eligible(
        self,
        time: np.ndarray,
        seen: np.ndarray,
        spared: np.ndarray | None = None,
        wishes: Wishes = ANYTHING,
    ) -> np.ndarray:
        """bool[b, n]: published, not ended, not seen, not of a seller that the user is spared, and what the
        request asks for.

        Args:
            time: int64[b]; seen: int64[b, S], rows of the contents table, -1 fills; spared: int64[b, T],
                codes of sellers, -1 fills.
        """
        at = time[:, None]
        return (self.opens <= at) & (at < self.ends) & ~self.hidden(time, seen, spared, wishes)[:, :-1]

    def hidden(
        self,
        time: np.ndarray,
        seen: np.ndarray,
        spared: np.ndarray | None,
        wishes: Wishes = ANYTHING,
    ) -> np.ndarray:
        """bool[b, n + 1]: seen, of a seller that the user is spared, or not what the request asks for;
        arguments as of `eligible`.

        The last place stands for contents that are not sold here, which everyone is spared.
        """
        hidden = np.zeros((len(seen), len(self.rows) + 1), bool)
        self._hide_unasked(hidden[:, :-1], time, wishes)
        place = np.where(seen >= 0, self.place[seen], len(self.rows))
        hidden[np.arange(len(seen))[:, None], place] = True
        if spared is not None and (spared >= 0).any():
            hidden[self.of(spared)] = True
        hidden[:, -1] = True
        return hidden

    def _hide_unasked(self, hidden: np.ndarray, time: np.ndarray, wishes: Wishes) -> None:
        """Mark in bool[b, n], where nothing is yet, what requests at times int64[b] do not ask for."""
        if wishes.kinds is not None:
            for own, bits in zip(hidden, wishes.kinds.tolist()):
                if bits:
                    own |= np.array([not bits >> kind & 1 for kind in range(len(KINDS))])[self.kind]
        if wishes.categories is not None:
            for own, codes in zip(hidden, wishes.categories):
                if (named := codes[codes >= 0]).size:
                    unasked = np.ones(self._categories + 2, bool)
                    unasked[named] = False
                    own |= unasked[self.category]
        if wishes.excluded_categories is not None:
            for own, codes in zip(hidden, wishes.excluded_categories):
                excluded = np.zeros(self._categories + 2, bool)
                excluded[codes] = True
                excluded[NONE] = False
                own |= excluded[self.category]
        if wishes.reads is not None:
            for own, codes, at in zip(hidden, wishes.reads, time.tolist()):
                if any(self._open_in(code, at, own) for code in codes.tolist()):
                    foreign = np.ones(len(self._in_language), bool)
                    foreign[codes] = foreign[-1] = False
                    own |= foreign[self.language]

    def _open_in(self, language: int, time: int, hidden: np.ndarray) -> bool:
        """Whether anything in a language, -1 for none, may be shown at a time and is not hidden, bool[n].

        Something mostly is among the first that are looked at.
        """
        places = self._in_language[language]
        for first in range(0, len(places), _LOOKED_AT):
            some = places[first : first + _LOOKED_AT]
            if ((self.opens[some] <= time) & (time < self.ends[some]) & ~hidden[some]).any():
                return True
        return False

    def withheld(
        self,
        time: np.ndarray,
        seen: np.ndarray,
        excluded: np.ndarray,
        tired: np.ndarray,
        wishes: Wishes,
    ) -> list[int]:
        """How many open contents one request may not get: seen; of a kind or category that it does not ask
        for; of a seller that it excludes; of one that its user was shown too often; in a language that the
        user does not read.

        Each counts for the first that holds; arguments as of `eligible`, of one row.
        """
        left = [(self.opens <= time[0]) & (time[0] < self.ends), self.eligible(time, seen)]
        both, here = np.concatenate([excluded, tired], axis=1), replace(wishes, reads=None)
        left += [self.eligible(time, seen, spared, here) for spared in (None, excluded, both)]
        left += [self.eligible(time, seen, both, wishes)]
        return (-np.diff([each.sum() for each in left])).tolist()


@dataclass(frozen=True)
class MarketQueries:
    """Requests from one market.

    Attributes:
        shelf: the market's contents.
        query_vector: float32[b, D].
        time: int64[b], s since the epoch.
        recent: int64[b, L], what the users wanted last, rows of the contents table, oldest first, -1 fills.
        affinity: what the item graph says of contents after these.
        seen: int64[b, S], contents not to be shown again, rows of the contents table, -1 fills.
        followed: int64[b, F], sellers that the user follows or bought from, each once, -1 fills.
        spared: int64[b, T], sellers that the user has been shown too often or excludes, -1 fills.
        wishes: what they ask for.
    """

    shelf: Shelf
    query_vector: np.ndarray
    time: np.ndarray
    recent: np.ndarray
    affinity: Reach
    seen: np.ndarray
    followed: np.ndarray
    spared: np.ndarray
    wishes: Wishes = ANYTHING

    def of(self, rows: np.ndarray) -> MarketQueries:
        """Some of the requests, int64[k], ascending."""
        return MarketQueries(
            self.shelf,
            self.query_vector[rows],
            self.time[rows],
            self.recent[rows],
            self.affinity.of(rows),
            self.seen[rows],
            self.followed[rows],
            self.spared[rows],
            self.wishes.of(rows),
        )

    def cosine(self, places: np.ndarray) -> np.ndarray:
        """float32[b, c], of each query and its contents at `places` int64[b, c]; 0 where that is -1."""
        return np.where(places >= 0, self.shelf.index.products(self.query_vector, places), np.float32(0))

    def allows(self, row: np.ndarray, place: np.ndarray) -> np.ndarray:
        """bool[...], whether requests int64[...] may get the contents at places int64[...]; n for one that is
        not sold here, which none may. See `Shelf.eligible`.

        A request looks at some thousand contents of a market that may have a million.
        """
        shelf = self.shelf
        known = np.minimum(place, len(shelf.rows) - 1)
        time = self.time[row]
        return (shelf.opens[known] <= time) & (time < shelf.ends[known]) & ~self._hidden[row, place]

    def may(self, places: np.ndarray) -> np.ndarray:
        """The same for places int64[c] that all requests look at, or int64[b, c]; -1 may none: bool[b, c]."""
        opens, ends, time = self.shelf.opens[places], self.shelf.ends[places], self.time[:, None]
        allowed = opens <= time
        allowed &= time < ends
        for row, hidden in enumerate(self._hidden):
            allowed[row] &= ~hidden[places if places.ndim == 1 else places[row]]
        return allowed

    @cached_property
    def _hidden(self) -> np.ndarray:
        return self.shelf.hidden(self.time, self.seen, self.spared, self.wishes)

    @cached_property
    def eligible(self) -> np.ndarray:
        """bool[b, n], of every content of the market; see `Shelf.eligible`."""
        return self.shelf.eligible(self.time, self.seen, self.spared, self.wishes)


class Source(Protocol):
    """A channel."""

    def __call__(self, asked: MarketQueries, count: int) -> np.ndarray:
        """At most `count` eligible places of the shelf for each request, each once, best first: int64[b,
        <=count]; -1 fills, at the end."""
        ...


def nearest(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of each row's `k` highest finite scores, best first, ties by place: int64[B, <=k], -1 fills."""
    each = np.arange(len(scores))[:, None]
    if k >= scores.shape[1]:
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.where(np.isfinite(scores[each, order]), order, NONE)
    if not k:
        return np.zeros((len(scores), 0), np.int64)
    top = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    values = scores[each, top]
    # Of equal scores at the border the partition takes any; these rows take the first ones.
    border = values.min(axis=1, keepdims=True)
    tied = np.flatnonzero(np.isfinite(border[:, 0]) & ((scores >= border).sum(axis=1) > k))
    if len(tied):
        above, equal = scores[tied] > border[tied], scores[tied] == border[tied]
        free = k - above.sum(axis=1, keepdims=True)
        top[tied] = np.nonzero(above | (equal & (equal.cumsum(axis=1) <= free)))[1].reshape(len(tied), k)
        values = scores[each, top]
    order = np.argsort(-values, axis=1, kind="stable")
    return np.where(np.isfinite(values[each, order]), top[each, order], NONE)


def first_eligible(
    order: np.ndarray, may: Callable[[np.ndarray], np.ndarray], rows: int, k: int
) -> np.ndarray:
    """The first `k` places of a given order that each request may get: int64[B, <=k], -1 fills.

    Args:
        order: int64[n], places.
        may: whether each of the B requests may get the contents at places int64[c], bool[B, c].
        rows: B.
    """
    length, k = k + k // 2 + 64, min(k, len(order))
    while True:
        found = first_kept(order[:length], may(order[:length]), k)
        if length >= len(order) or not (found[:, -1:] == NONE).any():
            return found
        length *= 4


def first_kept(places: np.ndarray, kept: np.ndarray, k: int) -> np.ndarray:
    """The first `k` places int64[n], or int64[B, n], that are kept bool[B, n]: int64[B, k], -1 fills."""
    found = np.full((len(kept), k), NONE)
    for row, own in enumerate(kept):
        column = own.nonzero()[0][:k]
        found[row, : len(column)] = (places if places.ndim == 1 else places[row])[column]
    return found


def in_turn(row: np.ndarray, place: np.ndarray, rows: int, k: int) -> np.ndarray:
    """The first `k` places int64[E] of each request int64[E], ascending: int64[rows, k], -1 fills."""
    found = np.full((rows, k), NONE)
    for one, (start, end) in enumerate(pairwise(row.searchsorted(np.arange(rows + 1)).tolist())):
        own = place[start : min(end, start + k)]
        found[one, : len(own)] = own
    return found
