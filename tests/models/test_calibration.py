"""Calibration: it mends what is off, takes from neighbours what it never saw, and serves as it was fitted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from evaluation.metrics import calibration_interval
from market.profiles import UnknownMarket
from models.calibration import (
    Calibration,
    CalibrationConfig,
    Impressions,
    _Fit,
    _fit,
    calibrate,
    fit_calibration,
)
from models.ranker import RankerConfig

MARKETS = ("ID", "VN", "GB", "DE", "BR")
SLOPE, INTERCEPT = np.array([0.6, 0.8, 1.5, 1.2, 1.0]), np.array([1.0, 0.7, -1.0, -0.5, 0.0])
KINDS = 6
"""Encoded ids of kinds: of 3, 4 and 5 there are contents."""


def logged(
    rows: np.ndarray, seed: int = 0, *, by_kind: Sequence[float] = (0, 0, 0), by_price: float = 0.0
) -> tuple[np.ndarray, ...]:
    """A ranker's probabilities, outcomes that are off by SLOPE and INTERCEPT, markets, kinds and prices:
    `rows` of each market."""
    random = np.random.default_rng(seed)
    market = np.repeat(np.arange(len(rows)), rows)
    kind = 3 + random.integers(0, 3, len(market))
    price = np.where(random.random(len(market)) < 0.2, 0, random.normal(1.2, 0.3, len(market)).clip(0.1))
    scores = random.normal(-2.5, 1.2, len(market))
    off = INTERCEPT[market] + np.array(by_kind)[kind - 3] + by_price * np.where(price, price - 1.2, 0)
    truth = expit(SLOPE[market] * scores + off)
    labels = (random.random(len(market)) < truth).astype(np.float32)
    return expit(scores)[:, None], labels[:, None], market, kind, price.astype(np.float32)


def fit(*given: np.ndarray, markets: tuple[str, ...] = MARKETS, **options) -> Calibration:
    config = CalibrationConfig(**options)
    return fit_calibration(*given, markets=markets, kinds=KINDS, config=config)


def fitted(rows, **options) -> Calibration:
    return fit(*logged(np.array(rows)), **options)


def served(
    calibration: Calibration,
    probabilities: np.ndarray,
    market: np.ndarray,
    kind: np.ndarray,
    price: np.ndarray,
) -> np.ndarray:
    """Probabilities [B, C, T] of kinds and prices [B, C] through the graph."""
    graph = calibration.to_onnx().SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs = {
        "uncalibrated": probabilities.astype(np.float32),
        "market_index": market.astype(np.int64),
        "kind": kind.astype(np.int64),
        "price_local": price.astype(np.float32),
    }
    made, before = session.run(["probabilities", "ranker_probabilities"], inputs)
    np.testing.assert_array_equal(before, inputs["uncalibrated"])
    return made


def test_probabilities_that_are_off_become_calibrated_in_every_market():
    calibration = fitted([40_000] * 5)
    probabilities, labels, market, kind, price = logged(np.array([40_000] * 5), seed=1)
    made = served(calibration, probabilities[:, None], market, kind[:, None], price[:, None])[:, 0]
    for place in range(5):
        here = market == place
        alone = np.arange(here.sum())
        after = calibration_interval(labels[here], made[here], alone).mean
        assert after < 0.015
        if place < 4:
            assert calibration_interval(labels[here], probabilities[here], alone).mean > 3 * after


def test_a_kind_that_is_underrated_and_dear_things_that_are_overrated_are_mended():
    off = {"by_kind": (0, 0.8, -0.4), "by_price": -1.5}
    calibration = fit(*logged(np.array([40_000] * 5), **off))
    probabilities, labels, market, kind, price = logged(np.array([40_000] * 5), seed=1, **off)
    made = served(calibration, probabilities[:, None], market, kind[:, None], price[:, None])[:, 0]
    plain = fit(probabilities, labels, market, kind * 0, price * 0)
    alike = served(plain, probabilities[:, None], market, kind[:, None] * 0, price[:, None] * 0)[:, 0]
    fifth = np.searchsorted(np.quantile(price, [0.2, 0.4, 0.6, 0.8]), price)  # the first has no price
    for group in (*(kind == one for one in (3, 4, 5)), *(fifth == one for one in range(5))):
        assert made[group].mean() == pytest.approx(labels[group].mean(), rel=0.03)
    assert alike[kind == 4].mean() < 0.85 * labels[kind == 4].mean()
    assert alike[fifth == 4].mean() > 1.15 * labels[fifth == 4].mean()


def test_many_outcomes_find_the_parameters_that_made_them():
    calibration = fitted([200_000] * 5)
    np.testing.assert_allclose(calibration.slope[:, 0], SLOPE, atol=0.05)
    np.testing.assert_allclose(calibration.intercept[:, 3:, 0], np.tile(INTERCEPT, (3, 1)).T, atol=0.1)
    np.testing.assert_allclose(calibration.price[:, 0], 0, atol=0.1)
    assert calibration.usual == pytest.approx(1.2, abs=0.01)


def test_a_market_without_outcomes_gets_its_regions_parameters_and_a_region_without_any_the_worlds():
    calibration = fitted([40_000, 0, 40_000, 40_000, 0])
    own, cold, brazil = calibration.intercept[[0, 1, 4], 3, 0]
    assert cold == pytest.approx(own, abs=0.02)  # its region is the one market
    europe = calibration.intercept[2:4, 3, 0]
    assert europe.max() < brazil < own  # between all of them


@pytest.mark.parametrize("rows", [50, 500, 5_000])
def test_a_market_leaves_its_region_as_its_outcomes_come(rows):
    others = [40_000] * 3
    known = fitted([rows, 40_000, *others])
    free = fitted([rows, 40_000, *others], shrinkage=1e-6)
    region = fitted([0, 40_000, *others])
    far, own, found = (c.slope[0, 0] * -2.5 + c.intercept[0, 3, 0] for c in (region, free, known))
    share = (found - far) / (own - far)
    low, high = {50: (0.0, 0.7), 500: (0.3, 0.95), 5_000: (0.8, 1.05)}[rows]
    assert low <= share <= high


def test_shrunk_without_end_all_markets_are_calibrated_as_the_world_is():
    rows = np.array([4_000] * 5)
    calibration = fitted(rows, shrinkage=1e9)
    np.testing.assert_allclose(calibration.slope[:, 0], calibration.slope[0, 0], rtol=1e-4)
    np.testing.assert_allclose(calibration.intercept[:, 3:, 0].std(axis=0), 0, atol=1e-3)
    probabilities, labels, market, kind, price = logged(rows, by_kind=(1, 1, 1))
    given = fit(probabilities, labels, market, kind, price, shrinkage=1e9)
    assert (given.intercept[:, 3:] > calibration.intercept[:, 3:] + 0.5).all()


@pytest.mark.parametrize(("rows", "low", "high"), [(40, 0.1, 1.0), (4_000, 1.8, 2.2)])
def test_the_world_leaves_what_the_ranker_says_as_its_outcomes_come(rows, low, high):
    # In Brazil, which has all rows, the ranker's logits are 2 too low; a third of the rows has the outcome.
    given = logged(np.array([0, 0, 0, 0, rows]), by_kind=(2, 2, 2))
    calibration = fit(*given, shrinkage=1e9)
    mended = calibration.slope[4, 0] * -2.5 + calibration.intercept[4, 3:, 0].mean() + 2.5
    assert low < mended < high


def test_a_task_without_outcomes_stays_as_the_ranker_says():
    probabilities, labels, *where = logged(np.array([100] * 5))
    calibration = fit(probabilities, labels * 0, *where)
    np.testing.assert_array_equal(calibration.slope, 1)
    np.testing.assert_array_equal(calibration.intercept, 0)
    np.testing.assert_array_equal(calibration.price, 0)


def test_a_task_whose_every_row_has_the_outcome_stays_as_the_ranker_says():
    probabilities, labels, *where = logged(np.array([100] * 5))
    calibration = fit(probabilities, labels * 0 + 1, *where)
    np.testing.assert_array_equal(calibration.slope, 1)
    np.testing.assert_array_equal(calibration.intercept, 0)


def test_an_outcome_and_its_want_are_calibrated_alike():
    """What informs is the rarer of both, whichever is called the outcome."""
    probabilities, labels, *where = logged(np.array([300, 200, 4_000, 30, 0]), by_price=-0.5)
    assert labels.mean() < 0.3
    given, turned = fit(probabilities, labels, *where), fit(1 - probabilities, 1 - labels, *where)
    np.testing.assert_allclose(turned.slope, given.slope, rtol=1e-3)
    np.testing.assert_allclose(turned.price, -given.price, atol=1e-3)
    np.testing.assert_allclose(turned.intercept, -given.intercept, atol=2e-3)


@pytest.mark.parametrize("shrinkage", [1.0, 30.0])
def test_a_level_is_fitted_to_where_its_posterior_is_highest(shrinkage):
    random = np.random.default_rng(3)
    probabilities, labels, _, kind, price = logged(np.array([80, 0, 0, 0, 0]), by_price=-1.0)
    shown = Impressions(logit(probabilities[:, 0]), labels[:, 0], kind, price - 1.2, KINDS)
    root = random.normal(size=(2 + KINDS, 2 + KINDS))
    prior = _Fit(random.normal(scale=0.3, size=2 + KINDS), root @ root.T / 20)

    def loss(theta):
        at = np.exp(theta[0]) * shown.scores + theta[1] * shown.dear + theta[2:][kind]
        off = theta - prior.theta
        said = (shown.labels * np.log(expit(at)) + (1 - shown.labels) * np.log(expit(-at))).sum()
        return shrinkage * off @ prior.information @ off / 2 - said

    found = _fit(shown, prior, shrinkage).theta
    assert loss(found) < loss(prior.theta) - 1
    assert loss(found) == pytest.approx(minimize(loss, found, method="Nelder-Mead").fun, abs=1e-3)


def test_a_kind_that_was_never_shown_gets_the_mean_and_one_unknown_in_a_market_its_regions():
    probabilities, labels, market, kind, price = logged(np.array([40_000] * 5), by_kind=(0, 0.8, -0.4))
    kept = (market != 1) | (kind != 4)
    calibration = fit(*(column[kept] for column in (probabilities, labels, market, kind, price)))
    intercept = calibration.intercept[..., 0]
    share = np.bincount(kind[kept])[3:] / kept.sum()
    np.testing.assert_allclose(intercept[:, 0], intercept[:, 3:] @ share, atol=1e-5)
    at = calibration.slope * -2.5 + intercept
    assert at[1, 4] == pytest.approx(at[0, 4], abs=0.1)  # its region is one market
    assert at[1, 3] < at[0, 3] - 0.5


def test_a_ranker_that_is_wrong_way_round_is_never_turned():
    probabilities, *given = logged(np.array([5_000] * 5))
    calibration = fit(1 - probabilities, *given)
    np.testing.assert_allclose(calibration.slope, np.exp(-5), rtol=1e-4)


def test_the_graph_is_the_formula():
    random = np.random.default_rng(0)
    drawn = [random.uniform(0.5, 2, (5, 3)), random.normal(size=(5, 3)), random.normal(size=(5, KINDS, 3))]
    calibration = Calibration(*(array.astype(np.float32) for array in drawn), 1.2)
    probabilities, market = random.uniform(1e-4, 0.999, (7, 4, 3)), random.integers(0, 5, 7)
    kind, price = random.integers(0, KINDS, (7, 4)), random.uniform(0.1, 2, (7, 4))
    price[2] = 0
    made = served(calibration, probabilities, market, kind, price)
    dear = np.where(price, price - 1.2, 0)[..., None]
    logits = calibration.slope[market, None] * logit(probabilities) + calibration.price[market, None] * dear
    expected = expit(logits + calibration.intercept[market[:, None], kind])
    np.testing.assert_allclose(made, expected, rtol=1e-4)


def test_certain_and_impossible_stay_so_and_nothing_becomes_nan():
    chance = np.array([[[0.0], [1e-20], [1e-6], [0.5], [1.0]]])
    none = np.zeros((1, 5))
    made = served(Calibration.identity(1, KINDS, 1), chance, np.array([0]), none, none)
    np.testing.assert_allclose(made.ravel(), [0, 0, 1e-6, 0.5, 1], atol=1e-7)


def test_a_market_without_a_profile_is_refused():
    with pytest.raises(UnknownMarket, match="QQ"):
        fit(*logged(np.array([10] * 5)), markets=(*MARKETS[:4], "QQ"))


def test_shrinkage_must_be_above_zero():
    with pytest.raises(ValueError, match="shrinkage"):
        CalibrationConfig(shrinkage=0)


@pytest.mark.slow
def test_a_trained_ranker_is_calibrated_on_validation_impressions(small_ranker, small_training_set):
    examples = small_training_set.examples
    config = RankerConfig(min_outcomes=60)
    found = calibrate(small_ranker.model, small_training_set, small_ranker.tasks, config, CalibrationConfig())
    assert found.slope.shape == (len(examples.markets), len(small_ranker.tasks))
    assert (found.slope != 1).any()
    assert (found.intercept != 0).any()
    assert (found.price != 0).any()


@pytest.mark.slow
def test_where_only_positives_were_logged_the_ranker_speaks_for_itself(small_ranker, small_training_set):
    from dataclasses import replace

    examples = replace(small_training_set.examples, feedback="positives")
    data = replace(small_training_set, examples=examples)
    found = calibrate(small_ranker.model, data, ("relevant",), RankerConfig(), CalibrationConfig())
    np.testing.assert_array_equal(found.slope, 1)
    np.testing.assert_array_equal(found.intercept, 0)
