"""Diversity by a determinantal point process, its most probable slate found greedily."""

from __future__ import annotations

import numpy as np

JITTER = 0.01
"""On the diagonal, so that a content equal to one above is unlikely, not impossible."""


class Dpp:
    """Adds (1 - d) worth + d log det of the likeness of all contents above, the greedy MAP of a DPP.

    The kernel is exp(worth (1 - d) / 2d), times likeness, times the same; likeness is the cosine of content
    vectors. Chen, Zhang and Zhou, Fast greedy MAP inference for determinantal point process to improve
    recommendation diversity, NeurIPS 2018: each place costs one row of an incremental Cholesky factor.

    Args:
        worth: float32[B, P], value scaled to [0, 1].
        vectors: float32[B, P, D], of the pool's contents.
        diversity: float32[B], d: 0 is value alone, 1 difference alone.
        slate: places to fill.
    """

    def __init__(self, worth: np.ndarray, vectors: np.ndarray, diversity: np.ndarray, slate: int) -> None:
        batch, size = worth.shape
        self.likeness = vectors @ vectors.transpose(0, 2, 1)
        self.likeness *= np.float32(1 - JITTER)
        diagonal = self.likeness.reshape(batch, size * size)[:, :: size + 1]
        diagonal += np.float32(JITTER)
        #: What each content adds to the determinant, squared pivots of the factor.
        self.rest = diagonal.copy()
        self.factor = np.zeros((batch, slate, size), np.float32)
        self.taken = 0
        self.diversity, self.alone = diversity[:, None], (1 - diversity)[:, None] * worth
        self.gain = self.alone + self.diversity * np.log(self.rest)

    def take(self, each: np.ndarray, best: np.ndarray) -> None:
        """As `ensemble.rules.Gain` says."""
        above = self.factor[:, : self.taken]
        row = self.likeness[each, best]
        if self.taken:
            row -= (above[each, :, best][:, None] @ above)[:, 0]
        row /= np.sqrt(self.rest[each, best])[:, None]
        self.factor[:, self.taken] = row
        self.taken += 1
        # Rounding may leave a content equal to one above a little less than nothing.
        self.rest = np.maximum(self.rest - row * row, np.float32(1e-6))
        self.gain = self.alone + self.diversity * np.log(self.rest)
