"""Who opens the feed when: heavy-tailed users, in visits of several requests, by their market's rhythm."""

import numpy as np
from numpy.random import Generator

from market.calendar import local_context
from market.world.config import WorldConfig
from market.world.population import CHRONOTYPE_SHIFT, Ints, Population

SLOT_S = 1800
"""A visit lies within one half-hour slot."""
BLOCK_SLOTS = 8
"""The log is simulated in blocks of four hours."""
VISIT_REQUESTS = 3
"""Mean number of requests in a visit, before it is cut by the end of its slot's traffic."""
LONGEST_VISIT = 12


class Traffic:
    """Requests of a whole log, drawn block by block; their number is exactly `impressions // slate`."""

    def __init__(self, config: WorldConfig, world: Population, rng: Generator) -> None:
        users = world.users
        self._rng = rng
        self._starts = np.arange(config.begin, config.end, SLOT_S)
        # A cell is the people of one market and chronotype, by registration, so that those who are registered
        # at a time are a prefix.
        cells = users.market * len(CHRONOTYPE_SHIFT) + users.chronotype
        everyone = np.lexsort((users.registered_at, cells))
        count = len(config.markets) * len(CHRONOTYPE_SHIFT)
        self._members = np.split(everyone, np.searchsorted(cells[everyone], np.arange(1, count)))
        self._activity = [np.cumsum(users.activity[members], dtype=np.float64) for members in self._members]
        self._registered = [
            np.searchsorted(users.registered_at[members], self._starts, side="right")
            for members in self._members
        ]
        present = np.stack(
            [
                np.concatenate([[0.0], activity])[known]
                for activity, known in zip(self._activity, self._registered)
            ]
        )  # [cells, slots]: activity of those registered
        codes = np.repeat(np.array(config.markets), len(self._starts))
        local = local_context(codes, np.tile(self._starts, len(config.markets)))
        market = np.repeat(np.arange(len(config.markets)), len(self._starts))
        off = np.maximum(local.is_weekend, local.is_holiday)
        rhythm = world.culture.rhythm[market, :, local.hour]
        rhythm = rhythm * np.exp(world.culture.holiday[market] * off)[:, None]
        rhythm = rhythm.reshape(len(config.markets), len(self._starts), -1).transpose(0, 2, 1)
        weights = present * rhythm.reshape(present.shape)
        requests = config.impressions // config.slate
        self._requests = rng.multinomial(requests, (weights / weights.sum()).ravel()).reshape(weights.shape)

    @property
    def blocks(self) -> int:
        """Number of blocks in the log."""
        return -(-len(self._starts) // BLOCK_SLOTS)

    def bounds(self, block: int) -> tuple[int, int]:
        """First second of a block and the first one after it (s since epoch)."""
        start = int(self._starts[block * BLOCK_SLOTS])
        return start, min(start + BLOCK_SLOTS * SLOT_S, int(self._starts[-1]) + SLOT_S)

    def draw(self, block: int) -> tuple[Ints, Ints]:
        """Users [B] and times [B] of a block's requests, in order of time."""
        rng = self._rng
        slots = range(block * BLOCK_SLOTS, min((block + 1) * BLOCK_SLOTS, len(self._starts)))
        cell, slot = (axis.ravel() for axis in np.meshgrid(range(len(self._members)), slots, indexing="ij"))
        counts = self._requests[cell, slot]
        total = int(counts.sum())
        fresh = rng.random(total) < 1 / VISIT_REQUESTS
        first = np.cumsum(counts) - counts
        fresh[first[counts > 0]] = True
        opened = np.maximum.accumulate(np.where(fresh, np.arange(total), 0))
        turn = (np.arange(total) - opened) % LONGEST_VISIT
        visit = np.cumsum(turn == 0) - 1
        user = np.empty(visit[-1] + 1 if total else 0, np.int64)
        of_cell = np.repeat(np.arange(len(cell)), counts)[turn == 0]
        edges = np.searchsorted(of_cell, np.arange(len(cell) + 1))
        for k in np.flatnonzero(counts):
            activity = self._activity[cell[k]][: self._registered[cell[k]][slot[k]]]
            place = rng.random(edges[k + 1] - edges[k]) * activity[-1]
            user[edges[k] : edges[k + 1]] = self._members[cell[k]][
                np.searchsorted(activity, place, side="right")
            ]
        pace = rng.uniform(30, 120, len(user))
        length = np.bincount(visit, minlength=len(user)) * pace
        start = self._starts[slot][of_cell] + rng.random(len(user)) * np.maximum(SLOT_S - length, 1)
        time = (start[visit] + turn * pace[visit]).astype(np.int64)
        in_time = np.argsort(time, kind="stable")
        return user[visit][in_time], time[in_time]
