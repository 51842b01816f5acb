"""What came late: outcomes of impressions that a data set has already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from feedback.impressions import latest, outcomes_of, wanted
from market.dataset import Dataset, read_part
from supply.events import Event

KEY = ["user_id", "time", "content_id"]
"""What names an exposure in a data set, which numbers requests anew."""


class Late:
    """The last impressions of a data set, and what a log tells of them: `take` its records, then the `parts`.

    Numbers alone are in memory, some 50 bytes an impression.

    Args:
        since: the time from which on impressions may change (s since the epoch).
        users, contents: all ids of the data set's impressions.
    """

    def __init__(self, dataset: Dataset, since: int, users: pd.Index, contents: pd.Index) -> None:
        self._dataset, self._ids = dataset, {"user_id": users, "content_id": contents}
        named = outcomes_of(dataset.impression_columns)
        self._parts = dict[Path, slice]()
        pieces, begin = list[pd.DataFrame](), 0
        for file in dataset.impression_files:
            if int(read_part(file, ["time"])["time"].iloc[-1]) < since:
                continue
            piece = read_part(file, [*KEY, *named])
            pieces.append(self._coded(piece))
            self._parts[file] = slice(begin, begin := begin + len(piece))
        own = pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=[*KEY, *named])
        self._key = own[KEY].astype(np.int64)
        self._open = (own["time"] >= since).to_numpy(bool)
        self._outcomes = {name: own[name].to_numpy(copy=True) for name in named}
        self._changed = np.zeros(len(own), bool)

    def take(self, records: Sequence[Event]) -> None:
        """Change what records tell otherwise; what they tell nothing of stays, and so do impressions of one
        person, content and second, which cannot be told apart."""
        told = self._coded(latest(records))
        told = told[(told[list(self._ids)] >= 0).all(axis=1)]
        named = [name for name in outcomes_of(told.columns) if name in self._outcomes]
        if told.empty or not named:
            return
        time = self._key["time"].to_numpy()
        begin, end = np.searchsorted(time, [told["time"].min(), told["time"].max() + 1])
        own = self._key[begin:end].assign(place=np.arange(begin, end))[self._open[begin:end]]
        both = own.drop_duplicates(KEY, keep=False).merge(told.drop_duplicates(KEY, keep=False), on=KEY)
        for name in named:
            column, value = self._outcomes[name], both[name].to_numpy(np.float32)
            place = both["place"].to_numpy()
            other = ~np.isnan(value) & (column[place] != value)
            column[place[other]] = value[other]
            self._changed[place[other]] = True

    @property
    def rows(self) -> int:
        """How many impressions changed."""
        return int(self._changed.sum())

    def parts(self) -> Iterator[pd.DataFrame | Path]:
        """The parts of the data set's impressions: the file itself where nothing changed."""
        for file in self._dataset.impression_files:
            changed = self._changed[self._parts.get(file, slice(0, 0))]
            yield self._made(file, changed) if changed.any() else file

    def _made(self, file: Path, changed: np.ndarray) -> pd.DataFrame:
        own = {name: column[self._parts[file]] for name, column in self._outcomes.items()}
        part = read_part(file).assign(**own)
        # What is kept because it was wanted goes with that.
        wants = self._dataset.feedback == "positives"
        return part[~changed | wanted(part, list(own))] if wants else part

    def _coded(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows with numbers for ids, -1 for unknown ones."""
        return rows.assign(**{name: ids.get_indexer(rows[name]) for name, ids in self._ids.items()})
