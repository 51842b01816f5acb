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
        width = self.contents.shape[1]
        self._both, self._content = self.hidden[:width], self.hidden[width : 2 * width]
        self._numbers, self._cosine = self.hidden[2 * width : -1], self.hidden[-1]

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
            # (asked * content) @ both is content @ (asked * both), and a request has one `asked`.
            hidden = self.contents.take(own, axis=0, mode="clip") @ (
                (vector @ self.query)[:, None] * self._both + self._content
            )
            hidden += numbers[row] @ self._numbers
            hidden += cosine[row, :, None] * self._cosine
            hidden += self.bias
            scores[row] = np.maximum(hidden, 0, out=hidden) @ self.out
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
    each = np.arange(len(order))[:, None]
    by_category = category.argsort(axis=1, kind="stable")
    ordered = category[each, by_category]
    # Of a category sorted, what stands `most` behind another of it comes after the first ones.
    late = np.zeros(order.shape, np.int8)
    late[:, most:] = (ordered[:, most:] == ordered[:, :-most]) & (ordered[:, most:] >= 0)
    late[ordered == NO_CANDIDATE] = 2
    behind = np.empty(order.shape, np.int8)
    behind[each, by_category] = late
    return order[each, behind.argsort(axis=1, kind="stable")]
