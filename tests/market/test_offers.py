"""Prices and languages as each market sees them, checked by hand and against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.offers import COMMON, FOREIGN, OFFER_FEATURES, OWN, UNKNOWN, Offers, language_fit
from market.profiles import profile

LANGUAGES = ["de", "en", "id", "pt-BR", "vi"]
MARKETS = ("BR", "GB", "ID")


def offers(available, price, category, language):
    return Offers.of(
        MARKETS,
        np.array(available, bool),
        price_usd=np.array(price, np.float32),
        category=np.array(category),
        language=np.array(language),
        languages=LANGUAGES,
    )


def test_a_price_counts_by_what_it_buys_where_the_person_lives():
    made = offers(np.ones((3, 1)), [10], [0], [1])(np.arange(3), np.zeros(3, int), np.full(3, -1))
    power = [profile(code).purchasing_power / profile(code).usd_per_unit for code in MARKETS]
    np.testing.assert_allclose(made[:, 0], np.log1p(10 * np.array(power)) / 3, rtol=1e-6)
    assert made[2, 0] > made[1, 0], "ten dollars are more in Indonesia than in Britain"


def test_a_price_is_dear_or_cheap_beside_its_category_in_its_market():
    available = [[1, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 1]]
    made = offers(available, [10, 20, 40, 5], [0, 0, 0, 0], [-1] * 4)
    relative = made(np.array([[0], [1]]), np.array([[0, 1]]), np.full((2, 1), -1))[..., 1]
    np.testing.assert_allclose(
        relative, [[np.log(10 / 20), 0], [np.log(10 / 7.5), np.log(20 / 7.5)]], rtol=1e-5
    )


@pytest.mark.filterwarnings("error")
def test_what_is_free_where_all_is_free_is_neither_dear_nor_cheap():
    made = offers(np.ones((3, 3)), [0, 0, 5], [0, 0, 0], [0, 0, 0])
    assert made(np.zeros(3, int), np.arange(3), np.full(3, -1))[:, 1].tolist() == [0, 0, 2]


def test_what_has_no_price_is_neither_dear_nor_cheap():
    made = offers(np.ones((3, 3)), [np.nan, 5, np.nan], [0, 1, -1], [0, 0, -1])
    every = made(np.zeros(3, int), np.arange(3), np.full(3, -1))
    assert (every[[0, 2], :2] == 0).all()
    assert np.isfinite(every).all()


@pytest.mark.parametrize(
    ("speaks", "content", "fit"),
    [
        ("pt-BR", "pt-BR", OWN),
        ("de", "de", OWN),
        ("de", "pt-BR", COMMON),
        ("de", "vi", FOREIGN),
        (None, "pt-BR", OWN),
        (None, "en", COMMON),
        ("pt-BR", None, UNKNOWN),
    ],
)
def test_a_language_fits_who_speaks_it_best_and_in_its_market_well(speaks, content, fit):
    code = {name: place for place, name in enumerate(LANGUAGES)} | {None: -1}
    assert language_fit(profile("BR").languages, LANGUAGES)[code[speaks], code[content]] == fit


@pytest.mark.parametrize(("content", "fit"), [("tl", OWN), ("fil", OWN), ("EN", COMMON), ("in", FOREIGN)])
def test_codes_that_mean_a_language_of_the_market_fit_as_it_does(content, fit):
    assert language_fit(profile("PH").languages, [content])[-1, 0] == fit


@given(st.integers(0, 10**6))
@settings(max_examples=50)
def test_a_batch_has_the_features_of_its_pairs_one_by_one(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 30))
    made = offers(
        random.random((3, n)) < 0.6,
        np.where(random.random(n) < 0.3, np.nan, random.exponential(30, n)),
        random.integers(-1, 4, n),
        random.integers(-1, len(LANGUAGES), n),
    )
    market, speaks = random.integers(0, 3, 4), random.integers(-1, len(LANGUAGES), 4)
    content = random.integers(0, n, (4, 6))
    batch = made(market[:, None], content, speaks[:, None])
    assert batch.shape == (4, 6, len(OFFER_FEATURES))
    assert batch.dtype == np.float32
    assert np.isfinite(batch).all()
    for row in range(4):
        for place in range(6):
            alone = made(market[[row]], content[[row], [place]], speaks[[row]])
            np.testing.assert_array_equal(batch[row, place], alone[0])


def test_a_catalogue_without_prices_and_languages_has_features_all_the_same():
    made = Offers.of(
        MARKETS,
        np.ones((3, 2), bool),
        price_usd=np.full(2, np.nan, np.float32),
        category=np.full(2, -1),
        language=np.full(2, -1),
        languages=[],
    )
    np.testing.assert_array_equal(made(np.zeros(2, int), np.arange(2), np.full(2, -1)), [[0, 0, UNKNOWN]] * 2)
