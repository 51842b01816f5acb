"""Trained models as ONNX graphs: query tower, content tower, and the ranker, its user's part computed once.

Encoded features travel packed, a few tensors instead of a few dozen: `query_ids` int64[B, Fu],
`query_lists` int64[B, K, L], `query_numbers` float32[B, Gu], and for contents `content_ids` int64[.., Fi],
`content_numbers` float32[.., Gi]. `Layout` names their columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import onnx

from market.statistics import PAIR_FEATURES
from workflows.compiler.graph import OPSET
from workflows.vectors import VectorSpace

from .batches import UNSEEN, followed_column, match_name
from .blocks import table_of
from .history import history_length
from .members import Rankers, TwoTowers, mean_chance, members_of
from .training import traced

import models.names  # noqa: F401  (before Merlin)  # isort: skip
import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
import tf2onnx  # isort: skip
from merlin.schema import Schema, Tags  # isort: skip


@dataclass(frozen=True)
class Layout:
    """Column names of the packed tensors, in order; `widths` gives each list's length."""

    query_ids: tuple[str, ...]
    query_lists: tuple[str, ...]
    query_numbers: tuple[str, ...]
    content_ids: tuple[str, ...]
    content_numbers: tuple[str, ...]
    history_length: int

    @classmethod
    def of(cls, query: Schema, content: Schema) -> Layout:
        """The layout of two encoded schemas."""

        def numbers(schema: Schema) -> tuple[str, ...]:
            return tuple(schema.select_by_tag(Tags.CONTINUOUS).column_names)

        ids = query.select_by_tag(Tags.CATEGORICAL)
        lists = tuple(column.name for column in ids if column.shape.is_list)
        return cls(
            query_ids=tuple(name for name in ids.column_names if name not in lists),
            query_lists=lists,
            query_numbers=numbers(query),
            content_ids=tuple(content.select_by_tag(Tags.CATEGORICAL).column_names),
            content_numbers=numbers(content),
            history_length=history_length(query),
        )

    def pack_queries(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encoded queries as the packed tensors `query_ids`, `query_lists` and `query_numbers`."""
        rows = len(next(iter(arrays.values())))

        def stacked(names: tuple[str, ...], empty: np.ndarray) -> np.ndarray:
            return np.stack([arrays[name] for name in names], axis=1) if names else empty

        return {
            "query_ids": stacked(self.query_ids, np.zeros((rows, 0), np.int64)),
            "query_lists": stacked(self.query_lists, np.zeros((rows, 0, self.history_length), np.int64)),
            "query_numbers": stacked(self.query_numbers, np.zeros((rows, 1), np.float32)),
        }

    def pack_contents(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Encoded contents as content_ids int64[N, Fi] and content_numbers float32[N, Gi]."""
        rows = len(next(iter(arrays.values())))
        ids = np.stack([arrays[name] for name in self.content_ids], axis=1)
        if not self.content_numbers:
            return ids, np.zeros((rows, 0), np.float32)
        return ids, np.stack([arrays[name] for name in self.content_numbers], axis=1)


def _convert(
    model: tf.Module, function, specs: list[tf.TensorSpec], outputs: tuple[str, ...]
) -> onnx.ModelProto:
    """Trace and convert a function of the model; graph inputs and outputs bear the names of the specs and of
    `outputs`.

    The embeddings are inputs of what is converted and become constants of the graph afterwards: the
    conversion copies constants a dozen times, and these may be most of a model.
    """
    tables = {f"embeddings_{n}": table_of(member) for n, member in enumerate(members_of(model))}
    embeddings = [tf.TensorSpec(t.embeddings.shape, tf.float32, name=name) for name, t in tables.items()]
    signature = [*specs, *embeddings]

    def named(*inputs):
        with ExitStack() as replaced:
            for table, rows in zip(tables.values(), inputs[len(specs) :]):
                replaced.enter_context(table.replaced(rows))
            made = function(*inputs[: len(specs)])
        return tuple(tf.identity(made[name], name=name) for name in outputs)

    graph, _ = tf2onnx.convert.from_function(
        traced(named, input_signature=signature), input_signature=signature, opset=OPSET
    )
    # tf2onnx declares ai.onnx.ml 2 whether or not a node is of it, which would clash with the workflows' 4.
    used = {node.domain for node in graph.graph.node}
    kept = [entry for entry in graph.opset_import if entry.domain in used]
    del graph.opset_import[:]
    graph.opset_import.extend(kept)
    renamed = {value.name: spec.name for value, spec in zip(graph.graph.input, signature)}
    renamed |= {value.name: name for value, name in zip(graph.graph.output, outputs)}
    rename(graph, renamed)
    settle(graph.graph)
    del graph.graph.input[len(specs) :]
    for name, table in tables.items():
        graph.graph.initializer.add().CopyFrom(onnx.numpy_helper.from_array(table.embeddings.numpy(), name))
    return graph


def settle(graph: onnx.GraphProto) -> None:
    """Order a graph's nodes and name its tensors by what its outputs read, in place; inputs and outputs keep
    their names, but not those of unknown dimensions.

    tf2onnx walks through sets and counts names in its process, so that equal models would make releases of
    other checksums.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {constant.name: constant for constant in graph.initializer}
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    nodes: list[onnx.NodeProto] = []
    kept: dict[bytes, onnx.TensorProto] = {}

    def reach(name: str) -> None:
        if name in constants:
            own = onnx.TensorProto()
            own.CopyFrom(constants[name])
            own.name = ""
            constant = kept.setdefault(own.SerializeToString(deterministic=True), own)
            constant.name = constant.name or f"constant_{len(kept)}"
            names[name] = constant.name
        elif name in made_by:
            node = made_by[name]
            for one in node.output:
                made_by.pop(one, None)
            for one in node.input:
                reach(one)
            settled = onnx.NodeProto()
            settled.CopyFrom(node)
            settled.name = f"{node.op_type}_{len(nodes)}"
            nodes.append(settled)
            for place, one in enumerate(filter(None, node.output)):
                names.setdefault(one, f"{settled.name}:{place}")

    for value in graph.output:
        reach(value.name)
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    graph.ClearField("doc_string")  # tells how many functions were traced before
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept.values())


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Give tensors of a graph new names, in place."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return model


def _specs(schema: Schema, layout: Layout) -> list[tf.TensorSpec]:
    """One spec an encoded column, as the compiled workflow makes it: [B], or [B, L] for lists."""
    specs = []
    for column in schema:
        number = Tags.CONTINUOUS in column.tags
        shape = [None, layout.history_length] if column.name in layout.query_lists else [None]
        specs.append(tf.TensorSpec(shape, tf.float32 if number else tf.int64, name=column.name))
    return specs


def _columns(schema: Schema, arrays: tuple) -> dict[str, tf.Tensor]:
    """Tensors by name as Merlin wants them: scalars [B, 1]."""
    named = dict(zip(schema.column_names, arrays))
    return {name: x if x.shape.rank == 2 else x[:, tf.newaxis] for name, x in named.items()}


def query_tower_to_onnx(
    model: mm.RetrievalModelV2 | TwoTowers, schema: Schema, layout: Layout
) -> onnx.ModelProto:
    """Encoded query columns → query_vector float32[B, D] and the packed query tensors."""

    def call(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        named = dict(zip(schema.column_names, arrays))
        batch = tf.shape(arrays[0])[0]
        packed = {
            "query_vector": model.query_encoder(_columns(schema, arrays), training=False),
            "query_ids": tf.stack([named[name] for name in layout.query_ids], axis=1),
            "query_lists": tf.stack([named[name] for name in layout.query_lists], axis=1),
        }
        numbers = [named[name] for name in layout.query_numbers]
        packed["query_numbers"] = tf.stack(numbers, axis=1) if numbers else tf.zeros([batch, 1])
        return packed

    outputs = ("query_vector", "query_ids", "query_lists", "query_numbers")
    return _convert(model, call, _specs(schema, layout), outputs)


def content_tower_to_onnx(
    model: mm.RetrievalModelV2 | TwoTowers, schema: Schema, layout: Layout, spaces: Sequence[VectorSpace] = ()
) -> onnx.ModelProto:
    """Encoded content columns, and raw content vectors, NaN where unknown → content_vector float32[N, D]."""
    columns = schema.excluding_by_tag(Tags.EMBEDDING)
    specs = _specs(columns, layout)
    specs += [tf.TensorSpec([None, len(space.mean)], tf.float32, name=space.name) for space in spaces]

    def call(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = _columns(columns, arrays[: len(columns)])
        inputs |= {s.name: _turned(s, x) for s, x in zip(spaces, arrays[len(columns) :])}
        return {"content_vector": model.candidate_encoder(inputs, training=False)}

    return _convert(model, call, specs, ("content_vector",))


def _turned(space: VectorSpace, vectors: tf.Tensor) -> tf.Tensor:
    """A `VectorSpace` as a graph."""
    centred = tf.where(tf.math.is_nan(vectors), tf.zeros_like(vectors), vectors - space.mean)
    length = tf.sqrt(tf.reduce_sum(centred * centred, axis=1, keepdims=True))
    return tf.matmul(centred / tf.maximum(length, 1e-9), space.directions)


def ranker_to_onnx(model: mm.Model | Rankers, layout: Layout, tasks: tuple[str, ...]) -> onnx.ModelProto:
    """Packed queries [B, ..] and candidates [B, C, ..] → probabilities float32[B, C, T], and what calibration
    reads beside them, kind int64[B, C] and price_local float32[B, C].

    `content_numbers` holds the content's numbers and, after them, `PAIR_FEATURES`; the matches of contents
    with the history are counted here. A ranker that has `items` also reads rows of the contents table, -1
    where there is none: `candidates` int64[B, C] and, where it attends to them, `recent` int64[B, L].
    """
    members = [member.blocks for member in members_of(model)]
    body, _ = members[0]  # all are made alike
    content_numbers = (*layout.content_numbers, *PAIR_FEATURES)
    if body.lookup.fields != (*layout.query_ids, *layout.content_ids, *layout.query_lists):
        raise ValueError("the ranker was built on other columns than the layout's")
    of_content_ids = range(len(layout.query_ids), len(layout.query_ids) + len(layout.content_ids))
    query_fields = [place for place in range(len(body.lookup.fields)) if place not in of_content_ids]
    matched = [layout.content_ids.index(followed_column(name)) for name in layout.query_lists]
    # A query without numbers has a column of zeros in their place.
    numbers = (*(layout.query_numbers or ("",)), *content_numbers, *map(match_name, layout.query_lists))
    numbers_read = [numbers.index(name) for name in body.numbers]
    items = [None if body.items is None else body.items.table() for body, _ in members]

    def pair_numbers(query_lists, query_numbers, content_ids, content_numbers_):
        """float32[B * C, G], as `RankerBody.numbers`."""
        batch, candidates = tf.unstack(tf.shape(content_ids)[:2])
        wide = tf.tile(query_numbers[:, tf.newaxis], [1, candidates, 1])
        parts = [
            tf.reshape(wide, [batch * candidates, wide.shape[-1]]),
            tf.reshape(content_numbers_, [-1, len(content_numbers)]),
        ]
        if layout.query_lists:  # as `history_match`
            own = tf.gather(content_ids, matched, axis=2)[..., tf.newaxis]
            again = tf.logical_and(query_lists[:, tf.newaxis] == own, own > UNSEEN)
            count_again = tf.reduce_sum(tf.cast(again, tf.float32), axis=-1)
            parts.append(tf.reshape(tf.math.log(1.0 + count_again), [-1, len(matched)]))
        return tf.gather(tf.concat(parts, axis=1), numbers_read, axis=1)

    def chance(member, table, of_pair, query_ids, query_lists, content_ids, rows):
        """float32[B * C, T], of one member."""
        body, heads = member
        lookup = body.lookup
        lists = [lookup.list_vectors(query_lists, layout.query_lists)] if layout.query_lists else []
        of_query = tf.concat([lookup.scalar_vectors(query_ids, layout.query_ids), *lists], axis=1)
        flat_ids = tf.reshape(content_ids, [-1, len(layout.content_ids)])
        fields = [lookup.scalar_vectors(flat_ids, layout.content_ids)]
        if table is not None:
            table = tf.constant(table)
            item = tf.gather(table, rows[0] + 1)
            fields.append(item)
            if body.attention is not None:
                fields.append(body.attention(item, tf.gather(table, rows[1] + 1), rows[1] >= 0))
        dim = lookup.table.dim
        of_content = tf.concat([fields[0], *(tf.reshape(x, [-1, 1, dim]) for x in fields[1:])], axis=1)
        gates = None
        if body.gates is not None:
            prior = {name: query_ids[:, layout.query_ids.index(name)] for name in body.gates.kernels}
            gates = body.gates(prior)
        return heads(body.mix_candidates(of_query, of_content, of_pair, query_fields, gates), training=False)

    def call(query_ids, query_lists, query_numbers, content_ids, content_numbers_, *rows):
        of_pair = pair_numbers(query_lists, query_numbers, content_ids, content_numbers_)
        made = mean_chance(
            [
                chance(member, table, of_pair, query_ids, query_lists, content_ids, rows)
                for member, table in zip(members, items)
            ]
        )
        batch, candidates = tf.unstack(tf.shape(content_ids)[:2])
        return {
            "probabilities": tf.reshape(made, [batch, candidates, len(tasks)]),
            "kind": content_ids[..., layout.content_ids.index("kind")],
            "price_local": content_numbers_[..., content_numbers.index("price_local")],
        }

    signature = [
        tf.TensorSpec([None, len(layout.query_ids)], tf.int64, name="query_ids"),
        tf.TensorSpec([None, len(layout.query_lists), layout.history_length], tf.int64, name="query_lists"),
        tf.TensorSpec([None, max(len(layout.query_numbers), 1)], tf.float32, name="query_numbers"),
        tf.TensorSpec([None, None, len(layout.content_ids)], tf.int64, name="content_ids"),
        tf.TensorSpec([None, None, len(content_numbers)], tf.float32, name="content_numbers"),
    ]
    if body.items is not None:
        signature.append(tf.TensorSpec([None, None], tf.int64, name="candidates"))
    if body.attention is not None:
        signature.append(tf.TensorSpec([None, layout.history_length], tf.int64, name="recent"))
    return _convert(model, call, signature, ("probabilities", "kind", "price_local"))
