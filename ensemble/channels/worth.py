"""What is worth the most to the people of a market, whoever asks."""

from __future__ import annotations

import numpy as np

from ensemble.channels import MarketQueries, first_eligible


def worth(asked: MarketQueries, count: int) -> np.ndarray:
    """Contents of the highest `ensemble.appraisal.market_worth`, as `ensemble.channels.Source` says.

    The other channels go by what people want, clicks far more often than orders; this one by the value that
    the slate goes by.
    """
    return first_eligible(asked.shelf.by_worth, asked.may, len(asked.time), count)
