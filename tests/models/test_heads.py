"""Heads: a task weighs the experts for itself, and an outcome is never likelier than what it follows."""

from __future__ import annotations

import numpy as np
import pytest

from models.heads import TaskHeads

import tensorflow as tf  # isort: skip


def drawn(heads: TaskHeads, width: int) -> tuple[tf.Tensor, dict[str, np.ndarray]]:
    """Inputs, and the weights by name, all of them drawn."""
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(6, width)).astype(np.float32))
    heads(x)
    for weight in heads.weights:
        weight.assign(random.normal(size=weight.shape))
    return x, {weight.name.split(":")[0]: weight.numpy() for weight in heads.weights}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("experts", [1, 3])
def test_a_task_reads_the_experts_by_its_own_gate(experts):
    heads = TaskHeads([-1, -1], 4, experts)
    x, _ = drawn(heads, 5)
    hidden = heads.hidden(x).numpy().reshape(6, experts, 4)
    gates = np.exp(heads.gate(x).numpy().reshape(6, experts, 2))
    gates /= gates.sum(axis=1, keepdims=True)
    expected = [
        sigmoid(np.einsum("be,beh,h->b", gates[:, :, t], hidden, heads.kernel[t]) + heads.bias[t])
        for t in range(2)
    ]
    np.testing.assert_allclose(heads(x), np.stack(expected, axis=1), atol=1e-5)


@pytest.mark.parametrize("width", [0, 4])
def test_without_experts_tasks_share_one_layer_or_read_the_body(width):
    heads = TaskHeads([-1, -1, -1], width, 0)
    x, _ = drawn(heads, 5)
    hidden = heads.hidden(x).numpy() if width else x.numpy()
    np.testing.assert_allclose(heads(x), sigmoid(hidden @ heads.kernel.numpy().T + heads.bias), atol=1e-5)


def test_what_follows_is_a_share_of_what_it_follows():
    """An order follows a cart, which follows a click; the other task follows nothing."""
    follows, free = TaskHeads([-1, -1, 0, 2], 4, 2), TaskHeads([-1] * 4, 4, 2)
    x, _ = drawn(follows, 5)
    free(x)
    free.set_weights(follows.get_weights())
    made, given = follows(x).numpy(), free(x).numpy()
    np.testing.assert_array_equal(made[:, :2], given[:, :2])
    np.testing.assert_allclose(made[:, 2], given[:, 2] * given[:, 0], rtol=1e-5)
    np.testing.assert_allclose(made[:, 3], given[:, 3] * given[:, 2] * given[:, 0], rtol=1e-5)
    assert (made[:, 3] <= made[:, 2]).all()
