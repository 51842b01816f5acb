"""Policies played against the simulated world: what their slates are really worth.

Every policy gets the same requests, those that the world's own traffic made on the held-out days. The world
is reset before each, people's outcomes follow from what the policy shows them, and what they click enters the
history of their next requests. Nothing of the log's held-out part is used but who asked when.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemble.cascade import Cascade
from ensemble.channels import NONE, Shelf, first_eligible, nearest
from ensemble.client import DIVERSITY
from ensemble.export import tired
from ensemble.release import Release
from ensemble.stages.reordering import Reordering
from ensemble.stages.user_state import REQUEST
from ensemble.steps import check_inputs
from evaluation.metrics import mean_interval
from evaluation.runs import ALL, Row
from market.moments import UNKNOWN, LoggedMoments, Timeline
from market.world import World
from market.world.behaviour import Outcomes
from models.seasons import latest_events
from supply.eligibility import Eligibility
from workflows.examples import TEST, Examples, build_history, whole_numbers
from workflows.habits import followed_sellers

BATCH = 64
ROUND_S = 3600
"""People are independent but for stock, so that time may run out of order between them, by this much."""
OWN_CLICKS = 50
"""Latest clicks in a play that a policy is told of."""
LATELY_S = 3600
"""How long an exposure is told to a policy."""
OWN_SHOWN = 400
"""Latest exposures in a play that a policy is told of: an hour of forty slates of ten."""

EXPECTED = "expected value (USD)"
MEASURES = (EXPECTED, "value (USD)", "clicks", "orders", "watch (s)", "negative")


@dataclass(frozen=True)
class Asked:
    """A batch of requests, as a policy sees them.

    Attributes:
        user: int64[B], rows of the users table, each once.
        market: object[B], codes.
        time: int64[B], s since epoch.
        clicked: int64[B, H], contents' rows, what each user clicked so far in this play; oldest first, -1
            fills anywhere.
        shown: int64[B, H], contents' rows, what each user was shown in the last hour, one entry an exposure;
            -1 fills anywhere.
    """

    user: np.ndarray
    market: np.ndarray
    time: np.ndarray
    clicked: np.ndarray
    shown: np.ndarray


Policy = Callable[[Asked], np.ndarray]
"""Makes slates, int64[B, S]: contents' rows from the top, -1 fills."""


@dataclass(frozen=True)
class Requests:
    """Who asks for a feed, and when.

    Attributes:
        user: int64[B], rows of the users table.
        market: object[B], codes.
        time: int64[B], s since epoch, ascending.
        begin: first second of the days they were drawn from; what happened before is history.
    """

    user: np.ndarray
    market: np.ndarray
    time: np.ndarray
    begin: int

    def __len__(self) -> int:
        return len(self.user)


def held_out_requests(examples: Examples, count: int, *, seed: int, split: int = TEST) -> Requests:
    """The held-out requests of a log: all visits of some people, until there are `count` requests.

    Args:
        split: TEST for a report, VALID for choices.

    Raises:
        ValueError: the log has no times, so that nothing can be played.
    """
    if examples.split != "time":
        raise ValueError(
            f"data set {examples.name!r} is not cut by time, so no days are held out; play a simulated world"
        )
    rows = examples.queries.rows(split)
    user, time = examples.queries.user[rows].astype(np.int64), np.asarray(examples.queries.time[rows])
    turn = np.random.default_rng(seed).permutation(len(examples.users))
    chosen = np.lexsort((time, turn[user]))[:count]
    return requests_of(examples, rows.start + chosen, int(time.min(initial=examples.end)))


def requests_of(examples: Examples, queries: np.ndarray, begin: int) -> Requests:
    """Some queries of a log as requests, by time; of equal times in the order in which they are given.

    Args:
        queries: int64[B], rows of the examples' queries.
        begin: as `Requests` says.
    """
    asked = examples.queries
    queries = queries[np.argsort(asked.time[queries], kind="stable")]
    market = np.array(examples.markets, object)[asked.market[queries]]
    return Requests(asked.user[queries].astype(np.int64), market, np.asarray(asked.time[queries]), begin)


def play(
    world: World, policies: Mapping[str, Policy], requests: Requests, *, data_set: str, seed: int
) -> list[Row]:
    """Play each policy in the world and report what a slate of it is worth, per market and over all.

    "expected value (USD)" is the world's own expectation for each slate at the moment it is shown, "value
    (USD)" what people then bought; both are of orders before refunds, per slate, as are clicks, orders,
    seconds watched and negative feedback. What is sold out counts for nothing in either; that the people of
    a batch may want more than the last pieces shows in the second alone. "… over X" are differences from the
    first policy, X, request by request. Intervals are over people, since requests of one person are not
    independent.

    Args:
        policies: by name; the first is the one that the others are compared with.
        data_set, seed: as the rows name them; the world draws by its own seed.
    """
    rows: list[Row] = []
    base: tuple[str, np.ndarray] | None = None
    for name, policy in policies.items():
        figures = {measure: column for measure, column in zip(MEASURES, outcomes(world, policy, requests).T)}
        if base is None:
            base = name, figures[EXPECTED]
        else:
            figures[f"{EXPECTED} over {base[0]}"] = figures[EXPECTED] - base[1]
        for market in (*np.unique(requests.market), ALL):
            here = np.flatnonzero((requests.market == market) | (market == ALL))
            user = requests.user[here]
            for measure, values in figures.items():
                value = mean_interval(values[here], user)
                rows.append(Row(data_set, str(market), name, measure, *value, len(np.unique(user)), seed))
    return rows


def outcomes(
    world: World,
    policy: Policy,
    requests: Requests,
    told: Callable[[Asked, np.ndarray, Outcomes], None] = lambda asked, slates, real: None,
) -> np.ndarray:
    """What comes of each request's slate, float64[B, M], columns as in `MEASURES`; the world starts anew.

    Args:
        told: hears of each batch what was asked, the slates, and what came of them.
    """
    world.reset()
    # A world has many more people than those who ask.
    people, person = np.unique(requests.user, return_inverse=True)
    clicked = np.full((len(people), OWN_CLICKS), NONE)
    shown, shown_at = np.full((2, len(people), OWN_SHOWN), NONE)
    made = np.zeros((len(requests), len(MEASURES)))
    for batch in batches(requests.user, requests.time, BATCH):
        user, time, who = requests.user[batch], requests.time[batch], person[batch]
        lately = np.where(time[:, None] - shown_at[who] < LATELY_S, shown[who], NONE)
        asked = Asked(user, requests.market[batch], time, clicked[who], lately)
        slates = policy(asked)
        expected = world.expected_value(user, slates, time, slate=True)
        real = world.step(user, slates, time)
        told(asked, slates, real)
        columns = (expected.value, real.value, real.click, real.order, real.watch_s, real.negative)
        made[batch] = np.stack([column.sum(axis=1, dtype=np.float64) for column in columns], axis=1)
        both = np.concatenate([clicked[who], np.where(real.click == 1, slates, NONE)], axis=1)
        latest = np.argsort(both >= 0, axis=1, kind="stable")[:, -OWN_CLICKS:]
        clicked[who] = np.take_along_axis(both, latest, axis=1)
        shown[who] = np.concatenate([shown[who], slates], axis=1)[:, -OWN_SHOWN:]
        when = np.broadcast_to(time[:, None], slates.shape)
        shown_at[who] = np.concatenate([shown_at[who], when], axis=1)[:, -OWN_SHOWN:]
    return made


def batches(user: np.ndarray, time: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows in batches of at most `size` in which no user occurs twice, each user's in order of time.

    A click must be known when its user asks again, so a user's next request waits for the next batch.
    """
    if not len(user):
        return
    span = (time - time.min()) // ROUND_S
    by_user = np.lexsort((time, user, span))
    first = np.r_[True, (np.diff(user[by_user]) != 0) | (np.diff(span[by_user]) != 0)]
    turn = np.empty(len(user), np.int64)
    turn[by_user] = np.arange(len(user)) - np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))
    order = np.lexsort((time, turn, span))
    cuts = np.flatnonzero((np.diff(turn[order]) != 0) | (np.diff(span[order]) != 0)) + 1
    for part in np.split(order, cuts):
        for start in range(0, len(part), size):
            yield part[start : start + size]


class Player:
    """A release's stages as policies; each method is one.

    The release knows users' histories up to the end of its log. Here they end at `begin`, and go on with the
    clicks of the play. All policies leave out what is not published yet, what has ended and what the user
    clicked before. They know the stock with which the world starts anew, and only the oracles what the play
    sells. There is no live state, so the live channel knows no viewers; the ranker has those of the log.

    Args:
        release: built from the world's log.
        examples: what it was built from.
        world: the world; only `oracle`, `oracle_over_candidates` look into it.
        begin: first second of the play (s since epoch).

    Raises:
        ValueError: the release's users or contents are not the world's.
    """

    def __init__(self, release: Release, examples: Examples, world: World, begin: int, *, seed: int) -> None:
        for table, own, other in (
            ("users", examples.users["user_id"], world.users()["user_id"]),
            ("contents", examples.contents["content_id"], world.contents()["content_id"]),
        ):
            if not np.array_equal(own.to_numpy(str), other.to_numpy(str)):
                raise ValueError(
                    f"the {table} of {examples.name!r} are not this world's; play the world whose log the "
                    "release was built from (the same [world] settings)"
                )
        self.release, self.cascade = release, Cascade(release)
        self.slate = self.cascade.plan.config.slate
        self.world, self.seed, self.diversity = world, seed, DIVERSITY
        user_state = self.user_state = self.cascade.user_state
        self.retrieval = self.cascade.retrieval
        self._fill_shelves(examples.moments)
        user_state.history = histories_until(examples, begin, examples.latest_history.shape[1])
        user_state.seen = histories_until(examples, begin, examples.latest_seen.shape[1])
        if user_state.since is not None:
            user_state.since = latest_events(examples, begin)
        seller, config = release.array("seller_code.npy"), self.cascade.plan.config
        user_state.sellers = followed_sellers(examples, seller, before=begin)
        user_state.tired = tired(examples, seller, config.fatigue, begin)
        self.user_id = examples.users["user_id"].to_numpy(object)
        self.content_id = np.append(examples.contents["content_id"].to_numpy(object), "")

    def _fill_shelves(self, logged: LoggedMoments) -> None:
        """Stock as the world has it when it starts anew, whatever was sold in the log since."""
        stock = whole_numbers(self.world.contents(), "stock", UNKNOWN)
        for stage in (self.retrieval, self.cascade.reordering):
            stage.eligibility = Eligibility(
                stage.eligibility.available,
                self.release.array("created_at.npy"),
                self.release.array("ended_at.npy"),
                stock=stock,
                seller=self.release.array("seller_code.npy"),
            )
        self.retrieval.update_shelves(np.arange(len(stock)))
        moments = copy.copy(logged)
        moments.in_stock, moments.left = stock, Timeline(*np.zeros((3, 0), np.int64))
        self.retrieval.moments = moments

    def reorder_with(self, **knobs: Any) -> None:
        """Have slates made with other knobs of `CascadeConfig`; what is eligible stays."""
        whole = self.cascade.reordering
        other = Reordering(self.release, config=replace(whole.plan.config, **knobs))
        other.eligibility = whole.eligibility
        self.cascade.run[Reordering.name] = other

    def cascade_slate(self, asked: Asked) -> np.ndarray:
        """What a server without a live state would reply, but for the log's people in rooms."""
        return self.served(asked)[0]

    def served(self, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
        """The same, and the propensity of each place, float32[B, S]."""
        reply = self.cascade(self._request(asked))
        return self.user_state.contents(reply["content_id"]), reply["slate_propensity"]

    def two_tower(self, asked: Asked) -> np.ndarray:
        """The contents nearest to the query."""
        made = self._retrieved(asked)
        every = self.retrieval.retrieve(**self.cascade.read("retrieval", made))
        return self._best(every["retrieval_score"], every["candidates"])

    def popularity(self, asked: Asked) -> np.ndarray:
        """The contents most wanted in the market in the last days of the training part."""

        def most_wanted(shelf: Shelf, eligible: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return first_eligible(shelf.by_popularity, lambda at: eligible[:, at], len(rows), self.slate)

        return self._from_shelf(most_wanted, asked)

    def random(self, asked: Asked) -> np.ndarray:
        """Any contents of the market, the same for the same request, whoever asks beside it."""

        def any_(shelf: Shelf, eligible: np.ndarray, rows: np.ndarray) -> np.ndarray:
            asks = zip(asked.user[rows].tolist(), asked.time[rows].tolist())
            drawn = [np.random.default_rng([self.seed, *who]).random(len(shelf.rows)) for who in asks]
            return nearest(np.where(eligible, drawn, -np.inf), self.slate)

        return self._from_shelf(any_, asked)

    def oracle(self, asked: Asked) -> np.ndarray:
        """The contents of the highest true expected value, each by itself."""

        def truest(shelf: Shelf, eligible: np.ndarray, rows: np.ndarray) -> np.ndarray:
            everything = np.broadcast_to(shelf.rows, eligible.shape)
            value = self.world.expected_value(asked.user[rows], everything, asked.time[rows]).value
            return nearest(np.where(eligible, value, -np.inf), self.slate)

        return self._from_shelf(truest, asked)

    def oracle_over_candidates(self, asked: Asked) -> np.ndarray:
        """What a perfect ranker would choose from the retrieved candidates."""
        candidates = self._retrieved(asked)["candidates"]
        return self._best(self.world.expected_value(asked.user, candidates, asked.time).value, candidates)

    def _request(self, asked: Asked) -> dict[str, np.ndarray]:
        request = {
            "user_id": self.user_id[asked.user],
            "market": asked.market,
            "time": asked.time,
            "history": self.content_id[asked.clicked],
            "exclude": np.full((len(asked.user), 0), "", object),
            "shown": self.content_id[asked.shown],
            "diversity": np.full(len(asked.user), self.diversity, np.float32),
            "seed": self.seed + (asked.user << 32) + asked.time,
            "explain": np.zeros(len(asked.user), bool),
        }
        return check_inputs(REQUEST, request)

    def _retrieved(self, asked: Asked) -> dict[str, np.ndarray]:
        """The cascade's tensors up to its candidates."""
        return self.cascade.up_to("retrieval", self._request(asked))

    def _best(self, score: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        place = nearest(np.where(candidates >= 0, score, -np.inf), self.slate)
        return np.where(place >= 0, np.take_along_axis(candidates, np.maximum(place, 0), axis=1), NONE)

    def _from_shelf(
        self, choose: Callable[[Shelf, np.ndarray, np.ndarray], np.ndarray], asked: Asked
    ) -> np.ndarray:
        """Slates chosen market by market: `choose` gets the shelf, who may see what, and the rows asked."""
        made = self.cascade.apply("user_state", self._request(asked))
        slates = np.full((len(asked.user), self.slate), NONE)
        for code in np.unique(made["market_index"]):
            rows = np.flatnonzero(made["market_index"] == code)
            shelf = self.retrieval.shelves[code]
            if not len(shelf.rows):
                continue
            found = choose(shelf, shelf.eligible(asked.time[rows], made["seen"][rows]), rows)
            slates[rows, : found.shape[1]] = np.where(found >= 0, shelf.rows[found], NONE)
        return slates


def histories_until(examples: Examples, begin: int, length: int) -> np.ndarray:
    """The last contents that each user wanted strictly before `begin`, int32[U, length]."""
    queries, pairs = examples.queries, examples.pairs
    time = queries.time[pairs.query]
    known = np.flatnonzero(pairs.positive & (time < begin))
    users = np.arange(len(examples.users))
    return build_history(
        queries.user[pairs.query[known]],
        time[known],
        pairs.content[known],
        users,
        np.full(len(users), begin),
        length,
    )
