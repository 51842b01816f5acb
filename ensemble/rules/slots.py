"""Which places may hold which kinds: at most so many live rooms, or product cards among the first places."""

from __future__ import annotations

import numpy as np

from ensemble.plan import CascadeConfig
from ensemble.release import Release
from ensemble.rules import Limit
from market.kinds import KINDS


def slots(release: Release, config: CascadeConfig) -> list[Limit]:
    """A limit for each declared slot; beyond the places that it speaks of it allows anything."""
    kind = release.array("kind_code.npy")
    place = np.arange(config.slate)
    return [
        Limit(
            np.where(kind == KINDS.index(slot.kind), 0, -1),
            np.where(place < (slot.within or config.slate), slot.most, config.slate),
        )
        for slot in config.slots
    ]
