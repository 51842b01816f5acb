"""Gates by market and language: how much each input and hidden unit counts where the query comes from.

Chang et al., "PEPNet: parameter and embedding personalized network for infusing with personalized prior
information", KDD 2023. Their gate has a hidden layer; here the prior is two ids, over which one layer says
all that several could, but for what a market and a language say together.
"""

from __future__ import annotations

from . import names  # noqa: F401  (before Merlin)

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
from merlin.schema import Schema  # isort: skip

PRIOR = ("market", "language")
"""Query columns that open and close gates, where a data set has them."""


class Gates(mm.Block):
    """2 · sigmoid of what a market and a language say, float32[B, width]; 1 before training.

    Attributes:
        kernels: of each column, float32[ids, width].
    """

    def __init__(self, query: Schema, width: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.kernels = {
            column.name: self.add_weight(
                f"gate_{column.name}", (int(column.int_domain.max) + 1, width), initializer="zeros"
            )
            for column in query
            if column.name in PRIOR
        }

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Gates of columns int[B] or [B, 1]."""
        # A product has a dense gradient of a few rows; that of a gather would be a row an example.
        said = [
            tf.matmul(tf.one_hot(tf.reshape(inputs[name], [-1]), kernel.shape[0]), kernel)
            for name, kernel in self.kernels.items()
        ]
        return 2 * tf.sigmoid(tf.add_n(said))


class Gated(mm.Block):
    """A block over the columns of a schema, each of its outputs [B, width] times its gate."""

    def __init__(self, block: mm.Block, schema: Schema, width: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.set_schema(schema)
        self.block, self.gates = block, Gates(schema, width)

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.block(inputs, training=training) * self.gates(inputs)

    def compute_output_shape(self, input_shapes) -> tf.TensorShape:
        return tf.TensorShape([next(iter(input_shapes.values()))[0], self.gates.width])
