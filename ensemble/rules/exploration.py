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


def explore(
    value: np.ndarray, wanted: np.ndarray, allowed: np.ndarray, draw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fill places by Thompson sampling (Biometrika 1933), each with its exact propensity.

    Thompson sampling shows a content as often as it is the best of its rivals under what is believed of
    their values. Drawing the beliefs themselves would leave that chance unknown; here it is integrated first
    and the content is drawn from it, so what is logged is the very probability of the draw. Belief in a value
    is logistic around the ranker's estimate with a relative deviation of 1 / sqrt(1 + outcomes), that of a
    Gamma posterior.

    The rivals for one place are none of those for another: every E-th of the best-valued. So the places are
    drawn independently, and no propensity depends on what another place got.

    Args:
        value: float32[B, P].
        wanted: float32[B, P], outcomes that speak for the estimate.
        allowed: bool[B, P], contents to choose from, at least E in each row.
        draw: float64[B, E], uniform in [0, 1).

    Returns:
        places int64[B, E] in the pool; their propensities float32[B, E].
    """
    count, each = draw.shape[1], np.arange(len(value))
    first = np.argsort(~allowed, axis=1, kind="stable")[:, : count * RIVALS]
    places, propensities = np.zeros(draw.shape, np.int64), np.zeros(draw.shape, np.float32)
    for place in range(count):
        rivals = first[:, place::count]
        pick = each[:, None], rivals
        chance = best_of(value[pick], wanted[pick], allowed[pick])
        below = np.cumsum(chance, axis=1)
        # The last rival takes what rounding leaves of the unit interval.
        below = np.where(below >= below[:, -1:], 1.0, below)
        chosen = (below > draw[:, place, None]).argmax(axis=1)
        places[:, place], propensities[:, place] = rivals[each, chosen], chance[each, chosen]
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
