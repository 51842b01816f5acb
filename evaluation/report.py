"""What a fresh release is worth on its own held-out queries, as it would be served, beside popularity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from ensemble.cascade import Cascade, cascade_steps, onnx_function
from ensemble.channels import first_eligible, nearest
from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.steps import OnnxStep
from evaluation import metrics
from evaluation.runs import Row
from models.batches import TrainingSet
from models.ranker import task_labels
from workflows.examples import TEST, query_tables

METRICS = ("recall@20", "ndcg@10")
WEIGHTED = "recall@20 by propensity"
BATCH = 64
JUDGED = ("click", "order")
"""Outcomes whose AUC is reported where impressions were logged."""
LEAST_OUTCOMES = 100
"""Outcomes that a market needs, so that an AUC says anything."""
IMPRESSIONS_PER_QUERY = 20
RAW = "ranker, not calibrated"
BATCH_PAIRS = 2048


def offline_report(release: Release, data: TrainingSet, *, queries_per_market: int, seed: int) -> list[Row]:
    """Full ranking of each market's contents for held-out wanted outcomes, by popularity and by each stage.

    Every query is asked at its own moment with the history it had then; the contents of that history are
    left out, as are contents not published yet or ended. Systems: "popularity" (of the training part),
    "two-tower" (the retrieval's order), "cascade" (the order of the ranker's value).

    Where impressions were logged, recall favours whatever the logging policy showed. So there are also:

    - "auc of click", "auc of order": how well popularity, the two-tower's cosine and the ranker's probability
      tell the outcome among held-out impressions, whose choice the policy has made already; left out below
      `LEAST_OUTCOMES` outcomes. Intervals are over people.
    - "ece of click" and of every other task: expected calibration error of the served probabilities among the
      same impressions ("cascade"), and of what they were before calibration ("ranker, not calibrated"); left
      out below `LEAST_OUTCOMES` outcomes.
    - "recall@20 by propensity", where propensities were logged: each wanted impression weighs as much as it
      was unlikely to be shown (self-normalised inverse propensity; Yang et al., "Unbiased offline recommender
      evaluation for missing-not-at-random implicit feedback", RecSys 2018), which estimates recall had
      contents been shown uniformly.

    Args:
        queries_per_market: at most so many test outcomes a market (queries), and about
            `IMPRESSIONS_PER_QUERY` times as many impressions.
    """
    cascade = Cascade(release, threads=2)
    cascade.retrieval.moments = data.examples.moments
    cascade.run["ranking"] = ranking_and_ranker(release, threads=2)
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
        user = queries.user[pairs.query[here]]
        truth = sp.csr_matrix(
            (np.ones(len(here)), (np.arange(len(here)), pairs.content[here])),
            shape=(len(here), len(data.examples.contents)),
        )
        for system in lists[0]:
            hit = metrics.hits(np.concatenate([ranked[system] for ranked in lists]), truth)
            figures = {}
            for name in METRICS:
                function, k = metrics.ranking_metric(name)
                figures[name] = metrics.interval(function(hit[:, :k], np.ones(len(here), np.int64)))
            if pairs.propensity is not None:
                weight = 1 / pairs.propensity[here]
                figures[WEIGHTED] = metrics.mean_interval(hit.any(axis=1), user, weight)
            people = len(np.unique(user))
            for name, value in figures.items():
                rows.append(Row(data.examples.name, market, system, name, *value, people, seed))
        if data.examples.feedback == "impressions":
            count = IMPRESSIONS_PER_QUERY * queries_per_market
            rows += _impression_rows(cascade, data, place, count=count, seed=seed)
    return rows


def ranking_and_ranker(release: Release, threads: int) -> Callable[..., dict[str, np.ndarray]]:
    """A release's step `ranking` that also makes `ranker_probabilities`, as they are before calibration."""
    (step,) = (step for step in cascade_steps(Plan.of(release)) if step.name == "ranking")
    assert isinstance(step, OnnxStep)
    before = replace(step.outputs[0], name="ranker_probabilities")
    return onnx_function(release, replace(step, outputs=(*step.outputs, before)), threads)


def _rankings(cascade: Cascade, data: TrainingSet, pairs: np.ndarray) -> dict[str, np.ndarray]:
    """The first 20 contents of each system for the queries of `pairs`, int64[B, 20], -1 fills."""
    queries = data.examples.queries
    query = data.examples.pairs.query[pairs]
    made, market, time = _asked(cascade, data, query)
    # What comes back is wanted again: only other contents of the past are left out.
    own = data.examples.pairs.content[pairs]
    history = queries.history[query].astype(np.int64)
    seen = np.where(history == own[:, None], -1, history)
    made |= cascade.retrieval(
        query_vector=made["query_vector"],
        market_index=market,
        time=time,
        recent=history,
        seen=seen,
        # What a release says of users is of the end of the log, which held-out queries must not know.
        followed=np.full((len(seen), 0), -1),
        tired_sellers=np.full((len(seen), 0), -1),
        speaks=made["speaks"],
        since=made["since"],
    )
    made["recent"] = history
    made |= cascade.apply("ranking", made)
    value = cascade.blend(made["probabilities"], made["candidates"], market)
    value = np.where(made["candidates"] >= 0, value, -np.inf)
    by_value = np.argsort(-value, axis=1, kind="stable")
    shelf = cascade.retrieval.shelves[market[0]]
    eligible = shelf.eligible(time, seen)
    popular = first_eligible(shelf.by_popularity, lambda at: eligible[:, at], len(time), 20)
    cosine = made["query_vector"] @ cascade.reordering.vectors[shelf.rows].T
    near = nearest(np.where(eligible, cosine, -np.inf), 20)
    return {
        "popularity": np.where(popular >= 0, shelf.rows[popular], -1),
        "two-tower": np.where(near >= 0, shelf.rows[near], -1),
        "cascade": np.take_along_axis(made["candidates"], by_value[:, :20], axis=1),
    }


def _asked(
    cascade: Cascade, data: TrainingSet, query: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Queries int64[B] through the served query graph: its tensors, and their markets and times, int64[B]."""
    raw = raw_arrays(next(query_tables(data.examples, query)))
    made = cascade.apply("query", raw)
    queries = data.examples.queries
    market = queries.market[query].astype(np.int64)
    time = np.maximum(queries.time[query], 0)
    since = time if data.seasons is None else data.seasons.since[query]
    made |= {"market_index": market, "speaks": data.speaks[queries.user[query]], "since": since}
    return made, market, time


def _impression_rows(
    cascade: Cascade, data: TrainingSet, market: int, *, count: int, seed: int
) -> Iterator[Row]:
    """AUC among at most `count` held-out impressions of a market, drawn by query."""
    examples = data.examples
    pairs, queries = examples.pairs, examples.queries
    logged = np.flatnonzero(pairs.split == TEST)
    logged = logged[queries.market[pairs.query[logged]] == market]
    turn = np.random.default_rng(seed).permutation(len(queries))
    logged = logged[np.argsort(turn[pairs.query[logged]], kind="stable")][:count]
    known = task_labels(examples, 1)
    labels = {task: known[task][logged].astype(np.float32) for task in cascade.plan.tasks}
    labels = {n: y for n, y in labels.items() if min(y.sum(), (1 - y).sum()) >= LEAST_OUTCOMES}
    if not labels:
        return
    scores, raw = _impression_scores(cascade, data, logged)
    user = queries.user[pairs.query[logged]]
    people = len(np.unique(user))

    def row(system: str, metric: str, value: metrics.Interval) -> Row:
        return Row(examples.name, examples.markets[market], system, metric, *value, people, seed)

    for name, label in labels.items():
        if name in JUDGED:
            for system in ("popularity", "two-tower", "cascade"):
                score = scores[name if system == "cascade" else system]
                yield row(system, f"auc of {name}", metrics.auc_interval(label > 0, score, user))
        for system, chance in ((RAW, raw[name]), ("cascade", scores[name])):
            yield row(system, f"ece of {name}", metrics.calibration_interval(label, chance, user))


def _impression_scores(
    cascade: Cascade, data: TrainingSet, pairs: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores float[P] of logged pairs: "popularity", "two-tower" and each task of the ranker as served; and
    each task before calibration."""
    contents = data.examples.pairs.content[pairs].astype(np.int64)
    query, row, count = np.unique(data.examples.pairs.query[pairs], return_inverse=True, return_counts=True)
    by_query = np.argsort(row, kind="stable")
    column = np.empty(len(pairs), np.int64)
    column[by_query] = np.arange(len(pairs)) - np.repeat(np.cumsum(count) - count, count)
    candidates = np.full((len(query), int(count.max())), -1, np.int64)
    candidates[row, column] = contents
    vectors = cascade.reordering.vectors
    parts = []
    size = max(1, BATCH_PAIRS // candidates.shape[1])
    for start in range(0, len(query), size):
        some = candidates[start : start + size]
        made, market, time = _asked(cascade, data, query[start : start + size])
        history = data.examples.queries.history[query[start : start + size]].astype(np.int64)
        made |= cascade.retrieval.describe(some, market, time, history, made["speaks"], made["since"])
        made["recent"] = history
        made |= cascade.apply("ranking", made)
        cosine = np.einsum("bd,bcd->bc", made["query_vector"], vectors[np.maximum(some, 0)])
        said = (cosine[..., None], made["probabilities"], made["ranker_probabilities"])
        parts.append(np.concatenate(said, axis=-1))
    scored = np.concatenate(parts)[row, column].T
    market = data.examples.queries.market[data.examples.pairs.query[pairs]]
    tasks = cascade.plan.tasks
    scores = {"two-tower": scored[0], "popularity": data.latest[market, contents]}
    return scores | dict(zip(tasks, scored[1:])), dict(zip(tasks, scored[1 + len(tasks) :]))


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
