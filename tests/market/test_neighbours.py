"""Neighbours: a market is itself with enough data, and so far as it has less its region, and the world."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.neighbours import FULL, language_likeness, neighbour_shares, own_shares
from market.profiles import MARKETS, UnknownMarket, profile

CODES = ("BR", "CO", "DE", "GB", "ID", "JP", "MX", "MY")


def shares(*known):
    return neighbour_shares(CODES, np.isin(CODES, known))


def of_counts(**outcomes):
    return neighbour_shares(CODES, np.array([outcomes.get(code, 0) for code in CODES]))


def row(made, code):
    return {other: share for other, share in zip(CODES, made[CODES.index(code)]) if share}


def test_a_market_with_data_is_itself():
    made = shares("BR", "GB", "ID")
    for code in ("BR", "GB", "ID"):
        assert row(made, code) == {code: 1.0}


def test_a_market_without_data_is_its_region():
    made = shares("BR", "GB", "ID")
    assert row(made, "DE") == {"GB": 1.0}
    assert row(made, "MY") == {"ID": 1.0}


def test_in_a_region_the_more_alike_in_language_count_more():
    made = row(shares("BR", "CO", "GB"), "MX")
    assert set(made) == {"BR", "CO"}
    assert made["CO"] > made["BR"] > 0


def test_a_region_without_data_is_the_world_by_language():
    made = row(shares("BR", "GB", "ID"), "JP")
    assert set(made) == {"BR", "GB", "ID"}
    assert made["GB"] == max(made.values())  # English is Japan's second language


def test_markets_without_a_common_language_count_the_same():
    made = neighbour_shares(("JP", "XX", "CO"), np.array([False, False, True]))
    assert made[:2].tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("known", [(), CODES, ("JP",)])
def test_every_row_is_a_mean(known):
    made = shares(*known)
    assert (made >= 0).all()
    np.testing.assert_allclose(made.sum(axis=1), 1.0 if known else 0.0)


@pytest.mark.parametrize(
    ("outcomes", "own"), [(0, 0), (1, 1 / FULL), (FULL // 2, 0.5), (FULL, 1), (5 * FULL, 1)]
)
def test_a_market_leaves_its_neighbours_as_its_outcomes_come(outcomes, own):
    made = row(of_counts(BR=9000, GB=9000, ID=9000, MY=outcomes), "MY")
    assert made == {code: share for code, share in {"MY": own, "ID": 1 - own}.items() if share}


COUNTS = st.lists(st.integers(0, 2 * FULL), min_size=len(CODES), max_size=len(CODES)).map(np.array)


@given(COUNTS, st.integers(0, len(CODES) - 1))
def test_one_more_outcome_moves_no_share_by_much(outcomes, place):
    """Where another market is known: a language in common weighs at most nine times one that is last."""
    outcomes[place - 1] = FULL
    more = outcomes + (np.arange(len(CODES)) == place)
    before, after = (neighbour_shares(CODES, counts) for counts in (outcomes, more))
    assert np.abs(after - before).max() <= 16 / FULL


def test_the_first_outcome_of_a_neighbour_decides_for_nobody_else():
    """Neither for its region nor for those who alone share its language."""
    before = of_counts(GB=9000, BR=9000)
    for first in ({"CO": 1}, {"ID": 1}, {"JP": 1}):
        after = of_counts(GB=9000, BR=9000, **first)
        assert np.abs(after - before).max() <= 4 / FULL


@given(st.lists(st.booleans(), min_size=len(CODES), max_size=len(CODES)).map(np.array), COUNTS)
def test_with_enough_outcomes_or_none_it_does_not_matter_how_many(known, more):
    """To the bit: a release whose markets all have a log, or none, is what it always was."""
    np.testing.assert_array_equal(
        neighbour_shares(CODES, np.where(known, FULL + more, 0)), neighbour_shares(CODES, known)
    )


@given(COUNTS)
def test_rows_are_means_whatever_the_outcomes(outcomes):
    made = neighbour_shares(CODES, outcomes)
    assert (made >= 0).all()
    np.testing.assert_allclose(made.sum(axis=1), float(outcomes.any()))


def test_where_all_know_little_who_knows_most_is_itself():
    assert own_shares(np.array([3, 12, 0])).tolist() == [0.25, 1, 0]
    assert row(of_counts(ID=12), "ID") == {"ID": 1.0}
    assert not own_shares(np.zeros(3)).any()


def test_likeness_is_mutual_and_highest_with_itself():
    for one in MARKETS.values():
        own = language_likeness(one, one)
        for other in MARKETS.values():
            assert language_likeness(one, other) == pytest.approx(language_likeness(other, one))
            assert language_likeness(one, other) <= own + 1e-9
    assert language_likeness(profile("MX"), profile("CO")) > language_likeness(profile("MX"), profile("BR"))
    assert language_likeness(profile("MX"), profile("BR")) == pytest.approx(1 / (1 * 2) + 1 / (2 * 3))


def test_a_country_that_declares_nothing_starts_from_its_region_and_language():
    codes = (*CODES, "AT", "PE", "KH")
    made = neighbour_shares(codes, np.array([9000] * len(CODES) + [0, 0, 0]))
    first = [max(zip(shares, codes))[1] for shares in made[-3:]]
    assert first[:2] == ["DE", "MX"]
    region = profile("KH").region
    assert {code for share, code in zip(made[-1], codes) if share} == {
        code for code in CODES if profile(code).region == region
    }


def test_a_code_of_no_country_is_refused():
    with pytest.raises(UnknownMarket, match="QQ"):
        neighbour_shares(("GB", "QQ"), np.array([True, False]))
