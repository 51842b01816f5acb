"""People tire of what they are shown in vain, and rest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply.fatigue import LONGEST_H, FatigueConfig, tired_of

WINDOW, END = 100, 1000
SHOWN = st.tuples(
    st.integers(0, 2), st.integers(-1, 2), st.integers(END - 130, END + 20), st.sampled_from([0, 0, 0, 0, 1])
)


@given(st.lists(SHOWN, max_size=40), st.integers(1, 4))
def test_tired_are_those_shown_often_in_the_window_and_never_wanted(log, shows):
    user, what, time, wanted = np.array(log, int).reshape(-1, 4).T
    made, until = tired_of(
        user, what, time, wanted == 1, users=3, shows=shows, window_s=WINDOW, end=END, most=5
    )
    for person in range(3):
        expected = {}
        for thing in range(3):
            own = [(t, w) for u, x, t, w in log if (u, x) == (person, thing) and END - WINDOW <= t < END]
            times = sorted(t for t, _ in own)
            if len(own) >= shows and not any(w for _, w in own):
                expected[thing] = times[-shows] + WINDOW
        known = made[person] >= 0
        assert dict(zip(made[person][known].tolist(), until[person][known].tolist())) == expected


def test_at_the_second_of_rest_fewer_exposures_are_remembered():
    time = np.array([910, 950, 990])
    one, none = np.zeros(3, int), np.zeros(3, bool)
    _, until = tired_of(one, one, time, none, users=1, shows=2, window_s=WINDOW, end=END, most=1)
    again = until[0, 0]
    assert (time > again - WINDOW).sum() == 1
    assert (time > again - WINDOW - 1).sum() == 2


def test_those_that_last_longest_are_kept_and_no_limit_tires_nobody():
    user, what, time = np.zeros(4, int), np.arange(4), np.array([910, 990, 950, 930])
    wanted = np.zeros(4, bool)
    made, _ = tired_of(user, what, time, wanted, users=1, shows=1, window_s=WINDOW, end=END, most=2)
    assert made.tolist() == [[1, 2]]
    made, _ = tired_of(user, what, time, wanted, users=1, shows=0, window_s=WINDOW, end=END, most=2)
    assert (made == -1).all()


def test_what_is_remembered_for_longer_than_there_are_moments_is_refused_before_anything_is_built():
    one, never = np.zeros(1, int), np.zeros(1, bool)
    window_s = int(FatigueConfig(LONGEST_H).window_h * 3600)
    _, until = tired_of(one, one, one, never, users=1, shows=1, window_s=window_s, end=END, most=1)
    assert until.tolist() == [[window_s]]
    with pytest.raises(
        ValueError, match=r"fatigue\.window_h is 1e\+18; it must be above 0 and at most 876,000"
    ):
        FatigueConfig(1e18)
