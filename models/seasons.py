"""Seasons: how often a content was wanted around the time when its user was last active.

In a log of years, people are asked for who were last seen long ago, and what was popular then says more of
them than what is popular over all years.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from market.statistics import EventCounts
from workflows.examples import TEST, TRAIN, VALID, Examples


@dataclass(frozen=True)
class Seasons:
    """Positives of the training part around a time, and the times that matter.

    Attributes:
        counts: of the training part's positives.
        since: int64[R], when the latest event before each query was; the query's own time where none was.
        latest: int64[U], when each user's latest event was; the end of the log where there is none.
    """

    counts: EventCounts
    since: np.ndarray
    latest: np.ndarray

    @classmethod
    def of(cls, examples: Examples, half_s: int) -> Seasons:
        """The seasons of a log.

        Args:
            half_s: how far from an event its season goes, to both sides (seconds).

        Raises:
            ValueError: the data set has no time.
        """
        if not examples.has_time:
            raise ValueError("features.season_days needs times in impressions; set it to 0")
        return cls(
            EventCounts(*training_positives(examples), len(examples.contents), half_s, half_s),
            latest_before_queries(examples),
            latest_events(examples, examples.end),
        )

    def around(
        self, examples: Examples, query: np.ndarray, content: np.ndarray, own: np.ndarray
    ) -> np.ndarray:
        """Positives of contents in their markets around the time of each query, float32[P].

        Args:
            query, content: int[P], rows of the pairs.
            own: bool[P], where the pair itself is counted, so that it is taken away.
        """
        queries, counts = examples.queries, self.counts
        since = self.since[query]
        away = queries.time[query] - since
        itself = own & (away >= -counts.window_s) & (away < counts.after_s)
        return counts.in_market(queries.market[query], content, since) - itself


def training_positives(examples: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Market, content and time of each positive of the training part: int16[E], int32[E], int64[E]."""
    pairs, queries = examples.pairs, examples.queries
    rows = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    query = pairs.query[rows]
    return queries.market[query], pairs.content[rows], queries.time[query]


def latest_before_queries(examples: Examples) -> np.ndarray:
    """When the latest event of each query's user before it was, int64[R]; its time where there is none.

    A split that a data set gives may hold out what was wanted between training events. As in histories, no
    query knows of a later part, and none that such a split holds out of its own.
    """
    queries, (user, time) = examples.queries, _events(examples)
    part = examples.pairs.split[np.flatnonzero(examples.pairs.positive)]
    found = np.empty(len(queries), np.int64)
    for split in (TRAIN, VALID, TEST):
        own = split == TRAIN or examples.split != "given"
        known, asked = part < split + own, queries.rows(split)
        of, at = queries.user[asked], queries.time[asked]
        found[asked] = latest_before(user[known], time[known], of, at, at)
    return found


def latest_events(examples: Examples, before: int) -> np.ndarray:
    """When each user's latest event strictly before a second was, int64[U]; `before` where there is none."""
    everyone = np.arange(len(examples.users))
    end = np.full(len(everyone), before)
    return latest_before(*_events(examples), everyone, end, end)


def _events(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """User and time of each positive: int32[E] and int64[E]."""
    event = examples.pairs.query[np.flatnonzero(examples.pairs.positive)]
    return examples.queries.user[event], examples.queries.time[event]


def latest_before(
    event_user: np.ndarray, event_time: np.ndarray, user: np.ndarray, time: np.ndarray, without: np.ndarray
) -> np.ndarray:
    """When the latest event of each user strictly before each time was: int64[R].

    Args:
        event_user, event_time: int[E].
        user, time: int[R].
        without: int64[R], what stands where there is none before.
    """
    if not len(event_time):
        return without.copy()
    low = min(event_time.min(), time.min(initial=event_time.min()))
    span = int(max(event_time.max(), time.max(initial=low)) - low) + 2
    key = np.sort(event_user.astype(np.int64) * span + (event_time - low))
    base = user.astype(np.int64) * span
    earlier = np.searchsorted(key, base + (time - low))
    last = key[earlier - 1]
    return np.where((earlier > 0) & (last >= base), last - base + low, without).astype(np.int64)
