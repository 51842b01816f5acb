"""What happens in live rooms by the minute: a crowd that comes and goes, and products shown in turn."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

COUNTED_S = 300
"""A room's people are counted so often."""
CROWD = np.float32(1.5)
"""Log of the number of people that a unit of heat brings."""
_PERIODS_S = ((1800, 5400), (900, 2400))
_MOST_PRODUCTS = 6
_TURN_S = (480, 1200)


@dataclass(frozen=True)
class Rooms:
    """The course of every room; rows of N contents, of which only those of rooms mean anything.

    Heat is what makes a room good at a moment beside what it always is: two waves of its own, of mean 0 and a
    deviation of about 0.7.
    """

    period: Floats  # [N, 2] seconds
    phase: Floats  # [N, 2]
    crowd: Floats  # [N] log of the people in it without heat
    products: Ints  # [N, P] contents that it shows in turn, -1 fills at the end
    shown: Ints  # [N] how many those are
    turn_s: Ints  # [N] seconds that each is shown
    opened: Ints  # [N]
    ended: Ints  # [N]

    def heat(self, content: Ints, time: Ints) -> Floats:
        """Of rooms at times that fit, float32 of that shape."""
        since = (time - self.opened[content])[..., None].astype(np.float32)
        waves = np.sin(2 * np.pi * since / self.period[content] + self.phase[content])
        return np.float32(0.7) * waves.sum(axis=-1, dtype=np.float32)

    def showing(self, content: Ints, time: Ints) -> Ints:
        """The product that rooms show at times that fit; -1 for none."""
        turn = np.maximum(time - self.opened[content], 0) // self.turn_s[content]
        return self.products[content, turn % np.maximum(self.shown[content], 1)]

    def statements(self, rooms: Ints, rng: Generator) -> pd.DataFrame:
        """What a room's software would log: how many people are in it, and each product as it comes.

        Columns content (index), time, viewers and showing (index); the last two are null where the row says
        the other.
        """
        counted, at = _every(self.opened[rooms], self.ended[rooms], np.full(len(rooms), COUNTED_S))
        people = rng.poisson(np.exp(self.crowd[rooms[counted]] + CROWD * self.heat(rooms[counted], at)))
        viewers = pd.DataFrame({"content": rooms[counted], "time": at, "viewers": people})
        selling = rooms[self.shown[rooms] > 0]
        turned, when = _every(self.opened[selling], self.ended[selling], self.turn_s[selling])
        product = self.showing(selling[turned], when)
        showing = pd.DataFrame({"content": selling[turned], "time": when, "showing": product})
        return pd.concat([viewers, showing], ignore_index=True)


def _every(start: Ints, end: Ints, step: Ints) -> tuple[Ints, Ints]:
    """Times from each start on, a step apart, before its end: the row of each, and the time."""
    count = -(-(end - start) // step)
    row = np.repeat(np.arange(len(start)), count)
    turn = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    return row, start[row] + turn * step[row]


def draw_rooms(
    rng: Generator, live: NDArray[np.bool_], card: NDArray[np.bool_], seller: Ints, opened: Ints, ended: Ints
) -> Rooms:
    """The course of all rooms; they show cards of their own seller.

    Args:
        live, card: bool[N], rooms and product cards.
        seller, opened, ended: int64[N].
    """
    count = len(live)
    products = np.full((count, _MOST_PRODUCTS), -1, np.int64)
    cards = np.flatnonzero(card)
    cards = cards[np.argsort(seller[cards], kind="stable")]
    first, last = (np.searchsorted(seller[cards], seller, side=side) for side in ("left", "right"))
    for room in np.flatnonzero(live & (last > first)):
        own = rng.permutation(cards[first[room] : last[room]])[:_MOST_PRODUCTS]
        products[room, : len(own)] = own
    return Rooms(
        period=np.stack([rng.uniform(*span, count) for span in _PERIODS_S], axis=1).astype(np.float32),
        phase=rng.uniform(0, 2 * np.pi, (count, 2)).astype(np.float32),
        crowd=rng.normal(3.0, 0.8, count).astype(np.float32),
        products=products,
        shown=(products >= 0).sum(axis=1),
        turn_s=rng.integers(*_TURN_S, count),
        opened=opened,
        ended=ended,
    )
