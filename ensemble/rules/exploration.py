"""The last places go to contents of uncertain value, drawn with a known probability."""

from __future__ import annotations

import numpy as np

RIVALS = 12
"""Contents that compete for a place at most, the best-valued ones."""
GRID = np.array([-4, -2.2, -1.1, -0.3, 0.5, 1.4, 2.6, 5])
"""Where the chance of being best is integrated: around each rival's value, in units of its belief's scale."""
POINTS = 48
"""Of all rivals' points the highest count; the best of `RIVALS` lies below them with a chance under 0.004."""
UNIFORM = 0.1
"""Part of the draws that falls on all alike, so that no propensity vanishes and its inverse stays bounded."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST, _SPARE = np.uint64(31), np.uint64(11)


def deal(allowed: np.ndarray, groups: np.ndarray, room: np.ndarray, count: int) -> np.ndarray:
    """For which place each content of a pool competes, int64[B, P]; -1 for none.

    A group competes for no more places than it has room for, so that the caps hold whatever is drawn and
    the places can be drawn independently. Each place is first given the best content that there is still
    room for, the rest take turns at the places of their groups. A row where a place stays without a rival
    gets none.

    Args:
        allowed: bool[B, P], contents to choose from, sorted by value.
        groups: int32[R, B, P], as of `ensemble.rules.Limit`.
        room: int[R, B, P], how many more of its group each limit allows, at least 1 where `allowed`.
        count: places, E.
    """
    if count == 1:
        return np.where(allowed, 0, -1)
    each = np.arange(len(allowed))
    rest, spare = allowed.copy(), room.copy()
    at = np.full(allowed.shape, -1)
    #: Places that each content's group has a rival for, by limit.
    held = np.zeros((*groups.shape, count), bool)
    for place in range(count):
        free = rest & (spare > 0).all(axis=0)
        one, full = free.argmax(axis=1), free.any(axis=1)
        alike = (groups == groups[:, each, one][..., None]) & (groups >= 0) & full[:, None]
        held[..., place] = alike
        spare -= alike
        at[each[full], one[full]] = place
        rest[each[full], one[full]] = False
    # Beside those a group may compete for as many places as it still has room for, turned by group.
    turned = (np.arange(count) + np.maximum(groups, 0)[..., None]) % count
    more = ~np.take_along_axis(held, turned, axis=3)
    more &= more.cumsum(axis=3) <= spare[..., None]
    back = np.argsort(turned, axis=3)
    open_to = (held | np.take_along_axis(more, back, axis=3) | (groups < 0)[..., None]).all(axis=0)
    turn = (allowed.cumsum(axis=1) - 1)[..., None] + np.arange(count)
    turn %= count
    open_to = np.take_along_axis(open_to, turn, axis=2)
    chosen = np.take_along_axis(turn, open_to.argmax(axis=2)[..., None], axis=2)[..., 0]
    at = np.where(rest & open_to.any(axis=2), chosen, at)
    dealt = (at[..., None] == np.arange(count)).any(axis=1).all(axis=1)
    return np.where(dealt[:, None], at, -1)


def explore(
    value: np.ndarray, wanted: np.ndarray, place: np.ndarray, draw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fill places by Thompson sampling (Biometrika 1933), each with its exact propensity.

    Thompson sampling shows a content as often as it is the best of its rivals under what is believed of
    their values. Drawing the beliefs themselves would leave that chance unknown; here it is integrated first
    and the content is drawn from it, so what is logged is the very probability of the draw. Belief in a value
    is logistic around the ranker's estimate with a relative deviation of 1 / sqrt(1 + outcomes), that of a
    Gamma posterior.

    The rivals for one place are none of those for another (`deal`). So the places are drawn independently,
    and no propensity depends on what another place got.

    Args:
        value: float32[B, P].
        wanted: float32[B, P], outcomes that speak for the estimate.
        place: int64[B, P], for which of the places each competes, -1 for none; each has a rival in every row.
        draw: float64[B, E], uniform in [0, 1).

    Returns:
        places int64[B, E] in the pool; their propensities float32[B, E].
    """
    count, each = draw.shape[1], np.arange(len(value))
    places, propensities = np.zeros(draw.shape, np.int64), np.zeros(draw.shape, np.float32)
    for turn in range(count):
        mine = place == turn
        rivals = np.argsort(~mine, axis=1, kind="stable")[:, :RIVALS]
        pick = each[:, None], rivals
        chance = best_of(value[pick], wanted[pick], mine[pick])
        below = np.cumsum(chance, axis=1)
        # The last rival takes what rounding leaves of the unit interval.
        below = np.where(below >= below[:, -1:], 1.0, below)
        chosen = (below > draw[:, turn, None]).argmax(axis=1)
        places[:, turn], propensities[:, turn] = rivals[each, chosen], chance[each, chosen]
    return places, propensities


def best_of(value: np.ndarray, wanted: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """Chance of each rival to be the best, float64[B, P]; 0 for others, rows add up to 1.

    With F_i the beliefs' distributions the best is below x with probability G, their product, and the chance
    of i is the integral of G d(log F_i). From one point to the next G grows as the sum of log F does, so its
    growth is shared among the rivals as theirs grow. Every rival brings points of its own, so that a belief
    that is narrow beside others is not missed. Chances come within 0.02 of the integral.
    """
    middle = np.where(rivals, value, 0).astype(np.float64)
    scale = (np.abs(middle) / np.sqrt(1.0 + wanted) + 1e-9) * (np.sqrt(3) / np.pi)
    point = np.where(rivals[:, :, None], middle[:, :, None] + scale[:, :, None] * GRID, -np.inf)
    point = np.sort(point.reshape(len(value), -1), axis=1)[:, None, -POINTS:]
    far = middle[:, :, None] - point
    far /= scale[:, :, None]
    odds = np.exp(np.minimum(far, 40, out=far), out=far)  # (1 - F) / F
    odds *= rivals[:, :, None]
    odds += 1  # 1 / F
    # Up to 17 rivals, more than there ever are, the product of factors of at most e^40 does not overflow.
    best = 1 / odds.prod(axis=1)
    # tanh of half the growth of log F: as good where that is small, and bounded where F is almost 0.
    growth = odds[:, :, :-1] - odds[:, :, 1:]
    growth /= odds[:, :, :-1] + odds[:, :, 1:]
    share = np.diff(best) / np.maximum(growth.sum(axis=1), 1e-300)
    chance = (growth @ share[:, :, None])[:, :, 0]
    chance /= chance.sum(axis=1, keepdims=True)
    return (1 - UNIFORM) * chance + UNIFORM * rivals / rivals.sum(axis=1, keepdims=True)


def uniform(seed: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) from seeds int64[B], float64[B, count]: those of splitmix64.

    Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014. A row's numbers depend
    on its own seed alone.
    """
    state = seed.astype(np.uint64)[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STEP
    for shift, factor in _MIX:
        state = (state ^ (state >> shift)) * factor
    return ((state ^ (state >> _LAST)) >> _SPARE) * 2.0**-53
