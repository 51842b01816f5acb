"""Batches for training, gathered from arrays: no data frame and no loader thread between disk and model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from market.item_graph import ItemGraph, LowRank, MarketGraphs
from market.moments import moment_features
from market.offers import Offers
from market.statistics import PAIR_FEATURES, EventCounts, pair_features
from workflows.examples import TRAIN, Examples
from workflows.features import Features
from workflows.frames import language_codes, offers

from .item_graph import FittedGraph
from .seasons import Seasons

LOG_Q = "log_q"
HISTORY = "history_rows"
"""Column of a batch: a query's history as rows of the contents table, counted from 1, 0 pads."""
UNSEEN = 2
"""Encoded id of what training did not know; below it are padding and null."""
FORGOTTEN = ("user_id", "content_id")
"""Columns, and domains, whose unseen id training may show on purpose; see `forget_ids`."""


@dataclass(frozen=True)
class PairPopularity:
    """Wanted outcomes of each content as a training pair may know them.

    With one cut by time, what happened in the trailing window before the query; otherwise the count over the
    training part, less the pair's own event.
    """

    totals: np.ndarray
    events: EventCounts | None

    def __call__(
        self, market: np.ndarray, content: np.ndarray, time: np.ndarray, own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.events is not None:
            return self.events(market, content, time)
        world = self.totals.sum(axis=0)
        return self.totals[market, content] - own, world[content] - own


def followed_column(history: str) -> str:
    """The content column that a history column follows."""
    return history.removeprefix("hist_")


def match_name(history: str) -> str:
    """The pair feature that counts a content's value in a history column."""
    return f"match_{followed_column(history)}"


def history_match(history: np.ndarray, own: np.ndarray) -> np.ndarray:
    """How often a content's own value occurs in a history, as log(1 + count): float32[P].

    Embeddings must meet a value often before they learn that people come back to what they liked. A count
    says so from the first time.

    Args:
        history: int64[P, L], encoded ids.
        own: int64[P], encoded ids; padding, null and unseen ones occur nowhere.
    """
    again = (history == own[:, None]) & (own[:, None] > UNSEEN)
    return np.log(1 + again.sum(axis=1, dtype=np.float32))


@dataclass(frozen=True)
class TrainingSet:
    """Everything a batch is gathered from.

    Attributes:
        popularity: what a pair may know of its content's popularity.
        latest: float32[M, N], popularity at the end of the training part, for serving.
        created_at: int64[N], seconds since the epoch, 0 where unknown; None where no content has it.
        graph: the item graph of the training part.
        offers: prices and languages of the contents.
        speaks: int64[U], codes of the users' languages, -1 where unknown.
        market_graphs: of each market's own people, without an edge where they are left out.
        low_rank: what the item graph's edges do not hold, without a dimension where it is left out.
        seasons: positives around the time of a latest event, see `FeatureConfig.season_days`; None without.
    """

    examples: Examples
    features: Features
    popularity: PairPopularity
    latest: np.ndarray
    created_at: np.ndarray | None
    graph: FittedGraph
    offers: Offers
    speaks: np.ndarray
    market_graphs: MarketGraphs
    low_rank: LowRank
    seasons: Seasons | None = None

    def query_arrays(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: _column(array[rows]) for name, array in self.features.query.arrays.items()}

    def history_rows(self, query: np.ndarray) -> dict[str, np.ndarray]:
        """Histories of queries as `HISTORY`, int32[P, L]."""
        return {HISTORY: self.examples.queries.history[query] + 1}

    def content_arrays(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: _column(array[rows]) for name, array in self.features.content.arrays.items()}

    def pair_arrays(self, query: np.ndarray, content: np.ndarray, own: np.ndarray) -> dict[str, np.ndarray]:
        """Pair features by name, float32[P, 1]."""
        queries = self.examples.queries
        time = queries.time[query]
        here, world = self.popularity(queries.market[query], content, time, own)
        created_at = None if self.created_at is None else self.created_at[content]
        affinity = self.graph.affinity(
            queries.user[query], queries.history[query], content, queries.split[query] == TRAIN
        )
        offer = self.offers(queries.market[query], content, self.speaks[queries.user[query]])
        known = time if self.examples.has_time else None

        def shown_affinity(shown: np.ndarray) -> np.ndarray:
            made, shows = np.zeros(len(shown), np.float32), np.flatnonzero(shown >= 0)
            asked = query[shows]
            in_training = queries.split[asked] == TRAIN
            user, history = queries.user[asked], queries.history[asked]
            made[shows] = self.graph.affinity(user, history, shown[shows], in_training)
            return made

        # Without times nothing is known of a moment but what the catalogue says of any.
        moment = moment_features(self.examples.moments, content, np.maximum(time, 0), shown_affinity)
        season = None if self.seasons is None else self.seasons.around(self.examples, query, content, own)
        columns = pair_features(here, world, created_at, known, affinity, offer, moment, season)
        named = {name: columns[:, [place]] for place, name in enumerate(PAIR_FEATURES)}
        for name, history in self.features.query.arrays.items():
            if history.ndim == 2:
                own = self.features.content.arrays[followed_column(name)][content]
                named[match_name(name)] = history_match(history[query], own)[:, None]
        return named

    def logged_pairs(self, rows: np.ndarray, file: Path) -> np.ndarray:
        """Pair features of logged pairs, computed once and mapped from `file`: float32[len(rows), features].

        They are the same in every epoch, and cost more than a training step does.

        Args:
            rows: int64[P], rows of `Examples.pairs`.
            file: made anew; columns in the order of `pair_arrays`.
        """
        pairs = self.examples.pairs
        made: np.ndarray | None = None
        for start in range(0, len(rows), 65_536):
            part = rows[start : start + 65_536]
            own = pairs.positive[part] & (pairs.split[part] == TRAIN)
            found = np.concatenate(
                list(self.pair_arrays(pairs.query[part], pairs.content[part], own).values()), axis=1
            )
            if made is None:
                shape = len(rows), found.shape[1]
                made = np.lib.format.open_memmap(file, "w+", np.float32, shape)
            made[start : start + len(part)] = found
        return np.zeros((0, 0), np.float32) if made is None else made


def _column(array: np.ndarray) -> np.ndarray:
    """Scalars as [B, 1], which is what Merlin's blocks want; lists stay [B, L]."""
    return array[:, None] if array.ndim == 1 else array


def make_training_set(
    examples: Examples,
    features: Features,
    graph: FittedGraph,
    window_s: int,
    season_s: int = 0,
    market_graphs: MarketGraphs | None = None,
    low_rank: LowRank | None = None,
) -> TrainingSet:
    """Bind examples, features and item graph, and count popularity the way the split allows.

    Args:
        window_s: trailing window of popularity where the data set is cut by time (seconds).
        season_s: half the length of a season; 0 for none (seconds).
        market_graphs: of each market's own people; None for graphs without an edge.
        low_rank: beside the item graph; None for one without a dimension.

    Raises:
        ValueError: a season is asked for where the data set has no time.
    """
    contents = examples.contents
    created_at = contents["created_at"].fillna(0).to_numpy(np.int64) if "created_at" in contents else None
    events, latest = None, examples.popularity
    if examples.split == "time":
        pairs, queries = examples.pairs, examples.queries
        wanted = pairs.positive
        query, content = pairs.query[wanted], pairs.content[wanted]
        events = EventCounts(queries.market[query], content, queries.time[query], len(contents), window_s)
        end = queries.time[queries.rows(TRAIN)].max(initial=0)
        markets, n = len(examples.markets), len(contents)
        latest = np.stack(
            [events(np.full(n, market), np.arange(n), np.full(n, end + 1))[0] for market in range(markets)]
        )
    popularity = PairPopularity(examples.popularity, events)
    speaks = language_codes(examples)[2]
    seasons = Seasons.of(examples, season_s) if season_s else None
    if market_graphs is None:
        market_graphs = MarketGraphs.none(*examples.available.shape)
    if low_rank is None:
        low_rank = LowRank.none(len(contents))
    return TrainingSet(
        examples,
        features,
        popularity,
        latest,
        created_at,
        graph,
        offers(examples),
        speaks,
        market_graphs,
        low_rank,
        seasons,
    )


class RankingBatches:
    """Pairs with labels for the ranker; where only positives were logged, negatives are drawn for each.

    Args:
        rows: int64[P], rows of `Examples.pairs`.
        labels: bool or float32[P] by task, of all pairs; a batch has them as float32[B, T], in this order.
        negatives: contents drawn for each positive from those shown in its market, a share
            `popular_negatives` of them by popularity and a share `related_negatives` from the item graph; 0
            keeps the logged impressions as they are.
        shuffle: False keeps the order (and draws the same negatives each time).
        id_dropout: share of user and content ids shown as unseen, 0 to 1.
        logged: the rows' `TrainingSet.logged_pairs`; without them each batch computes its own.
    """

    def __init__(
        self,
        data: TrainingSet,
        rows: np.ndarray,
        labels: Mapping[str, np.ndarray],
        *,
        batch_size: int,
        negatives: int = 0,
        popular_negatives: float = 0.0,
        related_negatives: float = 0.0,
        seed: int = 0,
        shuffle: bool = True,
        id_dropout: float = 0.0,
        logged: np.ndarray | None = None,
    ) -> None:
        self.data, self.batch_size, self.logged = data, batch_size, logged
        self.id_dropout, self.seed = id_dropout, seed
        self._rows, self._labels, self._negatives = rows, tuple(labels.values()), negatives
        random = np.random.default_rng(seed)
        if negatives:
            query, content = (
                array[rows] for array in (data.examples.pairs.query, data.examples.pairs.content)
            )
            drawn = draw_negatives(
                data.examples,
                query,
                negatives,
                random,
                popular_negatives,
                related_negatives,
                data.graph.graph,
                content,
            )
            self._drawn = drawn.ravel()
        #: What stands where: rows of `rows`, and beyond the last of them the drawn pairs.
        count = len(rows) * (1 + negatives)
        self.place = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
        if shuffle:
            random.shuffle(self.place)
        self.log_q = None
        if negatives:
            share = int(negatives * popular_negatives) / negatives
            query, content, *_ = self._pairs(self.place)
            self.log_q = draw_log_ratio(data.examples, query, content, share)

    def __len__(self) -> int:
        return -(-len(self.place) // self.batch_size)

    def __getitem__(self, place: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        part = slice(place * self.batch_size, (place + 1) * self.batch_size)
        query, content, own, labels = self._pairs(self.place[part])
        x = self.data.query_arrays(query) | self.data.content_arrays(content) | self.data.history_rows(query)
        x |= self._pair_arrays(self.place[part], query, content, own)
        x |= forget_ids(x, self.id_dropout, np.random.default_rng([self.seed, place]))
        if self.log_q is not None:
            x[LOG_Q] = self.log_q[part, None]
        return x, labels

    @property
    def query(self) -> np.ndarray:
        """Rows of `Examples.queries` of all pairs, in the order of the batches."""
        return self._pairs(self.place)[0]

    @property
    def content(self) -> np.ndarray:
        """Rows of the contents table, as `query`."""
        return self._pairs(self.place)[1]

    @property
    def own(self) -> np.ndarray:
        """Whether a pair is an event that its content's popularity counts, as `query`."""
        return self._pairs(self.place)[2]

    @property
    def labels(self) -> np.ndarray:
        """float32[P, T], as `query`."""
        return self._pairs(self.place)[3]

    def _pairs(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Query, content, own and labels of pairs at some places; a log may be larger than memory."""
        pairs, count = self.data.examples.pairs, len(self._rows)
        logged = place < count
        row = self._rows[
            place if logged.all() else np.where(logged, place, (place - count) // self._negatives)
        ]
        content, own = pairs.content[row], pairs.positive[row] & (pairs.split[row] == TRAIN)
        labels = np.empty((len(row), len(self._labels)), np.float32)
        for column, values in enumerate(self._labels):
            labels[:, column] = values[row]
        if not logged.all():
            content = np.where(logged, content, self._drawn[place - count])
            own &= logged
            labels[~logged] = 0
        return pairs.query[row], content, own, labels

    def _pair_arrays(
        self, place: np.ndarray, query: np.ndarray, content: np.ndarray, own: np.ndarray
    ) -> dict[str, np.ndarray]:
        """`TrainingSet.pair_arrays` of a batch, those of logged pairs where they are known already."""
        known = np.zeros(len(place), bool) if self.logged is None else place < len(self.logged)
        new = np.flatnonzero(~known)
        made = self.data.pair_arrays(query[new], content[new], own[new])
        if self.logged is None or not known.any():
            return made
        together = np.empty((len(known), len(made)), np.float32)
        together[known] = self.logged[place[known]]
        together[new] = np.concatenate(list(made.values()), axis=1)
        return {name: together[:, [column]] for column, name in enumerate(made)}


def forget_ids(
    x: Mapping[str, np.ndarray], share: float, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """User and content ids of a batch with a `share` of them unseen.

    A model that always sees them learns each by heart, and learns of unseen ones only what is true of those
    that training saw least; new contents are not such. After Volkovs et al., "DropoutNet: addressing cold
    start in recommender systems", NIPS 2017.
    """
    ids = [name for name in FORGOTTEN if name in x] if share else []
    return {name: np.where(random.random(x[name].shape) < share, UNSEEN, x[name]) for name in ids}


def draw_negatives(
    examples: Examples,
    query: np.ndarray,
    count: int,
    random: np.random.Generator,
    popular: float = 0.0,
    related: float = 0.0,
    graph: ItemGraph | None = None,
    wanted: np.ndarray | None = None,
) -> np.ndarray:
    """Contents of each query's market as its negatives: int32[len(query), count].

    Uniform ones teach the ranker what nobody wants; popular ones, drawn by popularity to the power 0.75
    (Mikolov et al., NIPS 2013), and related ones, neighbours of the query's history, what it meets after
    retrieval.

    Args:
        popular: share of them drawn by popularity in the training part, 0 to 1, rounded down to a whole one.
        related: share of them drawn from the item graph; uniform ones stand in where the history has no
            neighbour that the market shows, or the one drawn is known to be wanted.
        graph: the item graph, for related ones.
        wanted: int[len(query)], a content of each query that must not be a related one.
    """
    market = examples.queries.market[query]
    drawn = np.empty((len(query), count), np.int32)
    for code in np.unique(market):
        choices = np.flatnonzero(examples.available[code])
        here = market == code
        drawn[here] = random.choice(choices, (int(here.sum()), count))
        weights = examples.popularity[code, choices].astype(np.float64) ** 0.75
        by_popularity = int(count * popular) if weights.any() else 0
        if by_popularity:
            picked = random.choice(choices, (int(here.sum()), by_popularity), p=weights / weights.sum())
            drawn[here, :by_popularity] = picked
    by_relation = int(count * related)
    if by_relation and graph is not None:
        history = examples.queries.history[query]
        events = (history >= 0).sum(axis=1)
        each = np.arange(len(query))
        for place in range(count - by_relation, count):
            source = history[each, (random.random(len(query)) * events).astype(np.int64)]
            edge = random.integers(0, graph.neighbours.shape[1], len(query))
            found = graph.neighbours[source, edge]
            fits = (events > 0) & (found >= 0) & examples.available[market, found]
            fits &= (history != found[:, None]).all(axis=1)
            if wanted is not None:
                fits &= found != wanted
            drawn[fits, place] = found[fits]
    return drawn


def draw_log_ratio(examples: Examples, query: np.ndarray, content: np.ndarray, popular: float) -> np.ndarray:
    """How much likelier `draw_negatives` draws a content than one of the market drawn uniformly, as a
    logarithm: float32[P].

    Args:
        query, content: int64[P].
        popular: share of those drawn by popularity; that there are related ones is not known here.
    """
    market = examples.queries.market[query]
    choices = examples.available.sum(axis=1)[market]
    wanted = np.where(examples.available, examples.popularity, 0).astype(np.float64) ** 0.75
    total = wanted.sum(axis=1)[market]
    by_popularity = popular * wanted[market, content] / np.maximum(total, 1) * choices
    return np.log(np.where(total > 0, 1 - popular + by_popularity, 1)).astype(np.float32)


class RetrievalBatches:
    """Positives for the two-tower; every batch holds one market, so that negatives come from that market.

    Each batch carries `log_q`, the log share of the content among its market's positives, for the logQ
    correction (Yi et al., RecSys 2019).

    Args:
        user_dropout: share of user ids shown as unseen, 0 to 1. Contents keep theirs, which tell a negative
            from another positive of the same content.
    """

    def __init__(
        self, data: TrainingSet, rows: np.ndarray, *, batch_size: int, seed: int, user_dropout: float = 0.0
    ) -> None:
        self.data, self.user_dropout, self.seed = data, user_dropout, seed
        random = np.random.default_rng(seed)
        self.query, self.content = data.examples.pairs.query[rows], data.examples.pairs.content[rows]
        share = data.examples.popularity / np.maximum(data.examples.popularity.sum(axis=1, keepdims=True), 1)
        market = data.examples.queries.market[self.query]
        self.log_q = np.log(np.maximum(share[market, self.content], 1e-9)).astype(np.float32)
        batches: list[np.ndarray] = []
        for code in np.unique(market):
            here = random.permutation(np.flatnonzero(market == code))
            batches += np.array_split(here, max(1, round(len(here) / batch_size)))
        self.batches = [batches[place] for place in random.permutation(len(batches))]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> tuple[dict[str, np.ndarray], None]:
        rows = self.batches[place]
        query = self.data.query_arrays(self.query[rows])
        query |= forget_ids(query, self.user_dropout, np.random.default_rng([self.seed, place]))
        x = query | self.data.content_arrays(self.content[rows])
        return x | {LOG_Q: self.log_q[rows, None]}, None
