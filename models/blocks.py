"""Blocks that both models share: one table for all embeddings, its lookup, and DLRM's interactions.

A training step on a CPU is paid by the operation and by the pass over memory. Columns that share one table
are looked up, averaged and differentiated together, and a batch's rows of the table are read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from . import names  # noqa: F401  (before Merlin)

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip


def masked_mean(vectors: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Mean of `vectors` [..., L, D] over the places where `ids` [..., L] is not 0; zero where none is."""
    known = tf.cast(tf.not_equal(ids, 0), vectors.dtype)[..., tf.newaxis]
    return tf.reduce_sum(vectors * known, axis=-2) / tf.maximum(tf.reduce_sum(known, axis=-2), 1.0)


class EmbeddingTable(tf.keras.layers.Layer):
    """The embeddings of all domains of a schema in one variable, each domain a range of its rows.

    Row `first[domain] + id` belongs to an id, so a history shares the rows of the column it follows.

    Attributes:
        first: a domain's first row.
        embeddings: float32[rows of all domains, dim].
    """

    def __init__(self, schema: Schema, dim: int, seed: int, **kwargs) -> None:
        super().__init__(**kwargs)
        columns = schema.select_by_tag(Tags.CATEGORICAL)
        sizes = {column.int_domain.name: int(column.int_domain.max) + 1 for column in columns}
        domains = sorted(sizes)
        ends = np.cumsum([sizes[domain] for domain in domains]).tolist()
        self.dim = dim
        self.first = dict(zip(domains, [0, *ends]))
        self.embeddings = self.add_weight(
            "embeddings",
            (ends[-1], dim),
            initializer=tf.keras.initializers.RandomNormal(stddev=0.05, seed=seed),
        )
        self._given: tf.Tensor | None = None

    @property
    def rows(self) -> tf.Tensor:
        """What serving looks up: `embeddings`, or what stands in their place."""
        return self.embeddings if self._given is None else self._given

    @contextmanager
    def replaced(self, rows: tf.Tensor) -> Iterator[None]:
        """Look up `rows`, of the shape of `embeddings`, while the context lasts."""
        self._given = rows
        try:
            yield
        finally:
            self._given = None


def table_of(model: tf.Module) -> EmbeddingTable:
    """The one table of a model."""
    [table] = [layer for layer in model.submodules if isinstance(layer, EmbeddingTable)]
    return table


class Lookup(mm.Block):
    """The embeddings of a schema's categorical columns in a table: float32[B, F, D], scalars before lists.

    A list is dense and padded with id 0; it becomes the mean of its known ids. (Merlin's tables average
    ragged lists, which do not convert to ONNX, and would count the padding of dense ones.)

    Training and serving compute the same numbers in two ways. In training the ids of all columns are made
    unique once, and one segment mean does for scalars and lists, so that the gradient is one row for each id
    of the batch. In serving plain gathers do, which ONNX Runtime knows well.
    """

    def __init__(self, schema: Schema, table: EmbeddingTable, **kwargs) -> None:
        super().__init__(**kwargs)
        columns = schema.select_by_tag(Tags.CATEGORICAL)
        self.set_schema(columns)
        self.table = table
        self.lists = tuple(column.name for column in columns if column.shape.is_list)
        self.scalars = tuple(name for name in columns.column_names if name not in self.lists)
        self.first = {column.name: table.first[column.int_domain.name] for column in columns}
        self.width = {
            column.name: int(column.shape.dims[1].max) if column.shape.is_list else 1 for column in columns
        }

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns in the order of the output."""
        return (*self.scalars, *self.lists)

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        # Merlin hands a list over as [B, L, 1].
        ids = {name: tf.reshape(inputs[name], [-1, self.width[name]]) for name in self.fields}
        if training:
            return self.pooled(ids)
        parts = [self.scalar_vectors(tf.concat([ids[name] for name in self.scalars], axis=1))]
        if self.lists:
            widest = max(self.width[name] for name in self.lists)
            short = {name: widest - self.width[name] for name in self.lists}
            lists = [tf.pad(ids[name], [[0, 0], [0, n]]) if n else ids[name] for name, n in short.items()]
            parts.append(self.list_vectors(tf.stack(lists, axis=1), self.lists))
        return tf.concat(parts, axis=1)

    def scalar_vectors(self, ids: tf.Tensor, columns: tuple[str, ...] | None = None) -> tf.Tensor:
        """Embeddings of ids [..., S] of scalar columns, all of them unless named: float32[..., S, D]."""
        first = tf.constant([self.first[name] for name in columns or self.scalars], ids.dtype)
        return tf.gather(self.table.rows, ids + first)

    def list_vectors(self, ids: tf.Tensor, columns: tuple[str, ...]) -> tf.Tensor:
        """Means over the known ids [..., K, L] of K list columns: float32[..., K, D]."""
        first = tf.constant([[self.first[name]] for name in columns], ids.dtype)
        return masked_mean(tf.gather(self.table.rows, ids + first), ids)

    def pooled(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """As `call`, for training."""
        widths = [self.width[name] for name in self.fields]
        field = np.repeat(np.arange(len(widths)), widths).astype(np.int32)
        first = np.repeat([self.first[name] for name in self.fields], widths).astype(np.int32)
        together = tf.cast(tf.concat([inputs[name] for name in self.fields], axis=1), tf.int32)
        batch, fields = tf.shape(together)[0], len(widths)
        # Padding is no element of a list; a scalar is always one.
        counts = tf.logical_or(tf.not_equal(together, 0), field < len(self.scalars))
        places = tf.where(tf.reshape(counts, [-1]))[:, 0]
        rows, row_of_place = tf.unique(tf.gather(tf.reshape(together + first, [-1]), places))
        segment = tf.range(batch)[:, tf.newaxis] * fields + field
        means = tf.sparse.segment_mean(
            tf.gather(self.table.embeddings, rows),
            row_of_place,
            tf.gather(tf.reshape(segment, [-1]), places),
            num_segments=batch * fields,
        )
        return tf.reshape(means, [batch, fields, self.table.dim])

    def compute_output_shape(self, input_shapes) -> tf.TensorShape:
        batch = next(iter(input_shapes.values()))[0]
        return tf.TensorShape([batch, len(self.fields), self.table.dim])


class InputVector(mm.Block):
    """Embeddings, continuous columns and vectors of a schema side by side: float32[B, F * D + numbers].

    Args:
        made: categorical columns that a subclass adds to those it is given.
    """

    def __init__(
        self, schema: Schema, table: EmbeddingTable, made: Sequence[ColumnSchema] = (), **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.set_schema(schema)
        self.lookup = Lookup(schema + Schema(made), table)
        self.widths = {name: 1 for name in schema.select_by_tag(Tags.CONTINUOUS).column_names}
        for column in schema.select_by_tag(Tags.EMBEDDING):
            self.widths[column.name] = int(column.shape.dims[1].max)
        self.width = len(self.lookup.fields) * table.dim + sum(self.widths.values())

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        vectors = self.lookup(inputs, training=training)
        flat = tf.reshape(vectors, [-1, vectors.shape[1] * vectors.shape[2]])
        # Merlin hands a vector over as [B, V, 1].
        numbers = (tf.reshape(inputs[name], [-1, width]) for name, width in self.widths.items())
        return tf.concat([flat, *numbers], axis=1)

    def compute_output_shape(self, input_shapes) -> tf.TensorShape:
        return tf.TensorShape([next(iter(input_shapes.values()))[0], self.width])


class InteractionDense(tf.keras.layers.Layer):
    """DLRM's interactions and the dense layer over them, in one: relu([first, z_i · z_j for i < j] W + b).

    `z` are `first`, float32[B, D], and the vectors beside it, float32[B, F, D] (Naumov et al., "Deep learning
    recommendation model for personalization and recommendation systems", 2019). The Gram matrix of z meets a
    symmetric form of W, half a weight on each side of the diagonal, so no list of pairs is cut out of it, and
    its gradient, symmetric too, needs one product instead of two.
    """

    def __init__(self, units: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape) -> None:
        (_, dim), (_, fields, _) = input_shape
        count = fields + 1
        self.lower = np.ravel_multi_index(np.tril_indices(count, -1), (count, count)).astype(np.int32)
        # Which pair stands at (i, j); the diagonal is nobody's and points beyond the last.
        pair = np.full(count * count, len(self.lower), np.int32)
        pair[self.lower] = np.arange(len(self.lower))
        pair = np.minimum(pair.reshape(count, count), pair.reshape(count, count).T)
        self.pair = pair.ravel()
        self.kernel = self.add_weight("kernel", (dim + len(self.lower), self.units))
        self.bias = self.add_weight("bias", (self.units,), initializer="zeros")
        self.dim = dim
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        first, vectors = inputs
        z = tf.concat([first[:, tf.newaxis], vectors], axis=1)
        pairs = self.pairs_times_kernel(z, self.kernel[self.dim :])
        return tf.nn.relu(tf.matmul(first, self.kernel[: self.dim]) + pairs + self.bias)

    def pairs_times_kernel(self, z: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """[z_i · z_j for i > j] times `kernel` [pairs, units]: float32[B, units]."""
        count = z.shape[1]

        @tf.custom_gradient
        def apply(z: tf.Tensor, kernel: tf.Tensor):
            both = tf.gather(tf.pad(kernel * 0.5, [[0, 1], [0, 0]]), self.pair)
            gram = tf.reshape(tf.matmul(z, z, transpose_b=True), [-1, count * count])

            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                of_gram = tf.matmul(2.0 * upstream, both, transpose_b=True)
                of_z = tf.matmul(tf.reshape(of_gram, [-1, count, count]), z)
                of_both = tf.matmul(gram, upstream, transpose_a=True)
                return of_z, tf.gather(of_both, self.lower)

            return tf.matmul(gram, both), gradient

        return apply(z, kernel)

    def for_candidates(
        self, first: tf.Tensor, of_query: tf.Tensor, of_content: tf.Tensor, query_fields: list[int]
    ) -> tf.Tensor:
        """As `call` for the C candidates of each query, what only the query decides computed once.

        Args:
            first: float32[B * C, D]; of_content: float32[B * C, Fc, D].
            of_query: float32[B, Fq, D].
            query_fields: where the query's vectors stand among all vectors, the others being the content's.

        Returns:
            float32[B * C, units].
        """
        batch, dim = tf.shape(of_query)[0], self.dim
        fields = range(int(len(self.pair) ** 0.5) - 1)
        query = [field + 1 for field in query_fields]
        own = [0, *(field + 1 for field in fields if field not in query_fields)]
        kernel = tf.pad(self.kernel[dim:], [[0, 1], [0, 0]])

        def weights(rows: list[int], columns: list[int]) -> tf.Tensor:
            return tf.gather(kernel, self.pair.reshape(len(fields) + 1, -1)[np.ix_(rows, columns)].ravel())

        each = tf.concat([first[:, tf.newaxis], of_content], axis=1)
        of_own = tf.reshape(tf.matmul(each, each, transpose_b=True), [-1, len(own) ** 2])
        side_by_side = tf.reshape(each, tf.stack([batch, -1, dim]))
        crossed = tf.matmul(side_by_side, of_query, transpose_b=True)
        crossed = tf.reshape(crossed, [-1, len(own) * len(query)])
        once = tf.reshape(tf.matmul(of_query, of_query, transpose_b=True), [-1, len(query) ** 2])
        x = tf.matmul(first, self.kernel[:dim]) + tf.matmul(crossed, weights(own, query))
        x += tf.matmul(of_own, 0.5 * weights(own, own))
        x = tf.reshape(x, tf.stack([batch, -1, self.units]))
        x += (tf.matmul(once, 0.5 * weights(query, query)) + self.bias)[:, tf.newaxis]
        return tf.nn.relu(tf.reshape(x, [-1, self.units]))

    def compute_output_shape(self, input_shape) -> tf.TensorShape:
        return tf.TensorShape([input_shape[0][0], self.units])
