"""Rows of a table take their gradients whole; everything else is Adam."""

import numpy as np

from models.row_adam import RowAdam

import tensorflow as tf  # isort: skip

RATE, DECAY, EPSILON = 0.01, 0.999, 1e-7


def slices(rows: list[int], values: np.ndarray, shape: tuple[int, int]) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(rows), tf.constant(shape))


def test_a_row_moves_by_its_gradient_over_the_root_of_its_second_moment() -> None:
    random = np.random.default_rng(0)
    table, optimizer = tf.Variable(tf.zeros((4, 3))), RowAdam(RATE)
    expected, moment = np.zeros((4, 3)), np.zeros((4, 3))
    for step, rows in enumerate(([0, 2], [2, 3], [2, 2]), 1):
        gradient = random.normal(size=(2, 3))
        optimizer.apply_gradients([(slices(rows, gradient, (4, 3)), table)])
        whole = np.zeros((4, 3))
        np.add.at(whole, rows, gradient)
        touched = np.unique(rows)
        moment[touched] = DECAY * moment[touched] + (1 - DECAY) * whole[touched] ** 2
        rate = RATE * np.sqrt(1 - DECAY**step)
        expected[touched] -= rate * whole[touched] / (np.sqrt(moment[touched]) + EPSILON)
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-4)
    assert not table.numpy()[1].any(), "no batch showed this row"


def test_dense_variables_have_adams_momentum() -> None:
    ours, adams = tf.Variable(tf.ones(3)), tf.Variable(tf.ones(3))
    optimizer, adam = RowAdam(RATE), tf.keras.optimizers.legacy.Adam(RATE)
    for _ in range(3):
        gradient = tf.constant([1.0, -2.0, 0.5])
        optimizer.apply_gradients([(gradient, ours)])
        adam.apply_gradients([(gradient, adams)])
    np.testing.assert_allclose(ours.numpy(), adams.numpy(), rtol=1e-6)
