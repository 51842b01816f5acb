"""The state of live rooms, stock and sellers by the second, as arrays beside those of a release."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from market.moments import decayed
from supply.events import EVENT_KINDS, Event, turn
from supply.journal import JOURNAL, Tail

UNKNOWN = -1
Lookup = Callable[[np.ndarray], np.ndarray]
"""Ids, text of any shape, to row numbers of that shape; -1 where unknown."""


class LiveState:
    """Follows a folder's journal; `refresh` takes in what is new.

    Of events that set the same for the same subject the one of the latest time holds, and of equal times the
    one that came later; what lies in the future counts as of when it was taken in (`supply.events.turn`).
    What no event has set is unknown.

    Args:
        folder: of the journal; it may not exist yet.
        contents, sellers: rows of their ids.
        content_count, seller_count: number of either.

    Attributes:
        open: int8[N], 1 started, 0 ended, -1 unknown.
        since: int64[N], when that was or will be so, as the event says (s since the epoch).
        viewers: float32[N], people in a room; NaN unknown.
        usual: float32[N], the decayed mean of that number when it was last said (`market.moments`); NaN
            unknown. A journal that was compacted has forgotten what it was before.
        told: int64[N], when the number was last said (s since the epoch).
        showing: int64[N], row of the product that a room shows; -1 unknown.
        stock: int64[N], pieces left; -1 unknown.
        down: int8[N], 1 taken down.
        suspended: int8[S], 1 for sellers none of whose contents may be shown.
        taken: events taken in since this process began.
        unknown: of them, those about ids that the release does not know.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        contents: Lookup,
        sellers: Lookup,
        content_count: int,
        seller_count: int,
    ) -> None:
        self._tail = Tail(Path(folder) / JOURNAL)
        self._lookup = {"content": contents, "seller": sellers}
        self._count = {"content": content_count, "seller": seller_count}
        self.taken = self.unknown = 0
        self._clear()

    @property
    def damaged(self) -> int:
        """Lines of the journal that were torn or changed, and so ignored."""
        return self._tail.damaged

    def _clear(self) -> None:
        contents, sellers = self._count["content"], self._count["seller"]
        self.open = np.full(contents, UNKNOWN, np.int8)
        self.viewers = np.full(contents, np.nan, np.float32)
        self.usual = np.full(contents, np.nan, np.float32)
        self.showing = np.full(contents, UNKNOWN, np.int64)
        self.stock = np.full(contents, UNKNOWN, np.int64)
        self.down = np.zeros(contents, np.int8)
        self.suspended = np.zeros(sellers, np.int8)
        self._when = {
            kind.field: np.full(self._count[kind.subject], -1, np.int64) for kind in EVENT_KINDS.values()
        }
        self.since, self.told = np.full(contents, -1, np.int64), self._when["viewers"]

    def refresh(self) -> tuple[np.ndarray, np.ndarray]:
        """Take in what is new.

        Returns:
            rows of contents and codes of sellers whose state may have changed, int64[*] each.
        """
        events, anew = self._tail.read()
        if not events and not anew:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if anew:
            self._clear()
        changed: dict[str, list[np.ndarray]] = {"content": [], "seller": []}
        by_field: dict[str, list[Event]] = {}
        for event in events:
            by_field.setdefault(EVENT_KINDS[event["event"]].field, []).append(event)
        for field, told in by_field.items():
            subject = EVENT_KINDS[told[0]["event"]].subject
            changed[subject].append(self._apply(field, subject, told))
        self.taken += len(events)
        if anew:  # what the old journal said may hold no more
            return np.arange(self._count["content"]), np.arange(self._count["seller"])
        rows, codes = (np.unique(np.concatenate([np.empty(0, np.int64), *changed[s]])) for s in changed)
        return rows, codes

    def _apply(self, field: str, subject: str, told: list[Event]) -> np.ndarray:
        """Set one field by its events; returns the rows."""
        row = self._lookup[subject](np.array([event[subject] for event in told], object))
        time = np.array([turn(event) for event in told])
        kinds = [EVENT_KINDS[event["event"]] for event in told]
        said = [event[k.value] if isinstance(k.value, str) else k.value for event, k in zip(told, kinds)]
        value = self._lookup["content"](np.array(said, object)) if field == "showing" else np.array(said)
        named = np.array([event["time"] for event in told])
        self.unknown += int((row < 0).sum())
        if field == "viewers":
            self._follow_viewers(row, time, value)
        order = np.argsort(time, kind="stable")  # of a subject's events the last one written holds
        row, time, value, named = (each[order] for each in (row, time, value, named))
        when = self._when[field]
        holds = (row >= 0) & (time >= when[np.maximum(row, 0)] if len(when) else False)
        row, time, value, named = (each[holds] for each in (row, time, value, named))
        if field == "open":
            self.since[row] = named
        when[row] = time
        getattr(self, field)[row] = value
        return row

    def _follow_viewers(self, row: np.ndarray, time: np.ndarray, value: np.ndarray) -> None:
        """Bring the decayed means up to new numbers, in the order in which they were written.

        What comes late is left out, as it is where each is read by itself: all processes know the same mean,
        however many numbers each of them finds at once.
        """
        known = row >= 0
        rooms, place = np.unique(row[known], return_inverse=True)
        # Of the rooms told of alone: a refresh that copies the state of all contents makes requests wait.
        level, told, usual = self.viewers[rooms], self.told[rooms], self.usual[rooms]
        for one, at, said in zip(place.tolist(), time[known].tolist(), value[known].tolist()):
            if at < told[one]:
                continue
            usual[one] = said if np.isnan(level[one]) else decayed(usual[one], level[one], at - told[one])
            level[one], told[one] = said, at
        self.usual[rooms] = usual
