"""Learns the item graph from training positives, and scores training pairs as if their user were not in it.

An edge that a person's own events made says nothing about strangers, and on the training part every wanted
pair has such edges. So each training pair is scored by the graph without its user, in closed form.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from market.item_graph import ItemGraph, MarketGraphs
from market.knobs import expect
from workflows.examples import TRAIN, Examples
from workflows.vectors import vector_columns


@dataclass(frozen=True)
class ItemGraphConfig:
    """Knobs of the item graph.

    Attributes:
        neighbours: edges kept for each content (contents).
        regularisation: added to the diagonal of the Gram matrix; the more, the more cautious (events).
        co_visitation: weight of normalised co-visitation beside EASE's edges; 0 for EASE alone.
        together_days: two events of a user count as one visit the less, the further apart they are: 1/e of it
            at this distance, where a log has times (days).
        recency: the edges of a user's latest event count whole, those of the n-th before it
            (1 + n) ** -recency, where a log has times.
        vectors: weight of the likeness of content vectors beside events, where contents have any (events).
        items: contents of the largest catalogue that EASE solves for; a larger one gets normalised
            co-visitation, of events alone (contents).
        popular: contents of a larger catalogue, its most popular ones, that EASE solves for beside
            co-visitation (contents).
        events: latest events of a user that count (events).
        exponents: of the number of events of a user, of an edge's source and of its target, by which
            co-visitation divides; GF-CF's linear filter has 1, 0.5 and 0.5.
        low_rank: dimensions of the part of BSPM's filter that no few edges hold, which the stacking reads
            beside them (`models.low_rank`); meant for edges of co-visitation with GF-CF's exponents. 0 leaves
            it out.
        market_regularisation: beside the graph of all people, the stacking reads EASE of each market's own
            people, with so much added to the diagonal, in markets of at most `items` contents; 0 leaves it
            out (events).
    """

    neighbours: int = 100
    regularisation: float = 50.0
    co_visitation: float = 0.0
    together_days: float = 180.0
    recency: float = 0.0
    vectors: float = 20.0
    items: int = 12_000
    popular: int = 0
    events: int = 200
    exponents: tuple[float, float, float] = (0.6, 0.7, 0.3)
    low_rank: int = 0
    market_regularisation: float = 0.0

    def __post_init__(self) -> None:
        expect(self, "item_graph", "neighbours events", least=1)
        expect(self, "item_graph", "regularisation together_days", above=0)
        counts = "co_visitation recency vectors items popular low_rank market_regularisation"
        expect(self, "item_graph", counts, least=0)
        expect(self, "item_graph", "exponents")
        if len(self.exponents) != 3:
            raise ValueError(f"item_graph.exponents is {self.exponents}; give three: user, source, target")


@dataclass(frozen=True)
class InteractionMatrix:
    """What users wanted.

    Attributes:
        matrix: float32[U, N], 1 where a user wanted a content.
        day: float64[E], when it was wanted last, in the order of the matrix' entries (days); None where the
            log has no times.
    """

    matrix: sp.csr_matrix
    day: np.ndarray | None = None


def training_events(examples: Examples, events: int, last: int = TRAIN) -> InteractionMatrix:
    """The last `events` contents that each user wanted in the parts up to `last`."""
    pairs = examples.pairs
    rows = np.flatnonzero(pairs.positive[: pairs.rows(last).stop])
    user = examples.queries.user[pairs.query[rows]].astype(np.int64)
    content = np.asarray(pairs.content[rows])
    time = examples.queries.time[pairs.query[rows]]
    shape = (len(examples.users), len(examples.contents))
    if examples.has_time:
        order = np.lexsort((time, user))
        user, content, time = user[order], content[order], time[order]
        left = np.searchsorted(user, user, side="right") - np.arange(len(user))
        user, content, time = (array[left <= events] for array in (user, content, time))
    order = np.lexsort((time, content, user))
    user, content, time = user[order], content[order], time[order]
    latest = np.append((user[1:] != user[:-1]) | (content[1:] != content[:-1]), True)[: len(user)]
    starts = np.searchsorted(user[latest], np.arange(shape[0] + 1))
    ones = np.ones(int(latest.sum()), np.float32)
    matrix = sp.csr_matrix((ones, content[latest], starts), shape=shape)
    return InteractionMatrix(matrix, time[latest] / 86400.0 if examples.has_time else None)


class FittedGraph(ABC):
    """An item graph of the training part, and what it says without one of its users.

    Attributes:
        graph: all users in it, as it is served.
    """

    @property
    @abstractmethod
    def graph(self) -> ItemGraph: ...

    @abstractmethod
    def edges_without_user(
        self, user: np.ndarray, content: np.ndarray, pair: np.ndarray, past: np.ndarray
    ) -> np.ndarray:
        """Weights of edges by the graph that would be without the pair's user, float64[E].

        Args:
            user, content: int64[P], pairs: rows of the users table and of the contents table.
            pair, past: int64[E], the pair of each edge, which ends at the pair's content, and where it
                starts, among the user's own contents.
        """

    def without_user(self, user: np.ndarray, history: np.ndarray, content: np.ndarray) -> np.ndarray:
        """Affinities by the graph that would be without the pair's user, float32[P].

        Args:
            user: int64[P], rows of the users table.
            history: int64[P, L], rows of the contents table, all among the user's own, -1 fills.
            content: int64[P].
        """
        pairs, places = [], []
        for place, source in enumerate(history.T):
            known = np.flatnonzero(source >= 0)
            is_edge = (self.graph.neighbours[source[known]] == content[known, None]).any(axis=1)
            pairs.append(known[is_edge])
            places.append(np.full(int(is_edge.sum()), place))
        pair, place = np.concatenate(pairs), np.concatenate(places)
        edges = np.maximum(self.edges_without_user(user, content, pair, history[pair, place]), 0)
        before = (history >= 0).sum(axis=1)[pair] - 1 - place
        return np.bincount(pair, edges * self.graph.counts(before), len(user)).astype(np.float32)

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
        gram = (matrix.T @ matrix).toarray()
        if likeness is not None:
            gram += config.vectors * likeness
        gram[np.diag_indices(len(gram))] += config.regularisation
        inverse = invert(gram)
        self.config = config
        self.matrix, self.inverse, self.diagonal = matrix, inverse, np.diag(inverse).copy()
        self._weigh_users()

    @cached_property
    def graph(self) -> ItemGraph:
        """See `FittedGraph`."""
        return largest(self.weights, len(self.inverse), self.config)

    def weights(self, contents: np.ndarray) -> np.ndarray:
        """Positive weights of the edges from contents int64[n] to all, float32[n, N], 0 to itself."""
        weights = np.maximum(self.inverse[contents] / -self.diagonal[None, :], 0)
        weights[np.arange(len(contents)), contents] = 0
        return weights

    def _weigh_users(self) -> None:
        """What leaving each user out takes: P x at the user's own contents, and x P x."""
        users = np.repeat(np.arange(self.matrix.shape[0], dtype=np.int64), np.diff(self.matrix.indptr))
        self.keys = users * self.matrix.shape[1] + self.matrix.indices
        self.own = np.zeros(self.matrix.nnz, np.float32)
        self.energy = np.zeros(self.matrix.shape[0], np.float64)
        for users, places in by_count(self.matrix):
            items = self.matrix.indices[places]
            own = self.inverse[items[:, :, None], items[:, None, :]].sum(axis=2)
            self.own[places] = own
            self.energy[users] = own.sum(axis=1)

    def edges_without_user(
        self, user: np.ndarray, content: np.ndarray, pair: np.ndarray, past: np.ndarray
    ) -> np.ndarray:
        """See `FittedGraph`: x is the user's row without the content, y whether the user wanted the content.

        The model of a content is a ridge regression of its column on all others; its weights without a row
        (x, y) are w - A x (y - w x) / (1 - x A x), A being the inverse of the others' Gram matrix.
        """
        diagonal = self.diagonal[content].astype(np.float64)
        # Each pair's content beside every content of its user's row.
        row, item = self._rows_of(user)
        same = item == content[row]
        y = np.bincount(row[same], minlength=len(user)).astype(np.float64)
        across = np.bincount(row, np.where(same, 0, self.inverse[content[row], item]), len(user))
        leverage = self.energy[user] - y * (2 * across + diagonal) - across**2 / diagonal
        error = (y + across / diagonal) / np.maximum(1 - leverage, 1e-6)
        between = self.inverse[past, content[pair]]
        own = self._at_own(user[pair], past) - y[pair] * between
        shift = (own - between * (across / diagonal)[pair]) * error[pair]
        return np.maximum(between / -diagonal[pair] - shift, 0)

    def _rows_of(self, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The contents of the users' rows, one after the other: places in `user` and contents, int64[E]."""
        start, count = self.matrix.indptr[user].astype(np.int64), np.diff(self.matrix.indptr)[user]
        row = np.repeat(np.arange(len(user)), count)
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count - start, count)
        return row, self.matrix.indices[place].astype(np.int64)

    def _at_own(self, user: np.ndarray, content: np.ndarray) -> np.ndarray:
        """P x of each user at one of their contents, float32[E]; known but where it is older than the
        `events` that their row holds."""
        key = user.astype(np.int64) * self.matrix.shape[1] + content
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        own = self.own[place]
        older = np.flatnonzero(self.keys[place] != key)
        row, item = self._rows_of(user[older])
        own[older] = np.bincount(row, self.inverse[content[older][row], item], len(older))
        return own


def largest(weights: Callable[[np.ndarray], np.ndarray], contents: int, config: ItemGraphConfig) -> ItemGraph:
    """The graph of the largest positive weights of each content; `weights` gives those of some, [n, N]."""
    kept = min(config.neighbours, contents - 1)
    neighbours = np.full((contents, config.neighbours), -1, np.int32)
    found = np.zeros((contents, config.neighbours), np.float32)
    size = max(1, 8_000_000 // max(contents, 1))
    for start in range(0, contents if kept else 0, size):
        rows = np.arange(start, min(start + size, contents))
        for row, edges in zip(rows, weights(rows)):
            top = np.flatnonzero(edges > 0)
            if len(top) > kept:
                top = np.sort(top[np.argpartition(-edges[top], kept - 1)[:kept]])
            neighbours[row, : len(top)] = top
            found[row, : len(top)] = edges[top]
    return ItemGraph(neighbours, found, config.recency)


ROWS = 4096
"""Contents whose edges of co-visitation are laid out at once, so that a large catalogue's never all are."""

BLOCK = 256
"""Rows and columns of a matrix that are copied at once."""
_SMALL = 1024
"""Rows of a matrix up to which one thread inverts it as fast as several."""


def invert(gram: np.ndarray) -> np.ndarray:
    """The inverse of a positive definite matrix float[N, N], which is overwritten.

    By its Cholesky factor, in place: half the work and memory of a general inverse.
    """
    # Threads of a small matrix wait for each other most of the time; on a busy machine one took minutes so.
    alone = threadpool_limits(1, "blas") if len(gram) <= _SMALL else contextlib.nullcontext()
    with alone:
        # LAPACK's arrays are stored by column; the transposed matrix, which is the same, needs no copy.
        factor = scipy.linalg.cho_factor(gram.T, lower=True, overwrite_a=True, check_finite=False)[0]
        inverse = scipy.linalg.get_lapack_funcs("potri", (factor,))(factor, lower=1, overwrite_c=1)[0]
        del factor
    # The other triangle holds what was there before; a block at a time stays in a core's cache.
    for start in range(0, len(inverse), BLOCK):
        rows = slice(start, start + BLOCK)
        for before in range(0, start, BLOCK):
            inverse[before : before + BLOCK, rows] = inverse[rows, before : before + BLOCK].T
        own = inverse[rows, rows]
        own[:] = np.tril(own) + np.tril(own, -1).T
    return inverse.T


class CoVisitation(FittedGraph):
    """How often two contents are wanted by the same people, users and contents of many events weighing less.

    The linear filter of GF-CF (Shen et al., CIKM 2021), by default with other exponents than 1, 0.5 and 0.5:
    popular contents are reached more easily than they lead elsewhere. Where the log has times, two events of
    a user count the less, the further apart they are. The matrix of counts stays sparse, so any catalogue
    fits.
    """

    def __init__(self, events: InteractionMatrix, config: ItemGraphConfig) -> None:
        self.config, self.matrix, self.days = config, events.matrix, config.together_days
        count = np.maximum(np.diff(self.matrix.indptr), 1)
        self.share = (count.astype(np.float64) ** -config.exponents[0]).astype(np.float32)
        self.wanted = np.bincount(self.matrix.indices, minlength=self.matrix.shape[1])
        self.day = None
        if events.day is None:
            self.common = (self.matrix.T @ sp.diags(self.share) @ self.matrix).tocsr()
        else:
            # From 1 on, for an entry that is 0 is none.
            day = events.day - events.day.min(initial=np.inf) + 1
            self.day = sp.csr_matrix((day, self.matrix.indices, self.matrix.indptr), shape=self.matrix.shape)
            self.common = self._together()

    @cached_property
    def graph(self) -> ItemGraph:
        """See `FittedGraph`."""
        contents, most = self.matrix.shape[1], self.config.neighbours
        neighbours = np.full((contents, most), -1, np.int32)
        weights = np.zeros((contents, most), np.float32)
        for start in range(0, contents, ROWS):
            source, target, weight = self.edges(np.arange(start, min(start + ROWS, contents)))
            ends = np.searchsorted(source, np.arange(min(ROWS, contents - start) + 1))
            near = np.full(len(source), most > 0)
            for row in np.flatnonzero(np.diff(ends) > most) if most else ():
                own = slice(ends[row], ends[row + 1])
                near[own] = weight[own] >= np.partition(weight[own], -most)[-most]
            source, target, weight = source[near], target[near], weight[near]
            order = np.lexsort((target, -weight, source))
            source, target, weight = source[order], target[order], weight[order]
            place = np.arange(len(source)) - np.searchsorted(source, source)
            kept = place < most  # of equal weights at the border the lower contents
            neighbours[start + source[kept], place[kept]] = target[kept]
            weights[start + source[kept], place[kept]] = weight[kept]
        return ItemGraph(neighbours, weights, self.config.recency)

    def _together(self) -> sp.csr_matrix:
        """Visits of each two contents by one user, float32[N, N], counting the less the further apart."""
        assert self.day is not None
        shape = (self.matrix.shape[1],) * 2
        sums = [sp.csr_matrix(shape, dtype=np.float32)]
        for users, places in by_count(self.matrix):
            items, day = self.matrix.indices[places], self.day.data[places]
            near = np.exp(-np.abs(day[:, :, None] - day[:, None, :]) / self.days)
            near = (near * self.share[users][:, None, None]).astype(np.float32)
            row = np.repeat(items, items.shape[1], axis=1)
            column = np.tile(items, items.shape[1])
            sums.append(sp.csr_matrix((near.ravel(), (row.ravel(), column.ravel())), shape=shape))
            # An addition costs as much as its larger side, so those of like sizes are added first.
            while len(sums) > 1 and sums[-2].nnz <= 2 * sums[-1].nnz:
                sums.append(sums.pop() + sums.pop())
        return reduce(add, reversed(sums))

    def edges(self, contents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All edges from contents int64[n], before the largest are chosen: the place among `contents` and the
        target int64[E] of each, and its weight float32[E]."""
        common = self.common[contents].tocoo()
        apart = contents[common.row] != common.col
        source, target, count = common.row[apart], common.col[apart], common.data[apart]
        return source, target, self._weight(count, self.wanted[contents[source]], self.wanted[target])

    def _weight(self, common: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        _, of_source, of_target = self.config.exponents
        degree = np.maximum(source, 1) ** of_source * np.maximum(target, 1) ** of_target
        return (common / degree).astype(np.float32)

    def edges_without_user(
        self, user: np.ndarray, content: np.ndarray, pair: np.ndarray, past: np.ndarray
    ) -> np.ndarray:
        """See `FittedGraph`: the user's own wants are taken off the counts behind each edge."""
        wanted = _entries(self.matrix, user, content)[pair]
        user, content = user[pair], content[pair]
        own = _entries(self.matrix, user, past)
        visits = own * wanted * self.share[user]
        if self.day is not None:
            apart = np.abs(_entries(self.day, user, past) - _entries(self.day, user, content))
            visits = visits * np.exp(-apart / self.days)
        common = _entries(self.common, past, content) - visits
        edges = self._weight(common, self.wanted[past] - own, self.wanted[content] - wanted)
        # Subtracting from a rounded sum may leave a little of an edge that was the user's alone.
        return np.where(common > 1e-6, edges, 0)


class BlendedGraph(FittedGraph):
    """EASE, of all contents or of the most popular ones, and co-visitation beside it.

    Args:
        chosen: int64[n], rows of the contents table that EASE knows, ascending.
    """

    def __init__(self, ease: Ease, chosen: np.ndarray, visits: CoVisitation, config: ItemGraphConfig) -> None:
        self.ease, self.chosen, self.visits, self.config = ease, chosen, visits, config
        self.place = np.full(visits.matrix.shape[1], -1)
        self.place[chosen] = np.arange(len(chosen))

    @cached_property
    def graph(self) -> ItemGraph:
        """See `FittedGraph`."""
        return largest(self.weights, len(self.place), self.config)

    def weights(self, contents: np.ndarray) -> np.ndarray:
        """Weights of the edges from contents int64[n] to all, float32[n, N], 0 to itself."""
        weights = np.zeros((len(contents), len(self.place)), np.float32)
        known = np.flatnonzero(self.place[contents] >= 0)
        weights[known[:, None], self.chosen] = self.ease.weights(self.place[contents[known]])
        source, target, weight = self.visits.edges(contents)
        weights[source, target] += self.config.co_visitation * weight
        return weights

    def edges_without_user(
        self, user: np.ndarray, content: np.ndarray, pair: np.ndarray, past: np.ndarray
    ) -> np.ndarray:
        """See `FittedGraph`."""
        edges = self.config.co_visitation * self.visits.edges_without_user(user, content, pair, past)
        asked = np.flatnonzero(self.place[content] >= 0)
        number = np.full(len(content), -1)
        number[asked] = np.arange(len(asked))
        known = np.flatnonzero((number[pair] >= 0) & (self.place[past] >= 0))
        edges[known] += self.ease.edges_without_user(
            user[asked], self.place[content[asked]], number[pair[known]], self.place[past[known]]
        )
        return edges


def _entries(matrix: sp.csr_matrix, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.asarray(matrix[row, column], np.float64).ravel() if len(row) else np.zeros(0)


def by_count(matrix: sp.csr_matrix) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Users of equally many entries together: rows int64[u], and the places of their entries int64[u, c].

    No more at a time than 4 million pairs of entries of one user.
    """
    counts = np.diff(matrix.indptr)
    for count in np.unique(counts[counts > 0]):
        users = np.flatnonzero(counts == count)
        size = max(1, 4_000_000 // int(count) ** 2)
        for start in range(0, len(users), size):
            part = users[start : start + size]
            yield part, matrix.indptr[part][:, None] + np.arange(count)


def fit_item_graph(examples: Examples, config: ItemGraphConfig, last: int = TRAIN) -> FittedGraph:
    """The item graph of all markets' positives in the parts up to `last`; see `ItemGraphConfig.items`."""
    events = training_events(examples, config.events, last)
    contents = events.matrix.shape[1]
    if not examples.has_time:
        config = replace(config, recency=0.0)
    if contents <= config.items:
        ease = Ease(events.matrix, likeness(examples.contents), config)
        if not config.co_visitation:
            return ease
        return BlendedGraph(ease, np.arange(contents), CoVisitation(events, config), config)
    visits = CoVisitation(events, config)
    if not config.popular:
        return visits
    chosen = np.sort(np.argsort(-visits.wanted, kind="stable")[: config.popular])
    return BlendedGraph(Ease(events.matrix[:, chosen], None, config), chosen, visits, config)


def fit_market_graphs(examples: Examples, config: ItemGraphConfig, last: int = TRAIN) -> MarketGraphs:
    """EASE of each market's own people and contents, of the positives in the parts up to `last`; without an
    edge where `ItemGraphConfig.market_regularisation` is 0."""
    made = MarketGraphs.none(*examples.available.shape)
    if not config.market_regularisation:
        return made
    matrix = training_events(examples, config.events, last).matrix
    home = pd.Index(examples.markets).get_indexer(examples.users["market"])
    config = replace(
        config,
        regularisation=config.market_regularisation,
        recency=config.recency if examples.has_time else 0.0,
    )
    graphs: list[ItemGraph] = []
    start = 0
    for market, sold in enumerate(examples.available):
        contents = np.flatnonzero(sold)
        if not 0 < len(contents) <= config.items:
            continue
        own = Ease(matrix[home == market][:, contents], None, config).graph
        neighbours = np.where(own.neighbours >= 0, own.neighbours + start, -1).astype(np.int32)
        made.place[market, contents] = start + np.arange(len(contents))
        graphs.append(replace(own, neighbours=neighbours))
        start += len(contents)
    if not graphs:
        return made
    whole = ItemGraph(
        np.concatenate([graph.neighbours for graph in graphs]),
        np.concatenate([graph.weights for graph in graphs]),
        config.recency,
    )
    return replace(made, graph=whole)


def likeness(contents: pd.DataFrame) -> np.ndarray | None:
    """Cosines of centred content vectors (columns `v_…`), summed over the columns, float32[N, N]; None where
    there are none."""
    total = None
    for name in vector_columns(contents):
        known = contents[name].notna().to_numpy()
        vectors = np.stack(contents.loc[known, name].to_list()).astype(np.float32)
        vectors -= vectors.mean(axis=0)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        whole = np.zeros((len(contents), vectors.shape[1]), np.float32)
        whole[known] = vectors
        total = whole @ whole.T if total is None else total + whole @ whole.T
    return total
