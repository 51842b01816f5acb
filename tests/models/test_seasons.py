"""The latest event before a time is found whatever the users and times."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.seasons import latest_before

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
