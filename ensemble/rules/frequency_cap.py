"""Contents and sellers that were shown too often lately stand back."""

from __future__ import annotations

import numpy as np

from ensemble.plan import CascadeConfig
from ensemble.release import Release

SELLER, CONTENT = np.uint16(1), np.uint16(2)
"""Bits of who was shown too often. The content's is the stricter one, so that contents take turns where all
sellers were."""
NOBODY = -2
"""In the place of an exposure that counts for none."""


class FrequencyCap:
    """Says which contents are tired, themselves or by their seller."""

    def __init__(self, release: Release, config: CascadeConfig) -> None:
        self.seller = release.array("seller_code.npy")
        self.content_most, self.seller_most = config.content_frequency, config.seller_frequency

    def __call__(self, contents: np.ndarray, exposed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who was shown too often, and how often.

        Args:
            contents: int64[B, C], rows of the contents table.
            exposed: int64[B, H], contents shown lately, one entry an exposure, -1 fills.

        Returns:
            uint16[B, C]: `CONTENT` and `SELLER` where that was shown as often as its cap allows, or more.
            int64[B, C]: times that such a content was shown, 0 for others.
        """
        shown = np.where(exposed >= 0, exposed, NOBODY)
        others = self.seller.take(exposed, mode="clip")
        others = np.where((exposed >= 0) & (others >= 0), others, NOBODY)
        tired = (times := _times(contents, shown)) >= self.content_most
        bits = CONTENT * tired + SELLER * (_times(self.seller[contents], others) >= self.seller_most)
        return bits, times * tired


def _times(own: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """How often each of int64[B, C] is among int64[B, H], int64[B, C]."""
    times = np.empty(own.shape, np.int64)
    for row, (mine, lately) in enumerate(zip(own, np.sort(shown, axis=1))):
        times[row] = lately.searchsorted(mine, "right") - lately.searchsorted(mine, "left")
    return times
