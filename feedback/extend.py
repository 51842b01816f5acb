"""A data set and what came back since, as the next data set."""

from __future__ import annotations

import tempfile
import time as clock
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from feedback.impressions import REQUEST, join
from feedback.log import HOUR_S, FeedbackLog
from market.dataset import Dataset, read_table, write_like
from market.outcomes import FLAGS, OUTCOMES, POSITIVE_OUTCOMES
from supply.events import Event

WAIT_S = 86_400
"""An order may come a day after its exposure."""
PART_ROWS = 1_000_000
"""Rows from which on a file of impressions is full."""
_MANY = 2**62
"""Numbers of requests that are that large are drawn or hashed, so that small ones are free."""
_Table = TypeVar("_Table", pd.DataFrame, pd.DataFrame | None)
STATEMENTS = ("viewers", "showing", "stock")
"""Live events that are rows of the table of moments, and the column of each."""


@dataclass
class Taken:
    """What became of a log.

    Attributes:
        rows: impressions that were added.
        known: left out because the data set reaches past them.
        waiting: left out because outcomes of theirs may still come.
        strangers: left out because the catalogue does not have the content.
        unwanted: left out because the data set has what was wanted alone.
        lost: outcomes of what no record says was shown.
        damaged: lines of the log that were torn or changed.
        people: users that the data set did not have.
        moments: statements about rooms and stock that were added.
        unasked: outcomes that were told of but that the data set has no column for, and how often.
    """

    rows: int = 0
    known: int = 0
    waiting: int = 0
    strangers: int = 0
    unwanted: int = 0
    lost: int = 0
    damaged: int = 0
    people: int = 0
    moments: int = 0
    unasked: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> list[str]:
        """What to know of what is lost, a line each; empty where nothing is."""
        found = [
            (self.strangers, "impressions are of contents that the catalogue does not have: give --tables"),
            (self.lost, "outcomes are of what no record says was shown: clients must tell `shown`, too"),
            (self.damaged, "lines of the log are torn or changed"),
        ]
        found += [
            (count, f"impressions have an outcome {name!r}, for which the data set has no column")
            for name, count in sorted(self.unasked.items())
        ]
        return [f"{count:,} {what}; left out" for count, what in found if count]


def extend(
    dataset: Dataset,
    log: Path,
    path: Path,
    *,
    tables: Path | None = None,
    wait_s: int = WAIT_S,
    until: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Dataset, Taken]:
    """Write a data set and the impressions of a feedback log after its last as the data set `path`.

    An hour of the log at a time is in memory. Users whom only the log knows are added with their market
    alone. What may still change waits for the next time: `path`, extended again later, has it then. Requests
    are numbered on from the data set's.

    Args:
        tables: a folder with users.parquet, contents.parquet, sellers.parquet or moments.parquet that take
            the place of the data set's.
        wait_s: how long an outcome may take; younger impressions wait (s).
        until: the time that counts as now (s since the epoch).
        progress: told how many hours of how many are read.

    Raises:
        ValueError: the data set is not cut by time, `log` is no feedback log, or nothing is to be added.
        ContractError: the tables break their contract, or lack what the data set's impressions refer to.
    """
    if "time" not in dataset.impression_columns or dataset.split == "given":
        raise ValueError(
            f"the impressions of {dataset.name} have no time or a given split, so nothing can come after "
            "them; make a data set with `time` and the split 'time' or 'leave_last'"
        )
    if not log.is_dir():
        raise ValueError(f"{log} is no folder; give the one that `pasar serve --feedback` has")

    def table(name: str, own: Callable[[], _Table]) -> pd.DataFrame | _Table:
        given = None if tables is None else tables / f"{name}.parquet"
        return read_table(given) if given is not None and given.is_file() else own()

    users, contents = table("users", dataset.users), table("contents", dataset.contents)
    moments = table("moments", dataset.moments)
    taken, catalogue = Taken(), pd.Index(contents["content_id"])
    with tempfile.TemporaryDirectory(prefix="pasar-feedback-") as spool:
        known = int(moments["time"].max()) if moments is not None and len(moments) else -1
        end = (int(clock.time()) if until is None else until) - wait_s
        said, people = _spool(dataset, FeedbackLog(log), Path(spool), catalogue, taken, known, end, progress)
        taken.moments = len(said)
        if taken.moments:
            moments = said if moments is None else pd.concat([moments, said], ignore_index=True)
        strangers = people[~people["user_id"].isin(users["user_id"])]
        taken.people = len(strangers)
        made = write_like(
            dataset,
            path,
            users=_with(users, strangers),
            contents=contents,
            sellers=table("sellers", dataset.sellers),
            impressions=_all_parts(dataset, Path(spool)),
            moments=moments,
            overwrite=overwrite,
        )
    return made, taken


def _spool(
    dataset: Dataset,
    log: FeedbackLog,
    folder: Path,
    catalogue: pd.Index,
    taken: Taken,
    known: int,
    end: int,
    progress: Callable[[int, int], None],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write the impressions to be added as parts into `folder`; the statements and the users of the log.

    Args:
        known: statements up to this time are had already (s since the epoch).
        end: impressions from this time on wait.
    """
    last = int(pd.read_parquet(dataset.impression_files[-1], columns=["time"])["time"].max())
    statements, people, held = [_statements([], catalogue)], [], []
    number = _next_number(dataset)
    hours = [hour for hour in log.hours() if (hour + 1) * HOUR_S > min(last, known)]
    for done, hour in enumerate(hours, 1):
        records, damaged = log.read(hour)
        statements.append(_statements(records, catalogue))
        if (hour + 1) * HOUR_S > last:
            joined = join(records)
            if (hour + 1) * HOUR_S <= end:  # of others more may still come
                taken.damaged += damaged
                taken.lost += joined.lost
            rows = _chosen(joined.rows, dataset, catalogue, taken, last, end)
            people.append(rows[["user_id", "market"]].drop_duplicates("user_id"))
            first = (rows[REQUEST] != rows[REQUEST].shift()).any(axis=1)
            held.append(_as_columns(rows.assign(request_id=number - 1 + first.cumsum()), dataset, taken))
            number += int(first.sum())
        if held and (done == len(hours) or sum(map(len, held)) >= PART_ROWS):
            pd.concat(held).to_parquet(folder / f"{done:08d}.parquet", index=False)
            held = []
        progress(done, len(hours))
    if not taken.rows:
        raise ValueError(
            f"{log.folder} has nothing to add to {dataset.name}: {taken.known:,} impressions are not after "
            f"its last, {taken.waiting:,} wait for what may still come of them, {taken.strangers:,} are of "
            "contents that the catalogue does not have"
        )
    said = pd.concat(statements)
    return said[said["time"] > known], pd.concat(people).drop_duplicates("user_id")


def _next_number(dataset: Dataset) -> int:
    """A number from which on requests may be numbered: clients may count anew, a data set may not."""
    if "request_id" not in dataset.impression_columns:
        return 0
    files = dataset.impression_files
    most = max(int(pd.read_parquet(f, columns=["request_id"])["request_id"].max()) for f in files)
    return most + 1 if most < _MANY else 0


def _chosen(
    rows: pd.DataFrame, dataset: Dataset, catalogue: pd.Index, taken: Taken, last: int, end: int
) -> pd.DataFrame:
    """The rows that are added; why others are not is counted."""

    def without(left: pd.Series, counted: str) -> None:
        nonlocal rows
        setattr(taken, counted, getattr(taken, counted) + int(left.sum()))
        rows = rows[~left]

    without(rows["time"] <= last, "known")
    without(rows["time"] >= end, "waiting")
    without(~rows["content_id"].isin(catalogue), "strangers")
    if dataset.feedback == "positives":
        named = [n for n in POSITIVE_OUTCOMES if n in rows and n in dataset.impression_columns]
        without(~(rows[named] == 1).any(axis=1), "unwanted")
    taken.rows += len(rows)
    return rows


def _as_columns(rows: pd.DataFrame, dataset: Dataset, taken: Taken) -> pd.DataFrame:
    """The rows with the columns of the data set's impressions."""
    columns = dataset.impression_columns
    for name in OUTCOMES:
        if name in rows and name not in columns and (told := int((rows[name].fillna(0) != 0).sum())):
            taken.unasked[name] += told
    nothing = {name: np.int8(0) if name in FLAGS else np.float32(0) for name in OUTCOMES}
    nothing["rating"] = np.float32(np.nan)
    absent = {name: nothing[name] for name in columns if name not in rows}
    return rows.assign(**absent)[columns]


def _statements(records: list[Event], catalogue: pd.Index) -> pd.DataFrame:
    """The records that are rows of the table of moments, as such."""
    told = [r for r in records if r["event"] in STATEMENTS]
    frame = pd.DataFrame({"content_id": [r["content"] for r in told], "time": [r["time"] for r in told]})
    for name in STATEMENTS:
        key = "product" if name == "showing" else name
        frame[name] = pd.Series([r.get(key) if r["event"] == name else None for r in told], dtype=object)
    frame = frame.astype({"time": np.int64, "viewers": np.float64, "stock": np.float64})
    known = frame["content_id"].isin(catalogue) & (frame["showing"].isna() | frame["showing"].isin(catalogue))
    return frame[known]


def _with(users: pd.DataFrame, strangers: pd.DataFrame) -> pd.DataFrame:
    """Users, and others of whom nothing but the market is known."""
    if strangers.empty:
        return users
    # Whole numbers stay exact where some are missing.
    whole = {n: "Int64" for n in users if str(n).startswith("x_") and pd.api.types.is_integer_dtype(users[n])}
    return pd.concat([users.astype(whole), strangers], ignore_index=True)


def _all_parts(dataset: Dataset, spool: Path) -> Iterator[pd.DataFrame]:
    yield from dataset.impression_parts()
    yield from map(pd.read_parquet, sorted(spool.iterdir()))
