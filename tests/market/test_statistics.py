"""Statistics that training and serving share: counts of the past, and features of a pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.moments import MOMENT_FEATURES
from market.offers import OFFER_FEATURES
from market.statistics import DAY_S, PAIR_FEATURES, EventCounts, counts, pair_features, trend

MARKETS, CONTENTS = 2, 3
events = st.tuples(st.integers(0, MARKETS - 1), st.integers(0, CONTENTS - 1), st.integers(1_000, 1_040))
asked = st.tuples(st.integers(0, MARKETS - 1), st.integers(0, CONTENTS - 1), st.integers(900, 1_200))


def columns(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return table[:, 0].astype(np.int16), table[:, 1].astype(np.int32), table[:, 2]


@given(
    st.lists(events, max_size=40),
    st.lists(asked, min_size=1, max_size=20),
    st.integers(1, 60),
    st.integers(0, 60),
)
def test_counts_are_those_of_the_window_around_the_moment(log, queries, window_s, after_s):
    here, world = EventCounts(*columns(log), CONTENTS, window_s, after_s)(*columns(queries))
    for row, (market, content, time) in enumerate(queries):
        inside = [m for m, c, t in log if c == content and time - window_s <= t < time + after_s]
        assert here[row] == inside.count(market)
        assert world[row] == len(inside)
    assert here.dtype == world.dtype == np.float32


@given(st.lists(events, min_size=1, max_size=30), st.integers(1_000, 1_040))
def test_what_comes_later_changes_no_count(log, now):
    past = [event for event in log if event[2] < now]
    queries = columns([(m, c, now) for m in range(MARKETS) for c in range(CONTENTS)])
    with_future = EventCounts(*columns(log), CONTENTS, 1_000)(*queries)
    without = EventCounts(*columns(past), CONTENTS, 1_000)(*queries)
    np.testing.assert_array_equal(with_future, without)


@pytest.mark.parametrize("shape", [(), (4,), (2, 5)])
def test_pair_features_are_the_last_axis(shape):
    count, time = np.full(shape, 7.0, np.float32), np.full(shape, 1_770_000_000)
    offer = np.broadcast_to(np.arange(3, dtype=np.float32), (*shape, 3))
    moment = np.broadcast_to(np.arange(5, dtype=np.float32), (*shape, 5))
    made = pair_features(count, count + 1, time - 3 * DAY_S, time, count / 100, offer, moment, count + 2)
    assert made.shape == (*shape, len(PAIR_FEATURES))
    assert made.dtype == np.float32
    first = [np.log1p(7) / 3, np.log1p(8) / 3, np.log1p(3) / 2, np.log1p(7) / 2, np.log1p(9) / 2]
    expected = [*first, *range(3), *range(5)]
    np.testing.assert_allclose(made, np.broadcast_to(expected, made.shape), rtol=1e-6)


def test_an_unknown_age_is_zero():
    count, time = np.ones(3, np.float32), np.full(3, 1_770_000_000)
    created_at = np.array([0, 1_770_000_000 - DAY_S, 1_770_000_000 + DAY_S])
    age = PAIR_FEATURES.index("age")
    others = np.ones((3, len(OFFER_FEATURES)), np.float32), np.ones((3, len(MOMENT_FEATURES)), np.float32)
    np.testing.assert_allclose(
        pair_features(count, count, created_at, time, count, *others)[:, age],
        [0, np.log1p(1) / 2, 0],
        rtol=1e-6,
    )
    assert not pair_features(count, count, None, time, count, *others)[:, age].any()
    assert not pair_features(count, count, created_at, None, count, *others)[:, age].any()


WANTED = np.array([[0, 0, 0, 0], [8, 2, 0, 0], [0, 0, 6, 4]])
REGION = np.array([0, 0, 1])


def test_a_market_without_data_wants_what_its_region_wants():
    made = trend(WANTED, np.ones((3, 4), bool), REGION, prior=5)
    assert np.argsort(-made[0]).tolist()[:2] == [0, 1]
    assert made[0, 2] > 0, "and then what the world wants"
    assert made[0].sum() == pytest.approx(1)


def test_a_market_with_much_data_wants_what_it_says():
    made = trend(WANTED * 1000, np.ones((3, 4), bool), REGION, prior=5)
    np.testing.assert_allclose(made[1:], WANTED[1:] / 10, atol=0.005)


def test_the_prior_says_how_much_is_borrowed():
    wanted = np.array([[3.0, 0], [0, 30]])
    first = [trend(wanted, np.ones((2, 2), bool), np.zeros(2, int), prior)[0].argmax() for prior in (1, 100)]
    assert first == [0, 1]


def test_a_content_is_judged_by_the_markets_where_it_is_sold():
    """Sold in one of three markets alone, it must not look a third as wanted to a market that borrows."""
    wanted = np.array([[0, 0], [5, 5], [0, 10]])
    available = np.array([[True, True], [True, True], [False, True]])
    made = trend(wanted, available, np.zeros(3, int), prior=0.001)
    assert made[0, 0] == pytest.approx(0.5, abs=0.01)
    assert made[0, 1] == pytest.approx(0.75, abs=0.01)


def test_an_endless_prior_leaves_every_market_the_worlds_share():
    wanted = np.array([[10.0, 110], [100, 0], [100, 0]])
    made = trend(wanted, np.ones((3, 2), bool), np.arange(3), prior=1e30)
    np.testing.assert_array_equal(made, made[[0, 0, 0]])
    np.testing.assert_allclose(made[0], [210 / 320, 110 / 320], rtol=1e-6)
    assert trend(wanted, np.ones((3, 2), bool), np.arange(3), prior=1e9)[0].argmax() == 0


@given(st.integers(0, 2**32 - 1))
def test_what_is_sold_everywhere_is_shared_out_whole_under_any_prior(seed):
    rng = np.random.default_rng(seed)
    wanted, region = rng.gamma(0.3, 10, (4, 6)), rng.integers(0, 3, 4)
    for prior in (0.1, 100, 1e9):
        made = trend(wanted, np.ones((4, 6), bool), region, prior)
        np.testing.assert_allclose(made.sum(axis=1), 1, rtol=1e-5)


def test_what_is_sold_in_one_market_of_little_data_is_not_thought_the_most_wanted():
    wanted = np.array([[1.0, 0, 0], [0, 600, 400]])
    available = np.array([[True, True, True], [False, True, True]])
    made = trend(wanted, available, np.zeros(2, int), prior=100)
    assert made[0].argmax() == 1


def test_where_nothing_is_wanted_nothing_is_trending():
    assert not trend(np.zeros((2, 3)), np.ones((2, 3), bool), np.zeros(2, int), prior=100).any()


def test_counts_sum_the_weights_of_each_cell():
    made = counts(np.array([0, 1, 1]), np.array([2, 0, 0]), np.array([0.5, 1, 2]), (2, 3))
    assert made.tolist() == [[0, 0, 0.5], [3, 0, 0]]
