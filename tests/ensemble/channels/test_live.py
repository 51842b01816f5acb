"""The live channel proposes rooms that are open now, by viewers."""

from dataclasses import replace

import numpy as np

from ensemble.channels.live import PRIOR_S, live
from market.kinds import KINDS
from tests.ensemble.channels.asking import NEVER, NOW, asked, shelf

OLD = NOW - 1000 * PRIOR_S


def rooms(viewers, opens, **given):
    of = shelf(len(opens), opens=opens, kind=[KINDS.index("live")] * len(opens), **given)
    of.viewers = np.array(viewers, np.float32)
    return of


def test_rooms_stand_by_their_viewers():
    assert live(asked(rooms([5, 90, 40], [OLD] * 3)), 2).tolist() == [[1, 2]]


def test_a_room_that_has_ended_or_not_begun_and_what_is_no_room_are_left_out():
    of = rooms([9, 8, 7], [OLD, NOW + 1, OLD], ends=[NOW, NEVER, NEVER])
    assert live(asked(of), 3).tolist() == [[2]]
    assert not live(asked(shelf(4)), 3).size


def test_a_room_that_has_just_opened_is_drawn_to_the_others():
    """With few viewers after a second it stands above an old room with few, and below one with many."""
    of = rooms([100, 4, 3], [OLD, OLD, NOW - 1])
    assert live(asked(of), 3).tolist() == [[0, 2, 1]]
    of = rooms([100, 4, 3], [OLD, OLD, OLD])
    assert live(asked(of), 3).tolist() == [[0, 1, 2]]


def test_a_room_of_unknown_number_counts_as_the_usual_one():
    of = rooms([100, np.nan, 2], [OLD] * 3)
    assert live(asked(of), 3).tolist() == [[0, 1, 2]]
    of = rooms([100, np.nan], [OLD, OLD + 1])
    assert live(asked(of), 2).tolist() == [[1, 0]], "equal to the only known one, and newer"


def test_where_no_number_is_known_the_newest_room_comes_first():
    of = rooms([np.nan] * 3, [NOW - 50, NOW - 10, NOW - 30])
    assert live(asked(of), 3).tolist() == [[1, 2, 0]]


def test_a_room_that_opens_again_is_found_though_another_closes_in_the_same_moment():
    of = rooms([3, 2, 1], [OLD] * 3, ends=[NEVER, NOW - 7200, NEVER])
    assert live(asked(of), 3).tolist() == [[0, 2]]
    of.update(np.array([0, 1]), np.array([OLD, OLD]), np.array([NOW, NEVER]), np.array([3.0, 2.0]))
    assert live(asked(of), 3).tolist() == [[1, 2]]


def test_a_room_that_opens_anew_comes_first_though_of_another_only_viewers_are_told():
    of = rooms([np.nan] * 3, [OLD + 2, OLD + 1, OLD])
    assert live(asked(of), 3).tolist() == [[0, 1, 2]]
    of.update(np.array([1, 2]), np.array([OLD + 1, NOW]), of.ends[[1, 2]], np.full(2, np.nan))
    assert live(asked(of), 3).tolist() == [[2, 0, 1]]


def test_rooms_that_opened_in_the_same_second_keep_the_order_of_the_table_whatever_opens_beside_them():
    of = rooms([np.nan] * 40, [OLD] * 40)
    assert live(asked(of), 40).tolist() == [[*range(40)]]
    of.update(np.array([5]), np.array([NOW]), of.ends[[5]], np.full(1, np.nan))
    assert live(asked(of), 40).tolist() == [[5, *range(5), *range(6, 40)]]
    of.update(np.array([5]), np.array([OLD]), of.ends[[5]], np.full(1, np.nan))
    assert live(asked(of), 40).tolist() == [[*range(40)]]


def test_each_request_is_compared_with_the_rooms_open_to_it():
    of = rooms([100, 4, 3], [OLD, OLD, NOW - 1])
    both = live(asked(of, seen=[[0], [-1]]), 3)
    assert both[0].tolist() == [1, 2, -1]  # the mean is 3.5 without the large room
    assert both[1].tolist() == [0, 2, 1]


def test_a_request_has_the_rooms_of_its_own_batch_though_others_are_open_to_another():
    """Of so many people float32 sums depend on what stands between, by as much as two rooms differ here."""
    mine, viewers = np.arange(64) % 2 == 0, np.ones(64)
    viewers[[0, 10, 18]] = 2**24, np.nan, 559_241
    of = rooms(viewers, [OLD] * 64, ends=np.where(mine, NEVER, NOW - 1))
    both = replace(asked(of, seen=((), ())), time=np.array([NOW, NOW - 10]))
    assert live(both, 3)[0].tolist() == live(asked(of), 3)[0].tolist() == [0, 10, 18]
