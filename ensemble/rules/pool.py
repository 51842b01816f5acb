"""Which candidates a slate is chosen from: the best-valued that leave room for what keeps the caps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble.rules import Limit


class Pool:
    """Says which candidates others stand before when the pool is cut.

    A group's share of the pool is as large as its cap's of the slate: 12 contents of a seller among 60 where
    2 of 10 places may be the seller's. What is beyond that, in order of value, stands behind. And the best of
    a kind that slots ask for has as large a part of the pool as it has places. So the pool holds a slate that
    keeps the limits where the candidates do, and choice beside it.

    Args:
        limits: in the order of `bits`.
        bits: uint16[R], of each limit, a stricter one's higher.
        size, slate: contents of a pool, places of a slate.
    """

    def __init__(self, limits: Sequence[Limit], bits: np.ndarray, size: int, slate: int) -> None:
        place = np.arange(1, slate + 1)
        # A slot among the first places asks for others there alone.
        room = [size - max((place - limit.most).max(), 0) for limit in limits]
        shares = [min(size * limit.most[-1] // slate, most) for limit, most in zip(limits, room)]
        #: The strictest first, limits as (place, share in contents, bit); those for kinds stand apart.
        self.shares = sorted(
            (
                (r, int(share), bit)
                for r, (limit, share, bit) in enumerate(zip(limits, shares, bits))
                if not limit.others
            ),
            key=lambda limit: -int(limit[2]),
        )
        #: Limits that ask for a kind as (place, its part in contents), and the strictest one's bit.
        self.kinds = [(r, size * limit.others // slate) for r, limit in enumerate(limits) if limit.others]
        self.kinds_bit = max((bits[r] for r, _ in self.kinds), default=np.uint16(0))
        self.size = size

    def behind(self, groups: np.ndarray, tired: np.ndarray, often: np.ndarray | None = None) -> np.ndarray:
        """Bits of the limits for which each candidate stands behind others, uint16[B, C].

        Args:
            groups: int32[R, B, C], of candidates sorted by value; -1 where a limit does not concern one, -2
                where there is none.
            tired: uint16[B, C], bits of what was shown too often: it is counted after the rest of its group.
            often: int64[B, C], times that such contents were shown, the most often counted last; None where
                there are none.
        """
        size = groups.shape[2]
        behind = np.zeros_like(tired)
        last = [] if often is None else [often]
        alike = np.sort(groups, axis=2)
        beside = bool(self.kinds)
        for limit, share, bit in self.shares:
            if beside and bit < self.kinds_bit:
                behind |= self._beside_kinds(groups, (*last, behind, tired))
                beside = False
            if share >= size:
                continue
            late = alike[limit, :, share:]
            if not ((late == alike[limit, :, : size - share]) & (late >= 0)).any():
                continue
            order = np.lexsort((*last, behind, tired, groups[limit]))
            group = np.take_along_axis(groups[limit], order, axis=1)
            # Of the same group as the content so many places before: past the share.
            past = np.zeros(group.shape, bool)
            past[:, share:] = (group[:, share:] == group[:, : size - share]) & (group[:, share:] >= 0)
            np.put_along_axis(past, order, past.copy(), axis=1)
            behind |= past * bit
        if beside:
            behind |= self._beside_kinds(groups, (*last, behind, tired))
        return behind | tired

    def _beside_kinds(self, groups: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
        """The bit of kinds that slots ask for, where a content would take the room of the best of these.

        Args:
            keys: [B, C], by which contents stand behind others, the last key counting most.
        """
        own = np.zeros(groups.shape[1:], bool)
        for limit, part in self.kinds:
            of_kind = groups[limit] == -1
            order = np.lexsort((*keys, ~of_kind))[:, :part]
            np.put_along_axis(own, order, np.take_along_axis(of_kind, order, axis=1), axis=1)
        # Behind them all, whatever is in their room; what is `own` itself comes last here and is not meant.
        order = np.lexsort((*keys, own | (groups[0] == -2)))
        turn = np.argsort(order, axis=1)
        return (~own & (turn >= self.size - own.sum(axis=1, keepdims=True))) * self.kinds_bit
