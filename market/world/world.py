"""The simulated world: the default data source, and the only place with a known truth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd

from market.calendar import CalendarContext, local_context
from market.dataset import Dataset, write_dataset
from market.kinds import KINDS
from market.profiles import profile
from market.world.behaviour import Memory, Outcomes, respond
from market.world.config import DAY, WorldConfig
from market.world.policy import LoggingPolicy
from market.world.population import (
    AGE_BANDS,
    CATEGORIES,
    FOREVER,
    GENDERS,
    LIVE,
    TOPICS,
    Bools,
    Floats,
    Ints,
    draw_population,
)
from market.world.traffic import Traffic

#: Columns of an order that `World.moments` reads.
ORDERED = ["content_id", "time"]


class World:
    """Users, sellers, videos, live rooms and product cards of several markets, and how people respond.

    Users and contents are addressed by index: the row in `users()` and `contents()`. The world has a state,
    which `step` and `simulate` advance: recent exposures of each user (fatigue), stock, the random stream.

    Args:
        config: size, place and time; equal configurations give equal worlds and equal logs.
    """

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._codes = np.array(config.markets)
        self._truth = draw_population(config)
        users, contents, sellers = self._truth.users, self._truth.contents, self._truth.sellers
        self._user_id = _ids(np.full(len(users.market), "u"), 6)
        self._content_id = _ids(np.array(["v", "l", "p"])[contents.kind], 5)
        self._seller_id = _ids(np.full(len(sellers.market), "s"), 4)
        self.reset()

    def reset(self) -> None:
        """Back to the first moment: nobody is tired, shelves are full, the random stream starts over."""
        self._rng = self._stream(1)
        self._memory = Memory(self._truth)
        self._stock = self._truth.contents.stock.copy()

    def users(self) -> pd.DataFrame:
        """The users' visible attributes, in order of index."""
        users = self._truth.users
        return pd.DataFrame(
            {
                "user_id": self._user_id,
                "market": _names(self._codes, users.market),
                "language": _names(self._truth.culture.languages, users.language),
                "age_band": _names(AGE_BANDS, users.age),
                "gender": _names(GENDERS, users.gender),
                "registered_at": users.registered_at,
            }
        )

    def contents(self) -> pd.DataFrame:
        """The contents' visible attributes, in order of index; `stock` is that before the log."""
        contents = self._truth.contents
        currencies = [profile(code).currency for code in self.config.markets]
        images = {"v_image": list(contents.image)} if self.config.images else {}
        return pd.DataFrame(
            {
                "content_id": self._content_id,
                "kind": _names(KINDS, contents.kind),
                "markets": [self._codes[sold].tolist() for sold in contents.markets.T],
                "seller_id": self._seller_id[contents.seller],
                "category": _names(CATEGORIES, contents.category),
                "x_topic": _names(TOPICS, contents.topic),
                "language": _names(self._truth.culture.languages, contents.language),
                "price": contents.price,
                "currency": _names(currencies, self._truth.sellers.market[contents.seller]),
                "duration_s": contents.duration,
                "created_at": contents.created_at,
                "ended_at": np.where(contents.ended_at == FOREVER, np.nan, contents.ended_at),
                "stock": contents.stock.astype(np.int32),
                **images,
            }
        )

    def sellers(self) -> pd.DataFrame:
        """The sellers' visible attributes, in order of index."""
        sellers = self._truth.sellers
        return pd.DataFrame(
            {
                "seller_id": self._seller_id,
                "market": _names(self._codes, sellers.market),
                "category": _names(CATEGORIES, sellers.category),
                "rating": sellers.rating,
                "followers": sellers.followers.astype(np.int32),
                "registered_at": sellers.registered_at,
            }
        )

    def eligible(self, market: str, time: int) -> Bools:
        """Which contents [N] may be shown in a market at a time (s since epoch): on, sold there, in stock.

        Raises:
            ValueError: the market is not one of this world's.
        """
        if market not in self.config.markets:
            raise ValueError(
                f"market {market!r} is not in this world; it has {', '.join(self.config.markets)}"
            )
        contents = self._truth.contents
        on = (contents.created_at <= time) & (time < contents.ended_at)
        return on & contents.markets[self.config.markets.index(market)] & (self._stock > 0)

    def step(self, user_index: Ints, slates: Ints, time: Ints) -> Outcomes:
        """Show slates, and advance the world by what people do.

        A user may have several rows; they are lived through in order of time (then of row). A content that is
        not on at that time in the user's market stays unseen; a sold-out one is seen but not ordered.

        Args:
            user_index: [B]. slates: [B, S] content indices from the top, -1 = empty. time: [B] s since epoch.

        Returns:
            Realised outcomes [B, S].

        Raises:
            ValueError: shapes disagree or an index is not in the world.
        """
        user, content, when = self._checked(user_index, slates, time)
        in_time = np.argsort(when, kind="stable")
        user, content, when = user[in_time], content[in_time], when[in_time]
        fatigue = self._memory.slate_fatigue(user, content)
        for rows in _rounds(user):
            fatigue[rows] += self._memory.fatigue(user[rows], content[rows], when[rows])
            self._memory.remember(user[rows], content[rows], when[rows])
        position = np.arange(content.shape[1])
        moment = self._calendar(user, when)
        response = respond(self._truth, user, content, when, moment, position, fatigue, self._stock)
        drawn = response.draw(self._rng, content, self._stock)
        np.subtract.at(self._stock, content[drawn.order == 1], 1)
        as_given = np.argsort(in_time)
        return Outcomes(**{field.name: getattr(drawn, field.name)[as_given] for field in fields(Outcomes)})

    def expected_value(
        self, user_index: Ints, content_index: Ints, time: Ints, *, slate: bool = False
    ) -> Outcomes:
        """The truth: expected outcomes of contents for users, given what each user was shown so far.

        What is sold out is ordered by nobody. Each row is what is expected of it with the stock of this
        moment: that others of the batch may take the last pieces before it does not count.

        Args:
            user_index: [B]. content_index: [B, C], -1 = empty. time: [B] s since epoch.
            slate: False: each content as if alone at the top. True: the C contents are the positions of one
                slate, with its position bias and the fatigue within it, as `step` would play it.

        Returns:
            Expected outcomes [B, C]: probabilities, seconds, US dollars. Memory grows with B x C x taste_dim.

        Raises:
            ValueError: shapes disagree or an index is not in the world.
        """
        user, content, when = self._checked(user_index, content_index, time)
        fatigue = self._memory.fatigue(user, content, when)
        if slate:
            fatigue += self._memory.slate_fatigue(user, content)
        position = np.arange(content.shape[1]) if slate else np.zeros(1, np.int64)
        moment = self._calendar(user, when)
        return respond(self._truth, user, content, when, moment, position, fatigue, self._stock).expected()

    def simulate(self) -> Iterator[pd.DataFrame]:
        """The log of the world's own feed: impressions in order of time, one frame per four hours.

        Starts from `reset` and leaves the world as it is after the log. Every call gives the same log.
        """
        self.reset()
        traffic = Traffic(self.config, self._truth, self._stream(2))
        policy = LoggingPolicy(self._truth, self.config.slate, self._stream(3))
        request = 0
        for block in range(traffic.blocks):
            user, time = traffic.draw(block)
            slates, propensity = policy.draw(user, time, *traffic.bounds(block), self._stock > 0)
            outcomes = self.step(user, slates, time)
            frame = self._log(user, time, slates, propensity, outcomes, request)
            request += len(user)
            if len(frame):
                yield frame

    def moments(self, orders: pd.DataFrame) -> pd.DataFrame:
        """What was true of contents when: people in rooms and products shown, from a day before the log to
        its end, and pieces left after each of the log's orders (`content_id`, `time`), in order of time."""
        truth = self._truth
        near = (truth.contents.ended_at > self.config.begin - DAY) & (
            truth.contents.created_at < self.config.end
        )
        rooms = np.flatnonzero((truth.contents.kind == LIVE) & near)
        said = truth.rooms.statements(rooms, self._stream(6))
        content = said["content"].to_numpy(np.int64)
        product = said["showing"].fillna(-1).to_numpy(np.int64)
        told = pd.DataFrame(
            {
                "content_id": self._content_id[content],
                "time": said["time"].to_numpy(np.int64),
                "viewers": said["viewers"],
                "showing": np.array([*self._content_id, None], dtype=object)[product],
            }
        )
        sold = orders.groupby("content_id").cumcount() + 1
        before = pd.Series(truth.contents.stock, self._content_id)
        left = orders.assign(stock=orders["content_id"].map(before) - sold)
        made = pd.concat([told, left.astype({"time": np.int64})], ignore_index=True)
        made = made[made["time"] < self.config.end]
        return made.sort_values("time", kind="stable", ignore_index=True)

    def write(
        self, path: Path, progress: Callable[[int], None] | None = None, overwrite: bool = False
    ) -> Dataset:
        """Simulate the log into a data set at `path`.

        Args:
            progress: called after each block with the number of impressions logged so far.
            overwrite: replace a data set that is there.
        """
        orders: list[pd.DataFrame] = []

        def noted(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
            for frame in frames:
                orders.append(frame.loc[frame["order"] == 1, ORDERED])
                yield frame

        return write_dataset(
            path,
            name="world",
            feedback="impressions",
            split="time",
            users=self.users(),
            contents=self.contents(),
            sellers=self.sellers(),
            impressions=noted(_counted(self.simulate(), progress)),
            moments=lambda: self.moments(pd.concat([pd.DataFrame(columns=ORDERED), *orders])),
            overwrite=overwrite,
        )

    def _stream(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.config.seed, purpose]))

    def _log(
        self, user: Ints, time: Ints, slates: Ints, propensity: Floats, outcomes: Outcomes, request: int
    ) -> pd.DataFrame:
        row, position = np.nonzero(slates >= 0)
        shown = user[row]
        columns = {
            "user_id": self._user_id[shown],
            "content_id": self._content_id[slates[row, position]],
            "market": _names(self._codes, self._truth.users.market[shown]),
            "time": time[row],
            "request_id": request + row,
            "position": position.astype(np.int16),
            "propensity": propensity[row, position],
        }
        columns |= {field.name: getattr(outcomes, field.name)[row, position] for field in fields(Outcomes)}
        return pd.DataFrame(columns)

    def _calendar(self, user: Ints, time: Ints) -> CalendarContext:
        return local_context(self._codes[self._truth.users.market[user]], time)

    def _checked(self, user_index: Ints, content_index: Ints, time: Ints) -> tuple[Ints, Ints, Ints]:
        user, content, when = np.asarray(user_index), np.asarray(content_index), np.asarray(time)
        if user.ndim != 1 or content.ndim != 2 or user.shape != when.shape or len(user) != len(content):
            raise ValueError(
                f"expected users [B], contents [B, S] and times [B], "
                f"got {user.shape}, {content.shape} and {when.shape}"
            )
        for name, index, least, count in (
            ("user", user, 0, self.config.users),
            ("content", content, -1, self.config.contents),
        ):
            if index.dtype.kind not in "iu":
                raise ValueError(f"{name} indices must be whole numbers, got {index.dtype}")
            if index.size and (index.min() < least or index.max() >= count):
                raise ValueError(
                    f"{name} indices must lie in [{least}, {count}), got {index.min()} to {index.max()}"
                )
        return user.astype(np.int64), content.astype(np.int64), when.astype(np.int64)


def _rounds(user: Ints) -> Iterator[Ints]:
    """Rows by how often their user came before, so that users are distinct within each round."""
    by_user = np.argsort(user, kind="stable")
    grouped = user[by_user]
    turn = np.arange(len(user)) - np.searchsorted(grouped, grouped)
    by_turn = np.argsort(turn, kind="stable")
    counts = np.bincount(turn)
    if len(counts):
        yield from np.split(by_user[by_turn], np.cumsum(counts)[:-1])


def _counted(
    frames: Iterator[pd.DataFrame], progress: Callable[[int], None] | None
) -> Iterator[pd.DataFrame]:
    done = 0
    for frame in frames:
        yield frame
        done += len(frame)
        if progress is not None:
            progress(done)


def _ids(letters: np.ndarray, width: int) -> np.ndarray:
    return np.array([f"{letter}{k:0{width}d}" for k, letter in enumerate(letters)], dtype=object)


def _names(values: Sequence[str] | np.ndarray, index: Ints) -> np.ndarray:
    return np.array(values, dtype=object)[index]
