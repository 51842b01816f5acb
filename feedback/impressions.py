"""From records to impressions: what was shown, joined with what came of it, as the contract has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from feedback.records import OUTCOME, SHOWN
from market.outcomes import FLAGS, OUTCOMES, POSITIVE_OUTCOMES
from supply.events import Event

REQUEST = ["user_id", "time", "request_id"]
"""What names a request; with `content_id` an exposure."""
EXPOSURE = [*REQUEST, "content_id"]
_PLACE = ["market", "position", "propensity"]


@dataclass
class Joined:
    """Impressions of some records.

    Attributes:
        rows: users, contents, markets, times, requests, positions, propensities, and every outcome that a
            record told of any of them. Where none told of a row's it is 0, a rating NaN. In order of time,
            request and position.
        lost: contents of requests of which an outcome was told, but not that they were shown.
    """

    rows: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*EXPOSURE, *_PLACE]))
    lost: int = 0


def join(records: Sequence[Event]) -> Joined:
    """The impressions of records.

    Of an exposure that was told of twice the first holds, of an outcome that was told of twice the latest by
    its `at`, and of equal times the one that came last: sending anything again changes nothing.
    """
    shown = pd.DataFrame(
        [
            (
                r["user"],
                r["time"],
                r["request"],
                item["content"],
                r["market"],
                item["position"],
                item["propensity"],
            )
            for r in records
            if r["event"] == SHOWN
            for item in r["items"]
        ],
        columns=[*EXPOSURE, *_PLACE],
    ).drop_duplicates(EXPOSURE, ignore_index=True)
    came = latest(records)
    if came.empty:
        return Joined(_in_order(shown))
    joined = shown.merge(came, how="left", on=EXPOSURE, indicator=True)
    lost = len(came) - int((joined["_merge"] == "both").sum())
    return Joined(_in_order(_filled(joined.drop(columns="_merge"), outcomes_of(came.columns))), lost)


def latest(records: Sequence[Event]) -> pd.DataFrame:
    """What was told of each exposure last: `EXPOSURE` and each outcome that any record told of, NaN where
    none told of an exposure's."""
    told = [r for r in records if r["event"] == OUTCOME]
    named = outcomes_of(set().union(*told))
    came = pd.DataFrame(told, columns=["user", "time", "request", "content", "at", *named])
    came.columns = pd.Index([*EXPOSURE, "at", *named])
    came = came.astype({"time": np.int64, "request_id": np.int64} | dict.fromkeys(named, np.float64))
    came = came.sort_values("at", kind="stable")
    # `last` skips NaN, so each outcome is its own latest.
    return came.groupby(EXPOSURE, sort=False)[named].last().reset_index()


def outcomes_of(columns: Iterable[str]) -> list[str]:
    """Those columns that are outcomes, in the order of `OUTCOMES`."""
    there = set(columns)
    return [name for name in OUTCOMES if name in there]


def happened(rows: pd.DataFrame, name: str) -> pd.Series:
    """bool[P]: of which rows an outcome was told, and not that it did not happen."""
    return rows[name].notna() if name == "rating" else rows[name] > 0


def wanted(rows: pd.DataFrame, columns: Iterable[str]) -> pd.Series:
    """bool[P]: which rows somebody wanted, by the outcomes among the columns of a data set."""
    has = outcomes_of(columns)
    found = pd.Series(False, index=rows.index)
    for name in [name for name in has if name in POSITIVE_OUTCOMES] or has:
        if name in rows:
            found |= happened(rows, name)
    return found


def unread(lost: int, damaged: int) -> list[str]:
    """What to know of outcomes that found nothing that was shown, and of lines that were torn or changed, a
    line each."""
    found = [
        (lost, "outcomes are left out, of contents that no record says were shown: clients tell both"),
        (damaged, "lines of the log are torn or changed"),
    ]
    return [f"{count:,} {what}" for count, what in found if count]


def _filled(rows: pd.DataFrame, named: Sequence[str]) -> pd.DataFrame:
    for name in named:
        if name != "rating":
            rows[name] = rows[name].fillna(0).astype(np.int8 if name in FLAGS else np.float32)
    return rows


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["time", "request_id", "user_id", "position"], kind="stable", ignore_index=True)
