"""The chance of being best is what drawing the beliefs would give, whatever their scales."""

import numpy as np
import pytest

from ensemble.rules.exploration import RIVALS, UNIFORM, best_of, deal, explore, uniform

DRAWS = 40_000


def drawn(value, wanted):
    """Chances of one row as frequencies of draws from the beliefs, `UNIFORM` of them alike."""
    scale = (np.abs(value) / np.sqrt(1 + wanted) + 1e-9) * (np.sqrt(3) / np.pi)
    beliefs = np.random.default_rng(1).logistic(value, scale, (DRAWS, len(value)))
    best = np.bincount(beliefs.argmax(axis=1), minlength=len(value)) / DRAWS
    return (1 - UNIFORM) * best + UNIFORM / len(value)


def rows(kind, count=25, rivals=RIVALS):
    random = np.random.default_rng([rivals, *kind.encode()])
    size, sign = (count, rivals), random.choice([-1, 1], (count, rivals))
    value = {
        "alike": random.normal(0.5, 0.1, size),
        "orders of magnitude": 10.0 ** random.uniform(-6, 1, size),
        "either sign": sign * 10.0 ** random.uniform(-6, 1, size),
        "below zero": -(10.0 ** random.uniform(-3, 1, size)),
        "many worth nothing": np.where(sign > 0, 0, random.exponential(1, size)),
    }[kind]
    return -np.sort(-value).astype(np.float32), random.integers(0, 5, size).astype(np.float32)


@pytest.mark.parametrize("rivals", [2, 5, RIVALS])
@pytest.mark.parametrize(
    "kind", ["alike", "orders of magnitude", "either sign", "below zero", "many worth nothing"]
)
def test_the_chance_of_being_best_is_that_of_drawn_beliefs(kind, rivals):
    value, wanted = rows(kind, rivals=rivals)
    chance = best_of(value, wanted, np.ones(value.shape, bool))
    expected = np.stack([drawn(*row) for row in zip(value, wanted)])
    np.testing.assert_allclose(chance, expected, atol=0.025)  # 0.02, and what so many draws are off


@pytest.mark.parametrize("other", [0.4, 0.05, 0.005, 5e-5, 0.0, -1e-6, -0.3])
def test_a_rival_of_another_scale_is_not_missed(other):
    value = np.array([[0.5, other]], np.float32)
    chance = best_of(value, np.zeros_like(value), np.ones(value.shape, bool))
    np.testing.assert_allclose(chance[0], drawn(value[0], np.zeros(2)), atol=0.02)


def test_who_is_no_rival_changes_nothing_and_has_no_chance():
    value, wanted = rows("either sign", rivals=6)
    rivals = np.arange(6) % 2 == 0
    chance = best_of(value, wanted, np.tile(rivals, (len(value), 1)))
    alone = best_of(value[:, rivals], wanted[:, rivals], np.ones((len(value), 3), bool))
    np.testing.assert_allclose(chance[:, rivals], alone, atol=1e-4)
    assert not chance[:, ~rivals].any()


def test_a_batch_is_drawn_as_its_rows_one_by_one_each_with_its_chance():
    value, wanted = rows("either sign", count=40)
    allowed = np.random.default_rng(2).random(value.shape) < 0.8
    draw = np.random.default_rng(3).random((len(value), 1))
    rival = np.where(allowed, 0, -1)
    places, propensity = explore(value, wanted, rival, draw)
    chance = best_of(value, wanted, allowed)
    for row, place in enumerate(places[:, 0]):
        one = [array[[row]] for array in (value, wanted, rival, draw)]
        alone = explore(*one)
        assert (place, propensity[row, 0]) == (alone[0][0, 0], alone[1][0, 0])
        assert propensity[row, 0] == pytest.approx(chance[row, place], rel=1e-6)
    np.testing.assert_allclose(chance.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_group_competes_for_more_places_than_it_has_room_for_and_every_place_has_rivals(count):
    random = np.random.default_rng(count)
    batch, pool = 40, 30
    groups = np.stack([random.integers(-1, size, (batch, pool)) for size in (9, 4)])
    room = np.stack(
        [random.integers(0, 4, (batch, 9)), random.integers(0, 5, (batch, 4))[:, :4].repeat(3, 1)[:, :9]]
    )
    room = np.stack([room[limit][np.arange(batch)[:, None], groups[limit]] for limit in range(2)])
    room = np.where(groups >= 0, room, 99)
    allowed = (random.random((batch, pool)) < 0.7) & (room > 0).all(axis=0)
    place = deal(allowed, groups, room, count)
    assert (place < 0)[~allowed].all()
    dealt = (place >= 0).any(axis=1)
    assert dealt.sum() > batch / 2
    for row in np.flatnonzero(dealt):
        assert set(place[row].tolist()) - {-1} == set(range(count)), "every place has rivals"
        for limit in range(2):
            for group in set(groups[limit, row].tolist()) - {-1}:
                mine = groups[limit, row] == group
                assert len(set(place[row, mine].tolist()) - {-1}) <= room[limit, row, mine][0]
        alone = deal(allowed[[row]], groups[:, [row]], room[:, [row]], count)
        np.testing.assert_array_equal(alone[0], place[row])


def test_where_groups_have_room_for_all_places_rivals_take_turns_by_value():
    allowed = np.array([[True, False, True, True, True, True]])
    groups = np.zeros((1, 1, 6), int)
    assert deal(allowed, groups, np.full((1, 1, 6), 2), 2).tolist() == [[0, -1, 1, 0, 1, 0]]


@pytest.mark.parametrize("rivals", [2, RIVALS])
def test_a_tenth_of_the_draws_falls_on_all_alike_however_much_better_one_is(rivals):
    value = np.full((1, rivals), 1e-6, np.float32)
    value[0, 0] = 100
    chance = best_of(value, np.full_like(value, 1e6), np.ones(value.shape, bool))[0]
    np.testing.assert_allclose(chance[1:], 0.1 / rivals, rtol=0.01)
    assert chance[0] == pytest.approx(0.9 + 0.1 / rivals, abs=0.001)


@pytest.mark.parametrize(
    ("groups", "room", "places"),
    [
        ([0, 0, 0], [1, 1, 1], [-1, -1, -1]),
        ([-1, -1, -1, -1], [1, 1, 1, 1], [0, 1, 0, 1]),
        ([0, 1, 0, 0], [2, 2, 2, 2], [0, 1, 0, 1]),
        ([0, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]),
    ],
    ids=["no rival for the second", "in no group", "room beside the best", "no room beside the best"],
)
def test_two_places_are_dealt_as_far_as_groups_have_room(groups, room, places):
    allowed = np.ones((1, len(groups)), bool)
    assert deal(allowed, np.array([[groups]]), np.array([[room]]), 2).tolist() == [places]


def test_groups_that_have_room_for_one_place_compete_for_different_ones():
    groups, room = [-1, -1, -1, 1, 2, 3], [9, 9, 9, 1, 1, 1]
    dealt = deal(np.ones((1, 6), bool), np.array([[groups]]), np.array([[room]]), 3)
    assert dealt.tolist() == [[0, 1, 2, 1, 2, 0]]


def test_of_more_contents_than_may_compete_the_best_valued_do():
    value = np.linspace(1, 0.9, 60, dtype=np.float32)[None].repeat(2000, axis=0)
    wanted, place = np.zeros_like(value), np.tile(np.arange(60) % 2 - 1, (2000, 1))
    draw = np.random.default_rng(4).random((2000, 1))
    places, propensity = explore(value, wanted, place, draw)
    best = np.arange(1, 60, 2)[:RIVALS]
    assert set(places[:, 0]) == set(best)
    chance = best_of(value[:1, best], wanted[:1, best], np.ones((1, RIVALS), bool))[0]
    np.testing.assert_allclose(propensity[:, 0], chance[(places[:, 0] - 1) // 2], rtol=1e-6)


def test_the_last_rival_has_what_rounding_leaves_of_the_draws():
    value, wanted = rows("alike", count=200)
    place = np.zeros(value.shape, int)
    place[:, -3:] = -1
    places, propensity = explore(value, wanted, place, np.full((200, 1), np.nextafter(1, 0)))
    assert (places == RIVALS - 4).all()
    assert (propensity > 0).all()


def test_draws_are_those_of_splitmix64():
    """Numbers of the authors' own code, which the generator's other ports are checked against as well."""
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    made = uniform(np.array([0, 1234567, -1]), 4)
    assert made[1].tolist() == [(one >> 11) / 2**53 for one in first]
    assert ((made >= 0) & (made < 1)).all()
