"""What is new and was shown to few: nobody can want what nobody is shown."""

from __future__ import annotations

import numpy as np

from ensemble.channels import MarketQueries, first_eligible


def fresh(asked: MarketQueries, count: int) -> np.ndarray:
    """The newest of the little exposed contents, as `ensemble.channels.Source` says."""
    return first_eligible(asked.shelf.running(asked.time)[0], asked.may, len(asked.time), count)
