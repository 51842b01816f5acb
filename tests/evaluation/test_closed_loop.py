"""Playing policies in the simulated world: who asks, what a policy may know, what is counted."""

import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.cascade import Cascade
from ensemble.client import DIVERSITY
from evaluation import closed_loop
from evaluation.closed_loop import (
    ALL,
    EXPECTED,
    MEASURES,
    OWN_CLICKS,
    ROUND_S,
    Asked,
    Player,
    Requests,
    batches,
    held_out_requests,
    histories_until,
    outcomes,
    play,
)
from evaluation.metrics import mean_interval
from market.world import World, WorldConfig
from workflows.examples import TEST, VALID

SMALL_WORLD = WorldConfig(users=400, contents=300, sellers=30, impressions=8000, days=6, markets=("ID", "GB"))
"""The world of the fixture `small_world_dataset`."""


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL_WORLD)


@pytest.fixture(scope="module")
def examples(small_build):
    return small_build.built.data.examples


@pytest.fixture(scope="module")
def requests(examples) -> Requests:
    return held_out_requests(examples, 10**6, seed=1)


@pytest.fixture(scope="module")
def player(small_build, examples, world, requests) -> Player:
    return Player(small_build.built.release, examples, world, requests.begin, seed=5)


class Fixed:
    """Shows everyone the same contents, and keeps what it was asked."""

    def __init__(self, slate):
        self.slate = np.asarray(slate)
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> np.ndarray:
        self.asked.append(asked)
        return np.tile(self.slate, (len(asked.user), 1))


@pytest.mark.slow
class TestPlay:
    def test_knowing_the_truth_is_worth_more_than_any_policy_and_any_policy_more_than_chance(
        self, world, player, requests
    ):
        policies = {
            "random": player.random,
            "popularity": player.popularity,
            "two-tower": player.two_tower,
            "cascade": player.cascade_slate,
            "oracle over candidates": player.oracle_over_candidates,
            "oracle": player.oracle,
        }
        rows = play(world, policies, requests, data_set="small", seed=5)
        worth = {row.system: row.value for row in rows if (row.market, row.metric) == (ALL, EXPECTED)}
        assert worth["oracle"] > worth["oracle over candidates"] > worth["cascade"]
        assert worth["oracle over candidates"] > worth["popularity"] > worth["random"]
        gain = {r.system: r for r in rows if (r.market, r.metric) == (ALL, f"{EXPECTED} over random")}
        assert set(gain) == set(policies) - {"random"}
        for system, row in gain.items():
            assert row.value == pytest.approx(worth[system] - worth["random"])
        assert gain["oracle"].low > 0

    def test_every_market_and_all_of_them_have_every_measure(self, world, player, requests):
        rows = play(world, {"popularity": player.popularity}, requests, data_set="small", seed=5)
        found = {(row.market, row.metric): row for row in rows}
        assert set(found) == {(m, k) for m in ("GB", "ID", ALL) for k in MEASURES}
        assert found[ALL, EXPECTED].users == len(np.unique(requests.user)) < len(requests)
        assert found["GB", EXPECTED].users + found["ID", EXPECTED].users == found[ALL, EXPECTED].users
        assert all(row.low <= row.value <= row.high for row in rows)
        assert {(row.data_set, row.seed) for row in rows} == {("small", 5)}

    def test_a_play_can_be_repeated_whatever_was_played_before(self, world, player, requests):
        first = play(world, {"random": player.random}, requests, data_set="small", seed=5)
        play(world, {"cascade": player.cascade_slate}, requests, data_set="small", seed=5)
        assert play(world, {"random": player.random}, requests, data_set="small", seed=5) == first

    def test_a_policy_is_told_of_exactly_the_clicks_that_it_earned(self, world, player, requests):
        asked: list[Asked] = []
        shown: dict[int, set[int]] = {}

        def watched(batch: Asked) -> np.ndarray:
            asked.append(batch)
            slates = player.oracle(batch)
            for user, clicked, slate in zip(batch.user.tolist(), batch.clicked, slates):
                assert set(clicked[clicked >= 0].tolist()) <= shown.get(user, set())
                shown.setdefault(user, set()).update(slate.tolist())
            return slates

        made = outcomes(world, watched, requests)
        clicks = made[:, MEASURES.index("clicks")]
        told = {}
        for batch in asked:
            for user, time, clicked in zip(batch.user, batch.time, batch.clicked):
                told.setdefault((user, time), []).append(int((clicked >= 0).sum()))
        earned: dict[int, float] = {}
        for user, time, count in zip(requests.user, requests.time, clicks):
            assert told[user, time].pop(0) == min(earned.get(user, 0), OWN_CLICKS)
            earned[user] = earned.get(user, 0) + count
        assert sum(earned.values()) > 50

    def test_expected_value_is_the_worlds_own_for_the_slate_as_shown(self, world, requests):
        _, first = np.unique(requests.user, return_index=True)
        once = Requests(requests.user[first], requests.market[first], requests.time[first], requests.begin)
        slate = np.arange(10)
        made = outcomes(world, Fixed(slate), once)
        slates = np.tile(slate, (len(once), 1))
        world.reset()
        truth = world.expected_value(once.user, slates, once.time, slate=True).value.sum(axis=1)
        assert truth.sum() > 0
        assert made[:, MEASURES.index(EXPECTED)] == pytest.approx(truth, rel=1e-5)

    def test_people_tire_within_a_play_and_are_rested_in_the_next(self, world, requests):
        twice = Requests(
            requests.user[[0, 0]], requests.market[[0, 0]], requests.time[[0, 0]] + [0, 60], requests.begin
        )
        on = np.flatnonzero(world.eligible(str(requests.market[0]), int(requests.time[0])))[:10]
        value = outcomes(world, Fixed(on), twice)[:, MEASURES.index(EXPECTED)]
        assert value[1] < value[0]
        assert outcomes(world, Fixed(on), twice)[0, MEASURES.index(EXPECTED)] == value[0]


def test_what_a_play_remembers_is_of_those_who_ask(world, monkeypatch):
    monkeypatch.setattr(closed_loop, "OWN_SHOWN", 10_000)
    market = str(world.users()["market"][0])
    asked = Requests(np.zeros(1, np.int64), np.array([market], object), np.array([world.config.begin]), 0)
    world.reset()
    tracemalloc.start()
    outcomes(world, Fixed([0, 1]), asked)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * world.config.users * 10_000 * 8 / 10


def test_a_policy_that_repeats_itself_is_expected_to_sell_what_it_sells(world, monkeypatch):
    """It sells out what it shows, and goes on to show it, to few at once, whom last pieces may suffice."""
    monkeypatch.setattr(closed_loop, "BATCH", 4)
    market, days = world.config.markets[0], 4
    people = np.flatnonzero(world.users()["market"].to_numpy() == market)
    hours = world.config.begin + 86_400 * np.arange(days)[:, None] + 3600 * np.arange(12, 22)
    time = np.repeat(hours.ravel(), len(people))
    user = np.tile(people, hours.size)
    asked = Requests(user, np.full(len(user), market, object), time, world.config.begin)
    world.reset()
    cards = np.flatnonzero(
        world.eligible(market, world.config.begin) & (world.contents()["kind"] == "product").to_numpy()
    )
    few = cards[np.argsort(world.contents()["stock"].to_numpy()[cards], kind="stable")[:10]]
    made = outcomes(world, Fixed(few), asked)
    assert (world._stock[few] == 0).sum() >= 5, "much of it sold out, so that stock matters here"
    off = made[:, MEASURES.index(EXPECTED)] - made[:, MEASURES.index("value (USD)")]
    low, high = mean_interval(off, user)[1:]
    assert low < 0 < high


def test_a_policy_is_told_of_all_that_it_showed_in_the_last_hour(world):
    market, times = world.users()["market"][0], 12 * 3600 + 120 * np.arange(40)
    begin = world.config.begin
    policy = Fixed(np.arange(10))
    outcomes(world, policy, Requests(np.zeros(40, int), np.full(40, market, object), begin + times, begin))
    told = [int((asked.shown >= 0).sum()) for asked in policy.asked]
    assert told == [10 * min(before, 29) for before in range(40)]


@pytest.mark.slow
class TestPlayer:
    def test_shelves_are_full_whatever_the_log_sold(self, player, examples, world, requests):
        full = world.contents()["stock"].to_numpy()
        every = np.arange(len(full))
        late = np.full(len(full), examples.end)
        assert (examples.moments.stock(every, late) < full).any()
        np.testing.assert_array_equal(player.retrieval.moments.stock(every, late), full)
        for stage in ("retrieval", "reordering"):
            eligibility = player.cascade.run[stage].eligibility
            np.testing.assert_array_equal(eligibility.stock, full)
            np.testing.assert_array_equal(eligibility.ends, player.release.array("ended_at.npy"))
        for shelf in player.retrieval.shelves:
            np.testing.assert_array_equal(shelf.ends, player.release.array("ended_at.npy")[shelf.rows])

    def test_what_the_held_out_part_of_the_log_tells_changes_no_slate(
        self, small_build, examples, world, player, requests
    ):
        pairs = examples.pairs
        later = pairs.split == TEST
        other = np.random.default_rng(0).integers(0, len(examples.contents), later.sum())
        content, positive = np.array(pairs.content), np.array(pairs.positive)
        content[later], positive[later] = other, ~positive[later]
        told = replace(examples, pairs=replace(pairs, content=content, positive=positive))
        again = Player(small_build.built.release, told, world, requests.begin, seed=5)
        some = slice(0, 50)
        asked = Asked(
            requests.user[some], requests.market[some], requests.time[some], *np.full((2, 50, OWN_CLICKS), -1)
        )
        for name in ("popularity", "two_tower", "cascade_slate"):
            assert np.array_equal(getattr(again, name)(asked), getattr(player, name)(asked)), name

    def test_a_users_season_is_that_of_the_last_event_before_the_play(self, seasonal_build, world, requests):
        release, examples = seasonal_build.release, seasonal_build.data.examples
        player = Player(release, examples, world, requests.begin, seed=5)
        pairs, queries = examples.pairs, examples.queries
        latest = np.full(len(examples.users), requests.begin)
        for query in pairs.query[pairs.positive & (queries.time[pairs.query] < requests.begin)]:
            user, time = queries.user[query], queries.time[query]
            latest[user] = time if latest[user] == requests.begin else max(latest[user], time)
        went_on = seasonal_build.data.seasons.latest > requests.begin
        assert (went_on & (latest < requests.begin)).any()
        np.testing.assert_array_equal(player.user_state.since, latest)

    @pytest.mark.parametrize("policy", ["random", "popularity", "two_tower", "cascade_slate", "oracle"])
    def test_a_slate_is_of_the_market_open_distinct_and_not_clicked_before(
        self, player, examples, requests, policy
    ):
        rows = slice(0, 60)
        market, time = requests.market[rows], requests.time[rows]
        nothing = np.full((60, OWN_CLICKS), -1)
        first = getattr(player, policy)(Asked(requests.user[rows], market, time, nothing, nothing))
        clicked = nothing.copy()
        clicked[:, -3:] = first[:, :3]
        slates = getattr(player, policy)(Asked(requests.user[rows], market, time, clicked, nothing))
        assert slates.shape == (60, 10)
        opens = examples.contents["created_at"].to_numpy(float)
        ends = examples.contents["ended_at"].to_numpy(float, na_value=np.inf)
        for code, now, slate, gone in zip(market, time, slates, first[:, :3]):
            shown = slate[slate >= 0]
            assert len(set(shown)) == len(shown) > 0
            assert not set(shown) & set(gone)
            assert examples.available[examples.markets.index(code), shown].all()
            assert (opens[shown] <= now).all()
            assert (ends[shown] > now).all()

    @pytest.mark.parametrize(
        "policy", ["random", "popularity", "two_tower", "cascade_slate", "oracle", "oracle_over_candidates"]
    )
    def test_a_slate_is_the_same_whoever_asks_beside_it(self, player, requests, policy):
        _, first = np.unique(requests.user, return_index=True)
        nothing = np.full((9, OWN_CLICKS), -1)
        whole = Asked(
            *(of[first[:9]] for of in (requests.user, requests.market, requests.time)), *[nothing] * 2
        )
        slates = getattr(player, policy)(whole)
        for row in range(9):
            alone = Asked(*(getattr(whole, field.name)[[row]] for field in fields(Asked)))
            np.testing.assert_array_equal(getattr(player, policy)(alone)[0], slates[row])

    def test_the_cascade_gets_the_slate_that_the_server_would_reply(
        self, small_build, player, examples, requests
    ):
        strangers = np.flatnonzero((examples.latest_history < 0).all(axis=1))[:8]
        ids = examples.contents["content_id"].to_numpy(object)
        home = examples.users["market"].to_numpy(object)[strangers]
        shelf = np.flatnonzero(examples.available.all(axis=0))[:2]
        time = np.full(len(strangers), requests.begin)
        clicked = np.tile(shelf, (len(strangers), 1))
        slates = player.cascade_slate(Asked(strangers, home, time, clicked, clicked))
        replied = Cascade(small_build.built.release)(
            {
                "user_id": examples.users["user_id"].to_numpy(object)[strangers],
                "market": home,
                "time": time,
                "history": ids[clicked],
                "exclude": np.full((len(strangers), 0), "", object),
                "shown": ids[clicked],
                "diversity": np.full(len(strangers), DIVERSITY, np.float32),
                "seed": player.seed + (strangers << 32) + time,
                "explain": np.zeros(len(strangers), bool),
            }
        )
        assert np.array_equal(ids[slates], replied["content_id"])

    def test_another_world_is_refused(self, small_build, examples, requests):
        other = World(replace(SMALL_WORLD, users=401))
        with pytest.raises(ValueError, match="users of 'world' are not this world's"):
            Player(small_build.built.release, examples, other, requests.begin, seed=5)


def test_histories_end_where_the_play_begins(small_examples):
    begin = int(small_examples.queries.time[small_examples.queries.rows(TEST)].min())
    made = histories_until(small_examples, begin, 12)
    pairs, queries = small_examples.pairs, small_examples.queries
    user, time = queries.user[pairs.query], queries.time[pairs.query]
    for person in range(len(small_examples.users)):
        known = np.flatnonzero(pairs.positive & (user == person) & (time < begin))
        known = known[np.argsort(time[known], kind="stable")][-made.shape[1] :]
        assert made[person][made[person] >= 0].tolist() == pairs.content[known].tolist()


def test_requests_are_all_held_out_visits_of_some_people(small_examples):
    queries = small_examples.queries
    rows = queries.rows(VALID)
    everyone = held_out_requests(small_examples, 10**6, seed=1, split=VALID)
    assert sorted(everyone.time) == sorted(queries.time[rows])
    assert everyone.begin == everyone.time.min()
    some = held_out_requests(small_examples, 40, seed=1, split=VALID)
    assert len(some) == 40
    assert (np.diff(some.time) >= 0).all()
    people, asked = np.unique(some.user, return_counts=True)
    of_all = np.array([(everyone.user == user).sum() for user in people])
    assert (asked != of_all).sum() <= 1  # the last one drawn may be cut short
    home = small_examples.users["market"].to_numpy(object)[some.user]
    assert np.array_equal(home, some.market)


def test_a_log_without_a_cut_in_time_cannot_be_played(small_examples):
    with pytest.raises(ValueError, match="is not cut by time"):
        held_out_requests(replace(small_examples, split="given"), 10, seed=1)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3 * ROUND_S)), max_size=60),
    st.integers(1, 8),
)
def test_batches_hold_each_request_once_and_keep_everyones_order(pairs, size):
    pairs.sort(key=lambda pair: pair[1])
    user = np.array([u for u, _ in pairs], np.int64)
    time = np.array([t for _, t in pairs], np.int64)
    made = list(batches(user, time, size))
    rows = np.concatenate([np.zeros(0, np.int64), *made])
    assert sorted(rows) == list(range(len(pairs)))
    for batch in made:
        assert 0 < len(batch) <= size
        assert len(set(user[batch])) == len(batch)
    for person in set(user):
        own = rows[user[rows] == person]
        assert (np.diff(own) > 0).all()
    if len(rows):
        assert (np.maximum.accumulate(time[rows]) - time[rows]).max() < ROUND_S
