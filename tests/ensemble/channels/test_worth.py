"""The worth channel proposes what the market's people are worth the most to, whatever they want."""

from ensemble.channels.worth import worth
from tests.ensemble.channels.asking import asked, shelf

UNKNOWN = float("nan")


def test_contents_stand_by_worth_and_those_of_unknown_worth_nowhere():
    of = shelf(5, worth=[0.1, 2.0, UNKNOWN, -0.5, 0.3], trend=[5, 1, 9, 3, 2])
    assert worth(asked(of, seen=[[1], [-1]]), 4).tolist() == [[4, 0, 3, -1], [1, 4, 0, 3]]


def test_nothing_is_proposed_where_nobody_asked_the_ranker():
    assert worth(asked(shelf(3)), 2).shape == (1, 0)
