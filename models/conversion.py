"""How often what people put aside becomes an order, content by content."""

from __future__ import annotations

import numpy as np

from workflows.examples import TRAIN, Examples

ORDER = "order"
PRIOR = 6.0
"""Outcomes of the mean content that each content's own are added to."""


def conversions(examples: Examples, last: int = TRAIN) -> np.ndarray:
    """Log-odds that what was wanted of a content was ordered, in the parts up to `last`, float32[N].

    Only for logs of positives alone, some of them orders; 0 for all others. A log of impressions has a ranker
    that learns both from what was not wanted.
    """
    pairs, contents = examples.pairs, len(examples.contents)
    none = np.zeros(contents, np.float32)
    if examples.feedback != "positives" or ORDER not in pairs.outcomes:
        return none
    rows = np.flatnonzero(pairs.positive[: pairs.rows(last).stop])
    ordered, content = pairs.outcomes[ORDER][rows] > 0, pairs.content[rows]
    if ordered.all() or not ordered.any():
        return none
    orders = np.bincount(content[ordered], minlength=contents)
    others = np.bincount(content[~ordered], minlength=contents)
    share = ordered.mean()
    return np.log((orders + PRIOR * share) / (others + PRIOR * (1 - share))).astype(np.float32)
