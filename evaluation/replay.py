"""A release asked again what the people of a log asked: at their moments, with the past they had then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ensemble.cascade import Cascade, cascade_steps, onnx_function
from ensemble.channels import first_eligible, nearest
from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.steps import OnnxStep, check_inputs
from market.moments import UNKNOWN, LoggedMoments, Moment
from models.seasons import latest_before_queries
from workflows.examples import Examples

SYSTEMS = ("popularity", "two-tower", "cascade")
BATCH = 64
BATCH_PAIRS = 2048
THREADS = 2


def ranking_and_ranker(release: Release, threads: int) -> Callable[..., dict[str, np.ndarray]]:
    """A release's step `ranking` that also makes `ranker_probabilities`, as they are before calibration."""
    (step,) = (step for step in cascade_steps(Plan.of(release)) if step.name == "ranking")
    assert isinstance(step, OnnxStep)
    before = replace(step.outputs[0], name="ranker_probabilities")
    return onnx_function(release, replace(step, outputs=(*step.outputs, before)), threads)


class Replay:
    """The cascade of a release, asked as a server is: by ids, so that the log may be of another data set than
    the release. What the release knows of users is of the end of its own log and is forgotten; what a query
    knows of its user's past comes with the request.

    Args:
        examples: the log.

    Attributes:
        row: int64[N], the release's rows of the log's contents, -1 for those that it does not know.
        place: int64[R + 1], the log's rows of the release's contents, -1 likewise and at the end.
    """

    def __init__(self, release: Release, examples: Examples) -> None:
        self.examples = examples
        cascade = self.cascade = Cascade(release, THREADS)
        cascade.run["ranking"] = ranking_and_ranker(release, THREADS)
        state = cascade.user_state
        self.content_id = np.append(examples.contents["content_id"].to_numpy(object), "")
        self.row = state.contents(self.content_id[:-1])
        self.place = np.full(len(release.array("text_content_id.npy")) + 1, -1)
        self.place[self.row[self.row >= 0]] = np.flatnonzero(self.row >= 0)
        state.history, state.seen, state.sellers = (t[:0] for t in (state.history, state.seen, state.sellers))
        state.tired = {name: table[:0] for name, table in state.tired.items()}
        cascade.retrieval.moments = _MomentsOf(examples.moments, self.row, self.place)
        self.time = np.maximum(examples.queries.time, 0)
        self.user_id = examples.users["user_id"].to_numpy(object)
        self.market = np.array(examples.markets, object)
        self.since = latest_before_queries(examples) if cascade.plan.season_s else None

    def asked(self, query: np.ndarray) -> dict[str, np.ndarray]:
        """The cascade's tensors of queries int64[B] up to the step `query`.

        Raises:
            RequestError: the release serves none of a query's market.
        """
        queries, nothing = self.examples.queries, np.full((len(query), 0), "", object)
        request = {
            "user_id": self.user_id[queries.user[query]],
            "market": self.market[queries.market[query]],
            "time": self.time[query],
            "history": self.content_id[queries.history[query]],
            "exclude": nothing,
            "shown": nothing,
        }
        asked = check_inputs(self.cascade.user_state.step(self.cascade.plan).inputs, request)
        made = self.cascade.up_to("query", asked | {"explain": np.zeros(len(query), bool)})
        if self.since is not None:
            made["since"] = self.since[query]
        return made

    def lists(self, pairs: np.ndarray) -> dict[str, np.ndarray]:
        """The first 20 contents of each of `SYSTEMS` for the queries of one market's pairs int64[P].

        Returns:
            Rows of the log's contents, int64[P, 20]; -1 fills or is a content that the log does not know.

        The contents of a query's history are left out, but for its own content: what is wanted again.
        """
        parts = [self._lists(pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)]
        return {system: np.concatenate([part[system] for part in parts]) for system in SYSTEMS}

    def _lists(self, pairs: np.ndarray) -> dict[str, np.ndarray]:
        cascade, query = self.cascade, self.examples.pairs.query[pairs]
        made, time = self.asked(query), self.time[query]
        own = self.row[self.examples.pairs.content[pairs]][:, None]
        made["seen"] = np.where(made["seen"] == own, -1, made["seen"])
        made |= cascade.retrieval(**cascade.read("retrieval", made | {"time": time}))
        made |= cascade.apply("ranking", made)
        value = cascade.blend(made["probabilities"], made["candidates"], made["market_index"])
        value = np.where(made["candidates"] >= 0, value, -np.inf)
        by_value = np.argsort(-value, axis=1, kind="stable")
        shelf = cascade.retrieval.shelves[made["market_index"][0]]
        eligible = shelf.eligible(time, made["seen"])
        popular = first_eligible(shelf.by_popularity, lambda at: eligible[:, at], len(time), 20)
        cosine = made["query_vector"] @ cascade.reordering.vectors[shelf.rows].T
        near = nearest(np.where(eligible, cosine, -np.inf), 20)
        ranked = (
            np.where(popular >= 0, shelf.rows[popular], -1),
            np.where(near >= 0, shelf.rows[near], -1),
            np.take_along_axis(made["candidates"], by_value[:, :20], axis=1),
        )
        return {system: self.place[rows] for system, rows in zip(SYSTEMS, ranked)}

    def scores(self, pairs: np.ndarray) -> dict[str, np.ndarray]:
        """How the contents of logged pairs int64[P], all of which the release knows, are scored for their
        queries: by cosine, "two-tower" float32[P], and by each task's probability, "served" and, before
        calibration, "raw", float32[P, T]."""
        contents, queries = self.row[self.examples.pairs.content[pairs]], self.examples.pairs.query[pairs]
        query, row, count = np.unique(queries, return_inverse=True, return_counts=True)
        by_query = np.argsort(row, kind="stable")
        column = np.empty(len(pairs), np.int64)
        column[by_query] = np.arange(len(pairs)) - np.repeat(np.cumsum(count) - count, count)
        candidates = np.full((len(query), int(count.max(initial=0))), -1, np.int64)
        candidates[row, column] = contents
        size = max(1, BATCH_PAIRS // max(candidates.shape[1], 1))
        parts = [
            self._scores(query[start : start + size], candidates[start : start + size])
            for start in range(0, len(query), size)
        ]
        return {name: np.concatenate([part[name] for part in parts])[row, column] for name in parts[0]}

    def _scores(self, query: np.ndarray, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """As `scores`, of candidates int64[B, C]: [B, C, ...]."""
        cascade, made = self.cascade, self.asked(query)
        made |= cascade.retrieval.describe(
            candidates,
            made["market_index"],
            self.time[query],
            made["recent"],
            made["speaks"],
            made.get("since"),
        )
        made |= cascade.apply("ranking", made)
        vectors = cascade.reordering.vectors[np.maximum(candidates, 0)]
        cosine = np.einsum("bd,bcd->bc", made["query_vector"], vectors)
        return {"two-tower": cosine, "served": made["probabilities"], "raw": made["ranker_probabilities"]}


class _MomentsOf:
    """What a log says of contents, for a release that has them in other rows; see `market.moments.Moments`.

    Args:
        row, place: as `Replay` has them.
    """

    def __init__(self, logged: LoggedMoments, row: np.ndarray, place: np.ndarray) -> None:
        self.logged, self.row, self.place = logged, row, place
        self.room = (place[:-1] >= 0) & logged.room[place[:-1]]

    def __call__(self, room: np.ndarray, time: np.ndarray) -> Moment:
        moment = self.logged(self.place[room], time)
        showing = np.where(moment.showing >= 0, self.row[moment.showing], UNKNOWN)
        return replace(moment, showing=showing)

    def stock(self, content: np.ndarray, time: np.ndarray) -> np.ndarray:
        place = self.place[content]
        return np.where(place >= 0, self.logged.stock(np.maximum(place, 0), time), UNKNOWN)
