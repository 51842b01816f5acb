"""Stacking finds the weights that explain choices, keeps to the ranker without, serves what was fitted."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from scipy.special import expit

from market.statistics import PAIR_FEATURES
from models.stacking import SIGNALS, Stacking, StackingConfig, fit_stacking, signals

QUERIES, LIST, EVENTS, NUMBERS = 3000, 40, 6, len(PAIR_FEATURES) + 2


def asked(queries: int = QUERIES, seed: int = 0) -> dict[str, np.ndarray]:
    """Lists of candidates as retrieval and ranker describe them; some places are empty."""
    random = np.random.default_rng(seed)
    candidates = np.stack([random.permutation(200)[:LIST] for _ in range(queries)])
    candidates[:, -4:] = -1
    recent = random.integers(0, 200, (queries, EVENTS))
    recent[np.arange(EVENTS) >= random.integers(0, EVENTS + 1, queries)[:, None]] = -1
    return {
        "chance": expit(random.normal(-2, 2, candidates.shape)).astype(np.float32),
        "content_numbers": random.gamma(1, 0.5, (*candidates.shape, NUMBERS)).astype(np.float32),
        "candidates": candidates,
        "recent": recent,
        "cosine": random.uniform(-1, 1, candidates.shape).astype(np.float32),
        "market_affinity": random.gamma(1, 0.5, candidates.shape).astype(np.float32),
        "low_rank_affinity": random.normal(0, 0.3, candidates.shape).astype(np.float32),
        "conversion": random.normal(0, 0.5, candidates.shape).astype(np.float32),
    }


def choices(weights: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Signals, lengths, what the weights float[2, S] chose from each list, and where candidates are."""
    lists = asked(seed=seed)
    signal, length = signals(**lists)
    present = lists["candidates"] >= 0
    own = weights[0] + weights[1] * length[:, None]
    noise = np.random.default_rng(seed + 1).gumbel(size=present.shape)
    score = np.where(present, np.einsum("qcs,qs->qc", signal, own) + noise, -np.inf)
    return signal, length, np.arange(LIST) == score.argmax(axis=1)[:, None], present


def test_the_weights_that_made_the_choices_are_found():
    truth = np.zeros((2, len(SIGNALS)), np.float32)
    truth[0, SIGNALS.index("ranker")], truth[0, SIGNALS.index("cosine")] = 0.5, 2.0
    truth[1, SIGNALS.index("log_affinity")] = 1.0
    truth[0, SIGNALS.index("again")] = -3.0
    found = fit_stacking(*choices(truth), strength=0.01)
    smooth = [place for place, name in enumerate(SIGNALS) if name not in ("affinity", "again")]
    np.testing.assert_allclose(found.weights[:, smooth], truth[:, smooth], atol=0.25)
    assert found.weights[0, SIGNALS.index("again")] < -1


def test_a_signal_that_is_the_same_everywhere_has_no_weight():
    signal, *rest = (given[:300] for given in choices(np.ones((2, len(SIGNALS)), np.float32)))
    own = SIGNALS.index("own_affinity")
    signal[..., own] = 1  # as without graphs of markets
    found = fit_stacking(signal, *rest, strength=1.0)
    np.testing.assert_allclose(found.weights[:, own], 0, atol=1e-3)


def test_without_signal_beside_it_the_ranker_keeps_its_order():
    truth = np.zeros((2, len(SIGNALS)), np.float32)
    truth[0, 0] = 1.0
    signal, length, wanted, present = choices(truth)
    few = fit_stacking(signal[:20], length[:20], wanted[:20], present[:20], strength=1e6)
    np.testing.assert_allclose(few.weights, truth, atol=1e-2)


def test_the_mean_chance_is_the_share_of_what_was_wanted():
    truth = np.zeros((2, len(SIGNALS)), np.float32)
    truth[0, 0] = 1.0
    signal, length, wanted, present = choices(truth)
    made = fit_stacking(signal, length, wanted, present, strength=1.0)
    own = made.weights[0] + made.weights[1] * length[:, None]
    chance = expit(np.einsum("qcs,qs->qc", signal, own) + made.constant)
    assert chance[present].mean() == pytest.approx(wanted[present].mean(), rel=1e-3)


def test_lists_without_anything_wanted_teach_nothing():
    signal, length, wanted, present = choices(np.ones((2, len(SIGNALS)), np.float32))
    assert fit_stacking(signal, length, np.zeros_like(wanted), present, strength=1.0) is None


def test_places_without_a_candidate_teach_nothing_whatever_stands_there():
    truth = np.ones((2, len(SIGNALS)), np.float32)
    signal, length, wanted, present = (given[:200] for given in choices(truth))
    wanted = wanted & (np.arange(200) > 0)[:, None]  # one list has no more than such places
    usual = fit_stacking(signal, length, wanted, present, strength=1.0)
    other = np.where(present[..., None], signal, 9)
    found = fit_stacking(other, length, wanted | ~present, present, strength=1.0)
    np.testing.assert_array_equal(found.to_array(), usual.to_array())


def test_the_served_graph_says_what_was_fitted_whatever_the_order_of_candidates():
    random = np.random.default_rng(3)
    stacking = Stacking(random.normal(0, 0.3, (2, len(SIGNALS))).astype(np.float32), -4.0)
    lists = asked(queries=5, seed=4)
    lists["recent"][:, 0] = lists["candidates"][:, 3]
    lists["recent"][:, 1] = 0  # the first of the table is an event as others are
    graph = stacking.to_onnx(EVENTS, NUMBERS).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def served(turn: np.ndarray) -> np.ndarray:
        tensors = {
            "unstacked": lists["chance"][:, turn, None],
            "content_numbers": lists["content_numbers"][:, turn],
            "candidates": lists["candidates"][:, turn],
            "recent": lists["recent"],
            "retrieval_score": lists["cosine"][:, turn],
            "market_affinity": lists["market_affinity"][:, turn],
            "low_rank_affinity": lists["low_rank_affinity"][:, turn],
            "conversion": lists["conversion"][:, turn],
        }
        return session.run(["probabilities"], tensors)[0][..., 0]

    signal, length = signals(**lists)
    own = stacking.weights[0] + stacking.weights[1] * length[:, None]
    expected = expit(np.einsum("qcs,qs->qc", signal, own) + stacking.constant)
    np.testing.assert_allclose(served(np.arange(LIST)), expected, rtol=1e-4, atol=1e-6)
    turn = random.permutation(LIST)
    np.testing.assert_allclose(served(turn), expected[:, turn], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("knobs", [{"queries": -1}, {"strength": 0.0}])
def test_bad_knobs_are_refused_by_name(knobs):
    with pytest.raises(ValueError, match=f"stacking.{next(iter(knobs))}"):
        StackingConfig(**knobs)
