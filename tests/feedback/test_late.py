"""Outcomes that come when their impressions are in a data set already."""

import numpy as np
import pandas as pd
import pytest

from feedback.extend import extend
from feedback.log import FeedbackLog
from feedback.records import outcome, shown
from market.dataset import Dataset
from tests.feedback.test_extend import DAY, T, log_of, one
from tests.market.test_dataset import everything_in, part, write


def again(base: Dataset, tmp_path, *records, **options):
    """A data set extended by a log in which a person asked once more, and by other records."""
    log = log_of(tmp_path, one(99, T + DAY), *records)
    return extend(base, log.folder, tmp_path / "next", **{"wait_s": 0, "until": T + 2 * DAY} | options)


@pytest.fixture
def base(tmp_path) -> Dataset:
    early, late = part([T - 90, T - 80], watch_s=1.5, order=0), part([T - 50, T], watch_s=1.5, order=0)
    return write(tmp_path / "base", impressions=[early, late])


def test_an_order_that_comes_late_is_had_and_the_rest_stays(base, tmp_path):
    before = everything_in(base.path)
    made, taken = again(
        base, tmp_path, outcome(7, "u0", T, "c0", T + DAY, order=1), outcome(7, "u0", T, "c0", watch_s=9)
    )
    rows = made.impressions()
    assert rows["order"].tolist() == [0, 0, 0, 1, 0]
    assert rows["watch_s"].tolist() == [1.5, 1.5, 1.5, 9, 0]
    assert rows["click"].tolist() == [1, 1, 1, 1, 0], "nobody told of it"
    assert (taken.amended, taken.rows) == (1, 1)
    assert rows.dtypes.equals(base.impressions().dtypes)
    assert everything_in(base.path) == before


def test_a_part_of_which_nothing_came_is_the_same_file(base, tmp_path):
    made, _ = again(base, tmp_path, outcome(7, "u0", T, "c0", order=1))
    same = [a.samefile(b) for a, b in zip(base.impression_files, made.impression_files)]
    assert same == [True, False]


def test_what_is_told_once_more_changes_nothing(base, tmp_path):
    told = outcome(7, "u0", T, "c0", T + 5, order=1, watch_s=1.5)
    first, _ = again(base, tmp_path, told)
    log_of(tmp_path, told, one(100, T + DAY + 9))
    second, taken = extend(first, tmp_path / "log", tmp_path / "second", wait_s=0, until=T + 2 * DAY)
    assert (taken.amended, taken.rows) == (0, 1)
    assert all(a.samefile(b) for a, b in zip(first.impression_files, second.impression_files))


@pytest.mark.parametrize(("late_s", "orders"), [(0, [0, 0]), (50, [0, 1]), (51, [1, 1]), (DAY, [1, 1])])
def test_only_so_far_back(base, tmp_path, late_s, orders):
    told = [outcome(7, "u0", time, "c0", order=1) for time in (T - 50, T)]
    made, taken = again(base, tmp_path, *told, late_s=late_s)
    assert made.impressions()["order"].tolist()[2:4] == orders
    assert taken.amended == sum(orders)


def test_the_latest_holds_and_an_order_may_be_cancelled(base, tmp_path):
    early = outcome(7, "u0", T, "c0", T + 5, order=1)
    made, _ = again(base, tmp_path, outcome(7, "u0", T, "c0", T + 9, order=0, watch_s=3), early)
    assert made.impressions()["order"].tolist() == [0, 0, 0, 0, 0]
    assert made.impressions()["watch_s"].tolist()[3] == 3


def test_of_others_and_of_what_cannot_be_told_apart_nothing_changes(tmp_path):
    twice = part([T, T, T], user_id=["u0", "u0", "u1"], order=0)
    base = write(tmp_path / "base", impressions=[twice])
    told = [outcome(7, user, T, content, order=1) for user in ("u0", "u9") for content in ("c0", "c9")]
    both = [outcome(number, "u1", T, "c0", order=1) for number in (3, 4)]
    _, taken = again(base, tmp_path, *told, *both, outcome(8, "u1", T + 1, "c0", order=1))
    assert taken.amended == 0


def test_a_rating_that_was_not_known_is_known_and_one_that_was_stays(tmp_path):
    rated = part([T - 1, T], rating=[np.nan, 3.0])
    base = write(tmp_path / "base", impressions=[rated])
    made, taken = again(base, tmp_path, *(outcome(7, "u0", time, "c0", rating=3) for time in (T - 1, T)))
    assert made.impressions()["rating"].tolist()[:2] == [3, 3]
    assert taken.amended == 1


def test_an_outcome_without_a_column_changes_nothing(base, tmp_path):
    made, taken = again(base, tmp_path, outcome(7, "u0", T, "c0", like=1))
    assert made.impression_columns == base.impression_columns
    assert taken.amended == 0


def test_what_is_kept_because_it_was_wanted_goes_when_it_was_not(tmp_path):
    base = write(tmp_path / "base", impressions=[part([T - 5]), part([T - 1, T])], feedback="positives")
    told = [outcome(7, "u0", time, "c0", click=0) for time in (T - 5, T)]
    more = outcome(99, "u1", T + DAY, "c0", click=1)
    made, taken = again(base, tmp_path, *told, more)
    assert made.impressions()["time"].tolist() == [T - 1, T + DAY]
    assert (taken.amended, taken.rows) == (2, 1)


def test_late_outcomes_alone_are_enough_for_a_new_data_set(base, tmp_path):
    log = log_of(tmp_path, outcome(7, "u0", T, "c0", order=1))
    made, taken = extend(base, log.folder, tmp_path / "next", wait_s=0, until=T + DAY)
    assert (taken.rows, taken.amended) == (0, 1)
    assert made.impressions()["order"].tolist() == [0, 0, 0, 1]


def test_however_early_it_was_read_the_data_set_ends_the_same(tmp_path):
    """Day after day without any waiting, or once when all has come."""
    rng = np.random.default_rng(0)
    base = write(tmp_path / "base", impressions=[part([T], watch_s=0, order=0, value=0)])
    times = np.sort(rng.choice(np.arange(T + 1, T + 4 * DAY), 300, replace=False)).tolist()
    arrives: list[tuple[int, dict]] = []
    for number, time in enumerate(times):
        user = f"u{rng.integers(3)}"
        items = [{"content": f"c{k}", "position": k, "propensity": 1} for k in range(2)]
        arrives.append((time, shown(number, user, "GB", time, items)))
        for came in ({"watch_s": 2.5, "click": 1}, {"order": 1, "value": 7.25}, {"order": 0}):
            if rng.random() < 0.5:
                at = time + int(rng.integers(2 * DAY))
                arrives.append((at, outcome(number, user, time, f"c{rng.integers(2)}", at, **came)))
    log, grown = FeedbackLog(tmp_path / "log"), base
    amended = 0
    for day in range(1, 7):  # the last record has come by then
        end = T + day * DAY
        log.append([record for at, record in arrives if end - DAY <= at < end])
        grown, taken = extend(grown, log.folder, tmp_path / f"day-{day}", wait_s=0, until=end)
        amended += taken.amended
    assert max(at for at, _ in arrives) < end
    assert amended > 50
    once, taken = extend(base, log.folder, tmp_path / "once", wait_s=0, until=T + 8 * DAY)
    assert (taken.rows, taken.amended) == (600, 0)
    pd.testing.assert_frame_equal(grown.impressions(), once.impressions())
