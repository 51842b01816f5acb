"""The item graph: which contents the same people want, as weighted neighbours of each content.

Numpy alone: training, retrieval and ranking read the same arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Entries of the dense scores that are held at once: 32 MB of float64.
BLOCK = 4_000_000


@dataclass(frozen=True)
class ItemGraph:
    """Weighted edges from each content to its closest ones.

    Attributes:
        neighbours: int32[N, K], rows of the contents table, -1 fills.
        weights: float32[N, K], positive; 0 where there is no neighbour.
    """

    neighbours: np.ndarray
    weights: np.ndarray

    def spread(self, history: np.ndarray) -> np.ndarray:
        """What the history's edges add up to at every content, float32[B, N].

        Args:
            history: int64[B, L], rows of the contents table, -1 fills.
        """
        contents = len(self.neighbours)
        scores = np.empty((len(history), contents), np.float32)
        size = max(1, BLOCK // max(contents, 1))
        for start in range(0, len(history), size):
            part = history[start : start + size]
            rows, places = np.nonzero(part >= 0)
            target, weight = self.neighbours[part[rows, places]], self.weights[part[rows, places]]
            cell = np.maximum(target, 0) + rows[:, None] * contents
            summed = np.bincount(cell.ravel(), weight.ravel(), len(part) * contents)
            scores[start : start + size] = summed.reshape(len(part), contents)
        return scores

    def between(self, history: np.ndarray, content: np.ndarray) -> np.ndarray:
        """The same for one content a row, float32[P].

        Args:
            history: int64[P, L], -1 fills; content: int64[P].
        """
        summed = np.zeros(len(content), np.float64)
        for source in history.T:  # a few columns; [P, L, K] at once would not fit
            known = np.flatnonzero(source >= 0)
            own = self.neighbours[source[known]] == content[known, None]
            summed[known] += np.where(own, self.weights[source[known]], 0).sum(axis=1)
        return summed.astype(np.float32)
