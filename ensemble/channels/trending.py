"""What the market wants most of late; where it has said little, what its region and the world want."""

from __future__ import annotations

import numpy as np

from ensemble.channels import MarketQueries, first_eligible


def trending(asked: MarketQueries, count: int) -> np.ndarray:
    """Contents of the highest `market.statistics.trend`, as `ensemble.channels.Source` says."""
    return first_eligible(asked.shelf.by_trend, asked.may, len(asked.time), count)
