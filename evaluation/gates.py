"""Whether a release may take the place of the one that is served: what it would lose, where, and how surely.

Both are asked what people asked after all that either learned from, with the same past and by the same ids,
so a release is judged as it would go on serving. A loss counts only where it is larger than what is allowed
and larger than chance: intervals hold for all figures together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np

from ensemble.cascade import Cascade
from ensemble.client import FeedRequest, pack
from ensemble.plan import Plan
from ensemble.release import Release
from evaluation import metrics
from evaluation.closed_loop import ALL
from evaluation.replay import BATCH, Replay
from evaluation.report import IMPRESSIONS_PER_QUERY, LEAST_OUTCOMES
from market.knobs import expect
from models.ranker import task_labels
from workflows.examples import TEST, Examples

DOUBT = 0.05
"""Chance that an interval of any figure misses, were the releases as they seem: each has its part of it."""
AMOUNTS = ("watch",)
"""Tasks whose labels are shares, which an AUC does not judge."""
BIASED = "ndcg@10 as logged"
"""A figure that is told and judges nothing."""
ERROR = "ece"
"""Figures that begin so are better the smaller they are."""
USERS = 100
"""People of a market whose slates are compared."""


@dataclass(frozen=True)
class GateConfig:
    """What a release may lose against the one that it would replace, market by market.

    Attributes:
        loss: share of the served release's nDCG, and of what its AUC is above chance, that may be lost
            (0 to 1).
        calibration_error: expected calibration error of a task up to which one above the served release's is
            no fault (0 to 1).
        contents_lost: share of a market's contents that may be gone (0 to 1).
        places_lost: share of the slates' places that may stay empty beside those that did (0 to 1).
        queries_per_market: at most so many wanted outcomes are asked for, and 20 times as many impressions
            (queries).
    """

    loss: float = 0.05
    calibration_error: float = 0.02
    contents_lost: float = 0.2
    places_lost: float = 0.01
    queries_per_market: int = 2000

    def __post_init__(self) -> None:
        expect(self, "gate", "loss calibration_error contents_lost places_lost", least=0, most=1)
        expect(self, "gate", "queries_per_market", least=1)


@dataclass(frozen=True)
class Check:
    """One figure of both releases.

    Attributes:
        market: code, or "all": the mean of the markets by their outcomes.
        figure: such as "ndcg@10" or "auc of click".
        served, candidate: of the release that is served and of the one that would be; NaN where there is
            nothing to compare.
        low, high: ends of the interval of candidate - served; NaN where it is no estimate.
        refused: the loss is more than is allowed, and no chance.
    """

    market: str
    figure: str
    served: float
    candidate: float
    low: float
    high: float
    refused: bool


class _Pair(NamedTuple):
    """An estimate of both releases.

    Attributes:
        influence: float64[N], how much each row moved candidate - served, see `metrics.clustered_interval`.
        user: int64[N], whose rows are not independent.
        weight: outcomes behind it, each as it is weighed, by which markets are averaged.
    """

    served: float
    candidate: float
    influence: np.ndarray
    user: np.ndarray
    weight: float


def gate(
    candidate: Release,
    served: Release,
    examples: Examples,
    config: GateConfig,
    *,
    seed: int,
    step: Callable[[str], None] = lambda name: None,
) -> list[Check]:
    """Compare two releases on a log that goes on after both.

    - "markets", "tasks": how many of the served release's there still are; none may be gone.
    - "contents": those that a market may show, at the end of the newer log.
    - "places filled": the share of their slates' places, for some people of each market at that time;
      "shown before" says what share of the candidate's contents the served release shows them, too.
    - "ndcg@10": of contents that people wanted, in the order of the ranker's value, among all of the market.
      What a log of impressions shows as wanted is what its policy showed, which favours whoever learned that
      by heart. So "ndcg@10 by propensity" weighs each by 1 / propensity, as `evaluation.report` does; where
      none was logged, "ndcg@10 as logged" is told and refuses nothing.
    - "auc of …", "ece of …": of the probability of every task among logged impressions of contents that both
      know, where there are `LEAST_OUTCOMES` outcomes. The error is one where less is better.

    Args:
        examples: of a log cut by time, those of its rows are judged that come after what either release
            learned from; of another one its test part, which none of both must have learned from.
        seed: of which queries and people are asked.

    Raises:
        ValueError: nothing in the log is later than what the releases learned from.
    """
    plans = Plan.of(candidate), Plan.of(served)
    rows = _later(examples, plans)
    step("slates")
    checks = list(_slates((Cascade(candidate, 2), Cascade(served, 2)), examples, config, seed))
    tasks = [task for task in plans[1].tasks if task in plans[0].tasks]
    labels = task_labels(examples, 1) if examples.feedback == "impressions" else {}
    replays = Replay(candidate, examples), Replay(served, examples)
    pairs: dict[str, dict[str, _Pair]] = {}
    random = np.random.default_rng(seed)
    for place, market in enumerate(examples.markets):
        if not all(market in plan.markets for plan in plans):
            continue
        step(f"queries of {market}")
        here = rows[examples.queries.market[examples.pairs.query[rows]] == place]
        wanted = here[examples.pairs.positive[here]]
        wanted = np.sort(random.permutation(wanted)[: config.queries_per_market])
        if len(wanted):
            figure, pair = _ndcg(replays, wanted)
            pairs.setdefault(figure, {})[market] = pair
        for figure, pair in _impressions(replays, here, tasks, labels, config, random):
            pairs.setdefault(figure, {})[market] = pair
    return checks + _judged(pairs, config)


def faults(checks: Sequence[Check]) -> list[str]:
    """What speaks against the candidate, a text for each refused check."""
    return [
        f"{check.figure} in {check.market}: {shown(check.candidate)} where {shown(check.served)} is served"
        if check.market != ALL
        else f"{check.figure}: {shown(check.candidate)} where {shown(check.served)} is served"
        for check in checks
        if check.refused
    ]


def shown(value: float) -> str:
    """A figure as people read it: counts whole, NaN as nothing."""
    if np.isnan(value):
        return ""
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4f}"


def _later(examples: Examples, plans: tuple[Plan, Plan]) -> np.ndarray:
    """Rows of the log's pairs that no release learned from, int64[P]."""
    pairs = examples.pairs
    if examples.split != "time":
        found = np.flatnonzero(pairs.split == TEST)
        if not len(found):
            raise ValueError(f"{examples.name} has no test part, so there is nothing to judge a release by")
        return found
    cut = max(plan.learned_until for plan in plans)
    found = np.flatnonzero(examples.queries.time[pairs.query] >= cut)
    if not len(found):
        when = datetime.fromtimestamp(cut, timezone.utc).isoformat(" ", timespec="minutes")
        raise ValueError(
            f"{examples.name} ends before what the releases learned from does ({when}), so nothing in it "
            "tells what they are worth; give a later data set (see `pasar data extend`)"
        )
    return found


def _slates(
    cascades: tuple[Cascade, Cascade], examples: Examples, config: GateConfig, seed: int
) -> Iterator[Check]:
    """What there is to show, and what is shown, at the end of the newer log."""
    new, old = (cascade.plan for cascade in cascades)

    def told(market: str, figure: str, before: float, now: float, *, refused: bool = False) -> Check:
        return Check(market, figure, float(before), float(now), np.nan, np.nan, refused)

    for figure in ("markets", "tasks"):
        before, kept = getattr(old, figure), set(getattr(old, figure)) & set(getattr(new, figure))
        yield told(ALL, figure, len(before), len(kept), refused=len(kept) < len(before))
    time = max(new.as_of, old.as_of)
    of_users = examples.users["market"].to_numpy(object)
    random = np.random.default_rng(seed)
    for market in [market for market in old.markets if market in new.markets]:
        now, before = (_running(cascade, market, time) for cascade in cascades)
        gone = now < (1 - config.contents_lost) * before
        yield told(market, "contents", before, now, refused=gone)
        users = np.sort(random.permutation(np.flatnonzero(of_users == market))[:USERS])
        if not len(users):
            continue
        ids = examples.users["user_id"].to_numpy(object)[users]
        after, slates = (_slate_ids(cascade, ids, market, time, seed) for cascade in cascades)
        filled, was = (slate != "" for slate in (after, slates))
        lost = was.mean() - filled.mean() > config.places_lost
        yield told(market, "places filled", was.mean(), filled.mean(), refused=bool(lost))
        again = [np.isin(one, other[other != ""]).sum() for one, other in zip(after, slates)]
        yield told(market, "shown before", np.nan, np.sum(again) / max(filled.sum(), 1))


def _running(cascade: Cascade, market: str, time: int) -> int:
    """How many contents a market may show at a time (s since the epoch)."""
    shelf = cascade.retrieval.shelves[cascade.plan.markets.index(market)]
    return int(((shelf.opens <= time) & (time < shelf.ends)).sum())


def _slate_ids(cascade: Cascade, ids: np.ndarray, market: str, time: int, seed: int) -> np.ndarray:
    """Ids of what users object[B] are shown at a time, object[B, S], "" where a place is empty."""
    asked = [FeedRequest(user, market, time, seed=seed) for user in ids]
    parts = [cascade(pack(asked[start : start + BATCH])) for start in range(0, len(asked), BATCH)]
    return np.concatenate([part["content_id"] for part in parts])


def _ndcg(replays: tuple[Replay, Replay], wanted: np.ndarray) -> tuple[str, _Pair]:
    """The nDCG@10 of wanted pairs of one market, and its name."""
    examples = replays[0].examples
    own = examples.pairs.content[wanted][:, None]
    each = np.ones(len(wanted), np.int64)
    new, old = (metrics.ndcg(replay.lists(wanted)["cascade"][:, :10] == own, each) for replay in replays)
    user = examples.queries.user[examples.pairs.query[wanted]]
    if examples.feedback != "impressions":
        return "ndcg@10", _means(new, old, user, np.ones(len(wanted)))
    if examples.pairs.propensity is None:
        return BIASED, _means(new, old, user, np.ones(len(wanted)))
    return "ndcg@10 by propensity", _means(new, old, user, 1 / examples.pairs.propensity[wanted])


def _means(new: np.ndarray, old: np.ndarray, user: np.ndarray, weights: np.ndarray) -> _Pair:
    """The weighted means of what each row of both says, float64[N]; see `metrics.mean_interval`."""
    weights = np.asarray(weights, np.float64)
    total, change = float(weights.sum()), new - old
    served, candidate = (float(np.average(values, weights=weights)) for values in (old, new))
    influence = weights * (change - (candidate - served)) / total
    return _Pair(served, candidate, influence, user, total)


def _impressions(
    replays: tuple[Replay, Replay],
    rows: np.ndarray,
    tasks: list[str],
    labels: Mapping[str, np.ndarray],
    config: GateConfig,
    random: np.random.Generator,
) -> Iterator[tuple[str, _Pair]]:
    """AUC and calibration error of each task among a market's impressions that both releases can score."""
    examples = replays[0].examples
    pairs = examples.pairs
    known = [replay.row[pairs.content[rows]] >= 0 for replay in replays]
    rows = rows[known[0] & known[1]]
    turn = random.permutation(len(examples.queries))
    most = IMPRESSIONS_PER_QUERY * config.queries_per_market
    rows = rows[np.argsort(turn[pairs.query[rows]], kind="stable")][:most]
    judged = {task: np.asarray(labels[task][rows], np.float32) for task in tasks if task in labels}
    judged = {task: y for task, y in judged.items() if min(y.sum(), (1 - y).sum()) >= LEAST_OUTCOMES}
    if not judged:
        return
    user = examples.queries.user[pairs.query[rows]]
    chances = [(replay.scores(rows)["served"], replay.cascade.plan.tasks) for replay in replays]
    for task, label in judged.items():
        new, old = (made[:, order.index(task)] for made, order in chances)
        weight = float(label.sum())
        if task not in AMOUNTS:
            (after, moved), (before, moved_before) = (metrics.auc_influence(label, s) for s in (new, old))
            yield f"auc of {task}", _Pair(before, after, moved - moved_before, user, weight)
        gaps = [metrics.calibration_gaps(label, chance) for chance in (new, old)]
        yield f"{ERROR} of {task}", _means(gaps[0], gaps[1], user, np.full(len(label), weight / len(label)))


def _judged(pairs: Mapping[str, Mapping[str, _Pair]], config: GateConfig) -> list[Check]:
    """The checks of all estimates, those of all markets first; their intervals hold together (Bonferroni)."""
    every = {
        figure: ({ALL: _mean(list(markets.values()))} if len(markets) > 1 else {}) | dict(markets)
        for figure, markets in pairs.items()
    }
    confidence = 1 - DOUBT / max(sum(map(len, every.values())), 1)
    checks = []
    for figure, markets in every.items():
        for market, pair in markets.items():
            change = pair.candidate - pair.served
            _, low, high = metrics.clustered_interval(change, pair.influence, pair.user, confidence)
            worse, surely = (change, low > 0) if figure.startswith(ERROR) else (-change, high < 0)
            refused = bool(surely and worse > _allowed(figure, pair.served, config))
            checks.append(Check(market, figure, pair.served, pair.candidate, low, high, refused))
    return checks


def _allowed(figure: str, served: float, config: GateConfig) -> float:
    """By how much a figure may be worse than the served release's."""
    if figure == BIASED:
        return np.inf
    if figure.startswith(ERROR):
        return max(config.calibration_error - served, 0.0)
    chance = 0.5 if figure.startswith("auc") else 0.0
    return config.loss * max(served - chance, 0.0)


def _mean(pairs: list[_Pair]) -> _Pair:
    """The mean of several markets, by their outcomes."""
    weight = np.array([pair.weight for pair in pairs])
    share = weight / weight.sum()
    return _Pair(
        float(share @ [pair.served for pair in pairs]),
        float(share @ [pair.candidate for pair in pairs]),
        np.concatenate([part * pair.influence for part, pair in zip(share, pairs)]),
        np.concatenate([pair.user for pair in pairs]),
        float(weight.sum()),
    )
