"""The cart channel proposes what the user wanted and may be shown again."""

from ensemble.channels.cart import cart
from tests.ensemble.channels.asking import NOW, asked, shelf


def test_what_was_wanted_and_not_bought_comes_newest_first_and_once():
    of = shelf(6)
    assert cart(asked(of, recent=[[4, 1, 4, 2, 5]], seen=[[2]]), 9).tolist() == [[5, 4, 1]]
    assert cart(asked(of, recent=[[4, 1, 4, 2, 5]], seen=[[2]]), 2).tolist() == [[5, 4]]


def test_each_request_has_its_own_cart():
    of = shelf(4)
    made = cart(asked(of, recent=[[0, 3], [1, -1], [-1, -1]], seen=[[-1], [1], [0]]), 9)
    assert made.tolist() == [[3, 0], [-1, -1], [-1, -1]]


def test_what_has_ended_or_tires_is_left_out():
    of = shelf(3, ends=[NOW, NOW + 1, NOW + 1], seller=[0, 0, 1])
    assert cart(asked(of, recent=[[0, 1, 2]]), 9).tolist() == [[2, 1]]
    assert cart(asked(of, recent=[[0, 1, 2]], tired=[[1]]), 9).tolist() == [[1]]


def test_what_opens_in_this_second_may_be_shown_and_what_opens_in_the_next_may_not():
    assert cart(asked(shelf(3, opens=[1, NOW, NOW + 1]), recent=[[0, 1, 2]]), 9).tolist() == [[1, 0]]


def test_who_wanted_nothing_gets_nothing():
    assert not cart(asked(shelf(3), recent=[[-1, -1]]), 5).size
