"""What people want who wanted the same contents lately: one step along the item graph."""

from __future__ import annotations

import numpy as np

from ensemble.channels import Asked, nearest


def item_graph(asked: Asked, count: int) -> np.ndarray:
    """Contents to which the edges from the latest ones add up most, as `ensemble.channels.Source` says."""
    return nearest(np.where(asked.eligible & (asked.affinity > 0), asked.affinity, -np.inf), count)
