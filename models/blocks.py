"""Merlin blocks that both models share: the pad-aware embedding table and tables shared by domain."""

from __future__ import annotations

from collections.abc import Mapping

from . import names  # noqa: F401  (before Merlin)

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
from merlin.schema import Schema, Tags  # isort: skip


@tf.keras.utils.register_keras_serializable(package="pasar")
class PaddedEmbeddingTable(mm.EmbeddingTable):
    """An embedding table whose lists are dense, padded with id 0: a list becomes the mean of its known ids.

    Merlin's own table averages ragged lists; ragged inputs do not convert to ONNX, and its dense path would
    count the padding.
    """

    def _call_table(self, inputs: tf.Tensor, **kwargs) -> tf.Tensor:
        # Merlin hands a scalar column over as [B, 1] and a dense list as [B, L, 1].
        if inputs.shape[-1] == 1:
            inputs = tf.squeeze(inputs, axis=-1)
        if inputs.shape.rank == 1:
            return tf.nn.embedding_lookup(self.table.embeddings, inputs)
        return masked_mean(tf.nn.embedding_lookup(self.table.embeddings, inputs), inputs)


def masked_mean(vectors: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Mean of `vectors` [..., L, D] over the places where `ids` [..., L] is not 0; zero where none is."""
    known = tf.cast(tf.not_equal(ids, 0), vectors.dtype)[..., tf.newaxis]
    return tf.reduce_sum(vectors * known, axis=-2) / tf.maximum(tf.reduce_sum(known, axis=-2), 1.0)


def embedding_tables(schema: Schema, dim: int, seed: int) -> Mapping[str, PaddedEmbeddingTable]:
    """One table a domain of `schema`'s categorical columns, so a history shares its content's table."""
    by_domain: dict[str, list] = {}
    for column in schema.select_by_tag(Tags.CATEGORICAL):
        by_domain.setdefault(column.int_domain.name, []).append(column)
    return {
        domain: PaddedEmbeddingTable(
            dim,
            *columns,
            name=domain,
            sequence_combiner="mean",
            embeddings_initializer=tf.keras.initializers.RandomNormal(stddev=0.05, seed=seed + place),
        )
        for place, (domain, columns) in enumerate(sorted(by_domain.items()))
    }


def lookup_block(schema: Schema, tables: Mapping[str, PaddedEmbeddingTable]) -> mm.ParallelBlock:
    """A Merlin block that looks up the categorical columns of `schema` in shared tables."""
    columns = schema.select_by_tag(Tags.CATEGORICAL)
    branches = {}
    for domain in sorted({column.int_domain.name for column in columns}):
        own = [column for column in columns if column.int_domain.name == domain]
        shared = tables[domain]
        branches[domain] = PaddedEmbeddingTable(
            shared.dim, *own, name=f"{domain}_lookup", sequence_combiner="mean", table=shared.table
        )
    return mm.ParallelBlock(branches, schema=columns, is_input=True)


def input_block(schema: Schema, tables: Mapping[str, PaddedEmbeddingTable]) -> mm.ParallelBlock:
    """Embeddings and continuous columns of `schema`, concatenated."""
    continuous = schema.select_by_tag(Tags.CONTINUOUS)
    branches: dict = {"embeddings": lookup_block(schema, tables)}
    if len(continuous):
        branches["continuous"] = mm.Continuous(continuous)
    return mm.ParallelBlock(branches, schema=schema, is_input=True, aggregation="concat")
