"""Pasar as systems to be compared: its two-tower alone and the whole cascade, as a release serves them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from ensemble.build import BuildConfig, Built, build_release
from ensemble.cascade import Cascade
from ensemble.distil import ranked
from ensemble.export import tired
from ensemble.steps import check_inputs
from evaluation.systems import KNOWN
from evaluation.tasks import ProgressLog, Task
from market.dataset import write_tables
from market.outcomes import POSITIVE_OUTCOMES
from market.watch_time import WatchTime
from models.seasons import latest_events
from models.training import quiet
from workflows.examples import TRAIN, UNFINISHED_OUTCOMES, VALID, Examples
from workflows.habits import followed_sellers

#: Contents beyond the candidates rank below every candidate, in the two-tower's order: their cosines, times a
#: part of it, are taken from it, since beside it a cosine itself would be lost among a float32's digits.
BELOW, PART = 1e6, 1e5


class Released:
    """A release built from a task, and what its steps say about users and contents.

    Both systems of one task and seed share it, so it is built once.
    """

    def __init__(self, config: BuildConfig, training: Callable | None = None) -> None:
        self.config, self.training = config, training or quiet
        self.key: tuple[int, int] | None = None

    def fit(self, task: Task, seed: int, progress: ProgressLog | None) -> None:
        if self.key == (id(task), seed):
            return
        with tempfile.TemporaryDirectory(prefix="pasar-evaluation-") as folder:
            built = build_release(
                write_tables(Path(folder) / "data", task.tables),
                Path(folder) / "build",
                replace(self.config, seed=seed),
                progress=self.training,
                step=progress or (lambda name: None),
            )
            self.use(built, task)
        self.key = (id(task), seed)

    def use(self, built: Built, task: Task) -> None:
        """Score with a release that was built from the task's own tables."""
        release = built.release
        self.cascade = Cascade(release, threads=2)
        self.user_id = task.tables.users["user_id"].to_numpy(object)
        self.market = task.tables.users["market"].to_numpy(object)
        # Read now: the release's folder may be gone when users are scored.
        self.vectors = np.array(release.array("content_vectors.npy"))
        self.amount = task.target == "watch_s"
        if self.amount:
            self.times = WatchTime(
                release.array("watch_edges.npy"), np.array(release.array("watch_quantiles.npy"))
            )
            self.duration_s = task.tables.contents["duration_s"].to_numpy(np.float32)

        stage = self.cascade.user_state
        self.known = self.trained = _Past(stage.history, stage.seen, stage.since, stage.sellers, stage.tired)
        if task.valid is not None:
            self.trained = self._past_of_training(built.data.examples, task, release.array("seller_code.npy"))

    def _past_of_training(self, examples: Examples, task: Task, seller: np.ndarray) -> _Past:
        """What the release knows of users at the end of the log but for what validation rows say.

        Args:
            seller: int32[N], codes of the contents' sellers, -1 where unknown.
        """
        events = [name for name in POSITIVE_OUTCOMES if name in task.train.outcomes]
        ends = [name for name in events if name not in UNFINISHED_OUTCOMES]
        learned = replace(examples, pairs=examples.pairs.part(TRAIN))
        plan = self.cascade.plan
        return _Past(
            _training_history(examples, _without(self.known.history, task.validation(*events))),
            _without(self.known.seen, task.validation(*ends)),
            None if self.known.since is None else latest_events(learned, plan.as_of),
            followed_sellers(learned, seller),
            tired(learned, seller, plan.config.fatigue, plan.as_of),
        )

    def queries(self, users: np.ndarray, known: bool = False) -> dict[str, np.ndarray]:
        """The cascade's tensors after its query step, for users int64[B] at the end of the log.

        Args:
            known: the validation rows are part of the histories.
        """
        state = self.cascade.user_state
        past = self.known if known else self.trained
        state.history, state.seen, state.since, state.sellers, state.tired = past
        request = {
            "user_id": self.user_id[users],
            "market": self.market[users],
            "time": np.full(len(users), self.cascade.plan.as_of, np.int64),
            "history": np.full((len(users), 0), "", object),
            "exclude": np.full((len(users), 0), "", object),
            "shown": np.full((len(users), 0), "", object),
        }
        asked = check_inputs(state.step(self.cascade.plan).inputs, request)
        return self.cascade.up_to("query", asked | {"explain": np.zeros(len(users), bool)})

    def rank(self, made: dict[str, np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """The ranker's blended value of candidates int64[B, C], float32[B, C]; where the task asks for watch
        time, the seconds it expects."""
        probabilities = ranked(self.cascade, self.vectors, made, candidates)["probabilities"]
        if not self.amount:
            return self.cascade.blend(probabilities, candidates, made["market_index"])
        rank = probabilities[..., self.cascade.plan.tasks.index("watch")]
        return self.times.seconds(rank, self.duration_s[candidates])


class _Past(NamedTuple):
    """What `user_state` knows of users, under the names that it has there."""

    history: np.ndarray
    seen: np.ndarray
    since: np.ndarray | None
    sellers: np.ndarray
    tired: dict[str, np.ndarray]


def _training_history(examples: Examples, left: np.ndarray) -> np.ndarray:
    """Each user's latest events in the training part, int32[U, L].

    A user's first validation query knows these and no other, if all come before it.

    Args:
        left: int32[U, L], what validation rows leave of the latest events of all, which may be fewer than
            there are; for whom there is no such query.
    """
    queries, made = examples.queries, left.copy()
    learned_from, asked = queries.rows(TRAIN), queries.rows(VALID)
    latest = np.full(len(made), np.iinfo(np.int64).min)
    np.maximum.at(latest, queries.user[learned_from], queries.time[learned_from])
    order = np.lexsort((queries.time[asked], queries.user[asked]))
    user, place = np.unique(queries.user[asked][order], return_index=True)
    first = order[place]
    after = queries.time[asked][first] >= latest[user]
    made[user[after]] = queries.history[asked][first[after]]
    return made


def _without(histories: np.ndarray, wanted: sp.csr_matrix) -> np.ndarray:
    """Histories int32[U, L] without the entries of `wanted` [U, N], left-aligned again."""
    contents = wanted.shape[1]
    rows = np.arange(len(histories))[:, None]
    keys = np.repeat(np.arange(len(histories)), np.diff(wanted.indptr)) * contents + wanted.indices
    kept = (histories >= 0) & ~np.isin(rows * contents + histories, keys)
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, histories, -1), order, axis=1)


class TwoTower:
    """Retrieval alone: the cosine of query and content."""

    name = "two-tower"

    def __init__(self, released: Released) -> None:
        self.released = released

    def fit(self, task: Task, *, seed: int, progress: ProgressLog | None = None) -> None:
        """Build the task's release, or take the one that the other system built."""
        self.released.fit(task, seed, progress)

    def score(self, users: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """float32[B, I], or [B, C] of the candidates."""
        scores = self.released.queries(users)["query_vector"] @ self.released.vectors.T
        return scores if candidates is None else np.take_along_axis(scores, candidates, axis=1)


class FullCascade:
    """Retrieval, then the ranker's value; in a full ranking what was not retrieved stands below.

    Args:
        known: users' validation rows are history when it is asked, as they are when a feed is served; else
            histories end with the training rows, as those of all baselines do.
    """

    def __init__(self, released: Released, known: bool = False) -> None:
        self.released, self.known = released, known
        self.name = f"cascade, {KNOWN}" if known else "cascade"

    def fit(self, task: Task, *, seed: int, progress: ProgressLog | None = None) -> None:
        """Build the task's release, or take the one that the other system built."""
        self.released.fit(task, seed, progress)

    def score(self, users: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """float32[B, I], or [B, C] of the candidates."""
        made = self.released.queries(users, self.known)
        if candidates is not None:
            return self.released.rank(made, candidates)
        scores = PART * (made["query_vector"] @ self.released.vectors.T) - BELOW
        found = self.released.cascade.apply("retrieval", made)["candidates"]
        value = self.released.rank(made, np.maximum(found, 0))
        rows, places = np.nonzero(found >= 0)
        scores[rows, found[rows, places]] = value[rows, places]
        return scores
