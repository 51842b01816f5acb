"""The followed channel proposes what followed sellers have."""

from ensemble.channels.followed import followed
from tests.ensemble.channels.asking import asked, shelf


def test_contents_of_followed_sellers_come_newest_first():
    of = shelf(6, seller=[0, 1, 2, 1, -1, 0], opens=[10, 20, 30, 40, 50, 60])
    assert followed(asked(of, followed=[[1, 0]]), 9).tolist() == [[5, 3, 1, 0]]
    assert followed(asked(of, followed=[[1, 0]]), 2).tolist() == [[5, 3]]


def test_who_follows_nobody_gets_nothing():
    of = shelf(3, seller=[0, 1, -1])
    assert not followed(asked(of, followed=[[-1, -1]]), 5).size
    assert not followed(asked(of), 5).size


def test_each_request_has_its_own_sellers_and_seen_contents():
    of = shelf(4, seller=[0, 0, 1, 1], opens=[10, 20, 30, 40])
    made = followed(asked(of, followed=[[0, -1], [1, -1], [-1, -1], [0, 1]], seen=[[1], [-1], [-1], [3]]), 9)
    assert made.tolist() == [[0, -1, -1], [3, 2, -1], [-1, -1, -1], [2, 1, 0]]


def test_a_seller_without_contents_in_this_market_is_no_fault():
    of = shelf(2, seller=[0, 5])
    assert followed(asked(of, followed=[[3, 5]]), 4).tolist() == [[1]]
