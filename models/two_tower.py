"""The Merlin two-tower: a query's history, user and moment against a content, with in-batch negatives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from market.knobs import expect

from .batches import LOG_Q, RetrievalBatches, TrainingSet
from .blocks import EmbeddingTable, InputVector
from .gates import PRIOR, Gated
from .members import TwoTowers, train_members
from .related import WithRelated, related_ids
from .row_adam import RowAdam
from .training import Progress, TrainingState, quiet, set_seed, traced, train
from .unseen import fill_unseen

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
from merlin.models.tf.core.prediction import Prediction  # isort: skip
from merlin.models.tf.outputs.base import DotProduct  # isort: skip
from merlin.models.tf.outputs.sampling.base import Candidate  # isort: skip
from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip
from workflows.examples import TRAIN, VALID


@dataclass(frozen=True)
class TwoTowerConfig:
    """Knobs of the two-tower.

    Attributes:
        dim: size of the query and content vectors.
        embedding_dim: size of every embedding.
        hidden: width of each tower's hidden layers; none leaves one linear layer over the inputs.
        related: closest contents by the item graph whose mean embedding a content's tower reads beside its
            own; 0 leaves them out (contents).
        temperature: divides the logits; smaller sharpens.
        user_dropout: share of user ids that training shows as unseen (0 to 1).
        batch_size: positives in a batch, each a negative to the others (positives).
        learning_rate: of Adam on touched rows.
        epochs: at most this many passes over the positives.
        patience: epochs without a better validation recall before training stops.
        logq: strength of the correction for popular negatives, 0 to 1.
        validation_queries: validation queries scored after each epoch (queries).
        gates: whether market and language say how much each input of the query tower counts.
        members: two-towers that are trained under different seeds and asked as one (`models.members`).
    """

    dim: int = 64
    embedding_dim: int = 48
    hidden: tuple[int, ...] = (64,)
    related: int = 0
    temperature: float = 0.12
    user_dropout: float = 0.5
    batch_size: int = 1024
    learning_rate: float = 1.4e-3
    epochs: int = 12
    patience: int = 4
    logq: float = 1.0
    validation_queries: int = 4_000
    gates: bool = False
    members: int = 1

    def __post_init__(self) -> None:
        counts = "dim embedding_dim hidden epochs patience validation_queries members"
        expect(self, "two_tower", counts, least=1)
        expect(self, "two_tower", "batch_size", least=2)
        expect(self, "two_tower", "related", least=0)
        expect(self, "two_tower", "temperature learning_rate", above=0)
        expect(self, "two_tower", "user_dropout logq", least=0, most=1)


#: Scores of queries and contents that are held at once: 16 MB.
SCORES = 1 << 22

#: The matrix of a batch's logits is made in this many blocks of rows.
BLOCKS = 4


class InBatchSoftmax(mm.ContrastiveOutput):
    """Merlin's in-batch softmax with a log q correction that knows markets; in training, each row's loss.

    Logits are q · c / temperature - strength · log q, q being the share of the content among its market's
    positives, which the batch brings along (Merlin's `PopularityLogitsCorrection` knows one share for all).
    Merlin hands a matrix of logits and one of targets to a loss; the losses alone need fewer passes over
    either, and those passes are what a step's time goes to.
    """

    def __init__(self, temperature: float, strength: float, **kwargs) -> None:
        super().__init__(to_call=DotProduct(), negative_samplers="in-batch", **kwargs)
        self.temperature, self.strength = temperature, strength

    def outputs(self, query_embedding: tf.Tensor, positive: Candidate, negative: Candidate) -> Prediction:
        log_q = tf.reshape(positive.metadata[LOG_Q], [-1, 1])
        # The correction is one more dimension of the product.
        corrected = tf.fill(tf.shape(log_q), -self.strength)
        queries = tf.concat([query_embedding / self.temperature, corrected], axis=1)
        contents = tf.concat([positive.embedding, log_q], axis=1)
        return Prediction(softmax_losses(queries, contents, tf.reshape(positive.id, [-1])), None)


@tf.custom_gradient
def softmax_losses(queries: tf.Tensor, contents: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Cross entropy of each query's softmax over all contents, its own being that of its row: float32[B].

    The logits are made in blocks of rows that stay in a core's cache. Their exponentials do for the gradient,
    scaled by row on the way through the product with it.

    Args:
        queries, contents: float32[B, D]; a logit is their product.
        ids: int[B], of the contents; those of one id are no negatives to each other's queries.
    """
    rows = tf.shape(ids)[0]
    blocks = [slice(rows * part // BLOCKS, rows * (part + 1) // BLOCKS) for part in range(BLOCKS)]
    place = tf.range(rows)
    exponentials, tops, totals = [], [], []
    for block in blocks:
        logits = tf.matmul(queries[block], contents, transpose_b=True)
        tops.append(tf.reduce_max(logits, axis=1))
        other = tf.not_equal(ids[block, tf.newaxis], ids)
        counts = tf.logical_or(other, tf.equal(place[block, tf.newaxis], place))
        scaled = tf.exp(logits - tops[-1][:, tf.newaxis])
        exponentials.append(scaled * tf.cast(counts, scaled.dtype))
        totals.append(tf.reduce_sum(exponentials[-1], axis=1))
    top, total = tf.concat(tops, 0), tf.concat(totals, 0)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, None]:
        scale, own = (upstream / total)[:, tf.newaxis], upstream[:, tf.newaxis]
        scaled = queries * scale
        of_queries = tf.concat([tf.matmul(x, contents) for x in exponentials], 0) * scale
        of_contents = tf.add_n(
            [tf.matmul(x, scaled[block], transpose_a=True) for x, block in zip(exponentials, blocks)]
        )
        return of_queries - contents * own, of_contents - queries * own, None

    return tf.math.log(total) + top - tf.reduce_sum(queries * contents, axis=1), gradient


def losses(model: mm.RetrievalModelV2, x: dict[str, tf.Tensor], y: tf.Tensor) -> tf.Tensor:
    """Cross entropy of each row's softmax over the batch's contents: float32[B]; there are no labels."""
    return model(x, training=True).outputs


def build_two_tower(
    query: Schema, content: Schema, config: TwoTowerConfig, seed: int, related: np.ndarray | None = None
) -> mm.RetrievalModelV2:
    """The model, compiled; the history shares the content's embedding table.

    Args:
        related: see `models.related.related_ids`; None for towers that know nothing of neighbours.
    """
    table = EmbeddingTable(query + content, config.embedding_dim, seed)
    of_query: mm.Block = InputVector(query, table)
    if config.gates and set(PRIOR) & set(query.column_names):
        of_query = Gated(of_query, query, of_query.width)
    of_content = InputVector(content, table) if related is None else WithRelated(content, table, related)

    def tower(inputs: mm.Block) -> mm.Encoder:
        layers = mm.MLPBlock([*config.hidden, config.dim], no_activation_last_layer=True)
        return mm.Encoder(inputs, layers, post=mm.L2Norm())

    output = InBatchSoftmax(config.temperature, config.logq, schema=content.select_by_tag(Tags.ITEM_ID))
    log_q = ColumnSchema(LOG_Q, dtype=np.float32, tags=[Tags.CONTINUOUS])
    model = mm.TwoTowerModelV2(
        tower(of_query), tower(of_content), outputs=output, schema=query + content + Schema([log_q])
    )
    model.compile(optimizer=RowAdam(config.learning_rate), metrics=[])
    return model


def encode(encoder: tf.keras.Model, arrays: dict[str, np.ndarray], batch_size: int = 8192) -> np.ndarray:
    """Vectors of encoded rows, float32[R, dim]."""
    rows = len(next(iter(arrays.values())))
    call = traced(lambda x: encoder(x, training=False))
    parts = [
        call({name: tf.constant(array[start : start + batch_size]) for name, array in arrays.items()}).numpy()
        for start in range(0, rows, batch_size)
    ]
    return np.concatenate(parts)


def places_in_market(
    data: TrainingSet, query_vectors: np.ndarray, content_vectors: np.ndarray, pairs: np.ndarray
) -> np.ndarray:
    """How many contents of its market are nearer to each pair's query than its own, int64[P]; those of the
    query's history do not count.

    Args:
        query_vectors: float32[len(pairs), D].
        pairs: int64[P], rows of `Examples.pairs`.
    """
    query, content = data.examples.pairs.query[pairs], data.examples.pairs.content[pairs]
    market, history = data.examples.queries.market[query], data.examples.queries.history[query]
    nearer, size = np.zeros(len(pairs), np.int64), max(1, SCORES // max(len(content_vectors), 1))
    for start in range(0, len(pairs), size):
        part = slice(start, start + size)
        scores = query_vectors[part] @ content_vectors.T
        scores[~data.examples.available[market[part]]] = -np.inf
        rows, places = np.nonzero(history[part] >= 0)
        past = history[part][rows, places]
        again = past == content[part][rows]
        scores[rows[~again], past[~again]] = -np.inf
        own = scores[np.arange(len(scores)), content[part]]
        nearer[part] = (scores > own[:, None]).sum(axis=1)
    return nearer


def train_two_tower(
    data: TrainingSet, config: TwoTowerConfig, folder: Path, seed: int, progress: Progress = quiet
) -> tuple[mm.RetrievalModelV2 | TwoTowers, list[TrainingState]]:
    """Fit the two-tower on training positives; recall@100 on validation positives decides when to stop.

    Returns:
        The model, and how the training of each of its members went.
    """

    def train_one(folder: Path, seed: int) -> tuple[mm.RetrievalModelV2, TrainingState]:
        return _train_one(data, config, folder, seed, progress)

    return train_members(train_one, TwoTowers, config.members, folder, seed)


def _train_one(
    data: TrainingSet, config: TwoTowerConfig, folder: Path, seed: int, progress: Progress
) -> tuple[mm.RetrievalModelV2, TrainingState]:
    set_seed(seed)
    pairs = data.examples.pairs
    rows = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    features = data.features
    related = None
    if config.related:
        ids = int(features.content.schema["content_id"].int_domain.max) + 1
        related = related_ids(data.graph.graph, features.content.arrays["content_id"], ids, config.related)
    model = build_two_tower(features.query.schema, features.content.schema, config, seed, related)
    valid = np.flatnonzero(pairs.positive & (pairs.split == VALID))
    valid = np.random.default_rng(seed).permutation(valid)[: config.validation_queries]
    contents = data.content_arrays(np.arange(len(data.features.content)))
    queries = data.query_arrays(pairs.query[valid])

    def validate(model: mm.RetrievalModelV2) -> dict[str, float]:
        if not len(valid):
            return {}
        content_vectors = encode(model.candidate_encoder, contents)
        query_vectors = encode(model.query_encoder, queries)
        nearer = places_in_market(data, query_vectors, content_vectors, valid)
        return {f"recall@{k}": float((nearer < k).mean()) for k in (20, 100)}

    def batches(epoch: int) -> RetrievalBatches:
        return RetrievalBatches(
            data,
            rows,
            batch_size=config.batch_size,
            seed=seed * 1000 + epoch,
            user_dropout=config.user_dropout,
        )

    state = train(
        "two-tower",
        model,
        losses,
        batches,
        validate,
        monitor="recall@100",
        epochs=config.epochs,
        patience=config.patience,
        folder=folder,
        progress=progress,
    )
    fill_unseen(model, data, forgotten=("user_id",) if config.user_dropout else ())
    return model, state
