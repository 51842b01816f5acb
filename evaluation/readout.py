"""What slates were worth to the people who saw them, release by release, from the feedback log.

A release that is served beside another is judged where both were: by what people of one market did in the
same hour. A day of one release and the next day of another tell days apart, not releases, so they are not
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import combinations
from typing import Protocol

import numpy as np
import pandas as pd

from evaluation.metrics import Interval, by_cluster, clustered_interval, mean_influence
from evaluation.runs import ALL
from feedback.impressions import REQUEST, join, outcomes_of, unread
from feedback.log import HOUR_S
from feedback.records import SHOWN
from market.outcomes import OUTCOMES
from supply.events import Event

PLACES, DRAWN = "places", "drawn"
"""Figures of a slate itself: places that came into view, and those of them that exploration drew."""
UNTOLD = "(not told)"
"""Release of requests whose client did not tell it."""
_PERSON = ["market", "release", "over", "user_id"]
_WEIGHT, _OLD, _NEW = "weight", "old", "new"
_WIDE = "wide "
"""Begins the columns of a difference by which its interval goes."""
_PARTS = 64
"""Tables of sums that are held before they become one."""


class Log(Protocol):
    """What is read of a `feedback.log.FeedbackLog`."""

    def hours(self) -> list[int]: ...

    def read(self, hour: int) -> tuple[list[Event], int]: ...


@dataclass(frozen=True)
class Figure:
    """A mean over requests, with the ends of its 95 % interval over people.

    Attributes:
        market: code, or "all".
        release: whose slates; `UNTOLD` of those whose clients did not say.
        over: "" for the release's own mean; else the release that was served beside it, and the figure is a
            difference from that one's mean.
        figure: "places" and "drawn" of the slate, and each outcome that was told of, in its own unit.
        value: a request.
        low, high: ends of the interval; NaN where there is one person, of a difference where either release
            has one: nothing tells the release from that person.
        requests: behind the figure, of both releases where it is a difference.
        people: behind the figure.
        both: people whom a difference rests on and whom both releases served.
    """

    market: str
    release: str
    over: str
    figure: str
    value: float
    low: float
    high: float
    requests: int
    people: int
    both: int


@dataclass
class Readout:
    """What a log tells of the releases in it.

    Attributes:
        figures: all markets together first; of each market its releases in the order in which they were first
            served, then the differences.
        lost: outcomes of contents that no record says were shown; they count for nothing.
        damaged: lines of the log that were torn or changed.
    """

    figures: list[Figure] = field(default_factory=list)
    lost: int = 0
    damaged: int = 0

    def remarks(self) -> list[str]:
        """What else to know of the figures, a line each."""
        shared = {
            f"{f.both:,} of {f.people:,} people were served by both {f.release} and {f.over}: "
            "what one did to them may count for the other; give each person one release for the whole time"
            for f in self.figures
            if f.market == ALL and f.both
        }
        return [*sorted(shared), *unread(self.lost, self.damaged)]


def readout(
    log: Log,
    *,
    since: int,
    until: int,
    over: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Readout:
    """What slates were worth from `since` until before `until` (s since the epoch), and what one release was
    worth over another that was served in the same market in the same hour.

    A release's own figures are means over its requests; a request of which nothing came into view counts with
    zeros. The difference of two is that of a regression on the release with an effect of each hour of each
    market (the within estimator), so an hour counts by how many requests both had in it, n m / (n + m).
    Requests of one person are not independent, in either (Liang and Zeger, "Longitudinal data analysis using
    generalized linear models", Biometrika 1986). The effect of an hour with few people follows them, so that
    what they seem to deviate is a part of what they do; intervals make up for it (Bell and McCaffrey, "Bias
    reduction in standard errors for linear regression with multi-stage samples", Survey Methodology 2002).
    Ratings are left out: who rates is no share of who was shown.

    An hour of the log at a time is in memory, beside a row for each person of each release.

    Args:
        over: the release from which others differ; by default each two differ from the one served first.
        progress: told how many hours of how many are read.

    Raises:
        ValueError: no slate was told of in that time, or none of `over`.
    """
    made, releases = Readout(), dict[str, None]() if over is None else {over: None}
    sums = pd.DataFrame(columns=_PERSON)
    hours = [hour for hour in log.hours() if since < (hour + 1) * HOUR_S and hour * HOUR_S < until]
    held: list[pd.DataFrame] = []
    for done, hour in enumerate(hours, 1):
        records, damaged = log.read(hour)
        made.damaged += damaged
        requests, lost = _requests([r for r in records if since <= r["time"] < until])
        made.lost += lost
        releases |= dict.fromkeys(requests.sort_values("time", kind="stable")["release"])
        held += [requests.drop(columns=["time", "request_id"]), *_beside(requests, list(releases), over)]
        if len(held) > _PARTS or done == len(hours):
            sums = pd.concat([sums, *held]).groupby(_PERSON, sort=False).sum().reset_index()
            held = []
        progress(done, len(hours))
    if not len(sums):
        ends = (datetime.fromtimestamp(s, timezone.utc).isoformat(" ", "minutes") for s in (since, until))
        raise ValueError(
            f"no slate was told of from {' until '.join(ends)}; give another time, or wait until what came "
            "of the latest slates is known"
        )
    if over is not None and not (sums["release"] == over).any():
        there = ", ".join(release for release in releases if release != over)
        raise ValueError(f"no slate of {over!r} was told of in that time; there are some of {there}")
    made.figures = list(_all_figures(sums, list(releases)))
    return made


def _requests(records: Sequence[Event]) -> tuple[pd.DataFrame, int]:
    """Requests of which it was told what came into view, each with the sums of its figures; and how many
    outcomes were lost."""
    told = [r for r in records if r["event"] == SHOWN]
    said = [(r["user"], r["time"], r["request"], r["market"], r.get("release", UNTOLD)) for r in told]
    requests = pd.DataFrame(said, columns=[*REQUEST, "market", "release"]).drop_duplicates(REQUEST)
    requests = requests.assign(over="", **{_WEIGHT: 1, _OLD: 0, _NEW: 1})
    joined = join(records)
    rows = joined.rows.assign(**{PLACES: 1, DRAWN: joined.rows["propensity"] < 1})
    named = [PLACES, DRAWN, *(name for name in outcomes_of(rows.columns) if name != "rating")]
    came = rows.groupby(REQUEST, sort=False)[named].sum().reset_index()
    return requests.merge(came, how="left", on=REQUEST).fillna(dict.fromkeys(named, 0)), joined.lost


def _beside(requests: pd.DataFrame, releases: Sequence[str], over: str | None) -> Iterator[pd.DataFrame]:
    """What an hour's requests say of the difference of each two releases in each market, or of each from
    `over`, which comes first, a row each: the difference is the sum of a figure's column over that of the
    weights. The same with `_WIDE` are as large as they would be without an effect of the hour."""
    figures = _figures_of(requests)
    for market, here in requests.groupby("market", sort=False):
        served = set(here["release"])
        present = [release for release in releases if release in served]
        for old, new in combinations(present, 2):
            if over not in (None, old):
                continue
            two = here[here["release"].isin((old, new))]
            is_new = (two["release"] == new).to_numpy(np.float64)
            apart, values = is_new - is_new.mean(), two[figures].to_numpy(np.float64)
            made = pd.DataFrame(apart[:, None] * (values - values.mean(axis=0)), columns=figures)
            made[_WEIGHT] = apart**2
            people = two["user_id"].nunique()
            wide = (made * np.sqrt(people / max(people - 1, 1))).add_prefix(_WIDE)
            yield pd.concat([made, wide], axis=1).assign(
                market=market,
                release=new,
                over=old,
                user_id=two["user_id"].to_numpy(),
                **{_OLD: 1 - is_new, _NEW: is_new},
            )


def _all_figures(sums: pd.DataFrame, releases: Sequence[str]) -> Iterator[Figure]:
    turn = {release: place for place, release in enumerate(releases)}
    for market in [ALL, *sorted(sums["market"].unique())]:
        here = sums if market == ALL else sums[sums["market"] == market]
        groups = {of: rows for of, rows in here.groupby(["over", "release"], sort=False)}
        for over, release in sorted(groups, key=lambda of: (turn.get(of[0], -1), turn[of[1]])):
            rows = groups[over, release]
            person, people = pd.factorize(rows["user_id"])
            served = [by_cluster(rows[side].to_numpy(), person) for side in (_OLD, _NEW)]
            alone = bool(over) and min(map(np.count_nonzero, served)) == 1
            total, wide = float(rows[_WEIGHT].sum()), _WIDE if over else ""
            weight = rows[wide + _WEIGHT].to_numpy(np.float64)
            for figure in _figures_of(rows):
                mean = float(rows[figure].sum()) / total
                deviation = rows[wide + figure].to_numpy(np.float64) / weight - mean
                influence = mean_influence(deviation, person, weight) * (weight.sum() / total)
                made = clustered_interval(mean, influence, person)
                yield Figure(
                    market,
                    release,
                    over,
                    figure,
                    *(Interval(mean, np.nan, np.nan) if alone else made),
                    requests=int(np.sum(served)),
                    people=len(people),
                    both=int(np.logical_and(*served).sum()),
                )


def _figures_of(table: pd.DataFrame) -> list[str]:
    return [name for name in (PLACES, DRAWN, *OUTCOMES) if name in table]
