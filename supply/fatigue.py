"""When a user has been shown something so often, without wanting it, that it is not shown for a while."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from market.knobs import expect

LONGEST_H = 876_000
"""A century. Seconds of much more than all moments there are do not fit 64 bits."""


@dataclass(frozen=True)
class FatigueConfig:
    """Knobs of fatigue.

    Attributes:
        window_h: how long an exposure is remembered (hours).
        content_shows: exposures to a content in that time, none of them wanted, after which it is not shown;
            0 for no limit (exposures).
        seller_shows: the same for all contents of a seller (exposures).
    """

    window_h: float = 72.0
    content_shows: int = 3
    seller_shows: int = 12

    def __post_init__(self) -> None:
        expect(self, "fatigue", "window_h", above=0, most=LONGEST_H)
        expect(self, "fatigue", "content_shows seller_shows", least=0)


def tired_of(
    user: np.ndarray,
    what: np.ndarray,
    time: np.ndarray,
    wanted: np.ndarray,
    *,
    users: int,
    shows: int,
    window_s: int,
    end: int,
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What each user was shown `shows` times within `window_s` without ever wanting it in that time.

    Args:
        user, what: int[P], who was shown what; -1 for what is unknown.
        time: int64[P], s since the epoch.
        wanted: bool[P].
        users: number of users.
        shows: exposures; 0 for no limit.
        end: only exposures before this second, and after `end - window_s`, count.
        most: kept for each user, those that last longest.

    Returns:
        int32[U, T] of `what`, -1 fills; int64[U, T], the second from which each may be shown again. T is what
        the user has who is tired of most, at most `most`.
    """
    recent = np.flatnonzero((time < end) & (time >= end - window_s) & (what >= 0))
    if not shows or not len(recent):
        return np.full((users, 0), -1, np.int32), np.zeros((users, 0), np.int64)
    key = user[recent].astype(np.int64) * (int(what.max()) + 1) + what[recent]
    order = np.lexsort((time[recent], key))
    recent, key = recent[order], key[order]
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    last = np.r_[first[1:], len(key)] - 1
    ignored = np.add.reduceat(wanted[recent].astype(np.int64), first) == 0
    many = ignored & (last - first + 1 >= shows)
    # The exposure whose oblivion brings the number below the limit.
    counted = last[many] - shows + 1
    again = time[recent[counted]] + window_s
    who, which = user[recent[counted]].astype(np.int64), what[recent[counted]]
    order = np.lexsort((which, -again, who))
    who, which, again = who[order], which[order], again[order]
    turn = np.arange(len(who)) - np.searchsorted(who, who)
    kept = turn < most
    width = min(int(turn.max(initial=-1)) + 1, most)
    table, until = np.full((users, width), -1, np.int32), np.zeros((users, width), np.int64)
    table[who[kept], turn[kept]] = which[kept]
    until[who[kept], turn[kept]] = again[kept]
    return table, until
