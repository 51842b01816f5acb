"""What was true of contents at a moment, checked against loops over the statements."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.moments import HALF_LIFE_S, MOMENT_FEATURES, LoggedMoments, Timeline, decayed, moment_features

CONTENTS, START = 4, 1_770_000_000
EMPTY = Timeline(*np.zeros((3, 0), np.int64))
statements = st.lists(
    st.tuples(st.integers(0, CONTENTS - 1), st.integers(0, 3000), st.integers(0, 50)), max_size=25
)


def timeline(rows):
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Timeline(table[:, 0], table[:, 1] + START, table[:, 2])


def logged(viewers=(), showing=(), left=(), in_stock=(7, -1, 0, 3)):
    return LoggedMoments(
        np.array([True, False, True, True]),
        np.full(CONTENTS, START),
        np.array(in_stock),
        viewers=timeline(viewers),
        showing=timeline(showing),
        left=timeline(left),
    )


def before(rows, content, time):
    """The statements about a content before a time, in order of time, as they came."""
    return sorted((row for row in rows if row[0] == content and row[1] < time), key=lambda row: row[1])


@given(statements, statements, statements, st.integers(0, 3500))
@settings(max_examples=200)
def test_what_holds_is_what_was_said_last_before(viewers, showing, left, now):
    made = logged(viewers, [(c, t, v % CONTENTS) for c, t, v in showing], left)
    every = np.arange(CONTENTS)
    moment = made(every, np.full(CONTENTS, START + now))
    stock = made.stock(every, np.full(CONTENTS, START + now))
    for content in range(CONTENTS):
        said = before(viewers, content, now)
        assert np.isnan(moment.viewers[content]) == np.isnan(moment.usual[content]) == (not said)
        if said:
            usual = float(said[0][2])
            for (_, t, v), (_, until, _) in zip(said, [*said[1:], (0, now, 0)]):
                usual = v + (usual - v) * 0.5 ** ((until - t) / HALF_LIFE_S)
            assert moment.viewers[content] == said[-1][2]
            assert moment.usual[content] == pytest.approx(usual, rel=1e-4, abs=1e-4)
        said = before(showing, content, now)
        assert moment.showing[content] == (said[-1][2] % CONTENTS if said else -1)
        said = before(left, content, now)
        assert stock[content] == (said[-1][2] if said else made.in_stock[content])
    assert (moment.open_s == now).all()


def test_what_came_of_a_request_is_not_known_to_it():
    made = logged(left=[(0, 100, 0)])
    stock = made.stock(np.zeros(3, int), START + np.array([99, 100, 101]))
    assert stock.tolist() == [7, 7, 0]


@given(statements, st.integers(0, 3500))
@settings(max_examples=100)
def test_what_is_said_later_changes_nothing(viewers, now):
    every, time = np.arange(CONTENTS), np.full(CONTENTS, START + now)
    one = logged(viewers)(every, time)
    other = logged([row for row in viewers if row[1] < now])(every, time)
    np.testing.assert_array_equal(one.viewers, other.viewers)
    np.testing.assert_allclose(one.usual, other.usual, rtol=1e-6)


def test_features_of_rooms_are_those_of_the_moment_and_others_have_none_but_stock():
    made = logged([(0, 0, 9), (0, 600, 39)], [(0, 0, 2)], [(1, 0, 20)])
    content, time = np.array([[0, 1, 2]]), np.full((1, 3), START + 601)
    found = moment_features(made, content, time, lambda shown: np.where(shown == 2, 0.5, 0.0))
    assert found.shape == (1, 3, len(MOMENT_FEATURES))
    usual = decayed(np.float32(9), np.float32(39), 1)
    room = [
        np.log(40) / 4,
        np.log(40 / (1 + usual)),
        np.log1p(601 / 600) / 2,
        np.log1p(50) / 2,
        np.log(8) / 4,
    ]
    np.testing.assert_allclose(found[0, 0], room, rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], [0, 0, 0, 0, np.log(21) / 4], rtol=1e-6)
    np.testing.assert_allclose(found[0, 2], [0, 0, np.log1p(601 / 600) / 2, 0, 0], rtol=1e-6)


def test_what_was_told_after_the_last_impression_is_known_of_stock():
    made = logged(left=[(0, 100, 4), (3, 900, 0)])
    assert made.stock_left(START + 101).tolist() == [4, -1, 0, 0]
    assert made.stock_left(START + 5000).tolist() == [4, -1, 0, 0]
    assert logged().stock_left(0).tolist() == [7, -1, 0, 3]


def test_a_room_of_unknown_opening_has_no_age():
    made = logged([(0, 0, 9)])
    made.opened[2] = 0
    found = moment_features(
        made, np.array([0, 2]), np.full(2, START + 600), lambda shown: np.zeros(shown.shape)
    )
    np.testing.assert_allclose(found[:, 2], [np.log(2) / 2, 0], rtol=1e-6)


def test_the_affinity_asked_for_is_that_of_the_product_shown_where_the_room_stands():
    made = logged(showing=[(0, 0, 1), (3, 0, 2)])
    asked = []

    def affinity(shown):
        asked.append(shown.tolist())
        return np.zeros(shown.shape, np.float32)

    moment_features(made, np.array([[1, 0, 3]]), np.full((1, 3), START + 5), affinity)
    assert asked == [[[-1, 1, 2]]]


def test_a_crowd_that_stays_becomes_the_usual_one():
    now = decayed(np.float32(10), np.float32(30), np.array([0, HALF_LIFE_S, 100 * HALF_LIFE_S]))
    np.testing.assert_allclose(now, [10, 20, 30])


def test_no_statements_are_no_knowledge():
    assert EMPTY.place(np.arange(3), np.zeros(3, int)).tolist() == [-1, -1, -1]
    assert pd.isna(logged()(np.array([0]), np.array([START])).viewers).all()
