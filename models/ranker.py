"""The Merlin DLRM that ranks: one body, a head for each outcome the log holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from market.knobs import expect
from market.statistics import PAIR_FEATURES
from workflows.examples import TRAIN, VALID, Examples
from workflows.features import Encoded, Features

from .batches import FORGOTTEN, HISTORY, LOG_Q, RankingBatches, TrainingSet, match_name
from .blocks import EmbeddingTable, InteractionDense, Lookup
from .gates import PRIOR, Gates
from .graphs import TINY
from .heads import TaskHeads
from .history import HistoryAttention, Items, history_length, history_schema
from .members import Rankers, member_folders, train_members
from .starts import Start, Starts, from_nothing, keep
from .training import Progress, TrainingState, quiet, set_seed, traced, train
from .unseen import fill_unseen

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip

#: Tasks in the order of the ranker's output, and the outcome each predicts. `relevant` stands for any wanted
#: outcome where the log holds positives alone.
TASKS = ("relevant", "click", "watch", "like", "follow", "long_view", "cart", "order", "negative")
#: Validation positives that are ranked where only positives were logged, and the contents beside each.
JUDGED, RIVALS = 1000, 199
#: A training step's parts, see `TrainingLoop`; a GPU would only run the smaller kernels one after another.
PARTS = 1 if tf.config.list_physical_devices("GPU") else 4
#: Knobs of which a ranker's weights are made.
SHAPE = ("embedding_dim", "bottom", "top", "vectors", "attention", "experts", "gates")


@dataclass(frozen=True)
class RankerConfig:
    """Knobs of the ranker.

    Attributes:
        embedding_dim: size of every embedding, and of the bottom block's output.
        bottom: widths of the hidden layers over numbers.
        top: widths of the layers over the interactions; at least one.
        id_dropout: share of user and content ids that training shows as unseen (0 to 1).
        batch_size: pairs in a batch (pairs).
        learning_rate: of Adam on touched rows.
        epochs: at most this many passes.
        patience: epochs without a better validation metric before training stops.
        negatives: contents drawn for each positive where only positives were logged (contents).
        popular_negatives: share of them drawn by popularity, the others uniformly (0 to 1).
        min_outcomes: training rows with an outcome that a task needs to be learned (rows).
        vectors: whether content vectors are inputs, where contents have any.
        attention: whether a candidate attends to the contents of the history.
        experts: experts that tasks weigh each for itself, each as wide as the last layer of `top`; 0 for one
            that all share alike.
        gates: whether market and language say how much each field and hidden unit counts.
        esmm: whether carts and orders are learned as given the outcome that they follow.
        replay: where training goes on from an earlier build's, rows of that one that are trained on again for
            each that is new (rows).
        members: rankers that are trained under different seeds and asked as one (`models.members`).
    """

    embedding_dim: int = 32
    bottom: tuple[int, ...] = (64,)
    top: tuple[int, ...] = (64, 32)
    id_dropout: float = 0.3
    batch_size: int = 2048
    learning_rate: float = 1e-3
    epochs: int = 24
    patience: int = 2
    negatives: int = 8
    popular_negatives: float = 0.25
    min_outcomes: int = 100
    vectors: bool = False
    attention: bool = False
    experts: int = 0
    gates: bool = False
    esmm: bool = False
    replay: float = 0.0
    members: int = 1

    def __post_init__(self) -> None:
        counts = "embedding_dim bottom top batch_size epochs patience negatives min_outcomes members"
        expect(self, "ranker", counts, least=1)
        expect(self, "ranker", "experts replay", least=0)
        expect(self, "ranker", "learning_rate", above=0)
        expect(self, "ranker", "id_dropout popular_negatives", least=0, most=1)
        if not self.top:
            raise ValueError("ranker.top is []; the interactions need a layer, give it a width such as [64]")
        if self.experts and len(self.top) < 2:
            raise ValueError(
                f"ranker.experts is {self.experts}, but ranker.top = {list(self.top)} has no layer for them; "
                "give it a second width, or 0 experts"
            )


def learned_tasks(examples: Examples, min_outcomes: int) -> tuple[str, ...]:
    """Every task the log can teach, in the order of the ranker's output."""
    if examples.feedback == "positives":
        return ("relevant",)
    rows, outcomes = examples.pairs.rows(TRAIN), examples.pairs.outcomes
    tasks = []
    for task in TASKS:
        values = outcomes.get(_column(task))
        if values is not None and np.count_nonzero(np.nan_to_num(np.asarray(values[rows]))) >= min_outcomes:
            tasks.append(task)
    if not tasks:
        known = ", ".join(_column(task) for task in TASKS if task != "relevant")
        raise ValueError(
            f"no outcome has {min_outcomes} training rows of those that are learned ({known}), so there is "
            "nothing to rank by; log one of them, train on a longer log or lower ranker.min_outcomes"
        )
    return tuple(tasks)


def task_labels(examples: Examples, min_outcomes: int) -> dict[str, np.ndarray]:
    """Labels of every task the log can teach, bool[P] over all pairs, float32[P] for watch time.

    Watch time becomes its place among contents of about the same duration, see `market.watch_time`; without
    one it counts as none.
    """
    pairs = examples.pairs
    if examples.feedback == "positives":
        return {"relevant": np.asarray(pairs.positive)}
    labels = {}
    for task in learned_tasks(examples, min_outcomes):
        values = np.nan_to_num(np.asarray(pairs.outcomes[_column(task)]))
        if task == "watch":
            labels[task] = examples.watch_time.rank(values, examples.durations[pairs.content])
        else:
            labels[task] = values > 0
    return labels


def _column(task: str) -> str:
    """The outcome of the log that teaches a task."""
    return "watch_s" if task == "watch" else task


def pair_schema(query: Schema) -> Schema:
    """Features of a pair, which belong to neither the query nor the content."""
    matches = [match_name(column.name) for column in query if column.shape.is_list]
    return Schema(
        [
            ColumnSchema(name, dtype=np.float32, tags=[Tags.CONTINUOUS, "pair"])
            for name in (*PAIR_FEATURES, *matches)
        ]
    )


class RankerBody(mm.Block):
    """DLRM up to its heads: embeddings and numbers → the last shared layer, float32[B, width].

    Beside the columns' embeddings two fields meet in the interactions: the content as one vector, in which
    content vectors take part, and what attention finds for it in the history; see `models.history`.
    """

    def __init__(
        self, schema: Schema, content: Encoded, table: EmbeddingTable, config: RankerConfig, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.set_schema(schema)
        self.lookup = Lookup(schema, table)
        self.numbers = tuple(schema.select_by_tag(Tags.CONTINUOUS).column_names)
        self.bottom = mm.MLPBlock([*config.bottom, config.embedding_dim])
        self.history_length = history_length(schema)
        self.attention = HistoryAttention() if config.attention and self.history_length else None
        vectors = config.vectors and len(content.schema.select_by_tag(Tags.EMBEDDING)) > 0
        self.items = Items(content, self.lookup, vectors) if self.attention or vectors else None
        self.interactions = InteractionDense(config.top[0])
        fields = len(self.lookup.fields) + (self.items is not None) + (self.attention is not None)
        self.gated = fields, config.top[0]
        prior = config.gates and set(PRIOR) & set(schema.column_names)
        self.gates = Gates(schema, sum(self.gated)) if prior else None
        self.top = [mm.MLPBlock([width]) for width in config.top[1:-1]]

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        numbers = tf.concat([inputs[name] for name in self.numbers], axis=1)
        vectors = self.lookup(inputs, training=training)
        if self.items is not None:
            places = [self.lookup.fields.index(name) for name in self.items.columns]
            given = [tf.reshape(inputs[name], [-1, width]) for name, width in self.items.vectors.items()]
            item = self.items(tf.gather(vectors, places, axis=1), given)[:, tf.newaxis]
            vectors = tf.concat([vectors, item], axis=1)
            if self.attention is not None:
                rows = tf.reshape(inputs[HISTORY], [-1, self.history_length])
                found = self.attention(item, self.items.of_histories(rows), rows > 0)
                vectors = tf.concat([vectors, found], axis=1)
        gates = None if self.gates is None else self.gates(inputs)
        return self.mix(vectors, numbers, gates)

    def mix(self, vectors: tf.Tensor, numbers: tf.Tensor, gates: tf.Tensor | None) -> tf.Tensor:
        """The body behind its lookups.

        Args:
            vectors: float32[B, F, D], as `Lookup.fields`, then the item and what its history says.
            numbers: float32[B, G], as `numbers`.
            gates: float32[B, F + units of the interactions], as `gates`.
        """
        if gates is None:
            return self._rest(self.interactions((self.bottom(numbers), vectors)))
        of_fields, of_units = tf.split(gates, self.gated, axis=1)
        made = self.interactions((self.bottom(numbers), vectors * of_fields[..., tf.newaxis]))
        return self._rest(made * of_units)

    def mix_candidates(
        self,
        of_query: tf.Tensor,
        of_content: tf.Tensor,
        numbers: tf.Tensor,
        query_fields: list[int],
        gates: tf.Tensor | None,
    ) -> tf.Tensor:
        """As `mix` for the C candidates of each query; see `InteractionDense.for_candidates`.

        Args:
            of_query: float32[B, Fq, D], `query_fields` of `mix`'s vectors.
            of_content: float32[B * C, Fc, D], the other ones.
            numbers: float32[B * C, G], as `numbers`.
            gates: float32[B, F + units of the interactions], as `gates`.
        """
        first = self.bottom(numbers)
        if gates is None:
            return self._rest(self.interactions.for_candidates(first, of_query, of_content, query_fields))
        of_fields, of_units = tf.split(gates, self.gated, axis=1)
        others = [place for place in range(self.gated[0]) if place not in query_fields]
        of_query *= tf.gather(of_fields, query_fields, axis=1)[..., tf.newaxis]
        of_content = _by_query(of_content, tf.gather(of_fields, others, axis=1)[..., tf.newaxis])
        made = self.interactions.for_candidates(first, of_query, of_content, query_fields)
        return self._rest(_by_query(made, of_units))

    def _rest(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.top:
            x = layer(x)
        return x

    def compute_output_shape(self, input_shapes) -> tf.TensorShape:
        width = self.top[-1].layers[-1].units if self.top else self.interactions.units
        return tf.TensorShape([next(iter(input_shapes.values()))[0], width])


def _by_query(x: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
    """x [B * C, ...] times its query's gates [B, ...]."""
    wide = tf.reshape(x, tf.concat([[tf.shape(gates)[0], -1], x.shape[1:]], 0))
    return tf.reshape(wide * gates[:, tf.newaxis], tf.concat([[-1], x.shape[1:]], 0))


#: Outcomes that come after another one, and those others, the nearest first.
AFTER = {"cart": ("click",), "order": ("cart", "click")}


def followed_tasks(labels: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """For each task the place of the one without which no row of the labels has it, -1 for none.

    Args:
        labels: of the training part, float32[P] by task.
    """
    tasks = list(labels)
    found = []
    for task in tasks:
        before = [b for b in AFTER.get(task, ()) if b in labels and (labels[task] <= labels[b]).all()]
        found.append(tasks.index(before[0]) if before else -1)
    return tuple(found)


def _follows(examples: Examples, labels: Mapping[str, np.ndarray], config: RankerConfig) -> tuple[int, ...]:
    """For each task the place of the one that it is learned as given, -1 for none."""
    if not config.esmm:
        return (-1,) * len(labels)
    rows = examples.pairs.rows(TRAIN)
    return followed_tasks({task: y[rows] for task, y in labels.items()})


def made_of(data: TrainingSet, labels: Mapping[str, np.ndarray], config: RankerConfig) -> dict[str, Any]:
    """All that must be equal in two rankers for the weights of one to mean the same in the other: what they
    read, but not how many ids there are, what they tell, and their layers."""
    every = data.features.query.schema + data.features.content.schema
    return {
        "columns": [(column.name, sorted(map(str, column.tags)), str(column.shape)) for column in every],
        "features of a pair": PAIR_FEATURES,
        "seasons (features.season_days)": data.seasons is not None,
        "tasks": tuple(labels),
        "tasks that follow others (ranker.esmm)": _follows(data.examples, labels, config),
    } | {f"ranker.{name}": getattr(config, name) for name in SHAPE}


def expect_starts(data: TrainingSet, config: RankerConfig, folder: Path, start: Starts) -> None:
    """Raise now what `train_ranker` would where a member cannot go on from what `start` says.

    Raises:
        ValueError: what is there is of another ranker, or knew all training rows.
    """
    made = made_of(data, task_labels(data.examples, config.min_outcomes), config)
    for place in member_folders(folder, config.members):
        if one := start(place):
            one.expect(data.examples, made)


def build_ranker(
    features: Features, tasks: tuple[str, ...], config: RankerConfig, seed: int, follows: Sequence[int] = ()
) -> mm.Model:
    """The DLRM, compiled: probabilities float32[B, T], in the order of `tasks`.

    Watch time is a share and so binary too.

    Args:
        follows: `followed_tasks`; where it is empty no task follows another.
    """
    query, content = features.query.schema, features.content.schema
    schema = query + content + pair_schema(query) + history_schema(query)
    body = RankerBody(schema, features.content, EmbeddingTable(schema, config.embedding_dim, seed), config)
    width = config.top[-1] if len(config.top) > 1 else 0
    heads = TaskHeads(follows or [-1] * len(tasks), width, config.experts, name="heads")
    model = mm.Model(body, mm.BinaryOutput("outcomes", to_call=heads), schema=schema)
    model.compile(optimizer=mm.LazyAdam(config.learning_rate), metrics=[])
    return model


def losses(model: mm.Model, x: dict[str, tf.Tensor], y: tf.Tensor) -> tf.Tensor:
    """Cross entropy of each row, summed over the tasks: float32[B].

    Drawn negatives are told from wanted contents by noise-contrastive estimation (Gutmann and Hyvärinen,
    AISTATS 2010): what is learned is the chance of the content itself, however unevenly negatives are drawn.
    """
    log_q = x.pop(LOG_Q, None)
    chance = model(x, training=True)
    if log_q is None:
        return tf.reduce_sum(tf.keras.backend.binary_crossentropy(y, chance), axis=1)
    logit = tf.math.log(tf.maximum(chance, TINY)) - tf.math.log(tf.maximum(1 - chance, TINY))
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(y, logit - log_q), axis=1)


def predict(model: mm.Model | Rankers, batches: RankingBatches) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of all batches, float32[P, T] each."""
    call = traced(lambda x: model(x, training=False))
    predicted, labels = [], []
    for place in range(len(batches)):
        x, y = batches[place]
        x.pop(LOG_Q, None)
        predicted.append(call({name: tf.constant(array) for name, array in x.items()}).numpy())
        labels.append(y)
    return np.concatenate(predicted), np.concatenate(labels)


def train_ranker(
    data: TrainingSet,
    config: RankerConfig,
    folder: Path,
    seed: int,
    progress: Progress = quiet,
    start: Starts = from_nothing,
) -> tuple[mm.Model | Rankers, tuple[str, ...], list[TrainingState]]:
    """Fit the ranker; a metric on validation pairs decides when to stop.

    With logged impressions it is the mean AUC over the tasks. Where only positives were logged it is the nDCG
    of each of some positives among `RIVALS` contents of the kind that retrieval brings: an AUC goes on rising
    while the first places, which are all that a slate shows, get worse.

    Args:
        start: what the training in a folder goes on from.

    Returns:
        The model, its tasks in output order, and how the training of each of its members went.
    """
    labels = task_labels(data.examples, config.min_outcomes)

    def train_one(folder: Path, seed: int) -> tuple[mm.Model, TrainingState]:
        return _train_one(data, labels, config, folder, seed, progress, start(folder))

    model, states = train_members(train_one, Rankers, config.members, folder, seed)
    return model, tuple(labels), states


def _train_one(
    data: TrainingSet,
    labels: dict[str, np.ndarray],
    config: RankerConfig,
    folder: Path,
    seed: int,
    progress: Progress,
    start: Start | None,
) -> tuple[mm.Model, TrainingState]:
    set_seed(seed)
    tasks = tuple(labels)
    follows = _follows(data.examples, labels, config)
    model = build_ranker(data.features, tasks, config, seed, follows)
    made, forgotten = made_of(data, labels, config), FORGOTTEN if config.id_dropout else ()
    drawn = data.examples.feedback == "positives"
    pairs = data.examples.pairs
    folder.mkdir(parents=True, exist_ok=True)
    rows = {split: np.arange(pairs.rows(split).start, pairs.rows(split).stop) for split in (TRAIN, VALID)}
    if start is not None:
        rows[TRAIN] = start.rows(data.examples, config.replay, seed)
    logged = {split: data.logged_pairs(rows[split], folder / f"pairs-{split}.npy") for split in rows}

    def batches(epoch: int) -> RankingBatches:
        return RankingBatches(
            data,
            rows[TRAIN],
            labels,
            logged=logged[TRAIN],
            batch_size=config.batch_size,
            negatives=config.negatives if drawn else 0,
            popular_negatives=config.popular_negatives,
            seed=seed * 1000 + epoch,
            id_dropout=config.id_dropout,
        )

    state = train(
        "ranker",
        model,
        losses,
        batches,
        _judge(data, labels, rows[VALID], logged[VALID], config, seed),
        monitor="ndcg@20" if drawn else "auc",
        epochs=config.epochs,
        patience=config.patience,
        folder=folder,
        parts=PARTS,
        begin=None if start is None else partial(start.give, data=data, made_of=made),
        progress=progress,
    )
    keep(model, data, made, forgotten, folder)
    fill_unseen(model, data, forgotten)
    return model, state


def _judge(
    data: TrainingSet,
    labels: dict[str, np.ndarray],
    rows: np.ndarray,
    logged: np.ndarray,
    config: RankerConfig,
    seed: int,
) -> Callable[[mm.Model], dict[str, float]]:
    """What tells how good a ranker is on validation rows: AUCs among what was shown, or, where the log has
    what people wanted alone, nDCG@20 of `JUDGED` of these among `RIVALS` drawn ones."""
    drawn = data.examples.feedback == "positives"
    if drawn:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:JUDGED])
    valid = RankingBatches(
        data,
        rows,
        labels,
        logged=None if drawn else logged,
        batch_size=config.batch_size,
        negatives=RIVALS if drawn else 0,
        popular_negatives=0.4,
        related_negatives=0.4,
        seed=seed,
        shuffle=False,
    )

    def validate(model: mm.Model) -> dict[str, float]:
        if not len(valid):
            return {}
        predicted, truth = predict(model, valid)
        if drawn:
            return {"ndcg@20": _ndcg(predicted[:, 0], valid.content, len(rows))}
        return _aucs(predicted, truth, tuple(labels))

    return validate


def _aucs(predicted: np.ndarray, truth: np.ndarray, tasks: Sequence[str]) -> dict[str, float]:
    """AUC of each task that has both outcomes, by what was predicted [P, T] and what came [P, T], of watch
    time whether it was above the median; and their mean, 0.5 where there is none."""
    scores = {}
    for place, task in enumerate(tasks):
        actual = truth[:, place] > (np.median(truth[:, place]) if task == "watch" else 0)
        if 0 < actual.sum() < len(actual):
            scores[f"auc_{task}"] = float(roc_auc_score(actual, predicted[:, place]))
    return scores | {"auc": float(np.mean(list(scores.values()))) if scores else 0.5}


def _ndcg(score: np.ndarray, content: np.ndarray, positives: int) -> float:
    """Mean nDCG@20 of positives among the contents drawn for each, equal scores before them.

    Args:
        score, content: [positives * (1 + R)], the positives first, then the R of each, in their order.
    """
    own, rivals = score[:positives, None], score[positives:].reshape(positives, -1)
    other = content[positives:].reshape(positives, -1) != content[:positives, None]
    rank = 1 + ((rivals >= own) & other).sum(axis=1)
    return float(np.where(rank <= 20, 1 / np.log2(1 + rank), 0).mean())
