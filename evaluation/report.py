"""What a fresh release is worth on its own held-out queries, as it would be served, beside popularity."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from ensemble.cascade import Cascade
from ensemble.release import Release
from ensemble.stages.retrieval import first_eligible
from evaluation import metrics
from evaluation.runs import Row
from models.batches import TrainingSet
from workflows.examples import TEST, query_tables

METRICS = ("recall@20", "ndcg@10")
BATCH = 64


def offline_report(release: Release, data: TrainingSet, *, queries_per_market: int, seed: int) -> list[Row]:
    """Full ranking of each market's contents for held-out wanted outcomes, by popularity and by each stage.

    Every query is asked at its own moment with the history it had then; the contents of that history are
    left out, as are contents not published yet or ended. Systems: "popularity" (of the training part),
    "two-tower" (the retrieval's order), "cascade" (the order of the ranker's value).

    Args:
        queries_per_market: at most so many test outcomes a market (queries).
    """
    cascade = Cascade(release, threads=2)
    pairs, queries = data.examples.pairs, data.examples.queries
    wanted = np.flatnonzero(pairs.positive & (pairs.split == TEST))
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for place, market in enumerate(data.examples.markets):
        here = wanted[queries.market[pairs.query[wanted]] == place]
        here = np.sort(random.permutation(here)[:queries_per_market])
        if not len(here):
            continue
        lists = [
            _rankings(cascade, data, here[start : start + BATCH]) for start in range(0, len(here), BATCH)
        ]
        truth = sp.csr_matrix(
            (np.ones(len(here)), (np.arange(len(here)), pairs.content[here])),
            shape=(len(here), len(data.examples.contents)),
        )
        for system in lists[0]:
            hit = metrics.hits(np.concatenate([ranked[system] for ranked in lists]), truth)
            for name in METRICS:
                function, k = metrics.ranking_metric(name)
                value = metrics.interval(function(hit[:, :k], np.ones(len(here), np.int64)))
                rows.append(Row(data.examples.name, market, system, name, *value, len(here), seed))
    return rows


def _rankings(cascade: Cascade, data: TrainingSet, pairs: np.ndarray) -> dict[str, np.ndarray]:
    """The first 20 contents of each system for the queries of `pairs`, int64[B, 20], -1 fills."""
    query = data.examples.pairs.query[pairs]
    queries = data.examples.queries
    raw = raw_arrays(next(query_tables(data.examples, query)))
    made = cascade.run["query"](**{s.name: raw[s.name] for s in cascade.steps[1].inputs})
    market = queries.market[query].astype(np.int64)
    time = np.maximum(queries.time[query], 0)
    # What comes back is wanted again: only other contents of the past are left out.
    own = data.examples.pairs.content[pairs]
    history = queries.history[query].astype(np.int64)
    seen = np.where(history == own[:, None], -1, history)
    retrieval = cascade.run["retrieval"]
    made |= retrieval(query_vector=made["query_vector"], market_index=market, time=time, seen=seen)
    made |= cascade.run["ranking"](**{s.name: made[s.name] for s in cascade.steps[3].inputs})
    weights = cascade.plan.config.weights
    value = made["probabilities"] @ np.array([weights.get(t, 0.0) for t in cascade.plan.tasks])
    value = np.where(made["candidates"] >= 0, value, -np.inf)
    by_value = np.argsort(-value, axis=1, kind="stable")
    nearest = np.argsort(
        -np.where(made["candidates"] >= 0, made["retrieval_score"], -np.inf), axis=1, kind="stable"
    )
    shelf = retrieval.shelves[market[0]]
    popular = first_eligible(shelf.by_popularity, shelf.eligible(time, seen), 20)
    return {
        "popularity": np.where(popular >= 0, shelf.rows[popular], -1),
        "two-tower": np.take_along_axis(made["candidates"], nearest[:, :20], axis=1),
        "cascade": np.take_along_axis(made["candidates"], by_value[:, :20], axis=1),
    }


def raw_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    """Raw query columns as the served query graph reads them, named `raw_…`: nulls and padding are ""."""
    arrays: dict[str, np.ndarray] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            counts = column.value_lengths().to_numpy(zero_copy_only=False)
            dense = np.full((len(column), int(counts.max(initial=0))), "", object)
            dense[np.arange(dense.shape[1]) < counts[:, None]] = column.flatten().to_numpy(
                zero_copy_only=False
            )
            arrays[f"raw_{name}"] = dense
        elif pa.types.is_string(column.type):
            arrays[f"raw_{name}"] = column.fill_null("").to_numpy(zero_copy_only=False)
        elif pa.types.is_integer(column.type):
            filled = column.fill_null(np.iinfo(np.int64).min) if column.null_count else column
            arrays[f"raw_{name}"] = filled.to_numpy(zero_copy_only=False).astype(np.int64)
        else:
            arrays[f"raw_{name}"] = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float32)
    return arrays
