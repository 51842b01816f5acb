"""What a fresh release is worth on its own held-out queries, as it would be served, beside popularity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ensemble.release import Release
from evaluation import metrics
from evaluation.replay import SYSTEMS, Replay
from evaluation.runs import Row
from models.batches import TrainingSet
from models.ranker import task_labels
from workflows.examples import TEST, Examples

METRICS = ("recall@20", "ndcg@10")
WEIGHTED = "recall@20 by propensity"
JUDGED = ("click", "order")
"""Outcomes whose AUC is reported where impressions were logged."""
LEAST_OUTCOMES = 100
"""Outcomes that a market needs, so that an AUC says anything."""
IMPRESSIONS_PER_QUERY = 20
RAW = "ranker, not calibrated"


def offline_report(release: Release, data: TrainingSet, *, queries_per_market: int, seed: int) -> list[Row]:
    """Full ranking of each market's contents for held-out wanted outcomes, by popularity and by each stage.

    Every query is asked at its own moment with the history it had then; the contents of that history are
    left out, as are contents not published yet or ended. Systems: "popularity" (of the training part),
    "two-tower" (the retrieval's order), "cascade" (the order of the ranker's value).

    Where impressions were logged, recall favours whatever the logging policy showed. So there are also:

    - "auc of click", "auc of order": how well popularity, the two-tower's cosine and the ranker's probability
      tell the outcome among held-out impressions, whose choice the policy has made already; left out below
      `LEAST_OUTCOMES` outcomes.
    - "ece of click" and of every other task: expected calibration error of the served probabilities among the
      same impressions ("cascade"), and of what they were before calibration ("ranker, not calibrated"); left
      out below `LEAST_OUTCOMES` outcomes.
    - "recall@20 by propensity", where contents were drawn with logged propensities below 1: each wanted one
      of these weighs as much as it was unlikely to be shown (self-normalised inverse propensity; Yang et al.,
      "Unbiased offline recommender evaluation for missing-not-at-random implicit feedback", RecSys 2018),
      which estimates recall had what could be drawn been shown uniformly.

    Intervals are over people, whose outcomes are not independent.

    Args:
        queries_per_market: at most so many test outcomes a market (queries), and about
            `IMPRESSIONS_PER_QUERY` times as many impressions.
    """
    replay = Replay(release, data.examples)
    pairs, queries = data.examples.pairs, data.examples.queries
    wanted = np.flatnonzero(pairs.positive & (pairs.split == TEST))
    random = np.random.default_rng(seed)
    known = task_labels(data.examples, 1) if data.examples.feedback == "impressions" else {}
    rows: list[Row] = []
    for place, market in enumerate(data.examples.markets):
        here = wanted[queries.market[pairs.query[wanted]] == place]
        here = np.sort(random.permutation(here)[:queries_per_market])
        if not len(here):
            continue
        user = queries.user[pairs.query[here]]
        for system, ranked in replay.lists(here).items():
            hit = ranked == pairs.content[here][:, None]
            figures = {}
            for name in METRICS:
                function, k = metrics.ranking_metric(name)
                found = function(hit[:, :k], np.ones(len(here), np.int64))
                figures[name] = metrics.mean_interval(found, user), user
            if pairs.propensity is not None and (drawn := pairs.propensity[here] < 1).any():
                weight = 1 / pairs.propensity[here][drawn]
                figures[WEIGHTED] = (
                    metrics.mean_interval(hit.any(axis=1)[drawn], user[drawn], weight),
                    user[drawn],
                )
            for name, (value, asked) in figures.items():
                people = len(np.unique(asked))
                rows.append(Row(data.examples.name, market, system, name, *value, people, seed))
        if data.examples.feedback == "impressions":
            rows += _impression_rows(replay, data, known, place, queries_per_market, seed)
    return rows


def draw_impressions(
    examples: Examples, rows: np.ndarray, queries_per_market: int, random: np.random.Generator
) -> np.ndarray:
    """As many of a market's impressions as are judged beside so many queries, query by query in a drawn
    order: of rows of `examples.pairs` int64[P], int64[min(P, N)]."""
    turn = random.permutation(len(examples.queries))
    most = IMPRESSIONS_PER_QUERY * queries_per_market
    return rows[np.argsort(turn[examples.pairs.query[rows]], kind="stable")][:most]


def _impression_rows(
    replay: Replay,
    data: TrainingSet,
    known: Mapping[str, np.ndarray],
    market: int,
    queries_per_market: int,
    seed: int,
) -> Iterator[Row]:
    """AUC and calibration error among held-out impressions of a market."""
    examples = data.examples
    pairs, queries = examples.pairs, examples.queries
    logged = np.flatnonzero(pairs.split == TEST)
    logged = logged[queries.market[pairs.query[logged]] == market]
    logged = draw_impressions(examples, logged, queries_per_market, np.random.default_rng(seed))
    tasks = replay.cascade.plan.tasks
    labels = {task: known[task][logged].astype(np.float32) for task in tasks}
    labels = {n: y for n, y in labels.items() if min(y.sum(), (1 - y).sum()) >= LEAST_OUTCOMES}
    if not labels:
        return
    scores = replay.scores(logged)
    popularity = data.latest[market, pairs.content[logged]]
    user = queries.user[pairs.query[logged]]
    people = len(np.unique(user))

    def row(system: str, metric: str, value: metrics.Interval) -> Row:
        return Row(examples.name, examples.markets[market], system, metric, *value, people, seed)

    for name, label in labels.items():
        raw, served = (scores[kind][:, tasks.index(name)] for kind in ("raw", "served"))
        if name in JUDGED:
            for system, score in zip(SYSTEMS, (popularity, scores["two-tower"], served)):
                yield row(system, f"auc of {name}", metrics.auc_interval(label > 0, score, user))
        for system, chance in ((RAW, raw), ("cascade", served)):
            yield row(system, f"ece of {name}", metrics.calibration_interval(label, chance, user))
