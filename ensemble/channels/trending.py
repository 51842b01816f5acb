"""What the market wants most at the end of the log."""

from __future__ import annotations

import numpy as np

from ensemble.channels import Asked, first_eligible


def trending(asked: Asked, count: int) -> np.ndarray:
    """The market's most wanted contents, as `ensemble.channels.Source` says."""
    return first_eligible(asked.shelf.by_popularity, asked.eligible, count)
