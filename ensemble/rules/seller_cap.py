"""At most so many places for one seller."""

from __future__ import annotations

import numpy as np

from ensemble.plan import CascadeConfig
from ensemble.release import Release
from ensemble.rules import Limit


def seller_cap(release: Release, config: CascadeConfig) -> list[Limit]:
    """Contents of one seller share the cap `seller_cap`; contents without a seller have none."""
    most = min(config.seller_cap, config.slate)
    return [Limit(release.array("seller_code.npy"), np.full(config.slate, most))]
