"""Rules of the slate, one file each.

A slate is chosen greedily, place by place. A *limit* holds contents back; a *gain* orders what is left. The
limits are soft: they stand in the order of `CascadeConfig.rules`, and where nothing in the pool keeps all of
them, the last ones yield first, so that a slate is never shorter than the pool allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from ensemble.explanation import LOW


class Reason(IntEnum):
    """Why an item stands where it stands: it has the highest value, or a rule moved it before others."""

    VALUE = 0
    DIVERSITY = 1
    FREQUENCY_CAP = 2
    SELLER_CAP = 3
    CATEGORY_CAP = 4
    SLOTS = 5
    EXPLORATION = 6
    SELLER_FREQUENCY = 7

    @property
    def text(self) -> str:
        """Said of an item that stands where it stands."""
        return _TEXT[self]

    @property
    def lost(self) -> str:
        """Said of a content that is left out."""
        return _LOST[self]


_TEXT = {
    Reason.VALUE: "highest value",
    Reason.DIVERSITY: "adds variety",
    Reason.FREQUENCY_CAP: "others shown too often",
    Reason.SELLER_CAP: "sellers at their cap",
    Reason.CATEGORY_CAP: "categories at their cap",
    Reason.SLOTS: "kinds out of slots",
    Reason.EXPLORATION: "explores",
    Reason.SELLER_FREQUENCY: "others' sellers shown too often",
}

_LOST = {
    Reason.VALUE: LOW,
    Reason.DIVERSITY: "too like others",
    Reason.FREQUENCY_CAP: "shown too often",
    Reason.SELLER_CAP: "seller at its cap",
    Reason.CATEGORY_CAP: "category at its cap",
    Reason.SLOTS: "kind out of slots",
    Reason.EXPLORATION: "gave way to exploration",
    Reason.SELLER_FREQUENCY: "seller shown too often",
}


@dataclass(frozen=True)
class Limit:
    """Of contents that share a group, so many may stand in a slate.

    Attributes:
        group: int32[N], of every content of the release; -1 where the limit does not concern it.
        most: int64[S], contents of a group among the places up to each one, S where there may be any number.
        others: places of a slate that others than the group shall have, where that is what the limit is for.
    """

    group: np.ndarray
    most: np.ndarray
    others: int = 0


class Gain(Protocol):
    """Orders what the limits leave. `gain` is float32[B, P], the higher the sooner."""

    gain: np.ndarray

    def take(self, each: np.ndarray, best: np.ndarray) -> None:
        """Bring `gain` up to date after row `each` int64[B] took the place `best` int64[B] of its pool."""
        ...
