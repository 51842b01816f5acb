"""The trending channel proposes what the market wants of late."""

from ensemble.channels.trending import trending
from tests.ensemble.channels.asking import asked, shelf


def test_contents_stand_by_trend_and_not_by_their_total():
    of = shelf(4, trend=[0.1, 0.4, 0.2, 0.3], popularity=[9, 0, 5, 1])
    assert trending(asked(of, seen=[[1]]), 2).tolist() == [[3, 2]]
