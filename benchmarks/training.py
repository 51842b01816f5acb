"""Training: a pass over the data by our loop and by its peers, and what each has learned.

All train the same architectures, a DLRM and a two-tower of the same widths, on the same encoded examples of
the simulated world and with the same batch size. Each starts from the same arrays in memory, pair features
included, and gathers its batches in its own way. Sides take turns, a pass each; after all turns each is
validated on the same rows.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

import models.ranker
import models.two_tower
from benchmarks.harness import (
    Cost,
    Peer,
    Result,
    Side,
    compare,
    machine,
    peer,
    peer_python,
    timed_once,
    versions,
    write_report,
)
from market.world import World, WorldConfig
from models.batches import (
    FORGOTTEN,
    UNSEEN,
    RankingBatches,
    RetrievalBatches,
    TrainingSet,
    make_training_set,
)
from models.item_graph import ItemGraphConfig, fit_item_graph
from models.ranker import RankerConfig, build_ranker, predict, task_labels
from models.training import TrainingLoop, set_seed
from models.two_tower import TwoTowerConfig, build_two_tower, encode, places_in_market
from workflows.examples import TRAIN, VALID, build_examples
from workflows.features import FeatureConfig, fit_features

from merlin.schema import Schema, Tags  # isort: skip

PEERS = {"Merlin Models": "merlin", "PyTorch": "torch", "TensorFlow Recommenders": "recommenders"}


@dataclass(frozen=True)
class Case:
    """What is trained, in the form that every peer reads.

    Attributes:
        about: sizes of the model, and the columns of the arrays.
        arrays: what training reads, by name; `pair_query` and `pair_content` are rows of the others.
        valid: the same of the validation pairs.
        ours: does a pass.
        score: what our model, or a peer's answer to `predict`, is worth in validation.
        metric: the name of that.
    """

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]
    ours: Callable[[], None]
    score: Callable[[Mapping[str, np.ndarray] | None], float]
    metric: str


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


def _columns(schema: Schema) -> list[dict[str, Any]]:
    """Categorical columns of a schema: name, domain, rows of its table, width; scalars before lists."""
    columns = [
        {
            "name": column.name,
            "domain": column.int_domain.name,
            "rows": int(column.int_domain.max) + 1,
            "width": int(column.shape.dims[1].max) if column.shape.is_list else 1,
        }
        for column in schema.select_by_tag(Tags.CATEGORICAL)
    ]
    return sorted(columns, key=lambda column: column["width"] > 1)


def _packed(schema: Schema, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Encoded rows as ids int32[R, widths of `_columns`] and numbers float32[R, G]."""
    rows = len(next(iter(arrays.values())))
    ids = [arrays[column["name"]].reshape(rows, -1) for column in _columns(schema)]
    numbers = [arrays[name].reshape(rows, 1) for name in schema.select_by_tag(Tags.CONTINUOUS).column_names]
    packed = np.concatenate(ids, axis=1).astype(np.int32)
    return packed, np.concatenate([np.zeros((rows, 0), np.float32), *numbers], axis=1)


def _sides(data: TrainingSet) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What peers are told of queries and contents, and their arrays."""
    about: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for side, features in (("query", data.features.query), ("content", data.features.content)):
        arrays[f"{side}_ids"], arrays[f"{side}_numbers"] = _packed(features.schema, features.arrays)
        names = features.schema.select_by_tag(Tags.CONTINUOUS).column_names
        about[side] = {"columns": _columns(features.schema), "numbers": names}
    return about, arrays


def _places(about: Mapping[str, Any], names: Collection[str]) -> list[int]:
    """Where columns stand in the ids of queries and contents side by side."""
    columns = [column for side in ("query", "content") for column in about[side]["columns"]]
    ends = np.cumsum([column["width"] for column in columns]).tolist()
    return [end - column["width"] for column, end in zip(columns, ends) if column["name"] in names]


def ranker(data: TrainingSet, seed: int, folder: Path) -> Case:
    """The DLRM, one head a task, on logged impressions."""
    config = RankerConfig()
    labels = task_labels(data.examples, config.min_outcomes)
    tasks = tuple(labels)
    pairs = data.examples.pairs
    rows = {s: np.arange(pairs.rows(s).start, pairs.rows(s).stop) for s in (TRAIN, VALID)}
    logged = {split: data.logged_pairs(rows[split], folder / f"pairs-{split}.npy") for split in rows}
    about, arrays = _sides(data)

    def of_split(split: int) -> dict[str, np.ndarray]:
        return {
            "pair_query": pairs.query[rows[split]],
            "pair_content": pairs.content[rows[split]],
            "pair_numbers": np.array(logged[split]),
            "labels": np.stack([values[rows[split]] for values in labels.values()], axis=1).astype(
                np.float32
            ),
        }

    set_seed(seed)
    model = build_ranker(data.features, tasks, config, seed)
    passes = iter(range(10**6))

    def batches(split: int, **options: Any) -> RankingBatches:
        return RankingBatches(data, rows[split], labels, logged=logged[split], **options)

    def shuffled() -> RankingBatches:
        return batches(TRAIN, batch_size=config.batch_size, seed=next(passes), id_dropout=config.id_dropout)

    loop = TrainingLoop(model, models.ranker.losses, shuffled()[0], models.ranker.PARTS)

    def ours() -> None:
        for _ in loop.run(shuffled()):
            pass

    def score(answer: Mapping[str, np.ndarray] | None) -> float:
        predicted, truth = predict(model, batches(VALID, batch_size=8192, shuffle=False))
        if answer is not None:
            predicted = answer["probabilities"]
        place = tasks.index("click")
        return float(roc_auc_score(truth[:, place] > 0, predicted[:, place]))

    sizes = {
        "model": "dlrm",
        "seed": seed,
        "tasks": tasks,
        "embedding_dim": config.embedding_dim,
        "bottom": config.bottom,
        "top": config.top,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "forgotten": {"share": config.id_dropout, "id": UNSEEN, "places": _places(about, FORGOTTEN)},
    }
    valid = of_split(VALID)
    return Case(about | sizes, arrays | of_split(TRAIN), valid, ours, score, "AUC of click")


def two_tower(data: TrainingSet, seed: int, folder: Path) -> Case:
    """The two-tower with in-batch negatives, on positives."""
    config = TwoTowerConfig()
    query, content = data.features.query.schema, data.features.content.schema
    pairs = data.examples.pairs
    train = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    valid = np.flatnonzero(pairs.positive & (pairs.split == VALID))
    set_seed(seed)
    model = build_two_tower(query, content, config, seed)
    passes = iter(range(10**6))

    def shuffled() -> RetrievalBatches:
        return RetrievalBatches(data, train, batch_size=config.batch_size, seed=next(passes))

    first = shuffled()
    loop = TrainingLoop(model, models.two_tower.losses, first[0])

    def ours() -> None:
        for _ in loop.run(shuffled()):
            pass

    def score(answer: Mapping[str, np.ndarray] | None) -> float:
        if answer is None:
            contents = data.content_arrays(np.arange(len(data.features.content)))
            answer = {
                "query_vectors": encode(model.query_encoder, data.query_arrays(pairs.query[valid])),
                "content_vectors": encode(model.candidate_encoder, contents),
            }
        places = places_in_market(data, answer["query_vectors"], answer["content_vectors"], valid)
        return float((places < 100).mean())

    about, arrays = _sides(data)
    ids = content.select_by_tag(Tags.ITEM_ID).first
    arrays |= {
        "pair_query": pairs.query[train],
        "pair_content": pairs.content[train],
        "market": data.examples.queries.market[pairs.query[train]].astype(np.int32),
        "log_q": first.log_q,
    }
    sizes = {
        "model": "two-tower",
        "seed": seed,
        "item_id": ids.name,
        "embedding_dim": config.embedding_dim,
        "hidden": config.hidden,
        "dim": config.dim,
        "temperature": config.temperature,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
    }
    return Case(about | sizes, arrays, {"pair_query": pairs.query[valid]}, ours, score, "recall@100")


def _write(folder: Path, arrays: Mapping[str, np.ndarray]) -> str:
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


@contextlib.contextmanager
def running_peers() -> Iterator[dict[str, Peer]]:
    """Every peer in a process of its own, by name."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                peer(
                    f"{script}_training.py",
                    Path(sys.executable) if script == "merlin" else peer_python(script),
                )
            )
            for name, script in PEERS.items()
        }


def counted(name: str, side: Side, passes: Counter[str]) -> Side:
    """The side, a pass a turn, with its passes counted under its name."""

    def one() -> Cost:
        passes[name] += 1
        return side()

    return one


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
        repeats: measured passes of each side; one more warms it up. A side too slow for them has fewer.
        seed: of the world and the models.
        file: where the report goes as JSON.
        report: called with a line as each figure is known.
    """
    before = machine()
    results: list[Result] = []
    learned: dict[str, dict[str, float]] = {}
    passes: dict[str, Counter[str]] = {}
    found_versions: dict[str, Any] = {
        "ours": versions("merlin-models", "merlin-dataloader", "tensorflow-cpu", "numpy")
    }
    with tempfile.TemporaryDirectory(prefix="pasar-training-") as name:
        folder = Path(name)
        data = world_data(rows, seed, folder)
        for number, make in enumerate((ranker, two_tower)):
            case = make(data, seed, folder)
            title = f"{'DLRM' if case.about['model'] == 'dlrm' else 'two-tower'}, a pass"
            training = _write(folder / f"train-{number}", case.arrays)
            held_out = _write(folder / f"valid-{number}", case.valid)
            with running_peers() as peers:
                done = passes[title] = Counter()
                sides = {"ours": counted("ours", timed_once(case.ours), done)}
                for name, its in peers.items():
                    its.ask("load", folder=training, about=json.dumps(case.about))
                    sides[name] = counted(name, its.side("train"), done)
                    found_versions[name] = its.ask("versions")["versions"]
                size = len(case.arrays["pair_query"])
                found = compare(title, size, sides, repeats=repeats, budget_s=300, report=report)
                learned[title] = {"ours": case.score(None)}
                for name, its in peers.items():
                    answer = Path(its.ask("predict", folder=held_out)["file"])
                    with np.load(answer) as made:
                        learned[title][name] = case.score(made)
            results += found
            for result in found:
                report(
                    f"{title}, {result.side}: {result.rows / result.wall.median:,.0f} rows/s, validation "
                    f"{case.metric} {learned[title][result.side]:.4f} after {done[result.side]} passes"
                )
    if file:
        settings = {"rows": rows, "repeats": repeats, "seed": seed}
        more = {"validation": learned, "passes": passes}
        write_report(file, "training", settings, before, found_versions, results, **more)
    return results
