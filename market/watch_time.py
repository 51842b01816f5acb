"""Watch time without its duration: a place among the watch times of contents that last about as long.

Seconds watched favour what lasts long. The share of people who watched a content of about this duration for
less is the same taste on one scale for all, and the table that gave it turns a predicted one into seconds
again. Zhan et al., "Deconfounding duration bias in watch-time prediction", KDD 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUPS, GROUP_ROWS, GRID = 30, 200, 101


@dataclass(frozen=True)
class WatchTime:
    """Watch times by groups of duration.

    Attributes:
        edges: float32[G - 1], durations (s) between the groups, ascending.
        quantiles: float32[G + 1, Q], watch times (s) of each group at equal steps of the share of rows; the
            last group is that of unknown durations.
    """

    edges: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def fit(cls, watch_s: np.ndarray, duration_s: np.ndarray) -> WatchTime:
        """Groups with equally many rows, each of at least `GROUP_ROWS` where there are as many.

        Args:
            watch_s: float[P], seconds watched; NaN rows count nothing.
            duration_s: float[P], of the contents; NaN and 0 stand for unknown ones.

        Raises:
            ValueError: there is no row with a watch time.
        """
        given = ~np.isnan(watch_s)
        if not given.any():
            raise ValueError(
                "no row has a watch time; give `watch_s` for some impressions of the training part"
            )
        watch_s, duration_s = watch_s[given], duration_s[given]
        lasting = duration_s > 0
        groups = int(np.clip(lasting.sum() // GROUP_ROWS, 1, GROUPS))
        edges = np.zeros(0, np.float32)
        if groups > 1:
            edges = np.unique(np.quantile(duration_s[lasting], np.linspace(0, 1, groups + 1)[1:-1]))
        edges = edges.astype(np.float32)
        made = cls(edges, np.zeros((len(edges) + 2, GRID), np.float32))
        group = made.group(duration_s)
        for place in range(len(made.quantiles)):
            own = watch_s[group == place]
            made.quantiles[place] = np.quantile(own if len(own) else watch_s, np.linspace(0, 1, GRID))
        return made

    def group(self, duration_s: np.ndarray) -> np.ndarray:
        """int64[...], the group of each duration."""
        known = duration_s > 0
        return np.where(known, np.searchsorted(self.edges, duration_s, side="right"), len(self.edges) + 1)

    def rank(self, watch_s: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
        """Share of the group's rows with a shorter watch time, equal ones half: float32[P], 0 to 1."""
        made, group = np.zeros(len(watch_s), np.float32), self.group(duration_s)
        for place in np.unique(group):
            own = group == place
            sides = [np.searchsorted(self.quantiles[place], watch_s[own], side=s) for s in ("left", "right")]
            made[own] = (sides[0] + sides[1]) / (2 * GRID)
        return made

    def seconds(self, rank: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
        """The watch time (s) at each share float[P] of its group, float32[P]."""
        at = np.clip(rank, 0, 1) * (GRID - 1)
        low = np.minimum(at.astype(np.int64), GRID - 2)
        group = self.group(duration_s)
        below, above = self.quantiles[group, low], self.quantiles[group, low + 1]
        return (below + (at - low) * (above - below)).astype(np.float32)
