"""What a content's tower reads of the contents that are closest to it in the item graph.

A tower that knows a content by its own embedding alone learns from that content's few events. With the mean
of its neighbours' it learns from theirs too, as after a step of a graph convolution (He et al., "LightGCN:
simplifying and powering graph convolution network for recommendation", SIGIR 2020), but one over contents,
whose edges were fitted before, so that a step of training stays as small as it was.
"""

from __future__ import annotations

import numpy as np

from market.item_graph import ItemGraph

from .batches import UNSEEN
from .blocks import EmbeddingTable, InputVector

import tensorflow as tf  # isort: skip
from merlin.schema import Schema, Tags  # isort: skip

RELATED = "related_content_id"
"""Column of a content: encoded ids of the closest ones, 0 pads."""


def related_ids(graph: ItemGraph, encoded: np.ndarray, ids: int, count: int) -> np.ndarray:
    """The closest contents of each encoded id, closest first: int32[ids, count], 0 pads.

    Contents that share the id of unseen ones have no neighbours and are none.

    Args:
        encoded: int[N], each content's encoded id.
        ids: how many encoded ids there are.
        count: neighbours of a content at most.
    """
    found = np.zeros((ids, count), np.int32)
    known = np.flatnonzero(encoded > UNSEEN)
    weights = np.where(graph.neighbours[known] >= 0, graph.weights[known], -np.inf)
    order = np.argsort(-weights, axis=1, kind="stable")[:, :count]
    neighbours = np.take_along_axis(graph.neighbours[known], order, axis=1)
    near = np.where(neighbours >= 0, encoded[neighbours], 0)
    found[encoded[known], : near.shape[1]] = np.where(near > UNSEEN, near, 0)
    return found


class WithRelated(InputVector):
    """A content's input vector, the mean embedding of its closest contents in it.

    Args:
        schema: of contents.
        related: as `related_ids` makes it.
    """

    def __init__(self, schema: Schema, table: EmbeddingTable, related: np.ndarray, **kwargs) -> None:
        width = related.shape[1]
        column = schema["content_id"].with_name(RELATED).with_shape(((0, None), (width, width)))
        column = column.with_tags([Tags.ITEM, Tags.CATEGORICAL])
        super().__init__(schema, table, [column], **kwargs)
        self.related = related

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        content = tf.reshape(inputs["content_id"], [-1])
        near = tf.cast(tf.gather(tf.constant(self.related), content), content.dtype)
        return super().call({**inputs, RELATED: near}, training=training)
