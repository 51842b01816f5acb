"""The item graph: which contents the same people want, as weighted neighbours of each content.

Numpy alone: training, retrieval and ranking read the same arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


def related(affinity: np.ndarray) -> np.ndarray:
    """An affinity as models read it: small ones must be told apart as well as large ones."""
    return np.log1p(100 * affinity) / 2


@dataclass(frozen=True)
class Reach:
    """What the edges from a batch of histories add up to, at the contents that they reach.

    A history reaches some hundred contents of a market that may have a million, so nothing here is as long as
    the contents table but the scratch space of `at`, of which little is touched.

    Attributes:
        row: int64[E], rows of the batch, ascending.
        content: int64[E], rows of the contents table; each once a row.
        weight: float32[E], positive.
        rows, contents: of the batch and of the table.
    """

    row: np.ndarray
    content: np.ndarray
    weight: np.ndarray
    rows: int
    contents: int

    def at(self, content: np.ndarray) -> np.ndarray:
        """The sums at contents int64[B, C], float32[B, C]; 0 where nothing reaches, and at -1."""
        found = np.zeros(content.shape, np.float32)
        # Never filled: whatever number stands at a content that is not reached leads to another one.
        number = np.empty(self.contents, np.uint32)
        ends = np.searchsorted(self.row, np.arange(self.rows + 1))
        for row, (start, end) in enumerate(pairwise(ends)):
            if start == end:
                continue
            reached = self.content[start:end]
            number[reached] = np.arange(end - start)
            place = np.minimum(number[content[row]], end - start - 1)
            found[row] = np.where(reached[place] == content[row], self.weight[start:end][place], 0)
        return found

    def of(self, rows: np.ndarray) -> Reach:
        """The same for some rows of the batch, int64[b], ascending."""
        if len(rows) == self.rows:
            return self
        place = np.full(self.rows, -1)
        place[rows] = np.arange(len(rows))
        kept = place[self.row] >= 0
        return Reach(place[self.row[kept]], self.content[kept], self.weight[kept], len(rows), self.contents)


@dataclass(frozen=True)
class ItemGraph:
    """Weighted edges from each content to its closest ones.

    Attributes:
        neighbours: int32[N, K], rows of the contents table, -1 fills.
        weights: float32[N, K], positive; 0 where there is no neighbour.
        recency: the edges of a history's latest event count whole, those of the n-th before it
            (1 + n) ** -recency.
    """

    neighbours: np.ndarray
    weights: np.ndarray
    recency: float = 0.0

    def reach(self, history: np.ndarray) -> Reach:
        """What the history's edges add up to.

        Args:
            history: int64[B, L], rows of the contents table, -1 fills.
        """
        contents = len(self.neighbours)
        made: list[tuple[np.ndarray, np.ndarray]] = []
        # One place more than there are contents: that of the -1 that fills lists.
        slot = np.empty(contents + 1, np.int32)
        for past in history:
            past = past[past >= 0]
            weight = self.weights[past]
            if self.recency:
                weight = weight * self.counts(len(past) - 1 - np.arange(len(past)))[:, None]
            target, weight = self.neighbours[past].ravel(), weight.ravel()
            number = np.arange(len(target), dtype=np.int32)
            # Edges to one content all read the slot that the last of them wrote; no sort is needed.
            slot[target] = number
            last = slot[target]
            summed = np.bincount(last, weight, len(target)).astype(np.float32)
            kept = (last == number) & (summed > 0)
            made.append((target[kept], summed[kept]))
        row = np.repeat(np.arange(len(history)), [len(target) for target, _ in made])
        target, weight = (np.concatenate(part) for part in zip(*made)) if made else (np.zeros(0), np.zeros(0))
        return Reach(row, target.astype(np.int64), weight.astype(np.float32), len(history), contents)

    def between(self, history: np.ndarray, content: np.ndarray) -> np.ndarray:
        """The same for one content a row, float32[P].

        Args:
            history: int64[P, L], -1 fills; content: int64[P].
        """
        summed = np.zeros(len(content), np.float64)
        latest = (history >= 0).sum(axis=1) - 1
        for place, source in enumerate(history.T):  # a few columns; [P, L, K] at once would not fit
            known = np.flatnonzero(source >= 0)
            own = self.neighbours[source[known]] == content[known, None]
            edges = np.where(own, self.weights[source[known]], 0).sum(axis=1)
            summed[known] += edges * self.counts(latest[known] - place)
        return summed.astype(np.float32)

    def counts(self, before: np.ndarray) -> np.ndarray:
        """What the edges of events count, float64[E], that so many others int64[E] came after."""
        return _counts(self.recency, before)


@dataclass(frozen=True)
class LowRank:
    """Affinities between all contents as a product of two tables: what is spread over too many for edges.

    Attributes:
        source, target: float32[N, D]; a history's content `j` adds source[j] · target[i] to the content `i`.
        recency: as of `ItemGraph`.
    """

    source: np.ndarray
    target: np.ndarray
    recency: float = 0.0

    @classmethod
    def none(cls, contents: int) -> LowRank:
        """Affinities that are all 0."""
        return cls(*np.zeros((2, contents, 0), np.float32))

    def affinity(self, history: np.ndarray, content: np.ndarray) -> np.ndarray:
        """What each history adds to its contents, float32[B, C]; 0 at -1.

        Args:
            history: int64[B, L], rows of the contents table, -1 fills; content: int64[B, C], likewise.
        """
        made = np.zeros(content.shape, np.float32)
        if not self.source.shape[1]:
            return made
        for row, (past, here) in enumerate(zip(history, content)):
            past = past[past >= 0]
            query = _counts(self.recency, np.arange(len(past))[::-1]).astype(np.float32) @ self.source[past]
            made[row] = np.where(here >= 0, self.target.take(here, axis=0, mode="clip") @ query, 0)
        return made


@dataclass(frozen=True)
class MarketGraphs:
    """What each market's own people want together, beside an item graph of all people.

    Attributes:
        place: int32[M, N], the row of `graph` that stands for a content in a market, -1 where there is none.
        graph: of all markets, without an edge from one to another.
    """

    place: np.ndarray
    graph: ItemGraph

    @classmethod
    def none(cls, markets: int, contents: int) -> MarketGraphs:
        """Graphs without an edge."""
        empty = ItemGraph(np.empty((0, 1), np.int32), np.empty((0, 1), np.float32))
        return cls(np.full((markets, contents), -1, np.int32), empty)

    def affinity(self, market: np.ndarray, history: np.ndarray, content: np.ndarray) -> np.ndarray:
        """What the edges from each history to its contents add up to, float32[B, C]; 0 at -1.

        Args:
            market: int64[B].
            history: int64[B, L], rows of the contents table, -1 fills; content: int64[B, C], likewise.
        """
        if not len(self.graph.neighbours):
            return np.zeros(content.shape, np.float32)
        past, here = (
            np.where(rows >= 0, self.place[market[:, None], rows], -1) for rows in (history, content)
        )
        return self.graph.reach(past).at(here)


def _counts(recency: float, before: np.ndarray) -> np.ndarray:
    return (1.0 + before) ** -recency
