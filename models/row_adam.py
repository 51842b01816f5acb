"""Adam for models whose gradients touch few rows of large tables."""

from __future__ import annotations

from . import names  # noqa: F401  (before Merlin)

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip


class RowAdam(mm.LazyAdam):
    """Merlin's `LazyAdam` with rows that take their gradient whole.

    `LazyAdam` moves a row only when a batch shows it, yet with momentum: a tenth of the gradient at once, the
    rest when the row comes again, if it ever does. Dense Adam goes on moving it meanwhile. Without momentum a
    row gets at once about what dense Adam gives it over the steps that follow. Variables without rows keep
    their momentum.
    """

    def _resource_apply_sparse(self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor) -> tf.Operation:
        rate, decay = self._decayed_lr(var.dtype), self._get_hyper("beta_2", var.dtype)
        step = tf.cast(self.iterations + 1, var.dtype)
        moments = self.get_slot(var, "v")
        moment = decay * tf.gather(moments, indices) + (1 - decay) * tf.square(grad)
        moved = rate * tf.sqrt(1 - tf.pow(decay, step)) * grad / (tf.sqrt(moment) + self.epsilon)
        return tf.group(
            self._resource_scatter_update(moments, indices, moment),
            self._resource_scatter_sub(var, indices, moved),
        )
