"""Diversity by maximal marginal relevance."""

from __future__ import annotations

import numpy as np


class Mmr:
    """(1 - d) worth - d likeness to the most like content above; likeness is the cosine of content vectors.

    Carbonell and Goldstein, The use of MMR, SIGIR 1998.

    Args:
        worth: float32[B, P], value scaled to [0, 1].
        vectors: float32[B, P, D], of the pool's contents.
        diversity: float32[B], d: 0 is value alone, 1 difference alone.
        slate: places to fill.
    """

    def __init__(self, worth: np.ndarray, vectors: np.ndarray, diversity: np.ndarray, slate: int) -> None:
        self.gain = (1 - diversity)[:, None] * worth
        # What is left of each gain (last axis) beside each content (middle axis).
        self.beside = vectors @ vectors.transpose(0, 2, 1)
        self.beside *= -diversity[:, None, None]
        self.beside += self.gain[:, None, :]
        self.first = True

    def take(self, each: np.ndarray, best: np.ndarray) -> None:
        """As `ensemble.rules.Gain` says."""
        beside = self.beside[each, best]
        self.gain = beside if self.first else np.minimum(self.gain, beside)
        self.first = False
