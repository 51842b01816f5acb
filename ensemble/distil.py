"""What a draft of a release learns from the candidates that it retrieves: how to weigh the ranker against the
signals of retrieval, and a pre-ranker, which says what the ranker would say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import scipy.sparse as sp

from ensemble.cascade import Cascade
from ensemble.export import READS
from ensemble.plan import FILE as PLAN
from ensemble.plan import Plan
from ensemble.preranking import BIAS, CONTENTS, HIDDEN, OUT, QUERY, PreRanker
from ensemble.release import Release, ReleaseWriter
from ensemble.stages.retrieval import Retrieval
from models.batches import TrainingSet
from models.export import Layout, rename
from models.preranker import PreRankerConfig, train_preranker
from models.stacking import FILE as STACKING
from models.stacking import Stacking, StackingConfig, fit_stacking, signals
from models.two_tower import encode
from workflows.compile import join
from workflows.examples import TRAIN, VALID, Examples

BATCH = 64
TOP = 10
CONVERSION = "conversion.npy"


def with_stacking(
    draft: Release, target: Path, data: TrainingSet, two_tower: Any, config: StackingConfig, seed: int
) -> Release:
    """Write the release `draft` again at `target`, its ranking graph ending in a stacking of the ranker with
    the signals of retrieval, fitted to validation queries; without any the release is `draft` itself.

    Each user is asked once, with the history of the first validation query; all that the user wants in the
    validation part counts as wanted, of a log with orders all that is ordered. What the test part says is
    hidden: lists that lack what is wanted there would tell of it. With `config.drawn` each is
    asked again about what was wanted among contents that are drawn at random.
    """
    user, rows, wanted = _validation_queries(data.examples, config.queries, seed)
    if not len(user):
        return draft
    cascade = Cascade(draft, threads=2)
    cascade.retrieval.moments = data.examples.moments
    vectors, random = draft.array("content_vectors.npy"), np.random.default_rng(seed)
    query_vectors = encode(two_tower.query_encoder, data.query_arrays(rows), BATCH)
    parts = []
    for part in _parts(np.arange(len(rows))):
        target_of = wanted[user[part]].toarray()
        seen = data.examples.seen_before_test[user[part]].astype(np.int64)
        held_out = np.take_along_axis(target_of, np.maximum(seen, 0), axis=1)
        seen = np.where(held_out, -1, seen)
        made = _ranked(cascade, data, rows[part], query_vectors[part], seen)
        lists = [made]
        if config.drawn:
            candidates = _drawn(cascade.retrieval, made, seen, target_of, random)
            lists.append(ranked(cascade, vectors, made, candidates))
        for each in lists:
            signal, length = signals(
                each["probabilities"][..., 0],
                each["content_numbers"],
                each["candidates"],
                each["recent"],
                each["retrieval_score"],
                each["market_affinity"],
                each["low_rank_affinity"],
                each["conversion"],
            )
            present = each["candidates"] >= 0
            hit = np.take_along_axis(target_of, np.maximum(each["candidates"], 0), axis=1)
            parts.append((signal, length, hit & present, present))
    signal, length, hit, present = (np.concatenate(part) for part in zip(*parts))
    stacking = fit_stacking(signal, length, hit, present, config.strength)
    if stacking is None:
        return draft
    return _stacked(draft, target, stacking, cascade.plan)


def _validation_queries(
    examples: Examples, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """At most so many users who wanted something in the validation part, drawn by the seed, int64[Q]; the
    first query of each then, int64[Q]; and all that every user wanted, bool[U, N], of a log with orders all
    that was ordered."""
    pairs, queries = examples.pairs, examples.queries
    logged = np.arange(pairs.rows(VALID).start, pairs.rows(VALID).stop)
    logged = logged[pairs.positive[logged]]
    if "order" in pairs.outcomes and (ordered := pairs.outcomes["order"][logged] > 0).any():
        logged = logged[ordered]
    user, first = np.unique(queries.user[pairs.query[logged]], return_index=True)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(user))[:most])
    shape = len(examples.users), len(examples.contents)
    place = queries.user[pairs.query[logged]], pairs.content[logged]
    wanted = sp.csr_matrix((np.ones(len(logged), bool), place), shape=shape)
    return user[chosen], pairs.query[logged[first[chosen]]], wanted


def _stacked(draft: Release, target: Path, stacking: Stacking, plan: Plan) -> Release:
    """The release `draft` written again at `target` with a stacking behind its ranking graph."""
    graph = rename(onnx.load(str(draft.onnx_path("ranking.onnx"))), {"probabilities": "unstacked"})
    behind = stacking.to_onnx(plan.history_length, plan.content_numbers)
    share = {value.name for value in graph.graph.input} & {value.name for value in behind.graph.input}
    stacked = join(graph, behind, connect={"unstacked": "unstacked"}, share=share, name="ranking")
    with ReleaseWriter(target, name=draft.name, info=draft.info) as release:
        release.copy(draft)
        onnx.save(stacked, str(release.path("ranking.onnx")))
        release.array(STACKING, stacking.to_array())
        release.json(PLAN, replace(plan, ranking_reads=READS).to_json())
    return Release.open(target)


def with_preranker(
    draft: Release,
    target: Path,
    data: TrainingSet,
    two_tower: Any,
    config: PreRankerConfig,
    seed: int,
    served: Mapping[str, np.ndarray] | None = None,
) -> Release:
    """Write the release `draft` again at `target`, with a pre-ranker learned from its own ranker.

    The manifest's `preranker.agreement` is the share of the ranker's first ten that are still among the
    candidates after pre-ranking as it is served, no category above its share; `preranker.unspread` is that of
    the pre-ranker's own order. Both are over queries that the pre-ranker did not learn from.

    Args:
        served: arrays by file that go in the place of the draft's, such as those of an item graph that knows
            more than the one that was learned with; conversions only where the draft has some.
    """
    queries = data.examples.queries.rows(TRAIN)
    rows = np.random.default_rng(seed).permutation(np.arange(queries.start, queries.stop))[: config.queries]
    rows = np.sort(rows)
    cascade = Cascade(draft, threads=2)
    retrieval = cascade.retrieval
    retrieval.moments = data.examples.moments
    query_vectors = encode(two_tower.query_encoder, data.query_arrays(rows), BATCH)
    lists = []
    for part in _parts(np.arange(len(rows))):
        # What they want is in none of these histories.
        seen = data.examples.queries.history[rows[part]].astype(np.int64)
        made = _ranked(cascade, data, rows[part], query_vectors[part], seen)
        value = cascade.blend(made["probabilities"], made["candidates"], made["market_index"])
        value = np.where(made["candidates"] >= 0, value, -np.inf)
        numbers = retrieval.preranking_numbers(made)
        lists.append((made["query_vector"], made["candidates"], numbers, value))
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
        for name, array in (served or {}).items():
            # A pre-ranker that learned without conversions has no weights to read them with.
            if name != CONVERSION or retrieval.conversion is not None:
                release.array(name, array)
        cosine = np.einsum("qd,qcd->qc", query_vector, vectors[np.maximum(candidates, 0)])
        score = PreRanker(arrays)(query_vector, candidates, numbers, cosine)
        score, value = score[judged], value[judged]
        own = np.argsort(-score, axis=1, kind="stable")[:, : cascade.plan.config.candidates]
        release.info["preranker"] = {
            "agreement": kept_share(retrieval.let_through(candidates[judged], score), value),
            "unspread": kept_share(own, value),
        }
    return Release.open(target)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def _ranked(
    cascade: Cascade, data: TrainingSet, rows: np.ndarray, query_vectors: np.ndarray, seen: np.ndarray
) -> dict[str, np.ndarray]:
    """The cascade's tensors after ranking all that was retrieved for queries int64[B].

    Args:
        query_vectors: float32[B, D], of these queries.
        seen: int64[B, S], contents not to be shown to each, -1 fills.
    """
    made = queries_of(data, rows, query_vectors) | {"seen": seen}
    made |= cascade.retrieval.retrieve(**cascade.read("retrieval", made))
    made = cascade.retrieval.read_last(made, made["market_index"], made["recent"])
    return made | cascade.apply("ranking", made)


def queries_of(data: TrainingSet, rows: np.ndarray, query_vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The cascade's tensors after the query step, but for what was seen, of logged queries int64[B].

    Args:
        query_vectors: float32[B, D], of these queries.
    """
    examples, encoded = data.examples, data.features.query
    layout = Layout.of(encoded.schema, data.features.content.schema)
    made = layout.pack_queries({name: array[rows] for name, array in encoded.arrays.items()})
    return made | {
        "query_vector": query_vectors,
        "market_index": examples.queries.market[rows].astype(np.int64),
        "time": np.maximum(examples.queries.time[rows], 0),
        "recent": examples.queries.history[rows].astype(np.int64),
        # What a release says of users is of the end of the log, which these queries do not know.
        "followed": np.full((len(rows), 0), -1),
        "tired_sellers": np.full((len(rows), 0), -1),
        "excluded_sellers": np.full((len(rows), 0), -1),
        "asked_kinds": np.zeros(len(rows), np.int64),
        "asked_categories": np.full((len(rows), 0), -1),
        "excluded_categories": np.full((len(rows), 0), -1),
        "reads": np.full((len(rows), 0), -1),
        "speaks": data.speaks[examples.queries.user[rows]],
        "explain": np.zeros(len(rows), bool),
        "since": examples.queries.time[rows] if data.seasons is None else data.seasons.since[rows],
    }


def ranked(
    cascade: Cascade, vectors: np.ndarray, made: dict[str, np.ndarray], candidates: np.ndarray
) -> dict[str, np.ndarray]:
    """The cascade's tensors after ranking candidates that are given, not retrieved.

    Args:
        vectors: float32[N, D], the contents'.
        made: the tensors after the query step.
        candidates: int64[B, C], -1 fills.
    """
    cosine = np.einsum("bd,bcd->bc", made["query_vector"], vectors[np.maximum(candidates, 0)])
    made = made | cascade.retrieval.describe(
        candidates, made["market_index"], made["time"], made["recent"], made["speaks"], made.get("since")
    )
    made["retrieval_score"] = cosine
    return made | cascade.apply("ranking", made)


def _drawn(
    retrieval: Retrieval,
    made: dict[str, np.ndarray],
    seen: np.ndarray,
    wanted: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """What each query wants, bool[B, N], among as many contents of its market as it retrieves, drawn with
    replacement: int64[B, C], -1 in place of what its user knows, int64[B, S]."""
    market, shape = made["market_index"], made["candidates"].shape
    sizes = np.array([len(shelf.rows) for shelf in retrieval.shelves])
    places = (random.random(shape) * sizes[market, None]).astype(np.int64)
    drawn = np.empty_like(places)
    for each in np.unique(market):
        here = market == each
        drawn[here] = retrieval.shelves[each].rows[places[here]]
    known = np.concatenate([seen, made["recent"]], axis=1)
    out = (drawn[..., None] == known[:, None]).any(axis=2) | np.take_along_axis(wanted, drawn, axis=1)
    drawn[out] = -1
    most = min(int(wanted.sum(axis=1).max()), shape[1] // 2)
    first = np.argsort(~wanted, axis=1, kind="stable")[:, :most]
    drawn[:, :most] = np.where(np.take_along_axis(wanted, first, axis=1), first, drawn[:, :most])
    return drawn


def kept_share(kept: np.ndarray, value: np.ndarray) -> float:
    """Share of the first ten by value float32[Q, R] that are among the columns kept int64[Q, C]."""
    through = np.zeros(value.shape, bool)
    np.put_along_axis(through, kept, True, axis=1)
    best = np.argsort(-value, axis=1, kind="stable")[:, :TOP]
    wanted = np.take_along_axis(np.isfinite(value), best, axis=1)
    through = np.take_along_axis(through, best, axis=1) & wanted
    return float(through.sum() / max(wanted.sum(), 1))
