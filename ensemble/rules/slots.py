"""Which places may hold which kinds: at most so many live rooms, at least one among the first places."""

from __future__ import annotations

import numpy as np

from ensemble.plan import CascadeConfig
from ensemble.release import Release
from ensemble.rules import Limit
from market.kinds import KINDS


def slots(release: Release, config: CascadeConfig) -> list[Limit]:
    """A limit for each `most`; beyond the places that it speaks of it allows anything. And one for each kind
    of which slots ask for a least, at the first of these: at the places reserved for the kind the others are
    out of slots where it has not come before, so that it stands there unless a stricter rule holds it back.
    """
    kind, slate = release.array("kind_code.npy"), config.slate
    place, reserved = np.arange(slate), config.reserved()
    limits = []
    for slot in config.slots:
        of_kind = kind == KINDS.index(slot.kind)
        if slot.most is not None:
            within = place < (slot.within or slate)
            limits.append(Limit(np.where(of_kind, 0, -1), np.where(within, min(slot.most, slate), slate)))
        if slot.least and (own := reserved.pop(slot.kind, [])):
            others = np.full(slate, slate)
            others[own] = own - np.arange(len(own))
            limits.append(Limit(np.where(of_kind, -1, 0), others, len(own)))
    return limits
