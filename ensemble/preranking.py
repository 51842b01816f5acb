"""Pre-ranking: a light model in the ranker's place for candidates that are too many to rank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ensemble.release import Release

QUERY, CONTENTS, HIDDEN, BIAS, OUT = (
    f"preranking_{name}.npy" for name in ("query", "contents", "hidden", "bias", "out")
)
NO_CANDIDATE = -2


class PreRanker:
    """Scores that order candidates as the ranker would: one hidden layer over a product of projections.

    Attributes:
        query: float32[D, K], projects query vectors.
        contents: float32[N, K], projected contents.
        hidden: float32[2K + G + 1, H]; bias: float32[H]; out: float32[H].
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.query, self.contents = arrays[QUERY], arrays[CONTENTS]
        self.hidden, self.bias, self.out = arrays[HIDDEN], arrays[BIAS], arrays[OUT]

    @classmethod
    def of(cls, release: Release) -> PreRanker | None:
        """The pre-ranker of a release; None where it has none."""
        if QUERY not in release.files:
            return None
        return cls({name: release.array(name) for name in (QUERY, CONTENTS, HIDDEN, BIAS, OUT)})

    def __call__(
        self, query_vector: np.ndarray, candidates: np.ndarray, numbers: np.ndarray, cosine: np.ndarray
    ) -> np.ndarray:
        """Scores float32[B, C]; -inf where there is no candidate.

        Args:
            query_vector: float32[B, D].
            candidates: int64[B, C], rows of the contents table, -1 fills.
            numbers: float32[B, C, G], the candidates' numbers as the ranker reads them.
            cosine: float32[B, C], of query and content.
        """
        scores = np.empty(candidates.shape, np.float32)
        # A request at a time: what it needs stays in the cache, and it gets the same score in every batch.
        for row, (vector, own) in enumerate(zip(query_vector, candidates)):
            content = self.contents[np.maximum(own, 0)]
            x = np.concatenate(
                [(vector @ self.query) * content, content, numbers[row], cosine[row, :, None]], axis=1
            )
            scores[row] = np.maximum(x @ self.hidden + self.bias, 0) @ self.out
        return np.where(candidates >= 0, scores, np.float32(-np.inf))


def spread(order: np.ndarray, category: np.ndarray, most: int) -> np.ndarray:
    """An order in which those after the first `most` of their category come behind all others.

    The slate takes a few of each category (`category_cap`), so a ranker that is given one category alone has
    little to choose from.

    Args:
        order: int64[B, C], places of candidates, the best first.
        category: int[B, C] of the candidates in that order, -1 where unknown, which has no limit;
            `NO_CANDIDATE` where there is none, which comes last.
    """
    by_category = category.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(category, by_category, axis=1)
    place = np.arange(order.shape[1])
    first = np.zeros(order.shape, np.int64)
    first[:, 1:] = np.where(ordered[:, 1:] != ordered[:, :-1], place[1:], 0)
    late = (place - np.maximum.accumulate(first, axis=1) >= most) & (ordered >= 0)
    behind = np.empty(order.shape, np.int8)
    np.put_along_axis(behind, by_category, np.where(ordered == NO_CANDIDATE, 2, late).astype(np.int8), axis=1)
    return np.take_along_axis(order, behind.argsort(axis=1, kind="stable"), axis=1)
