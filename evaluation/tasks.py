"""What a benchmark is made of: a `Task`, which systems see, and exams, which they do not.

A `Task` holds the training and validation interactions and the tables without a single test row. The labels
of the test live in the exams (`FullRanking`, `Labelled`) alone, so a system cannot learn from them even by
mistake.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evaluation import metrics
from market.tables import Tables

ProgressLog = Callable[[str], None]
"""Called with one line of text now and then while a system fits."""

BLOCK_ENTRIES = 2**22
"""Scores held at once while ranking: 16 MB of float32. An allocator keeps arrays of that size for the next
block; larger ones it gets from the kernel, page by page, again and again."""


@dataclass(frozen=True)
class Interactions:
    """Rows of a log as indices into a task's users and contents.

    Attributes:
        user: int64[N], row of `Task.tables.users`.
        item: int64[N], row of `Task.tables.contents`.
        market: int64[N], place in `Task.markets`.
        outcomes: each outcome that the data set has, [N].
    """

    user: np.ndarray
    item: np.ndarray
    market: np.ndarray
    outcomes: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, which: np.ndarray) -> "Interactions":
        """The rows that a mask bool[N] or an index names."""
        return Interactions(
            self.user[which],
            self.item[which],
            self.market[which],
            {name: values[which] for name, values in self.outcomes.items()},
        )

    def positive(self, *outcomes: str | None) -> np.ndarray:
        """bool[N]: any of the outcomes happened; every row where an outcome is None."""
        if None in outcomes:
            return np.ones(len(self), dtype=bool)
        missing = [name for name in outcomes if name not in self.outcomes]
        if missing:
            raise ValueError(f"no outcome {missing[0]!r} in the log; it has {sorted(self.outcomes)}")
        happened = np.zeros(len(self), dtype=bool)
        for name in outcomes:
            happened |= self.outcomes[str(name)] > 0
        return happened


@dataclass(frozen=True)
class Task:
    """What a system may see of a benchmark.

    Attributes:
        name: the data set, and the variant of its protocol where there are several.
        markets: codes, in the order that `Interactions.market` refers to.
        tables: users, contents, sellers; of the impressions the training and validation rows alone, told
            apart by the column `split`.
        train: the rows of `tables.impressions` to learn from, in their order.
        valid: the rows to tune and stop on, none of them in `train`; None where the protocol trains on them.
        target: the outcome that the exams ask for; None where every row is a positive interaction.
        auxiliary: further outcomes that tell of the target, such as carts of orders.
    """

    name: str
    markets: tuple[str, ...]
    tables: Tables
    train: Interactions
    valid: Interactions | None
    target: str | None
    auxiliary: tuple[str, ...] = ()

    @property
    def users(self) -> int:
        return len(self.tables.users)

    @property
    def items(self) -> int:
        return len(self.tables.contents)

    @property
    def user_market(self) -> np.ndarray:
        """int64[U], the home market of each user as a place in `markets`."""
        return pd.Index(self.markets).get_indexer(self.tables.users["market"]).astype(np.int64)

    def matrix(self, *outcomes: str | None) -> sp.csr_matrix:
        """float32[U, I], 1 where a user has a training row with any of the outcomes (the target)."""
        rows = self.train.positive(*(outcomes or (self.target,)))
        return pairs(self.train.user[rows], self.train.item[rows], (self.users, self.items))

    def validation(self, *outcomes: str | None) -> sp.csr_matrix:
        """float32[U, I], 1 where a user has a validation row with any of the outcomes (the target) and no
        training row with one."""
        shape = (self.users, self.items)
        if self.valid is None:
            return sp.csr_matrix(shape, dtype=np.float32)
        rows = self.valid.positive(*(outcomes or (self.target,)))
        wanted = pairs(self.valid.user[rows], self.valid.item[rows], shape)
        wanted = wanted - wanted.multiply(self.matrix(*outcomes))
        wanted.eliminate_zeros()
        return wanted.tocsr()


class System(Protocol):
    """Anything that can be compared: it learns from a task and scores users against items.

    `fit` starts anew each time and is deterministic under its seed. `score` takes users int64[B] as rows of
    the users table and candidates int64[B, C] as rows of the contents table, and returns float32[B, C];
    without candidates it scores every content, float32[B, I]. The higher, the better; where the task's
    target is an amount (seconds watched), the score is the prediction in its unit.
    """

    name: str

    def fit(self, task: Task, *, seed: int, progress: ProgressLog | None = None) -> None: ...

    def score(self, users: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray: ...


class Measure(NamedTuple):
    """One metric of one exam: the figure, its 95 % interval and the number of different users behind it."""

    metric: str
    interval: metrics.Interval
    users: int


@dataclass(frozen=True)
class FullRanking:
    """Rank all contents of a market for each user, without those that the user is known to have.

    Attributes:
        market: its code.
        users: int64[Q], each once.
        truth: bool[Q, I], at least one relevant content per row, none of them in `known`.
        known: bool[Q, I], the training positives, which are not listed.
        pool: int64[P], the contents that the market may show.
        metrics: names such as "recall@20".
    """

    market: str
    users: np.ndarray
    truth: sp.csr_matrix
    known: sp.csr_matrix
    pool: np.ndarray
    metrics: tuple[str, ...]

    def measure(self, system: System) -> Iterator[Measure]:
        """Ranks block by block and averages over the users."""
        named = {name: metrics.ranking_metric(name) for name in self.metrics}
        longest = max(k for _, k in named.values())
        items = self.truth.shape[1]
        outside = np.ones(items, dtype=bool)
        outside[self.pool] = False
        values: dict[str, list[np.ndarray]] = {name: [] for name in named}
        for start, stop in _blocks(len(self.users), items):
            users, truth = self.users[start:stop], self.truth[start:stop]
            scores = _checked(system, system.score(users, None), (len(users), items)).copy()
            scores[:, outside] = -np.inf
            scores[self.known[start:stop].nonzero()] = -np.inf
            hit = metrics.hits(metrics.top_k(scores, longest), truth)
            relevant = np.diff(truth.indptr)
            for name, (function, k) in named.items():
                values[name].append(function(hit[:, :k], relevant))
        for name, parts in values.items():
            yield Measure(name, metrics.interval(np.concatenate(parts)), len(self.users))


@dataclass(frozen=True)
class Labelled:
    """Score given candidates and compare the scores with their labels.

    Attributes:
        market: its code.
        users: int64[Q], one query each; a user may have several.
        candidates: int64[Q, C].
        labels: float32[Q, C]: relevance 0 or 1, or an amount.
        metrics: ranking metrics, averaged over queries, or pooled ones ("auc", "mae"), whose intervals are
            over users.
        remark: added to the names of the metrics, such as "99 negatives".
    """

    market: str
    users: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray
    metrics: tuple[str, ...]
    remark: str = ""

    def measure(self, system: System) -> Iterator[Measure]:
        """Scores block by block; of equal scores the earlier column ranks first."""
        shape = self.candidates.shape
        scores = np.empty(shape, dtype=np.float32)
        for start, stop in _blocks(shape[0], shape[1]):
            users, candidates = self.users[start:stop], self.candidates[start:stop]
            scores[start:stop] = _checked(system, system.score(users, candidates), candidates.shape)
        people = len(np.unique(self.users))
        for name in self.metrics:
            if name == "mae":
                each = np.repeat(self.users, shape[1])
                value = metrics.absolute_error_interval(self.labels, scores, each)
            elif name == "auc":
                value = metrics.bootstrap(metrics.auc, self.labels, scores, self.users, seed=0)
            else:
                function, k = metrics.ranking_metric(name)
                relevant = sp.csr_matrix(self.labels > 0)
                hit = metrics.hits(metrics.top_k(scores, k), relevant)
                value = metrics.interval(function(hit, np.diff(relevant.indptr)))
            yield Measure(f"{name} ({self.remark})" if self.remark else name, value, people)


@dataclass(frozen=True)
class Benchmark:
    """A task and the exams that judge it.

    Attributes:
        remarks: what the protocol asks for and this data set cannot be asked, a line each.
    """

    task: Task
    exams: tuple[FullRanking | Labelled, ...]
    remarks: tuple[str, ...] = ()


def pairs(users: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """float32 CSR of the given shape with 1 at each (user, item) pair, however often it occurs."""
    matrix = sp.csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    size = max(1, BLOCK_ENTRIES // max(columns, 1))
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def _checked(system: System, scores: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.shape != shape:
        raise ValueError(f"system {system.name!r} returned scores of shape {scores.shape} for {shape}")
    scores = scores.astype(np.float32, copy=False)
    if np.isnan(scores.max(initial=-np.inf)):
        raise ValueError(f"system {system.name!r} returned {int(np.isnan(scores).sum())} scores that are NaN")
    return scores
