"""Learns the item graph from training positives, and scores training pairs as if their user were not in it.

An edge that a person's own events made says nothing about strangers, and on the training part every wanted
pair has such edges. So each training pair is scored by the graph without its user, in closed form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.sparse as sp

from market.item_graph import ItemGraph
from workflows.examples import TRAIN, Examples


@dataclass(frozen=True)
class ItemGraphConfig:
    """Knobs of the item graph.

    Attributes:
        neighbours: edges kept for each content (contents).
        regularisation: added to the diagonal of the Gram matrix; the more, the more cautious (events).
        vectors: weight of the likeness of content vectors beside events, where contents have any (events).
        items: contents that EASE solves for at most; a larger catalogue gets normalised co-visitation, of
            events alone (contents).
        events: latest events of a user that count (events).
    """

    neighbours: int = 100
    regularisation: float = 50.0
    vectors: float = 20.0
    items: int = 12_000
    events: int = 200


def training_rows(examples: Examples, events: int, last: int = TRAIN) -> sp.csr_matrix:
    """float32[U, N], 1 where a content is among the last `events` that the user wanted in the parts up to
    `last`."""
    pairs = examples.pairs
    rows = np.flatnonzero(pairs.positive[: pairs.rows(last).stop])
    user = examples.queries.user[pairs.query[rows]].astype(np.int64)
    content = np.asarray(pairs.content[rows])
    if examples.has_time:
        order = np.lexsort((examples.queries.time[pairs.query[rows]], user))
        user, content = user[order], content[order]
        left = np.searchsorted(user, user, side="right") - np.arange(len(user))
        user, content = user[left <= events], content[left <= events]
    shape = (len(examples.users), len(examples.contents))
    matrix = sp.csr_matrix((np.ones(len(user), np.float32), (user, content)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


class FittedGraph(ABC):
    """An item graph of the training part, and what it says without one of its users.

    Attributes:
        graph: all users in it, as it is served.
    """

    graph: ItemGraph

    @abstractmethod
    def without_user(self, user: np.ndarray, history: np.ndarray, content: np.ndarray) -> np.ndarray:
        """Affinities by the graph that would be without the pair's user, float32[P].

        Args:
            user: int64[P], rows of the users table.
            history: int64[P, L], rows of the contents table, all among the user's own, -1 fills.
            content: int64[P].
        """

    def affinity(
        self, user: np.ndarray, history: np.ndarray, content: np.ndarray, train: np.ndarray
    ) -> np.ndarray:
        """Summed edges from each history to its content, float32[P].

        Args:
            train: bool[P], pairs of the training part, which the graph knows; their user is left out.
        """
        made = np.empty(len(user), np.float32)
        own, other = np.flatnonzero(train), np.flatnonzero(~train)
        made[own] = self.without_user(user[own], history[own], content[own])
        made[other] = self.graph.between(history[other], content[other])
        return made


class Ease(FittedGraph):
    """EASE (Steck, WWW 2019), its largest positive weights kept, content vectors beside events.

    The likeness of content vectors joins the Gram matrix, so a content without events has neighbours too.
    Leaving a user out is a downdate of rank one, as for any ridge regression.
    """

    def __init__(self, matrix: sp.csr_matrix, likeness: np.ndarray | None, config: ItemGraphConfig) -> None:
        contents = matrix.shape[1]
        gram = (matrix.T @ matrix).toarray()
        if likeness is not None:
            gram += config.vectors * likeness
        gram[np.diag_indices(contents)] += config.regularisation
        inverse = invert(gram)
        self.matrix, self.inverse, self.diagonal = matrix, inverse, np.diag(inverse).copy()
        kept = min(config.neighbours, contents - 1)
        neighbours = np.full((contents, config.neighbours), -1, np.int32)
        weights = np.zeros((contents, config.neighbours), np.float32)
        for start in range(0, contents, 1024):
            rows = np.arange(start, min(start + 1024, contents))
            edges = inverse[rows] / -self.diagonal[None, :]
            edges[np.arange(len(rows)), rows] = -np.inf
            top = np.argpartition(-edges, kept - 1, axis=1)[:, :kept] if kept else edges[:, :0].astype(int)
            top = np.sort(top, axis=1)
            weight = np.take_along_axis(edges, top, axis=1)
            neighbours[rows, :kept] = np.where(weight > 0, top, -1)
            weights[rows, :kept] = np.maximum(weight, 0)
        self.graph = ItemGraph(neighbours, weights)
        # The smallest weight that each content's list holds; a shorter list holds all that are positive.
        self.smallest = np.maximum(weights.min(axis=1, initial=1), np.finfo(np.float32).tiny)
        self._weigh_users()

    def _weigh_users(self) -> None:
        """What leaving each user out takes: P x at the user's own contents, and x P x."""
        users = np.repeat(np.arange(self.matrix.shape[0], dtype=np.int64), np.diff(self.matrix.indptr))
        self.keys = users * self.matrix.shape[1] + self.matrix.indices
        counts = np.diff(self.matrix.indptr)
        self.own = np.zeros(self.matrix.nnz, np.float32)
        self.energy = np.zeros(self.matrix.shape[0], np.float64)
        for count in np.unique(counts[counts > 0]):
            users = np.flatnonzero(counts == count)
            size = max(1, 4_000_000 // int(count) ** 2)
            for start in range(0, len(users), size):
                part = users[start : start + size]
                places = self.matrix.indptr[part][:, None] + np.arange(count)
                items = self.matrix.indices[places]
                own = self.inverse[items[:, :, None], items[:, None, :]].sum(axis=2)
                self.own[places] = own
                self.energy[part] = own.sum(axis=1)

    def without_user(self, user: np.ndarray, history: np.ndarray, content: np.ndarray) -> np.ndarray:
        """See `FittedGraph`: x is the user's row without the content, y whether the user wanted the content.

        The model of a content is a ridge regression of its column on all others; its weights without a row
        (x, y) are w - A x (y - w x) / (1 - x A x), A being the inverse of the others' Gram matrix.
        """
        matrix, diagonal = self.matrix, self.diagonal[content].astype(np.float64)
        start, count = matrix.indptr[user].astype(np.int64), np.diff(matrix.indptr)[user]
        # Each pair's content beside every content of its user's row.
        pair = np.repeat(np.arange(len(user)), count)
        item = matrix.indices[np.arange(len(pair)) - np.repeat(np.cumsum(count) - count - start, count)]
        same = item == content[pair]
        y = np.bincount(pair[same], minlength=len(user)).astype(np.float64)
        across = np.bincount(pair, np.where(same, 0, self.inverse[content[pair], item]), len(user))
        leverage = self.energy[user] - y * (2 * across + diagonal) - across**2 / diagonal
        error = (y + across / diagonal) / np.maximum(1 - leverage, 1e-6)
        past = np.maximum(history, 0)
        between = self.inverse[past, content[:, None]]
        edges = between / -self.diagonal[content, None]
        kept = (history >= 0) & (edges >= self.smallest[past]) & (past != content[:, None])
        place = np.searchsorted(self.keys, user[:, None].astype(np.int64) * matrix.shape[1] + past)
        own = self.own[np.minimum(place, len(self.own) - 1)] - y[:, None] * between
        shift = (own - between * (across / diagonal)[:, None]) * error[:, None]
        return np.where(kept, np.maximum(edges - shift, 0), 0).sum(axis=1).astype(np.float32)


def invert(gram: np.ndarray) -> np.ndarray:
    """The inverse of a positive definite matrix float[N, N], which is overwritten.

    By its Cholesky factor, in place: half the work and memory of a general inverse.
    """
    factor = scipy.linalg.cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)[0]
    inverse = scipy.linalg.get_lapack_funcs("potri", (factor,))(factor, lower=1, overwrite_c=1)[0]
    del factor
    inverse = np.tril(inverse)
    inverse += np.tril(inverse, -1).T
    return inverse


class CoVisitation(FittedGraph):
    """How often two contents are wanted by the same people, users and contents of many events weighing less.

    The linear filter of GF-CF (Shen et al., CIKM 2021), with the exponents `USER`, `SOURCE` and `TARGET`
    instead of 1, 0.5 and 0.5: popular contents are reached more easily than they lead elsewhere. The matrix
    of counts stays sparse, so any catalogue fits.
    """

    #: Exponents of the number of events of a user, of an edge's source and of its target.
    USER, SOURCE, TARGET = 0.6, 0.7, 0.3

    def __init__(self, matrix: sp.csr_matrix, config: ItemGraphConfig) -> None:
        self.matrix = matrix
        events = np.maximum(np.diff(matrix.indptr), 1)
        self.share = (events**-self.USER).astype(np.float32)
        self.wanted = np.bincount(matrix.indices, minlength=matrix.shape[1])
        self.common = (matrix.T @ sp.diags(self.share) @ matrix).tocsr()
        common = self.common.tocoo()
        apart = common.row != common.col
        source, target, count = common.row[apart], common.col[apart], common.data[apart]
        weight = self._weight(count, self.wanted[source], self.wanted[target])
        order = np.lexsort((target, -weight, source))
        source, target, weight = source[order], target[order], weight[order]
        place = np.arange(len(source)) - np.searchsorted(source, source)
        kept = place < config.neighbours
        shape = (matrix.shape[1], config.neighbours)
        neighbours, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
        neighbours[source[kept], place[kept]] = target[kept]
        weights[source[kept], place[kept]] = weight[kept]
        self.graph = ItemGraph(neighbours, weights)

    def _weight(self, common: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        degree = np.maximum(source, 1) ** self.SOURCE * np.maximum(target, 1) ** self.TARGET
        return (common / degree).astype(np.float32)

    def without_user(self, user: np.ndarray, history: np.ndarray, content: np.ndarray) -> np.ndarray:
        """See `FittedGraph`: the user's own wants are taken off the counts behind each edge."""
        summed = np.zeros(len(content), np.float64)
        wanted = self._entries(self.matrix, user, content)
        for source in history.T:
            known = np.flatnonzero(source >= 0)
            past, now = source[known], content[known]
            is_edge = (self.graph.neighbours[past] == now[:, None]).any(axis=1)
            known, past, now = known[is_edge], past[is_edge], now[is_edge]
            own, wanted_now = self._entries(self.matrix, user[known], past), wanted[known]
            common = self._entries(self.common, past, now) - own * wanted_now * self.share[user[known]]
            edges = self._weight(common, self.wanted[past] - own, self.wanted[now] - wanted_now)
            # Subtracting from a rounded sum may leave a little of an edge that was the user's alone.
            summed[known] += np.where(common > 1e-6, edges, 0)
        return summed.astype(np.float32)

    @staticmethod
    def _entries(matrix: sp.csr_matrix, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.asarray(matrix[row, column], np.float64).ravel() if len(row) else np.zeros(0)


def fit_item_graph(examples: Examples, config: ItemGraphConfig, last: int = TRAIN) -> FittedGraph:
    """The item graph of all markets' positives in the parts up to `last`; see `ItemGraphConfig.items`."""
    matrix = training_rows(examples, config.events, last)
    if matrix.shape[1] > config.items:
        return CoVisitation(matrix, config)
    return Ease(matrix, likeness(examples.contents), config)


def likeness(contents: pd.DataFrame) -> np.ndarray | None:
    """Cosines of centred content vectors (columns `v_…`), summed over the columns, float32[N, N]; None where
    there are none."""
    total = None
    for name in [name for name in contents.columns if name.startswith("v_")]:
        known = contents[name].notna().to_numpy()
        vectors = np.stack(contents.loc[known, name].to_list()).astype(np.float32)
        vectors -= vectors.mean(axis=0)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        whole = np.zeros((len(contents), vectors.shape[1]), np.float32)
        whole[known] = vectors
        total = whole @ whole.T if total is None else total + whole @ whole.T
    return total
