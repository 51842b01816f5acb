"""From all contents of a market to the candidates worth ranking: channels, eligibility, merge."""

from __future__ import annotations

from enum import IntFlag

import numpy as np

from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.steps import StageStep, TensorSpec
from market.statistics import pair_features

NONE = -1
"""Fills places without a candidate."""


class Channel(IntFlag):
    """Where a candidate came from; a candidate found twice has both bits."""

    TWO_TOWER = 1
    TRENDING = 2


class Shelf:
    """The contents of one market, side by side in memory.

    Attributes:
        rows: int64[n], rows of the contents table.
        vectors: float32[n, D].
        by_popularity: int64[n], places in `rows`, most wanted first.
        place: int64[N], where each content stands in `rows`; n where it is not sold here.
    """

    def __init__(
        self,
        available: np.ndarray,
        popularity: np.ndarray,
        vectors: np.ndarray,
        opens: np.ndarray,
        ends: np.ndarray,
    ) -> None:
        self.rows = np.flatnonzero(available)
        self.vectors = np.ascontiguousarray(vectors[self.rows])
        self.by_popularity = np.argsort(-popularity[self.rows], kind="stable")
        self.place = np.full(len(available), len(self.rows))
        self.place[self.rows] = np.arange(len(self.rows))
        self.opens, self.ends = opens[self.rows], ends[self.rows]

    def eligible(self, time: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """bool[b, n]: published, not ended, not seen. `seen` holds rows of the contents table, -1 fills."""
        at = time[:, None]
        ok = np.zeros((len(time), len(self.rows) + 1), bool)
        ok[:, :-1] = (self.opens <= at) & (at < self.ends)
        place = np.where(seen >= 0, self.place[seen], len(self.rows))
        np.put_along_axis(ok, place, False, axis=1)
        return ok[:, :-1]


class Retrieval:
    """Two channels, merged by quota with their provenance; exact search among the market's contents."""

    name = "retrieval"

    def __init__(self, release: Release) -> None:
        self.plan = Plan.of(release)
        vectors = release.array("content_vectors.npy")
        available, popularity = release.array("available.npy"), release.array("popularity.npy")
        self.created_at, self.ended_at = release.array("created_at.npy"), release.array("ended_at.npy")
        self.shelves = [
            Shelf(available[m], popularity[m], vectors, self.created_at, self.ended_at)
            for m in range(len(self.plan.markets))
        ]
        self.popularity, self.world = popularity, popularity.sum(axis=0)
        self.content_ids = release.array("content_ids.npy")
        self.content_numbers = release.array("content_numbers.npy")

    @staticmethod
    def step(plan: Plan) -> StageStep:
        """Border of the stage."""
        size = plan.config.candidates
        return StageStep(
            Retrieval.name,
            (
                TensorSpec("query_vector", np.float32, (plan.dim,)),
                TensorSpec("market_index", np.int64),
                TensorSpec("time", np.int64),
                TensorSpec("seen", np.int64, (-1,), pad=NONE),
            ),
            (
                TensorSpec("candidates", np.int64, (size,)),
                TensorSpec("retrieval_score", np.float32, (size,)),
                TensorSpec("channel", np.int32, (size,)),
                TensorSpec("content_ids", np.int64, (size, plan.content_ids)),
                TensorSpec("content_numbers", np.float32, (size, plan.content_numbers)),
            ),
        )

    def __call__(
        self, query_vector: np.ndarray, market_index: np.ndarray, time: np.ndarray, seen: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Candidates of each request, best channel places first, with their encoded features.

        Returns:
            candidates int64[B, C] (rows of the contents table, -1 fills), retrieval_score float32[B, C]
            (cosine of query and content), channel int32[B, C] (`Channel` bits), content_ids and
            content_numbers as the ranker reads them.
        """
        size = self.plan.config.candidates
        candidates = np.full((len(query_vector), size), NONE, np.int64)
        score = np.zeros((len(query_vector), size), np.float32)
        channel = np.zeros((len(query_vector), size), np.int32)
        for market in np.unique(market_index):
            here = np.flatnonzero(market_index == market)
            shelf = self.shelves[market]
            if not len(shelf.rows):
                continue
            scores = query_vector[here] @ shelf.vectors.T
            eligible = shelf.eligible(time[here], seen[here])
            near = nearest(np.where(eligible, scores, -np.inf), size)
            popular = first_eligible(shelf.by_popularity, eligible, self.plan.config.trending_quota)
            found, bits = merge(near, popular, size)
            known = found >= 0
            candidates[here, : found.shape[1]] = np.where(known, shelf.rows[found], NONE)
            score[here, : found.shape[1]] = np.where(
                known, np.take_along_axis(scores, np.maximum(found, 0), axis=1), 0
            )
            channel[here, : found.shape[1]] = bits
        return {
            "candidates": candidates,
            "retrieval_score": score,
            "channel": channel,
            **self.describe(candidates, market_index, time),
        }

    def describe(
        self, candidates: np.ndarray, market_index: np.ndarray, time: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Encoded features of candidates int64[B, C] as the ranker reads them; places with -1 get id 0.

        Returns:
            content_ids int64[B, C, Fi], content_numbers float32[B, C, Gi] with the pair features last.
        """
        rows = np.maximum(candidates, 0)
        known = self.plan.as_of > 0
        pairs = pair_features(
            self.popularity[market_index[:, None], rows],
            self.world[rows],
            self.created_at[rows] if known else None,
            time[:, None] if known else None,
        )
        return {
            "content_ids": np.where(candidates[..., None] >= 0, self.content_ids[rows], 0),
            "content_numbers": np.concatenate([self.content_numbers[rows], pairs], axis=-1),
        }


def nearest(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of each row's `k` highest finite scores, best first, ties by place: int64[B, <=k], -1 fills."""
    k = min(k, scores.shape[1])
    top = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(scores, top, axis=1)
    # Of equal scores at the border the partition takes any; these rows take the first ones.
    border = values.min(axis=1, keepdims=True)
    tied = np.flatnonzero(np.isfinite(border[:, 0]) & ((scores >= border).sum(axis=1) > k))
    if len(tied):
        above, equal = scores[tied] > border[tied], scores[tied] == border[tied]
        free = k - above.sum(axis=1, keepdims=True)
        top[tied] = np.nonzero(above | (equal & (equal.cumsum(axis=1) <= free)))[1].reshape(len(tied), k)
        values = np.take_along_axis(scores, top, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    values = np.take_along_axis(values, order, axis=1)
    return np.where(np.isfinite(values), np.take_along_axis(top, order, axis=1), NONE)


def first_eligible(order: np.ndarray, eligible: np.ndarray, k: int) -> np.ndarray:
    """The first `k` eligible places of each row in a given order: int64[B, <=k], -1 fills."""
    allowed = eligible[:, order]
    first = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(allowed, first, axis=1), order[first], NONE)


def merge(near: np.ndarray, popular: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge two channels: the quota of the second is kept free, then the first fills what is left.

    Returns:
        places int64[B, <=size] without duplicates, -1 fills at the end; channel bits int32 of that shape.
    """
    kept = max(size - popular.shape[1], 0)
    places = np.concatenate([near[:, :kept], popular, near[:, kept:]], axis=1)
    bits = np.full(places.shape, int(Channel.TWO_TOWER), np.int32)
    bits[:, min(kept, near.shape[1]) : min(kept, near.shape[1]) + popular.shape[1]] = int(Channel.TRENDING)
    # Equal places become neighbours; the first of them, in merge order, keeps the place and gets all bits.
    order = np.argsort(places, axis=1, kind="stable")
    ordered, ordered_bits = np.take_along_axis(places, order, 1), np.take_along_axis(bits, order, 1)
    again = np.zeros(places.shape, bool)
    again[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    ordered_bits[:, :-1] |= np.where(again[:, 1:], ordered_bits[:, 1:], 0)
    ordered = np.where(again, NONE, ordered)
    np.put_along_axis(places, order, ordered, axis=1)
    np.put_along_axis(bits, order, ordered_bits, axis=1)
    front = np.argsort(places < 0, axis=1, kind="stable")[:, :size]
    places, bits = np.take_along_axis(places, front, 1), np.take_along_axis(bits, front, 1)
    return places, np.where(places >= 0, bits, 0).astype(np.int32)
