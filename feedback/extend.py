"""A data set and what came back since, as the next data set."""

from __future__ import annotations

import shutil
import time as clock
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from feedback.impressions import REQUEST, happened, join, outcomes_of, unread, wanted
from feedback.late import Late
from feedback.log import HOUR_S, FeedbackLog
from market.dataset import (
    Dataset,
    expect_free,
    expect_outside,
    read_part,
    read_table,
    table_files,
    write_like,
)
from market.folders import only_user
from market.outcomes import FLAGS
from market.tables import validate_entities, validate_moments
from supply.events import Event, turn

WAIT_S = 86_400
"""An order may come a day after its exposure."""
LATE_S = 7 * 86_400
"""Shops credit an exposure with what is ordered within a week."""
PART_ROWS = 1_000_000
"""Rows from which on a file of impressions is full."""
HASHED, COUNTED = 2**62, 2**40
"""Numbers of requests from the first on are hashes, and those up to the second are counts: a data set whose
own are hashes has no others so small, but those that were given here."""
TABLES = ("users", "contents", "sellers", "moments")
STATEMENTS = ("viewers", "showing", "stock")
"""Live events that are rows of the table of moments, and the column of each."""

KNOWN, WAITING, STRANGE, UNSOLD, UNWANTED = (
    "are not after its last",
    "wait for what may still come of them (--wait-hours)",
    "are of contents that the catalogue does not have (--tables)",
    "are of markets in which it sells nothing",
    "were not wanted, and it has what was wanted alone",
)
"""Why impressions of a log are left out, to the end of a sentence."""


@dataclass
class Taken:
    """What became of a log.

    Attributes:
        rows: impressions that were added.
        amended: impressions of the data set of which the log tells otherwise by now.
        left: impressions that were not, by why.
        lost: contents of requests of which an outcome was told, but not that they were shown.
        damaged: lines of the log that were torn or changed.
        people: users that the data set did not have.
        moments: statements about rooms and stock that were added.
        unasked: outcomes that were told of but that the data set has no column for, and how often.
    """

    rows: int = 0
    amended: int = 0
    left: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    damaged: int = 0
    people: int = 0
    moments: int = 0
    unasked: Counter[str] = field(default_factory=Counter)

    def why_left(self) -> str:
        """How many impressions were not added, and why; empty where all were."""
        return ", ".join(f"{count:,} {why}" for why, count in self.left.items() if count)

    def remarks(self) -> list[str]:
        """What else to know of what is left out, a line each."""
        return unread(self.lost, self.damaged) + [
            f"{count:,} outcomes {name!r} are left out: a data set that has this column takes them"
            for name, count in sorted(self.unasked.items())
        ]


def extend(
    dataset: Dataset,
    log: Path,
    path: Path,
    *,
    tables: Path | None = None,
    wait_s: int = WAIT_S,
    late_s: int = LATE_S,
    until: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Dataset, Taken]:
    """Write a data set and the impressions of a feedback log after its last as the data set `path`.

    An hour of the log at a time is in memory. Users whom only the log knows are added with their market
    alone. What may still change waits for the next time: `path`, extended again later, has it then. Of the
    data set's last impressions outcomes are what the log tells by now (`feedback.late`); its other files are
    linked. Requests are numbered on from the data set's.

    Args:
        tables: a folder with users, contents, sellers or moments (`market.dataset.table_files`) that take the
            place of the data set's; they have all that its impressions refer to.
        wait_s: how long an outcome may take; younger impressions wait, and so do statements (s).
        late_s: how far before the data set's last impression outcomes still change; 0 for nowhere (s).
        until: the time that counts as now (s since the epoch).
        progress: told how many hours of how many are read.

    Raises:
        ValueError: the data set is not cut by time, `log` is no feedback log or lies in `path` or around it,
            `tables` has none, or nothing is to be added.
        ContractError: the tables break their contract, or lack what the data set's impressions refer to.
        FileExistsError, FolderInUse: as `market.dataset.write_dataset`.
    """
    if "time" not in dataset.impression_columns or dataset.split == "given":
        raise ValueError(
            f"the impressions of {dataset.name} have no time or a given split, so nothing can come after "
            "them; make a data set with `time` and the split 'time' or 'leave_last'"
        )
    told = FeedbackLog.open(log)
    inner, outer = log.resolve(), path.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise ValueError(f"the log {log} and the data set {path} lie in each other; choose another --out")
    expect_free(path, overwrite)
    if tables is not None:
        expect_outside(tables, path)
    users, contents, sellers, moments = _tables(dataset, tables)
    end = (int(clock.time()) if until is None else until) - wait_s
    spool = path.parent / f".{path.name}.feedback"
    with only_user(spool, "wait for it or choose another folder"):
        try:
            for left in spool.glob("*.parquet"):  # by one that was killed
                left.unlink()
            known = int(moments["time"].max()) if moments is not None and len(moments) else -1
            reader = _Reader(dataset, users, contents, end, known, late_s)
            reader.read(told, spool, progress)
            taken = reader.taken
            said, people = reader.statements(), reader.people()
            if taken.moments:
                moments = said if moments is None else pd.concat([moments, said], ignore_index=True)
            strangers = people[~people["user_id"].isin(users["user_id"])]
            taken.people = len(strangers)
            made = write_like(
                dataset,
                path,
                users=_with(users, strangers),
                contents=contents,
                sellers=sellers,
                impressions=chain(reader.late.parts(), map(pd.read_parquet, sorted(spool.glob("*.parquet")))),
                moments=moments,
                overwrite=overwrite,
            )
        finally:
            shutil.rmtree(spool, ignore_errors=True)
    return made, taken


def _tables(
    dataset: Dataset, tables: Path | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None, pd.DataFrame | None]:
    """Users, contents, sellers and moments, of `tables` where it has them, all of them sound."""
    files = {} if tables is None else table_files(tables, TABLES)
    if tables is not None and not files:
        raise ValueError(f"{tables} has none of {', '.join(f'{name}.parquet' for name in TABLES)}")

    def table(name: str) -> pd.DataFrame | None:
        return read_table(files[name]) if name in files else getattr(dataset, name)()

    users, contents, sellers = table("users"), table("contents"), table("sellers")
    assert users is not None  # every data set has them
    assert contents is not None
    moments = table("moments")
    if files:  # what a data set has was checked when it was written
        users, contents, sellers = validate_entities(users, contents, sellers)
    if files and moments is not None:
        moments = validate_moments(moments, pd.Index(contents["content_id"]))
    return users, contents, sellers, moments


class _Reader:
    """Reads a log for a data set.

    Args:
        end: impressions and statements from this time on wait (s since the epoch).
        known: statements up to this time are had already (s since the epoch).
        late_s: how far before the last impression outcomes may change (s).
    """

    def __init__(
        self,
        dataset: Dataset,
        users: pd.DataFrame,
        contents: pd.DataFrame,
        end: int,
        known: int,
        late_s: int,
    ) -> None:
        self.columns, self.name = dataset.impression_columns, dataset.name
        self.wanted_alone = dataset.feedback == "positives"
        self.last = int(read_part(dataset.impression_files[-1], ["time"])["time"].max())
        self.catalogue = pd.Index(contents["content_id"])
        self.since = self.last + 1 - late_s
        self.late = Late(dataset, self.since, pd.Index(users["user_id"]), self.catalogue)
        self.sold = set(contents["markets"].explode())
        self.end, self.known = end, known
        self.number = _next_number(dataset)
        self.taken = Taken()
        self._people = [pd.DataFrame({"user_id": [], "market": []}, dtype=object)]
        self._statements = [_statements([])]

    def read(self, log: FeedbackLog, spool: Path, progress: Callable[[int, int], None]) -> None:
        """Write the impressions to be added as parts into `spool`, in the order of time."""
        held: list[pd.DataFrame] = []
        first = min(self.last, self.known, self.since)
        hours = [hour for hour in log.hours() if (hour + 1) * HOUR_S > first]
        for done, hour in enumerate(hours, 1):
            records, damaged = log.read(hour)
            if self.since < (hour + 1) * HOUR_S and hour * HOUR_S <= self.last:
                self.late.take(records)
            self._statements.append(self._told(_statements(records)))
            if (hour + 1) * HOUR_S > self.last:
                if len(rows := self._impressions(records)):
                    held.append(rows)
                if (hour + 1) * HOUR_S <= self.end:  # a line may be on its way to others
                    self.taken.damaged += damaged
            if held and (done == len(hours) or sum(map(len, held)) >= PART_ROWS):
                pd.concat(held).to_parquet(spool / f"{done:08d}.parquet", index=False)
                held = []
            progress(done, len(hours))
        self.taken.moments = sum(map(len, self._statements))
        self.taken.amended = self.late.rows
        if not self.taken.rows and not self.taken.amended:
            why = self.taken.why_left() or "it has no impressions since"
            raise ValueError(f"{log.folder} has nothing to add to {self.name}: {why}")

    def people(self) -> pd.DataFrame:
        """Users of what was added, with the market in which each was first seen."""
        return pd.concat(self._people).drop_duplicates("user_id")

    def statements(self) -> pd.DataFrame:
        """Rows of the table of moments that are added."""
        return pd.concat(self._statements)

    def _told(self, said: pd.DataFrame) -> pd.DataFrame:
        """Of statements those that are added."""
        said = said[(said["time"] > self.known) & (said["time"] < self.end)]
        if said.empty:  # as most hours are that were read before; to look for no id takes long as well
            return said
        shows = said["showing"]
        return said[said["content_id"].isin(self.catalogue) & (shows.isna() | shows.isin(self.catalogue))]

    def _impressions(self, records: list[Event]) -> pd.DataFrame:
        """Of an hour's impressions those that are added, with the columns of the data set."""
        known = [record for record in records if record["time"] <= self.last]
        waiting = [record for record in records if record["time"] >= self.end]
        self.taken.left[KNOWN] += len(join(known).rows)
        self.taken.left[WAITING] += len(join(waiting).rows)
        joined = join([record for record in records if self.last < record["time"] < self.end])
        self.taken.lost += joined.lost
        rows = joined.rows
        rows = self._without(rows, ~rows["content_id"].isin(self.catalogue), STRANGE)
        rows = self._without(rows, ~rows["market"].isin(self.sold), UNSOLD)
        for name in outcomes_of(rows.columns):
            if name not in self.columns and (told := int(happened(rows, name).sum())):
                self.taken.unasked[name] += told
        if self.wanted_alone:
            rows = self._without(rows, ~wanted(rows, self.columns), UNWANTED)
        self.taken.rows += len(rows)
        self._people.append(rows[["user_id", "market"]].drop_duplicates("user_id"))
        # Shifted numbers would be floats, among which large ones that are near are equal.
        first = ~rows.duplicated(REQUEST)
        rows = rows.assign(request_id=self.number - 1 + first.cumsum())
        self.number += int(first.sum())
        absent = {name: _NOTHING[name] for name in self.columns if name not in rows}
        return rows.assign(**absent)[self.columns]

    def _without(self, rows: pd.DataFrame, left: pd.Series, why: str) -> pd.DataFrame:
        self.taken.left[why] += int(left.sum())
        return rows[~left]


_NOTHING: dict[str, object] = {
    "watch_s": np.float32(0),
    **dict.fromkeys(FLAGS, np.int8(0)),
    "value": np.float32(0),
    "rating": np.float32(np.nan),
    "split": "train",  # nobody reads it where the split is by time
}
"""What a column says of an impression of which nothing was told."""


def _next_number(dataset: Dataset) -> int:
    """A number from which on requests may be numbered: clients may count anew, a data set may not."""
    if "request_id" not in dataset.impression_columns:
        return 0
    largest = counted = -1
    for file in dataset.impression_files:
        numbers = read_part(file, ["request_id"])["request_id"].to_numpy()
        largest = max(largest, int(numbers.max()))
        counted = max(counted, int(numbers.max(where=numbers < COUNTED, initial=-1)))
    return (largest if largest < HASHED else counted) + 1


def _statements(records: list[Event]) -> pd.DataFrame:
    """The records that are rows of the table of moments, as such, at the time from which on they count."""
    told = [r for r in records if r["event"] in STATEMENTS]
    frame = pd.DataFrame({"content_id": [r["content"] for r in told], "time": [turn(r) for r in told]})
    for name in STATEMENTS:
        key = "product" if name == "showing" else name
        frame[name] = pd.Series([r.get(key) if r["event"] == name else None for r in told], dtype=object)
    return frame.astype({"time": np.int64, "viewers": np.float64, "stock": np.float64})


def _with(users: pd.DataFrame, strangers: pd.DataFrame) -> pd.DataFrame:
    """Users, and others of whom nothing but the market is known."""
    if strangers.empty:
        return users
    # Whole numbers stay exact where some are missing.
    whole = {n: "Int64" for n in users if str(n).startswith("x_") and pd.api.types.is_integer_dtype(users[n])}
    return pd.concat([users.astype(whole), strangers], ignore_index=True)
