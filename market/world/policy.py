"""The logging policy: what the world's own feed shows, with the exact probability of each choice."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from market.world.config import DAY
from market.world.population import AGE_BANDS, GENDERS, LIVE, VIDEO, Bools, Floats, Ints, Population

SEGMENTS = len(AGE_BANDS) * len(GENDERS)
FLOOR = 0.1
"""Part of every choice that is uniform over the eligible contents."""
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class _Shelf:
    """What a market may see in a block: N contents, their choice probabilities, openings and ends."""

    contents: Ints
    probability: Doubles  # [SEGMENTS, N], rows sum to 1
    created_at: Ints
    ended_at: Ints

    def open_at(self, times: Ints, start: int, end: int) -> tuple[Doubles, Ints]:
        """Probability mass [SEGMENTS, B] and number [B] of contents open at times within [start, end)."""
        opens = np.flatnonzero(self.created_at > start)
        closes = np.flatnonzero(self.ended_at < end)
        changes = np.concatenate([self.created_at[opens], self.ended_at[closes]])
        order = np.argsort(changes, kind="stable")
        sign = np.repeat([1, -1], [len(opens), len(closes)])[order]
        which = np.concatenate([opens, closes])[order]
        already = self.created_at <= start
        mass = self.probability[:, already].sum(axis=1, keepdims=True)
        mass = np.cumsum(np.concatenate([mass, self.probability[:, which] * sign], axis=1), axis=1)
        number = np.cumsum(np.concatenate([[already.sum()], sign]))
        upto = np.searchsorted(changes[order], times, side="right")
        return mass[:, upto], number[upto]


class LoggingPolicy:
    """Plackett-Luce slates from one distribution per market, block and segment (age band and gender).

    Its score is a noisy popularity, freshness and a weak taste of the segment, softmaxed and mixed with a
    uniform floor. It never sees the latent taste of a user.
    """

    def __init__(self, world: Population, slate: int, rng: Generator) -> None:
        self._world = world
        self._slate = slate
        self._rng = rng
        users, contents, culture = world.users, world.contents, world.culture
        markets = len(contents.markets)
        self._segment = users.age * len(GENDERS) + users.gender
        mean = np.zeros((markets, SEGMENTS, contents.vector.shape[1]))
        np.add.at(mean, (users.market, self._segment), users.interests.mean(axis=1))
        members = np.zeros((markets, SEGMENTS))
        np.add.at(members, (users.market, self._segment), 1)
        self._taste = mean / np.maximum(members, 1)[:, :, None]
        noise = rng.normal(0, 0.5, contents.markets.shape)
        self._popularity = contents.quality + 0.5 * culture.category[:, contents.category] + noise

    def draw(self, users: Ints, times: Ints, start: int, end: int, in_stock: Bools) -> tuple[Ints, Floats]:
        """Slates [B, S] of content indices and the propensity [B, S] of each.

        Propensity is the probability of that content at that position given those above it. Where fewer
        contents than positions are eligible, the rest is -1 with propensity 0.

        Args:
            users: [B] indices. times: [B] within [start, end), the block. in_stock: [N] at its start.
        """
        slates = np.full((len(users), self._slate), -1, np.int64)
        propensities = np.zeros(slates.shape)
        market = self._world.users.market[users]
        for m in np.unique(market):
            rows = np.flatnonzero(market == m)
            shelf = self._stock_shelf(m, start, end, in_stock)
            if len(shelf.contents):
                slates[rows], propensities[rows] = self._fill(
                    shelf, self._segment[users[rows]], times[rows], start, end
                )
        return slates, propensities.astype(np.float32)

    def _stock_shelf(self, market: int, start: int, end: int, in_stock: Bools) -> _Shelf:
        contents = self._world.contents
        around = (contents.created_at < end) & (contents.ended_at > start)
        shelf = np.flatnonzero(around & in_stock & contents.markets[market])
        kind = contents.kind[shelf]
        age = np.maximum(start - contents.created_at[shelf], 0) / DAY
        fresh = np.where(kind == VIDEO, np.exp(-age / 3), 0) + 3.5 * (kind == LIVE)
        score = self._popularity[market, shelf] + fresh + self._rng.normal(0, 0.4, len(shelf))
        score = score + 1.5 * self._taste[market] @ contents.vector[shelf].T
        weight = np.exp(score - score.max(axis=1, keepdims=True)) if len(shelf) else score
        chosen = (1 - FLOOR) * weight / weight.sum(axis=1, keepdims=True) + FLOOR / max(len(shelf), 1)
        return _Shelf(shelf, chosen, contents.created_at[shelf], contents.ended_at[shelf])

    def _fill(self, shelf: _Shelf, segment: Ints, times: Ints, start: int, end: int) -> tuple[Ints, Doubles]:
        """Draw by inverse CDF and redraw what is not open or already placed: exactly Plackett-Luce."""
        size = len(shelf.contents)
        cdf = np.cumsum(shelf.probability, axis=1)
        cdf = (cdf / cdf[:, -1:] + np.arange(SEGMENTS)[:, None]).ravel()
        mass, number = shelf.open_at(times, start, end)
        left = mass[segment, np.arange(len(times))]
        length = np.minimum(number, self._slate)
        placed = np.full((len(times), self._slate), -1, np.int64)
        propensity = np.zeros(placed.shape)
        at = np.zeros(len(times), np.int64)
        rows = np.flatnonzero(length > 0)
        while len(rows):
            drawn = np.searchsorted(cdf, segment[rows] + self._rng.random(len(rows)), side="right")
            drawn = np.minimum(drawn - segment[rows] * size, size - 1)
            fits = (shelf.created_at[drawn] <= times[rows]) & (times[rows] < shelf.ended_at[drawn])
            fits &= ~(placed[rows] == drawn[:, None]).any(axis=1)
            taken, content = rows[fits], drawn[fits]
            probability = shelf.probability[segment[taken], content]
            placed[taken, at[taken]] = content
            propensity[taken, at[taken]] = np.minimum(probability / left[taken], 1)
            left[taken] -= probability
            at[taken] += 1
            rows = rows[at[rows] < length[rows]]
        return np.where(placed >= 0, shelf.contents[placed], -1), propensity
