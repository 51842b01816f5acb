"""Calibration: it mends what is off, takes from neighbours what it never saw, and serves as it was fitted."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from scipy.special import expit, logit

from evaluation.metrics import calibration_error
from market.profiles import UnknownMarket
from models.calibration import Calibration, CalibrationConfig, calibrate, fit_calibration
from models.ranker import RankerConfig

MARKETS = ("ID", "VN", "GB", "DE", "BR")
SLOPE, INTERCEPT = np.array([0.6, 0.8, 1.5, 1.2, 1.0]), np.array([1.0, 0.7, -1.0, -0.5, 0.0])


def logged(rows: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ranker's probabilities, outcomes that are off by SLOPE and INTERCEPT, and markets: `rows` of each."""
    random = np.random.default_rng(seed)
    market = np.repeat(np.arange(len(rows)), rows)
    scores = random.normal(-2.5, 1.2, len(market))
    truth = expit(SLOPE[market] * scores + INTERCEPT[market])
    labels = (random.random(len(market)) < truth).astype(np.float32)
    return expit(scores)[:, None], labels[:, None], market


def fitted(rows, **options) -> Calibration:
    return fit_calibration(*logged(np.array(rows)), MARKETS, CalibrationConfig(**options))


def served(calibration: Calibration, probabilities: np.ndarray, market: np.ndarray) -> np.ndarray:
    """Probabilities [B, C, T] through the graph."""
    graph = calibration.to_onnx().SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs = {"uncalibrated": probabilities.astype(np.float32), "market_index": market.astype(np.int64)}
    return session.run(["probabilities"], inputs)[0]


def test_probabilities_that_are_off_become_calibrated_in_every_market():
    calibration = fitted([40_000] * 5)
    probabilities, labels, market = logged(np.array([40_000] * 5), seed=1)
    made = served(calibration, probabilities[:, None], market)[:, 0]
    for place in range(5):
        here = market == place
        after = calibration_error(labels[here], made[here])
        assert after < 0.015
        if place < 4:
            assert calibration_error(labels[here], probabilities[here]) > 3 * after


def test_many_outcomes_find_the_parameters_that_made_them():
    calibration = fitted([200_000] * 5)
    np.testing.assert_allclose(calibration.slope[:, 0], SLOPE, atol=0.05)
    np.testing.assert_allclose(calibration.intercept[:, 0], INTERCEPT, atol=0.1)


def test_a_market_without_outcomes_gets_its_regions_parameters_and_a_region_without_any_the_worlds():
    calibration = fitted([40_000, 0, 40_000, 40_000, 0])
    own, cold, brazil = calibration.intercept[[0, 1, 4], 0]
    assert cold == pytest.approx(own, abs=0.02)  # its region is the one market
    europe = calibration.intercept[2:4, 0]
    assert europe.max() < brazil < own  # between all of them


@pytest.mark.parametrize("rows", [50, 500, 5_000])
def test_a_market_leaves_its_region_as_its_outcomes_come(rows):
    others = [40_000] * 3
    known = fitted([rows, 40_000, *others])
    free = fitted([rows, 40_000, *others], shrinkage=1e-6)
    region = fitted([0, 40_000, *others])
    far, own, found = (c.slope[0, 0] * -2.5 + c.intercept[0, 0] for c in (region, free, known))
    share = (found - far) / (own - far)
    low, high = {50: (0.0, 0.7), 500: (0.3, 0.95), 5_000: (0.8, 1.05)}[rows]
    assert low <= share <= high


def test_a_task_without_outcomes_stays_as_the_ranker_says():
    probabilities, labels, market = logged(np.array([100] * 5))
    calibration = fit_calibration(probabilities, labels * 0, market, MARKETS, CalibrationConfig())
    np.testing.assert_array_equal(calibration.slope, 1)
    np.testing.assert_array_equal(calibration.intercept, 0)


def test_a_ranker_that_is_wrong_way_round_is_never_turned():
    probabilities, labels, market = logged(np.array([5_000] * 5))
    calibration = fit_calibration(1 - probabilities, labels, market, MARKETS, CalibrationConfig())
    assert (calibration.slope > 0).all()


def test_the_graph_is_the_formula_and_undo_its_inverse():
    random = np.random.default_rng(0)
    calibration = Calibration(
        random.uniform(0.5, 2, (5, 3)).astype(np.float32), random.normal(size=(5, 3)).astype(np.float32)
    )
    probabilities, market = random.uniform(1e-4, 0.999, (7, 4, 3)), random.integers(0, 5, 7)
    made = served(calibration, probabilities, market)
    slope, intercept = calibration.slope[market, None], calibration.intercept[market, None]
    np.testing.assert_allclose(made, expit(slope * logit(probabilities) + intercept), rtol=1e-4)
    np.testing.assert_allclose(calibration.undo(made[:, 0], market), probabilities[:, 0], rtol=1e-3)


def test_certain_and_impossible_stay_so_and_nothing_becomes_nan():
    made = served(
        Calibration.identity(1, 1), np.array([[[0.0], [1e-20], [1e-6], [0.5], [1.0]]]), np.array([0])
    )
    np.testing.assert_allclose(made.ravel(), [0, 0, 1e-6, 0.5, 1], atol=1e-7)


def test_a_market_without_a_profile_is_refused():
    probabilities, labels, market = logged(np.array([10] * 5))
    with pytest.raises(UnknownMarket, match="QQ"):
        fit_calibration(probabilities, labels, market, (*MARKETS[:4], "QQ"), CalibrationConfig())


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


@pytest.mark.slow
def test_where_only_positives_were_logged_the_ranker_speaks_for_itself(small_ranker, small_training_set):
    from dataclasses import replace

    examples = replace(small_training_set.examples, feedback="positives")
    data = replace(small_training_set, examples=examples)
    found = calibrate(small_ranker.model, data, ("relevant",), RankerConfig(), CalibrationConfig())
    np.testing.assert_array_equal(found.slope, 1)
    np.testing.assert_array_equal(found.intercept, 0)
