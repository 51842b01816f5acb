"""What a running feed does, as Prometheus counters on Triton's metrics port, beside Triton's own.

A stage keeps what it did as it is, and a thread beside it counts every few seconds (`ensemble.triton.Meter`):
a request pays for no arithmetic. Outside of Triton nothing is kept.
"""

from __future__ import annotations

from collections import Counter as Occurrences
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

import numpy as np

from ensemble.channels import Channel
from ensemble.errors import Code
from ensemble.lookup import IdIndex
from ensemble.plan import Plan
from ensemble.rules import Reason
from feedback.records import SHOWN
from market.kinds import KINDS
from market.outcomes import FLAGS
from supply.events import EVENT_KINDS, Event


@dataclass(frozen=True)
class Counter:
    """A number that only grows.

    Attributes:
        name: as Prometheus has it.
        text: what is counted, and its unit.
        labels: what tells its series apart.
    """

    name: str
    text: str
    labels: tuple[str, ...]


SLATES = Counter("pasar_slates_total", "Slates made.", ("market",))
STRANGERS = Counter("pasar_strangers_total", "Slates for people whom the release does not know.", ("market",))
PLACES = Counter("pasar_places_total", "Places filled, by the kind of content.", ("market", "kind"))
EMPTY = Counter("pasar_empty_places_total", "Places for which nothing was left.", ("market",))
FOUND = Counter(
    "pasar_found_total",
    "Places filled, by the channel that found what stands there; where several did, once for each.",
    ("market", "channel"),
)
REASONS = Counter(
    "pasar_reasons_total", "Places filled, by why their contents stand there.", ("market", "reason")
)
WORTH = Counter(
    "pasar_expected_value_usd_total",
    "What contents of the slates are expected to be worth (US dollars); sign tells losses, as amounts.",
    ("market", "sign"),
)
EXPECTED = Counter(
    "pasar_expected_outcomes_total",
    "Sum of the calibrated probabilities of the slates' contents.",
    ("market", "outcome"),
)
IN_VIEW = Counter("pasar_shown_total", "Places that clients tell came into view.", ("market",))
CAME = Counter("pasar_outcomes_total", "Outcomes that clients tell of.", ("outcome",))
EVENTS = Counter("pasar_live_events_total", "Live events taken in.", ("event",))
REFUSED = Counter("pasar_refused_total", "Requests that a step refused.", ("step", "code"))
#: The one that is no counter: a gauge.
MADE = Counter(
    "pasar_release_created_timestamp_seconds",
    "When the release that is served was made (s since the epoch); NaN of one that no longer is.",
    ("release", "version"),
)
COUNTERS = (
    SLATES,
    STRANGERS,
    PLACES,
    EMPTY,
    FOUND,
    REASONS,
    WORTH,
    EXPECTED,
    IN_VIEW,
    CAME,
    EVENTS,
    REFUSED,
)

Counts = dict[tuple[Counter, tuple[str, ...]], float]
"""Series, by counter and its labels' values → how much it grows."""


class Tally:
    """What was done since it was last taken.

    Args:
        count: what all that was added comes to. Of nothing it gives the series that there will be, with 0: a
            rate sees what happens for the first time where there was a 0 before.
    """

    def __init__(self, count: Callable[[list[Any]], Counts]) -> None:
        self._count = count
        self._kept: deque[Any] | None = None

    def open(self) -> None:
        """Keep what is added from now on, since somebody takes it."""
        self._kept = deque()

    def add(self, what: Any) -> None:
        """Keep what a run did."""
        if self._kept is not None:
            self._kept.append(what)

    def take(self) -> Counts:
        """What was added since, counted; another thread may go on adding."""
        kept = self._kept
        return self._count([kept.popleft() for _ in range(len(kept))] if kept else [])


class SlateTally(Tally):
    """Counts slates.

    Args:
        kind: int[N], kinds of contents, places in `KINDS`.
    """

    def __init__(self, plan: Plan, kind: np.ndarray) -> None:
        super().__init__(self._counts)
        self._markets, self._tasks, self._kind = plan.markets, plan.tasks, kind
        slate = (0, plan.config.slate)
        #: What is read of a run, each of no rows.
        self._none: dict[str, np.ndarray] = {
            "market_index": np.empty(0, np.int64),
            "candidates": np.empty((0, plan.config.candidates), np.int64),
            "slate_candidate_rank": np.empty(slate, np.int32),
            "slate_channel": np.empty(slate, np.int32),
            "slate_reason": np.empty(slate, np.int32),
            "slate_value": np.empty(slate, np.float32),
            "slate_probabilities": np.empty((*slate, len(plan.tasks)), np.float32),
        }

    def add(self, what: Mapping[str, np.ndarray]) -> None:
        """Keep of a run's tensors, [B, ...] each, those that are counted."""
        super().add([what[name] for name in self._none])

    def _counts(self, runs: list[list[np.ndarray]]) -> Counts:
        columns = (np.concatenate(parts) for parts in zip(self._none.values(), *runs))
        market, candidates, rank, channel, reason, value, probabilities = columns
        filled = np.nonzero(rank)
        where = market[filled[0]]
        kind = self._kind[candidates[filled[0], rank[filled] - 1]]
        worth = value[filled][:, None]

        def table(counter: Counter, names: Iterable[str], amount: np.ndarray) -> Counts:
            return _by_market(counter, self._markets, where, amount, names)

        return {
            **_by_market(SLATES, self._markets, market, np.ones((len(market), 1))),
            **_by_market(EMPTY, self._markets, market, (rank == 0).sum(axis=1, keepdims=True)),
            **table(PLACES, KINDS, kind[:, None] == np.arange(len(KINDS))),
            **table(FOUND, map(_name, Channel), (channel[filled][:, None] & np.array(list(Channel))) > 0),
            **table(REASONS, map(_name, Reason), reason[filled][:, None] == np.array(list(Reason))),
            **table(WORTH, ("gain", "loss"), np.maximum(np.concatenate([worth, -worth], axis=1), 0)),
            **table(EXPECTED, self._tasks, probabilities[filled]),
        }


class StrangerTally(Tally):
    """Counts slates of people whom a release does not know.

    Args:
        users: the release's.
    """

    def __init__(self, plan: Plan, users: IdIndex) -> None:
        super().__init__(self._counts)
        self._markets, self._users = plan.markets, users

    def add(self, what: Mapping[str, np.ndarray]) -> None:
        """Keep who asked, text[B], and where, int64[B]."""
        super().add((what["user_id"], what["market_index"]))

    def _counts(self, runs: list[tuple[np.ndarray, np.ndarray]]) -> Counts:
        user, market = (
            np.concatenate(parts) for parts in zip((np.empty(0, object), np.empty(0, int)), *runs)
        )
        return _by_market(STRANGERS, self._markets, market, self._users(user)[:, None] < 0)


def record_tally() -> Tally:
    """Counts what clients tell of their slates; add lists of `feedback.records`."""

    def count(runs: list[list[Event]]) -> Counts:
        made: Counts = {(CAME, (name,)): 0.0 for name in FLAGS}
        for record in chain.from_iterable(runs):
            if record["event"] == SHOWN:
                of = (IN_VIEW, (record["market"],))
                made[of] = made.get(of, 0) + len(record["items"])
            else:
                for name in FLAGS:
                    made[CAME, (name,)] += record.get(name, 0)
        return made

    return Tally(count)


def event_tally() -> Tally:
    """Counts live events; add lists of `supply.events`."""

    def count(runs: list[list[Event]]) -> Counts:
        seen = Occurrences(event["event"] for event in chain.from_iterable(runs))
        return {(EVENTS, (name,)): seen[name] for name in EVENT_KINDS}

    return Tally(count)


def refusal_tally(step: str) -> Tally:
    """Counts what a step refuses; add `Code`s."""

    def count(codes: list[Code]) -> Counts:
        seen = Occurrences(codes)
        return {(REFUSED, (step, code.value)): seen[code] for code in Code}

    return Tally(count)


def _by_market(
    counter: Counter,
    markets: Sequence[str],
    market: np.ndarray,
    amount: np.ndarray,
    names: Iterable[str] | None = None,
) -> Counts:
    """Sums by market of amounts [n, K] at places int64[n] of the markets; the columns are named, but a
    single one."""
    labels = [()] if names is None else [(name,) for name in names]
    sums = np.zeros((len(markets), len(labels)))
    np.add.at(sums, market, amount)
    return {
        (counter, (code, *label)): total
        for code, totals in zip(markets, sums.tolist())
        for label, total in zip(labels, totals)
    }


def _name(member: Enum) -> str:
    return str(member.name).lower()
