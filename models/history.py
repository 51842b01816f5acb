"""What a history says about a candidate: one vector for a content from all its features, and attention over
those of the history.

The mean of a history's embeddings is one taste for a person who has several. Attention asks, for each
candidate, which past contents speak about it: Zhou et al., "Deep interest network for click-through rate
prediction", KDD 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workflows.features import Encoded

from .batches import HISTORY
from .blocks import Lookup

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip


def history_length(query: Schema) -> int:
    """Contents that a query's encoded history holds; 0 where it has none."""
    lists = [column for column in query.select_by_tag(Tags.CATEGORICAL) if column.shape.is_list]
    return int(lists[0].shape.dims[1].max) if lists else 0


def history_schema(query: Schema) -> Schema:
    """The schema of `HISTORY`."""
    return Schema(
        [ColumnSchema(HISTORY, dtype=np.int64, tags=[Tags.LIST], dims=(None, history_length(query)))]
    )


class Items(mm.Block):
    """One vector for each content from all its features: a linear map of its embeddings and content vectors.

    A release computes them once, so that a request only gathers rows.

    Args:
        content: encoded features of all contents, in the order of the table.
        lookup: where the embeddings of their categorical columns are.
        vectors: whether content vectors take part.
    """

    def __init__(self, content: Encoded, lookup: Lookup, vectors: bool, **kwargs) -> None:
        super().__init__(**kwargs)
        self.columns = tuple(content.schema.select_by_tag(Tags.CATEGORICAL).column_names)
        columns = content.schema.select_by_tag(Tags.EMBEDDING) if vectors else ()
        self.vectors = {column.name: int(column.shape.dims[1].max) for column in columns}
        self.lookup = lookup
        ids = np.stack([content.arrays[name] for name in self.columns], axis=1).astype(np.int32)
        given = [content.arrays[name] for name in self.vectors]
        numbers = np.concatenate([np.zeros((len(content), 0), np.float32), *given], axis=1)
        # Row 0 pads; constants, so that checkpoints do not hold them.
        self.ids = tf.constant(np.pad(ids, ((1, 0), (0, 0))))
        self.numbers = tf.constant(np.pad(numbers, ((1, 0), (0, 0))))
        self.dense = tf.keras.layers.Dense(lookup.table.dim, use_bias=False)

    def call(self, embeddings: tf.Tensor, vectors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Vectors of contents.

        Args:
            embeddings: float32[R, Fi, D], of `columns`.
            vectors: float32[R, V] each, of `vectors`.

        Returns:
            float32[R, D].
        """
        flat = tf.reshape(embeddings, [-1, embeddings.shape[1] * embeddings.shape[2]])
        return self.dense(tf.concat([flat, *vectors], axis=1))

    def of_rows(self, rows: tf.Tensor) -> tf.Tensor:
        """Vectors of contents by their rows int[R], counted from 1: float32[R, D]."""
        embeddings = self.lookup.scalar_vectors(tf.gather(self.ids, rows), self.columns)
        return self(embeddings, [tf.gather(self.numbers, rows)])

    def of_histories(self, rows: tf.Tensor) -> tf.Tensor:
        """As `of_rows` for histories int[B, L], each content of the batch computed once: float32[B, L, D]."""
        once, place = tf.unique(tf.reshape(rows, [-1]))
        found = tf.gather(self.of_rows(once), place)
        return tf.reshape(found, [-1, rows.shape[1], self.lookup.table.dim])

    def table(self, batch: int = 8192) -> np.ndarray:
        """Vectors of all contents, float32[N + 1, D]; row 0 pads and is zero."""
        rows = np.arange(len(self.ids))
        parts = [self.of_rows(tf.constant(rows[start : start + batch])) for start in rows[::batch]]
        made = np.concatenate([part.numpy() for part in parts])
        made[0] = 0
        return made


class HistoryAttention(tf.keras.layers.Layer):
    """The part of a history that speaks about a candidate: softmax over item · W · past, padding left out.

    One more place, whose score is 0 and whose vector is zero, takes the weight where nothing fits.
    """

    def build(self, input_shape) -> None:
        dim = input_shape[-1]
        self.kernel = self.add_weight("kernel", (dim, dim))
        super().build(input_shape)

    def call(self, items: tf.Tensor, past: tf.Tensor, known: tf.Tensor) -> tf.Tensor:
        """The attended histories.

        Args:
            items: float32[B, C, D], candidates of each query.
            past: float32[B, L, D], its history.
            known: bool[B, L], False where the history is padded.

        Returns:
            float32[B, C, D].
        """
        scores = tf.matmul(tf.tensordot(items, self.kernel, 1), past, transpose_b=True)
        scores = tf.where(known[:, tf.newaxis], scores, -1e9)
        weights = tf.nn.softmax(tf.pad(scores, [[0, 0], [0, 0], [0, 1]]))[:, :, :-1]
        return tf.matmul(weights, past)
