"""At most so many places for one category."""

from __future__ import annotations

import numpy as np

from ensemble.plan import CascadeConfig
from ensemble.release import Release
from ensemble.rules import Limit


def category_cap(release: Release, config: CascadeConfig) -> list[Limit]:
    """Contents of one category share the cap `category_cap`; contents without a category have none."""
    most = min(config.category_cap, config.slate)
    return [Limit(release.array("category_code.npy"), np.full(config.slate, most))]
