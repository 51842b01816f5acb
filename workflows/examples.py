"""From a data set to training examples: queries, histories, splits and (query, content) pairs.

A *query* is what is known when a feed is asked for: the user, the market, the moment and the user's history
up to that moment. A *pair* is a query with one content and what came of it. Strings become row numbers
here, once; everything after this module works on arrays that are memory-mapped from `.npy` files, so the
log may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from market.dataset import Dataset
from market.moments import UNKNOWN, LoggedMoments, Timeline
from market.outcomes import OUTCOMES, POSITIVE_OUTCOMES
from market.tables import SPLITS
from market.watch_time import WatchTime
from workflows.arrays import ArrayFiles
from workflows.windows import over_windows

TRAIN, VALID, TEST = range(3)

#: Outcomes after which a content may be shown again: who put it into the cart may still buy it.
UNFINISHED_OUTCOMES = ("cart",)

#: Columns of a seller that are features of its contents.
SIGNS = ("rating", "followers")

NO_TIME = np.iinfo(np.int64).min

#: Histories that are put together at once.
HISTORIES = 65_536


@dataclass(frozen=True)
class SplitConfig:
    """How a log is cut by time.

    Attributes:
        valid_fraction: share of the log, by time, kept for choices (fraction of impressions, 0 to 1).
        test_fraction: share of the log, by time, kept for the report (fraction of impressions, 0 to 1).
    """

    valid_fraction: float = 0.1
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        shares = self.valid_fraction, self.test_fraction
        if not (min(shares) > 0 and sum(shares) < 1):
            raise ValueError(
                f"valid_fraction={self.valid_fraction} and test_fraction={self.test_fraction} must be "
                "positive and leave something to train on; the defaults are 0.1 and 0.1"
            )


@dataclass(frozen=True)
class Log:
    """The impressions of a data set as row numbers, one entry an impression, in file order.

    Attributes:
        user: int32[P], row of the users table.
        content: int32[P], row of the contents table.
        market: int16[P], place in `markets`.
        time: int64[P], seconds since the epoch, or None where the data set has no time.
        request: int64[P], request number of the user in the market, or None where requests were not logged.
        split: int8[P], 0 train, 1 valid, 2 test.
        outcomes: float32[P] by outcome name.
        propensity: float32[P], chance that the content was shown there, or None where it was not logged.
    """

    user: np.ndarray
    content: np.ndarray
    market: np.ndarray
    split: np.ndarray
    outcomes: dict[str, np.ndarray]
    time: np.ndarray | None = None
    request: np.ndarray | None = None
    propensity: np.ndarray | None = None

    @property
    def positive(self) -> np.ndarray:
        """bool[P]: impressions that led to a wanted outcome; all of them where no such outcome is logged."""
        return self._any(POSITIVE_OUTCOMES)

    @property
    def finished(self) -> np.ndarray:
        """bool[P]: impressions after which the content need not be shown again."""
        return self._any([name for name in POSITIVE_OUTCOMES if name not in UNFINISHED_OUTCOMES])

    def _any(self, outcomes: Sequence[str]) -> np.ndarray:
        found = np.full(len(self.user), not self.outcomes.keys() & set(POSITIVE_OUTCOMES))
        for name in outcomes:
            if name in self.outcomes:
                found |= self.outcomes[name] > 0
        return found


@dataclass(frozen=True)
class Queries:
    """One row a query, ordered by split and, within it, as logged.

    Attributes:
        user: int32[R], row of the users table.
        market: int16[R], place in the data set's list of markets.
        time: int64[R], seconds since the epoch; `NO_TIME` throughout where the data set has no time.
        split: int8[R].
        history: int32[R, L], rows of the contents table, oldest first, left-aligned, -1 beyond the end.
    """

    user: np.ndarray
    market: np.ndarray
    time: np.ndarray
    split: np.ndarray
    history: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, split: int) -> slice:
        """The rows of one split, contiguous because queries are ordered by split."""
        first, last = np.searchsorted(self.split, [split, split + 1])
        return slice(int(first), int(last))


@dataclass(frozen=True)
class Pairs:
    """One row a (query, content) pair with its outcomes, ordered by split.

    Attributes:
        query: int64[P], row of `Queries`.
        content: int32[P], row of the contents table.
        positive: bool[P], whether the impression itself led to a wanted outcome.
        outcomes: float32[P] by outcome name, the labels; of a live room those of `live_window_s` from there.
        split: int8[P].
        propensity: float32[P], chance that the content was shown there, or None where it was not logged.
    """

    query: np.ndarray
    content: np.ndarray
    positive: np.ndarray
    outcomes: dict[str, np.ndarray]
    split: np.ndarray
    propensity: np.ndarray | None = None

    def rows(self, split: int) -> slice:
        first, last = np.searchsorted(self.split, [split, split + 1])
        return slice(int(first), int(last))

    def part(self, split: int) -> Pairs:
        """The pairs of one split."""
        rows = self.rows(split)
        return Pairs(
            self.query[rows],
            self.content[rows],
            self.positive[rows],
            {name: values[rows] for name, values in self.outcomes.items()},
            self.split[rows],
            None if self.propensity is None else self.propensity[rows],
        )


@dataclass(frozen=True)
class Examples:
    """All that features and models are made from.

    Attributes:
        users, contents: the tables, in row order.
        markets: market codes; `Queries.market` are places in this list.
        feedback, split: as the data set says, see `market.tables.Tables`.
        available: bool[M, N], where a content may be shown.
        popularity: float32[M, N], positives of the training part by market.
        latest_history: int32[U, L], each user's history at the end of the log.
        drawn: whether the validation rows were drawn from the data set's training rows.
        latest_seen: int32[U, S], contents not to be shown to each user again, as of the end of the log.
        seen_before_test: int32[U, S], the same without what the test part says.
        end: the first second after the log (s since the epoch); 0 where the data set has no time.
        has_time: whether `Queries.time` means anything.
        moments: what was true of contents when.
    """

    name: str
    feedback: str
    split: str
    markets: tuple[str, ...]
    users: pd.DataFrame
    contents: pd.DataFrame
    queries: Queries
    pairs: Pairs
    available: np.ndarray
    popularity: np.ndarray
    latest_history: np.ndarray
    latest_seen: np.ndarray
    seen_before_test: np.ndarray
    drawn: bool
    end: int
    has_time: bool
    moments: LoggedMoments

    @property
    def durations(self) -> np.ndarray:
        """Durations of the contents (s), float32[N], NaN where unknown."""
        if "duration_s" not in self.contents:
            return np.full(len(self.contents), np.nan, np.float32)
        return self.contents["duration_s"].to_numpy(np.float32)

    @property
    def learned_until(self) -> int:
        """The first second of the test part where the log is cut by time, else `end` (s since the epoch)."""
        tested = self.queries.time[self.queries.rows(TEST)]
        return int(tested.min()) if self.split == "time" and len(tested) else self.end

    @cached_property
    def watch_time(self) -> WatchTime:
        """Watch times of the training part by groups of duration."""
        rows = self.pairs.rows(TRAIN)
        watch_s = np.asarray(self.pairs.outcomes["watch_s"][rows])
        return WatchTime.fit(watch_s, self.durations[self.pairs.content[rows]])


def read_log(dataset: Dataset, folder: Path, progress: Callable[[int], None] | None = None) -> Log:
    """Read the impressions part by part into row-number arrays under `folder`.

    Args:
        dataset: an open data set.
        folder: where the memory-mapped arrays go; made anew.
        progress: called with the number of rows of each part.

    Returns:
        The log; `split` is filled by `assign_splits`, all zero here unless the data set gives it.
    """
    users = pd.Index(dataset.users()["user_id"])
    contents = pd.Index(dataset.contents()["content_id"])
    markets = pd.Index(dataset.markets)
    present = dataset.impression_columns
    outcomes = [c for c in OUTCOMES if c in present]
    files = ArrayFiles(folder)
    for part in dataset.impression_parts():
        files.append("user", users.get_indexer(part["user_id"]).astype(np.int32))
        files.append("content", contents.get_indexer(part["content_id"]).astype(np.int32))
        files.append("market", markets.get_indexer(part["market"]).astype(np.int16))
        if dataset.split == "given":
            files.append("split", pd.Index(SPLITS).get_indexer(part["split"]).astype(np.int8))
        else:
            files.append("split", np.zeros(len(part), np.int8))
        if "time" in present:
            files.append("time", part["time"].to_numpy(np.int64))
        if "request_id" in present:
            files.append("request", part["request_id"].to_numpy(np.int64))
        if "propensity" in present:
            files.append("propensity", part["propensity"].to_numpy(np.float32))
        for name in outcomes:
            files.append(f"outcome_{name}", part[name].to_numpy(np.float32, na_value=np.nan))
        if progress:
            progress(len(part))
    arrays = files.mapped()
    return Log(
        user=arrays["user"],
        content=arrays["content"],
        market=arrays["market"],
        split=arrays["split"],
        outcomes={name: arrays[f"outcome_{name}"] for name in outcomes},
        time=arrays.get("time"),
        request=arrays.get("request"),
        propensity=arrays.get("propensity"),
    )


def requests_of(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """The first impression of each request, by request number, and which request each impression is of.

    A number names a request of one user in one market. Where impressions of a request are of several parts,
    those of each part are a request of their own.

    Returns:
        int64[R] and int64[P].
    """
    count = len(log.user)
    if log.request is None:
        return np.arange(count), np.arange(count)
    order: np.ndarray | slice = slice(None)
    new = _changes(log.request)
    other = _changes(log.user) | _changes(log.market) | _changes(log.split)
    # A log by time has one request after the other; sorting a large one takes memory.
    if (log.request[1:] < log.request[:-1]).any() or (other & ~new).any():
        keys = (log.split, log.market, log.user, log.request)
        order = np.lexsort(keys)
        new = np.any([_changes(key[order]) for key in keys], axis=0)
    start = np.flatnonzero(np.r_[True, new][:count])
    query_of = np.empty(count, np.int64)
    query_of[order] = np.repeat(np.arange(len(start)), np.diff(np.r_[start, count]))
    return np.arange(count)[order][start], query_of


def _changes(values: np.ndarray) -> np.ndarray:
    """bool[P - 1]: where a value differs from the one before."""
    return np.asarray(values[1:] != values[:-1])


def _rank_within_user(user: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """0-based rank of each row within its user by `key` (ties in row order), and rows per user."""
    order = np.lexsort((np.arange(len(user)), key, user))
    sorted_user = user[order]
    first = np.r_[True, sorted_user[1:] != sorted_user[:-1]] if len(user) else np.zeros(0, bool)
    start = np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))
    rank = np.empty(len(user), dtype=np.int64)
    rank[order] = np.arange(len(user)) - start
    return rank, np.bincount(user, minlength=int(user.max(initial=-1)) + 1)


def assign_splits(log: Log, how: str, config: SplitConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split every impression and give it a place in its user's order of events.

    Args:
        how: "time" (one cut by time for all), "leave_last" (of a user with three rows or more the
            last is test and the one before validation) or "given" (the data set's own split; without time a
            seeded order of requests is drawn. Where it has no validation rows, a share of the training
            requests is drawn for them, for models must know when to stop).

    Returns:
        split int8[P]; order int64[P], the key by which a user's events are before or after one another.

    Raises:
        ValueError: when the log lacks what `how` needs.
    """
    if how == "time":
        if log.time is None:
            raise ValueError("split 'time' needs a `time` column in impressions; use split 'given'")
        time = np.asarray(log.time)
        cuts = np.quantile(time, [1 - config.valid_fraction - config.test_fraction, 1 - config.test_fraction])
        return np.searchsorted(cuts, time, side="left").astype(np.int8), time
    user = np.asarray(log.user)
    if how == "leave_last":
        if log.time is None:
            raise ValueError("split 'leave_last' needs a `time` column in impressions; use split 'given'")
        rank, count = _rank_within_user(user, np.asarray(log.time))
        left = count[user] - rank
        split = np.where((left == 1) & (rank >= 2), TEST, np.where((left == 2) & (rank >= 1), VALID, TRAIN))
        return split.astype(np.int8), rank
    if how == "given":
        split = np.array(log.split)
        first, request_of = requests_of(log)
        if log.time is None:
            when = np.random.default_rng(seed).permutation(len(first))[request_of]
        else:
            when = np.asarray(log.time)
        if not (split == VALID).any():
            train = np.random.default_rng(seed).permutation(np.flatnonzero(split[first] == TRAIN))
            drawn = np.zeros(len(first), bool)
            drawn[train[: int(len(train) * config.valid_fraction)]] = True
            split[drawn[request_of]] = VALID
        rank, _ = _rank_within_user(user, np.where(split == TRAIN, when, np.iinfo(np.int64).max))
        # Held-out queries see the parts before theirs, and never one another.
        return split, np.where(split == TRAIN, rank, len(user) + split)
    raise ValueError(f"unknown split {how!r}; use 'time', 'leave_last' or 'given'")


def build_history(
    event_user: np.ndarray,
    event_order: np.ndarray,
    event_content: np.ndarray,
    query_user: np.ndarray,
    query_order: np.ndarray,
    length: int,
    file: Path | None = None,
) -> np.ndarray:
    """The last `length` events of each query's user strictly before the query.

    Args:
        event_user, event_order, event_content: int[E], positives; `event_order` is time or rank.
        query_user, query_order: int[R].
        file: where the histories are mapped from, made anew; without one they are kept in memory.

    Returns:
        int32[R, length], oldest first, left-aligned, -1 beyond the end.
    """
    shape = (len(query_user), length)
    found = (
        np.empty(shape, np.int32) if file is None else np.lib.format.open_memmap(file, "w+", np.int32, shape)
    )
    if len(event_order) == 0:
        found[:] = -1
        return found
    low = min(event_order.min(), query_order.min(initial=event_order.min()))
    span = int(max(event_order.max(), query_order.max(initial=low)) - low) + 2
    place = np.lexsort((event_order, event_user))
    content = event_content[place].astype(np.int32)
    key = event_user[place].astype(np.int64) * span + (event_order[place] - low)
    for start in range(0, len(query_user), HISTORIES):
        part = slice(start, start + HISTORIES)
        base = query_user[part].astype(np.int64) * span
        last = np.searchsorted(key, base + (query_order[part] - low), side="left")
        first = np.maximum(np.searchsorted(key, base, side="left"), last - length)
        place = first[:, None] + np.arange(length)
        found[part] = np.where(place < last[:, None], content[np.minimum(place, len(content) - 1)], -1)
    return found


def other_events(
    user: np.ndarray, order: np.ndarray, content: np.ndarray, positive: np.ndarray, length: int
) -> np.ndarray:
    """The `length` events of the same user before each impression, going round: its user's last comes before
    the first, and an event never before itself.

    Without time nothing says which events a person knew; half of them would have hardly a history, while
    everybody has all of it when the model is asked. So has an impression that is no event: how many other
    events there are does not tell whether it is one.

    Args:
        user, order, content: int[P]; `order` is distinct within a user.
        positive: bool[P], which impressions are events.

    Returns:
        int32[P, length], left-aligned, -1 beyond the end.
    """
    if not positive.any():
        return np.full((len(user), length), -1, np.int32)
    place = np.lexsort((order, user))
    events = place[positive[place]]
    count = np.bincount(user[events], minlength=int(user.max()) + 1)
    start = np.r_[0, np.cumsum(count)][user]
    rank = np.empty(len(user), np.int64)
    rank[place] = np.cumsum(positive[place]) - positive[place] - start[place]
    others = np.minimum(count[user] - positive, length)
    before = rank[:, None] - others[:, None] + np.arange(length)
    found = start[:, None] + before % np.maximum(count[user], 1)[:, None]
    found = content[events][np.minimum(found, len(events) - 1)]
    return np.where(np.arange(length) < others[:, None], found, -1).astype(np.int32)


def build_examples(
    dataset: Dataset,
    folder: Path,
    *,
    history_length: int,
    seen_length: int,
    live_window_s: int = 0,
    split: SplitConfig | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Examples:
    """Turn a data set into queries and pairs, memory-mapped under `folder`.

    Args:
        history_length: events kept in a query's history.
        seen_length: contents of a user's past that are not shown again.
        live_window_s: how long after an impression of a live room outcomes count as its own (seconds).
        seed: draws the order of events where the data set has no time.
        progress: called with the number of impressions read.

    Raises:
        ValueError: no outcome says what was wanted, a market where something was wanted shows no content, or
            the log lacks the times that the split or `live_window_s` needs.
    """
    _expect_wanted_outcome(dataset)
    log = read_log(dataset, folder / "log", progress)
    split_of, order = assign_splits(log, dataset.split, split or SplitConfig(), seed)
    users, contents = dataset.users(), _with_sellers(dataset.contents(), dataset.sellers())
    markets = tuple(dataset.markets)
    positive = log.positive
    user, market, content = np.asarray(log.user), np.asarray(log.market), np.asarray(log.content)
    available = _available(contents, markets)
    _expect_contents(markets, available, market[positive])
    queries, query_of = _queries(log, split_of, order, positive, history_length, folder / "history.npy")

    def latest(events: np.ndarray, length: int, name: str) -> np.ndarray:
        everyone = np.arange(len(users))
        end = np.full(len(users), order.max(initial=0) + 1)
        file = folder / f"latest_{name}.npy"
        return build_history(user[events], order[events], content[events], everyone, end, length, file)

    outcomes = log.outcomes
    if live_window_s:
        if log.time is None:
            raise ValueError("live_window_s needs a `time` column in impressions; set it to 0")
        live = np.flatnonzero((contents["kind"].to_numpy() == "live")[content])
        outcomes = over_windows(outcomes, live, user, content, log.time, split_of, live_window_s)
    train = positive & (split_of == TRAIN)
    popularity = np.zeros((len(markets), len(contents)), np.float32)
    np.add.at(popularity, (market[train], content[train]), 1.0)
    return Examples(
        name=dataset.name,
        feedback=dataset.feedback,
        split=dataset.split,
        markets=markets,
        users=users,
        contents=contents,
        queries=queries,
        pairs=_pairs(log, split_of, positive, query_of, outcomes),
        available=available,
        popularity=popularity,
        latest_history=latest(np.flatnonzero(positive), history_length, "history"),
        latest_seen=latest(np.flatnonzero(log.finished), seen_length, "seen"),
        seen_before_test=latest(
            np.flatnonzero(log.finished & (split_of != TEST)), seen_length, "seen_before_test"
        ),
        drawn=dataset.split == "given" and not (np.asarray(log.split) == VALID).any(),
        end=int(log.time.max()) + 1 if log.time is not None and len(log.time) else 0,
        has_time=log.time is not None,
        moments=read_moments(contents, dataset.moments()),
    )


def _queries(
    log: Log, split_of: np.ndarray, order: np.ndarray, positive: np.ndarray, history_length: int, file: Path
) -> tuple[Queries, np.ndarray]:
    """The queries, part by part, and which one each impression is of, int64[P].

    One query a request; where requests were not logged every impression is a query of its own.

    Args:
        split_of, order: as of `assign_splits`.
        positive: bool[P], which impressions are events of a history.
        file: where the histories are mapped from.
    """
    user, content = np.asarray(log.user), np.asarray(log.content)
    first, request_of = requests_of(replace(log, split=split_of))
    by_split = np.argsort(split_of[first], kind="stable")
    place = np.empty(len(first), np.int64)
    place[by_split] = np.arange(len(first))
    first = first[by_split]
    event = np.flatnonzero(positive)
    history = build_history(
        user[event], order[event], content[event], user[first], order[first], history_length, file
    )
    if log.time is None and log.request is None:
        own = np.flatnonzero(split_of == TRAIN)
        history[place[own]] = other_events(user[own], order[own], content[own], positive[own], history_length)
    queries = Queries(
        user=user[first],
        market=np.asarray(log.market)[first],
        time=np.asarray(log.time)[first] if log.time is not None else np.full(len(first), NO_TIME),
        split=split_of[first],
        history=history,
    )
    return queries, place[request_of]


def _pairs(
    log: Log,
    split_of: np.ndarray,
    positive: np.ndarray,
    query_of: np.ndarray,
    outcomes: Mapping[str, np.ndarray],
) -> Pairs:
    """The impressions, part by part."""
    # A log that is cut by time is in order already: its arrays stay mapped, which a large log needs.
    in_order = bool((split_of[1:] >= split_of[:-1]).all())
    by_split = np.zeros(0, np.int64) if in_order else np.argsort(split_of, kind="stable")

    def ordered(values: np.ndarray) -> np.ndarray:
        return values if in_order else values[by_split]

    return Pairs(
        query=ordered(query_of),
        content=ordered(np.asarray(log.content)),
        positive=ordered(positive),
        outcomes={name: ordered(values) for name, values in outcomes.items()},
        split=ordered(split_of),
        propensity=None if log.propensity is None else ordered(log.propensity),
    )


def _expect_wanted_outcome(dataset: Dataset) -> None:
    logged = [name for name in OUTCOMES if name in dataset.impression_columns]
    if dataset.feedback == "impressions" and not set(logged) & set(POSITIVE_OUTCOMES):
        raise ValueError(
            f"the impressions of {dataset.name} have the outcomes {', '.join(logged)}, and none that says "
            f"what was wanted; add at least one of {', '.join(POSITIVE_OUTCOMES)}"
        )


def _available(contents: pd.DataFrame, markets: Sequence[str]) -> np.ndarray:
    """bool[M, N]: where a content may be shown."""
    shown = contents["markets"].explode()
    available = np.zeros((len(markets), len(contents)), bool)
    rows, columns = pd.Index(markets).get_indexer(shown), shown.index.to_numpy()
    available[rows[rows >= 0], columns[rows >= 0]] = True
    return available


def _expect_contents(markets: Sequence[str], available: np.ndarray, market: np.ndarray) -> None:
    """Raise ValueError for a market of positives, int[E], where no content may be shown."""
    wanted = np.bincount(market, minlength=len(markets))
    for code in np.flatnonzero((wanted > 0) & ~available.any(axis=1)):
        raise ValueError(
            f"something was wanted in {wanted[code]:,} impressions in the market {markets[code]}, where no "
            f"content may be shown; list {markets[code]} in contents.markets or drop these impressions"
        )


def read_moments(contents: pd.DataFrame, said: pd.DataFrame | None) -> LoggedMoments:
    """What was true of contents when, by the catalogue and by statements where there are any."""
    index = pd.Index(contents["content_id"])

    def timeline(column: str) -> Timeline:
        if said is None or column not in said:
            return Timeline(*np.zeros((3, 0), np.int64))
        given = said[said[column].notna()]
        content, time = index.get_indexer(given["content_id"]), given["time"].to_numpy(np.int64)
        said_of = given[column]
        value = index.get_indexer(said_of) if column == "showing" else said_of.to_numpy(np.int64)
        return Timeline(content, time, value)

    return LoggedMoments(
        contents["kind"].to_numpy() == "live",
        whole_numbers(contents, "created_at", 0),
        whole_numbers(contents, "stock", UNKNOWN),
        viewers=timeline("viewers"),
        showing=timeline("showing"),
        left=timeline("stock"),
    )


def whole_numbers(contents: pd.DataFrame, column: str, absent: int) -> np.ndarray:
    """A column of whole numbers, int64[N], `absent` where there is none or no such column."""
    if column not in contents:
        return np.full(len(contents), absent, np.int64)
    # Filled with 0 first: the largest int64 has no float, and a column with gaps may be of floats.
    numbers = contents[column].fillna(0).to_numpy(np.int64)
    numbers[contents[column].isna()] = absent
    return numbers


def _with_sellers(contents: pd.DataFrame, sellers: pd.DataFrame | None) -> pd.DataFrame:
    """The contents with what is known of their sellers, `seller_rating` and `seller_followers`: it tells
    sellers apart of whom no model has seen anything sold."""
    if sellers is None or "seller_id" not in contents:
        return contents
    known = sellers.set_index("seller_id")
    made = {f"seller_{name}": contents["seller_id"].map(known[name]) for name in SIGNS if name in known}
    return contents.assign(**{name: column.astype("float32") for name, column in made.items()})
