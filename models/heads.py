"""From the ranker's body to a probability for each task: shared or gated experts, and outcomes that follow
others."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


class TaskHeads(tf.keras.layers.Layer):
    """Experts, a gate a task over them, and a logistic unit a task: float32[B, T].

    Each task weighs the same experts by itself (Ma et al., "Modeling task relationships in multi-task
    learning with multi-gate mixture-of-experts", KDD 2018). All experts are one matrix and all gates another:
    Merlin's `MMOEBlock` makes a layer of each, and on a CPU a step is paid by the operation.

    A task that follows another is learned as given it: p(order) = p(click) · p(order | click), over all
    impressions, so that those without a click teach it too (Ma et al., "Entire space multi-task model",
    SIGIR 2018). The output is always the probability of the impression.

    Args:
        follows: for each task the place of the one that it follows, -1 for none.
        width: of each expert; 0 for none, the logistic units read the body as it is.
        experts: how many; 0 for one hidden layer that all tasks share alike.
    """

    def __init__(self, follows: Sequence[int], width: int, experts: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.follows, self.width, self.experts = tuple(follows), width, experts

    def build(self, input_shape) -> None:
        tasks, count = len(self.follows), max(self.experts, 1)
        if self.width:
            self.hidden = tf.keras.layers.Dense(count * self.width, activation="relu", name="experts")
        if self.experts:
            self.gate = tf.keras.layers.Dense(tasks * count, name="gates")
        self.kernel = self.add_weight(
            "kernel", (tasks, self.width or input_shape[-1]), initializer="glorot_uniform"
        )
        self.bias = self.add_weight("bias", (tasks,), initializer="zeros")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        hidden = self.hidden(x) if self.width else x
        if self.experts:
            # What every expert says to every task, then each task's weights over them.
            said = tf.reshape(hidden, [-1, self.experts, self.width])
            said = tf.matmul(said, self.kernel, transpose_b=True)
            weights = tf.nn.softmax(tf.reshape(self.gate(x), [-1, self.experts, len(self.follows)]), axis=1)
            logits = tf.reduce_sum(said * weights, axis=1) + self.bias
        else:
            logits = tf.matmul(hidden, self.kernel, transpose_b=True) + self.bias
        return self._following(tf.sigmoid(logits))

    def _following(self, given: tf.Tensor) -> tf.Tensor:
        if max(self.follows) < 0:
            return given
        columns = tf.unstack(given, axis=1)

        def whole(task: int) -> tf.Tensor:
            before = self.follows[task]
            return columns[task] if before < 0 else columns[task] * whole(before)

        return tf.stack([whole(task) for task in range(len(columns))], axis=1)
