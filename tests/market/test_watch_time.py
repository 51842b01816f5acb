"""Watch time as a place among contents of like duration, and back to seconds."""

import numpy as np
import pytest

from market.watch_time import GROUP_ROWS, WatchTime


@pytest.fixture(scope="module")
def log():
    """Watch times that are a share of the duration; a short and a long content have half of the rows each."""
    random = np.random.default_rng(0)
    duration = np.repeat([10.0, 100.0], 1000)
    return duration * random.random(2000), duration


def test_duration_says_nothing_about_the_rank(log):
    watch, duration = log
    rank = WatchTime.fit(watch, duration).rank(watch, duration)
    assert abs(rank[duration == 10].mean() - rank[duration == 100].mean()) < 0.01
    assert abs(np.corrcoef(rank, watch / duration)[0, 1]) > 0.99
    assert rank.min() >= 0
    assert rank.max() <= 1


def test_ranks_turn_into_seconds_again(log):
    watch, duration = log
    times = WatchTime.fit(watch, duration)
    back = times.seconds(times.rank(watch, duration), duration)
    assert np.abs(back - watch)[duration == 10].mean() < 0.1
    assert np.abs(back - watch)[duration == 100].mean() < 1


def test_half_of_equal_watch_times_count_as_shorter():
    watch = np.r_[np.zeros(300), np.full(100, 7.0)]
    times = WatchTime.fit(watch, np.full(400, 30.0))
    np.testing.assert_allclose(
        times.rank(np.array([0.0, 3.0, 7.0]), np.full(3, 30.0)), [0.375, 0.75, 0.875], atol=0.01
    )


def test_unknown_durations_are_a_group_of_their_own():
    watch = np.r_[np.full(300, 5.0), np.full(300, 50.0)]
    duration = np.r_[np.full(300, 20.0), np.full(150, np.nan), np.zeros(150)]
    times = WatchTime.fit(watch, duration)
    np.testing.assert_allclose(times.seconds(np.full(3, 0.5), np.array([20.0, np.nan, 0.0])), [5, 50, 50])


def test_few_rows_make_one_group_and_missing_watch_times_none():
    watch = np.r_[np.arange(GROUP_ROWS), np.nan]
    assert len(WatchTime.fit(watch, np.arange(GROUP_ROWS + 1) + 1.0).edges) == 0
    with pytest.raises(ValueError, match="no row has a watch time"):
        WatchTime.fit(np.full(3, np.nan), np.ones(3))
