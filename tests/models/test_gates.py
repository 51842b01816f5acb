"""Gates: closed and opened by market and language alone, and open before training."""

from __future__ import annotations

import numpy as np

from models.gates import PRIOR, Gates


def columns(rows: list[int]) -> dict[str, np.ndarray]:
    return {name: np.array(rows)[:, None] for name in (*PRIOR, "user_id")}


def test_gates_start_open(small_training_set):
    gates = Gates(small_training_set.features.query.schema, 5)
    np.testing.assert_array_equal(gates(columns([0, 3, 4])), np.ones((3, 5)))
    assert set(gates.kernels) == set(PRIOR)


def test_market_and_language_each_have_their_say(small_training_set):
    gates = Gates(small_training_set.features.query.schema, 2)
    random = np.random.default_rng(0)
    kernels = {name: random.normal(size=kernel.shape) for name, kernel in gates.kernels.items()}
    for name, kernel in kernels.items():
        gates.kernels[name].assign(kernel)
    made = gates({"market": np.array([3, 4, 3]), "language": np.array([3, 3, 2])}).numpy()
    said = kernels["market"][[3, 4, 3]] + kernels["language"][[3, 3, 2]]
    np.testing.assert_allclose(made, 2 / (1 + np.exp(-said)), atol=1e-6)
