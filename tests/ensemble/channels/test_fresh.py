"""The fresh channel proposes what is new and was shown to few."""

from ensemble.channels.fresh import fresh
from tests.ensemble.channels.asking import NOW, asked, shelf


def test_the_newest_of_the_little_exposed_come_first():
    of = shelf(5, opens=[50, 90, 70, 80, 60], fresh=[True, False, True, True, False])
    assert fresh(asked(of), 9).tolist() == [[3, 2, 0]]
    assert fresh(asked(of), 2).tolist() == [[3, 2]]


def test_what_is_not_published_yet_or_seen_is_not_fresh():
    of = shelf(3, opens=[NOW + 1, NOW, NOW - 9], fresh=[True] * 3)
    assert fresh(asked(of, seen=[[1]]), 1).tolist() == [[2]]
    assert fresh(asked(of, time=NOW + 1), 1).tolist() == [[0]]


def test_contents_of_unknown_age_are_not_called_new():
    assert not fresh(asked(shelf(3, opens=[0, 0, 0], fresh=[True] * 3)), 3).size
