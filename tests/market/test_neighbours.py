"""Neighbours: a market is itself once it has data, before that its region, before that the world."""

import numpy as np
import pytest

from market.neighbours import language_likeness, neighbour_shares
from market.profiles import MARKETS, UnknownMarket, profile

CODES = ("BR", "CO", "DE", "GB", "ID", "JP", "MX", "MY")


def shares(*known):
    return neighbour_shares(CODES, np.isin(CODES, known))


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


def test_likeness_is_mutual_and_highest_with_itself():
    for one in MARKETS.values():
        own = language_likeness(one, one)
        for other in MARKETS.values():
            assert language_likeness(one, other) == pytest.approx(language_likeness(other, one))
            assert language_likeness(one, other) <= own + 1e-9
    assert language_likeness(profile("MX"), profile("CO")) > language_likeness(profile("MX"), profile("BR"))


def test_a_market_without_a_profile_is_refused():
    with pytest.raises(UnknownMarket, match="QQ"):
        neighbour_shares(("GB", "QQ"), np.array([True, False]))
