"""Training: a pass over the data by our loop and by Merlin Models as it comes, and what each has learned.

Both train the same Merlin architectures on the same encoded examples of the simulated world, with the same
batch size. Ours gathers batches from arrays, touches only a batch's embedding rows and leaves metrics to the
end of a pass; Merlin reads a Dataset through its Loader, with ragged histories, Adam over whole tables and
metrics in every step. Sides take turns, a pass each; after all turns each is validated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import models.ranker
import models.two_tower
from benchmarks.harness import Result, compare, machine, timed, versions, write_json
from market.world import World, WorldConfig
from models.batches import RankingBatches, RetrievalBatches, TrainingSet, make_training_set
from models.item_graph import ItemGraphConfig, fit_item_graph
from models.ranker import RankerConfig, build_ranker, pair_schema, predict, task_labels
from models.training import TrainingLoop, set_seed
from models.two_tower import TwoTowerConfig, build_two_tower, encode, recall_in_market
from workflows.examples import TRAIN, VALID, build_examples
from workflows.features import FeatureConfig, fit_features

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
from merlin.io import Dataset  # isort: skip
from merlin.models.tf.outputs.base import DotProduct  # isort: skip
from merlin.models.tf.transforms.bias import PopularityLogitsCorrection  # isort: skip
from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip

PASS = {"verbose": 0, "epochs": 1}


def world_data(impressions: int, seed: int, folder: Path) -> TrainingSet:
    """Encoded examples of a simulated world."""
    world = World(WorldConfig(impressions=impressions, seed=seed))
    dataset = world.write(folder / "data")
    config = FeatureConfig()
    examples = build_examples(
        dataset,
        folder / "work",
        history_length=config.history_length,
        seen_length=config.seen_length,
        seed=seed,
    )
    features = fit_features(examples, folder / "features", config)
    graph = fit_item_graph(examples, ItemGraphConfig())
    return make_training_set(examples, features, graph, 72 * 3600)


def merlin_frame(data: TrainingSet, rows: np.ndarray, labels: dict[str, np.ndarray]) -> pd.DataFrame:
    """Pairs as the table that Merlin's Loader reads: encoded columns, ragged histories, pair features."""
    pairs = data.examples.pairs
    query, content = pairs.query[rows], pairs.content[rows]
    own = pairs.positive[rows] & (pairs.split[rows] == TRAIN)
    columns: dict[str, Any] = {}
    for name, array in data.query_arrays(query).items():
        if array.shape[1] == 1:
            columns[name] = array[:, 0]
        else:  # Merlin's ragged lists may not be empty: an empty history is the null category
            columns[name] = [row[row > 0] if (row > 0).any() else np.ones(1, np.int64) for row in array]
    columns |= {name: array[:, 0] for name, array in data.content_arrays(content).items()}
    columns |= {name: array[:, 0] for name, array in data.pair_arrays(query, content, own).items()}
    return pd.DataFrame(columns | {task: values[rows] for task, values in labels.items()})


def merlin_schema(schema: Schema) -> Schema:
    """The schema with ragged lists, as NVTabular would have written it."""
    return Schema(
        [
            column.with_shape((None, (1, column.shape.dims[1].max))) if column.shape.is_list else column
            for column in schema
        ]
    )


def rankers(data: TrainingSet, seed: int) -> tuple[dict[str, Callable[[], Any]], Callable[[], dict]]:
    """One pass of each ranker by side, and what validation says of them."""
    config = RankerConfig()
    labels = task_labels(data.examples, config.min_outcomes)
    tasks = tuple(labels)
    query, content = data.features.query.schema, data.features.content.schema
    pairs = data.examples.pairs
    train, valid = (np.arange(pairs.rows(s).start, pairs.rows(s).stop) for s in (TRAIN, VALID))
    set_seed(seed)
    ours = build_ranker(query, content, tasks, config, seed)
    schema = merlin_schema(query + content + pair_schema(query))
    theirs = mm.DLRMModel(
        schema,
        embeddings=mm.Embeddings(schema.select_by_tag(Tags.CATEGORICAL), dim=config.embedding_dim),
        bottom_block=mm.MLPBlock([*config.bottom, config.embedding_dim]),
        top_block=mm.MLPBlock(list(config.top)),
        prediction_tasks=mm.ParallelBlock(*[mm.BinaryOutput(task) for task in tasks]),
    )
    theirs.compile(optimizer="adam")
    table = Dataset(merlin_frame(data, train, labels), schema=_with_targets(schema, tasks))
    held_out = Dataset(merlin_frame(data, valid, labels), schema=_with_targets(schema, tasks))
    passes = iter(range(10**6))

    def our_batches() -> RankingBatches:
        return RankingBatches(data, train, labels, batch_size=config.batch_size, seed=next(passes))

    loop = TrainingLoop(ours, models.ranker.losses, our_batches()[0], models.ranker.PARTS)

    def our_pass() -> None:
        for _ in loop.run(our_batches()):
            pass

    def their_pass() -> None:
        theirs.fit(table, batch_size=config.batch_size, **PASS)

    def validate() -> dict[str, float]:
        batches = RankingBatches(data, valid, labels, batch_size=8192, shuffle=False)
        predicted, truth = predict(ours, batches)
        loader = mm.Loader(held_out, batch_size=8192, shuffle=False)
        made = [theirs(x, training=False) for x, _ in loader]
        their_click = np.concatenate([m["click/binary_output"].numpy()[:, 0] for m in made])
        place = tasks.index("click")
        return {
            "ours": float(roc_auc_score(truth[:, place] > 0, predicted[:, place])),
            "Merlin Models": float(roc_auc_score(truth[:, place] > 0, their_click)),
        }

    return {"ours": our_pass, "Merlin Models": their_pass}, validate


def _with_targets(schema: Schema, tasks: tuple[str, ...]) -> Schema:

    return schema + Schema(
        [ColumnSchema(t, dtype=np.float32, tags=[Tags.TARGET, Tags.BINARY]) for t in tasks]
    )


def two_towers(data: TrainingSet, seed: int) -> tuple[dict[str, Callable[[], Any]], Callable[[], dict]]:
    """One pass of each two-tower by side, and what validation says of them."""
    config = TwoTowerConfig()
    query, content = data.features.query.schema, data.features.content.schema
    pairs = data.examples.pairs
    train = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    valid = np.flatnonzero(pairs.positive & (pairs.split == VALID))
    set_seed(seed)
    ours = build_two_tower(query, content, config, seed)
    ragged = merlin_schema(query)

    def tower(schema: Schema) -> mm.Encoder:
        inputs = mm.InputBlockV2(
            schema,
            categorical=mm.Embeddings(schema.select_by_tag(Tags.CATEGORICAL), dim=config.embedding_dim),
        )
        layers = mm.MLPBlock([*config.hidden, config.dim], no_activation_last_layer=True)
        return mm.Encoder(inputs, layers, post=mm.L2Norm())

    ids = content.select_by_tag(Tags.ITEM_ID)
    encoded = data.features.content.arrays[ids.first.name]
    count = np.bincount(encoded[pairs.content[train]], minlength=int(ids.first.int_domain.max) + 1)
    output = mm.ContrastiveOutput(
        to_call=DotProduct(),
        negative_samplers="in-batch",
        schema=ids,
        logits_temperature=config.temperature,
        store_negative_ids=True,
        post=PopularityLogitsCorrection(
            tf.constant(np.maximum(count, 1), tf.float32), schema=content, reg_factor=config.temperature
        ),
    )
    theirs = mm.TwoTowerModelV2(tower(ragged), tower(content), outputs=output)
    theirs.compile(optimizer="adam")
    names = [*query.column_names, *content.column_names]
    table = Dataset(merlin_frame(data, train, {})[names], schema=ragged + content)
    asked = Dataset(merlin_frame(data, valid, {})[query.column_names], schema=ragged)
    passes = iter(range(10**6))

    def our_batches() -> RetrievalBatches:
        return RetrievalBatches(data, train, batch_size=config.batch_size, seed=next(passes))

    loop = TrainingLoop(ours, models.two_tower.losses, our_batches()[0])

    def our_pass() -> None:
        for _ in loop.run(our_batches()):
            pass

    def their_pass() -> None:
        theirs.fit(table, batch_size=config.batch_size, **PASS)

    def validate() -> dict[str, float]:
        contents = data.content_arrays(np.arange(len(data.features.content)))
        queries = data.query_arrays(pairs.query[valid])
        loader = mm.Loader(asked, batch_size=8192, shuffle=False)
        their_queries = np.concatenate([theirs.query_encoder(x, training=False).numpy() for x, _ in loader])
        return {
            "ours": recall_in_market(
                data,
                encode(ours.query_encoder, queries),
                encode(ours.candidate_encoder, contents),
                valid,
                100,
            ),
            "Merlin Models": recall_in_market(
                data, their_queries, encode(theirs.candidate_encoder, contents), valid, 100
            ),
        }

    return {"ours": our_pass, "Merlin Models": their_pass}, validate


def run(
    *,
    rows: int = 400_000,
    repeats: int = 3,
    seed: int = 0,
    file: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[Result]:
    """Run the benchmark.

    Args:
        rows: impressions of the simulated world.
        repeats: measured passes of each side; one more warms both up.
        seed: of the world and the models.
        file: where the report goes as JSON.
        report: called with a line as each figure is known.
    """
    before = machine()
    results: list[Result] = []
    learned: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="pasar-training-") as folder:
        data = world_data(rows, seed, Path(folder))
        pairs = data.examples.pairs
        counts = {
            "DLRM, a pass": int((pairs.split == TRAIN).sum()),
            "two-tower, a pass": int((pairs.positive & (pairs.split == TRAIN)).sum()),
        }
        for case, make in (("DLRM, a pass", rankers), ("two-tower, a pass", two_towers)):
            sides, validate = make(data, seed)
            timed_sides = {name: timed(work) for name, work in sides.items()}
            found = compare(case, counts[case], timed_sides, repeats=repeats, budget_s=300, report=report)
            results += found
            learned[case] = validate()
            metric = "AUC of click" if case.startswith("DLRM") else "recall@100"
            for result in found:
                report(
                    f"{case}, {result.side}: {result.rows / result.wall.median:,.0f} rows/s, validation "
                    f"{metric} {learned[case][result.side]:.4f} after {repeats + 1} passes"
                )
    if file:
        about = {
            "benchmark": "training",
            "settings": {"rows": rows, "repeats": repeats, "seed": seed},
            "machine": {**before, "load_after": machine()["load"]},
            "versions": versions("merlin-models", "merlin-dataloader", "tensorflow-cpu", "numpy"),
            "validation": learned,
        }
        write_json(file, about, results)
    return results
