"""From records to impressions: what was shown, joined with what came of it, as the contract has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from feedback.records import OUTCOME, SHOWN
from market.outcomes import FLAGS, OUTCOMES
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
    told = [r for r in records if r["event"] == OUTCOME]
    if not told:
        return Joined(_in_order(shown))
    came = pd.DataFrame(
        [(r["user"], r["time"], r["request"], r["content"], r["at"]) for r in told], columns=[*EXPOSURE, "at"]
    )
    named = [name for name in OUTCOMES if any(name in r for r in told)]
    for name in named:
        came[name] = np.array([r.get(name, np.nan) for r in told], np.float64)
    came = came.sort_values("at", kind="stable")
    # `last` skips NaN, so each outcome is its own latest.
    latest = came.groupby(EXPOSURE, sort=False)[named].last().reset_index()
    joined = shown.merge(latest, how="left", on=EXPOSURE, indicator=True)
    lost = len(latest) - int((joined["_merge"] == "both").sum())
    return Joined(_in_order(_filled(joined.drop(columns="_merge"), named)), lost)


def _filled(rows: pd.DataFrame, named: Iterable[str]) -> pd.DataFrame:
    for name in named:
        if name != "rating":
            rows[name] = rows[name].fillna(0).astype(np.int8 if name in FLAGS else np.float32)
    return rows


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["time", "request_id", "user_id", "position"], kind="stable", ignore_index=True)
