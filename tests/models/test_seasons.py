"""The latest event before a time is found whatever the users and times, and none that is held out."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.seasons import latest_before, latest_before_queries
from workflows.examples import TEST, TRAIN, VALID, Pairs, Queries

USERS = 4
moments = st.lists(st.tuples(st.integers(0, USERS - 1), st.integers(0, 30)), max_size=25)


@given(events=moments, asked=moments)
def test_the_latest_event_is_of_the_same_user_and_strictly_before(events, asked):
    user, time = np.array(events, np.int64).reshape(-1, 2).T
    of, at = np.array(asked, np.int64).reshape(-1, 2).T
    found = latest_before(user, time, of, at, at + 1000)
    for row, (person, moment) in enumerate(asked):
        before = [t for u, t in events if u == person and t < moment]
        assert found[row] == (max(before) if before else moment + 1000)


@pytest.mark.parametrize(
    ("split", "times", "latest"),
    [
        ("time", [[10, 20], [30, 31], [40, 41]], [[10, 10], [20, 30], [31, 40]]),
        ("given", [[10, 30], [25, 26], [20, 27]], [[10, 10], [10, 10], [10, 26]]),
    ],
)
def test_a_query_knows_the_latest_event_of_the_parts_that_its_history_knows(split, times, latest):
    """Rows of any time may be held out where a data set gives the split."""
    time, part, one = np.ravel(times), np.repeat([TRAIN, VALID, TEST], 2), np.zeros(6, np.int64)
    queries = Queries(one, one, time, part, history=np.empty((6, 0)))
    pairs = Pairs(np.arange(6), one, np.ones(6, bool), {}, part)
    found = latest_before_queries(SimpleNamespace(split=split, queries=queries, pairs=pairs))
    assert found.tolist() == np.ravel(latest).tolist()
