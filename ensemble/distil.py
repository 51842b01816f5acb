"""Teaches a release its pre-ranker: a light model learns what the ranker says of retrieved candidates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.cascade import Cascade
from ensemble.preranking import BIAS, CONTENTS, HIDDEN, OUT, QUERY, PreRanker
from ensemble.release import Release, ReleaseWriter
from ensemble.stages.retrieval import Retrieval
from models.batches import TrainingSet
from models.export import Layout
from models.preranker import PreRankerConfig, train_preranker
from models.two_tower import encode
from workflows.examples import TRAIN

BATCH = 64
TOP = 10


def with_preranker(
    draft: Release, target: Path, data: TrainingSet, two_tower: Any, config: PreRankerConfig, seed: int
) -> Release:
    """Write the release `draft` again at `target`, with a pre-ranker learned from its own ranker.

    The manifest's `preranker.agreement` is the share of the ranker's first ten that are still among the
    candidates after pre-ranking, over queries that the pre-ranker did not learn from.
    """
    queries = data.examples.queries.rows(TRAIN)
    rows = np.random.default_rng(seed).permutation(np.arange(queries.start, queries.stop))[: config.queries]
    rows = np.sort(rows)
    cascade = Cascade(draft, threads=2)
    retrieval = cascade.run["retrieval"]
    assert isinstance(retrieval, Retrieval)
    retrieval.moments = data.examples.moments
    lists = [_taught(cascade, retrieval, data, two_tower, part) for part in _parts(rows)]
    query_vector, candidates, numbers, value = (np.concatenate(part) for part in zip(*lists))
    vectors = draft.array("content_vectors.npy")
    judged = np.arange(len(rows)) % 10 == 0
    learned = np.flatnonzero(~judged) if judged.sum() < len(rows) else np.arange(len(rows))
    weights = train_preranker(
        query_vector[learned],
        vectors[np.maximum(candidates[learned], 0)],
        numbers[learned],
        value[learned],
        config,
        seed,
    )
    arrays = {
        QUERY: weights.query,
        CONTENTS: vectors @ weights.content,
        HIDDEN: weights.hidden,
        BIAS: weights.bias,
        OUT: weights.out,
    }
    with ReleaseWriter(target, name=draft.name, info=draft.info) as release:
        release.copy(draft)
        for name, array in arrays.items():
            release.array(name, array)
        cosine = np.einsum("qd,qcd->qc", query_vector, vectors[np.maximum(candidates, 0)])
        score = PreRanker(arrays)(query_vector, candidates, numbers, cosine)
        agreement = kept_share(score[judged], value[judged], cascade.plan.config.candidates)
        release.info["preranker"] = {"agreement": agreement}
    return Release.open(target)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def _taught(
    cascade: Cascade, retrieval: Retrieval, data: TrainingSet, two_tower: Any, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Query vectors, retrieved candidates, their numbers and the ranker's values for queries int64[B]."""
    examples, encoded = data.examples, data.features.query
    layout = Layout.of(encoded.schema, data.features.content.schema)
    history = examples.queries.history[rows].astype(np.int64)
    made = layout.pack_queries({name: array[rows] for name, array in encoded.arrays.items()})
    made |= {
        "query_vector": encode(two_tower.query_encoder, data.query_arrays(rows)),
        "market_index": examples.queries.market[rows].astype(np.int64),
        "time": np.maximum(examples.queries.time[rows], 0),
        "recent": history,
        "seen": history,
        # What a release says of users is of the end of the log, which these queries do not know.
        "followed": np.full((len(rows), 0), -1),
        "tired_sellers": np.full((len(rows), 0), -1),
        "speaks": data.speaks[examples.queries.user[rows]],
        "explain": np.zeros(len(rows), bool),
    }
    ranking = next(step for step in cascade.steps if step.name == "ranking")
    made |= retrieval.retrieve(**{s.name: made[s.name] for s in Retrieval.step(cascade.plan).inputs})
    made["content_ids"] = retrieval.ids(made["candidates"])
    probabilities = cascade.run["ranking"](**{s.name: made[s.name] for s in ranking.inputs})["probabilities"]
    value = np.where(
        made["candidates"] >= 0,
        cascade.blend(probabilities, made["candidates"], made["market_index"]),
        -np.inf,
    )
    return made["query_vector"], made["candidates"], made["content_numbers"], value


def kept_share(score: np.ndarray, value: np.ndarray, count: int) -> float:
    """Share of the first ten by value that are among the first `count` by score, float32[Q, C] each."""
    present = np.isfinite(value)
    best = np.argsort(-value, axis=1, kind="stable")[:, :TOP]
    rank = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1)
    wanted = np.take_along_axis(present, best, axis=1)
    kept = (np.take_along_axis(rank, best, axis=1) < count) & wanted
    return float(kept.sum() / max(wanted.sum(), 1))
