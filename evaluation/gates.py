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
from evaluation.replay import BATCH, Replay
from evaluation.report import LEAST_OUTCOMES, draw_impressions
from evaluation.runs import ALL
from market.knobs import expect
from models.ranker import task_labels
from workflows.examples import TEST, Examples

DOUBT = 0.05
"""Chance that an interval of any figure misses, were the releases as they seem: each has its part of it."""
AMOUNTS = ("watch",)
"""Tasks whose labels are shares, which an AUC does not judge."""
PROPENSITY = "ndcg@10 by propensity"
BIASED = "ndcg@10 as logged"
"""A figure that is told and judges nothing."""
LEAST_PEOPLE = 20
"""People that an estimate needs to be judged, in effect: as many of equal weight would say as much."""
ERROR = "ece"
"""Figures that begin so are better the smaller they are."""
COUNTS = ("markets", "tasks", "contents")
"""Figures that are numbers of something, not shares or estimates."""
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
        contents_lost: share of a market's contents that may be gone, and of what was shown or wanted since of
            contents that a release knows (0 to 1).
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
        market: code, or "all": the mean of the markets by their outcomes in the log.
        figure: such as "ndcg@10" or "auc of click".
        served, candidate: of the release that is served and of the one that would be; NaN where there is
            nothing to compare.
        low, high: ends of the interval of candidate - served; NaN where it is no estimate, or one of too few
            people, which refuses nothing.
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
        share: float64[N], of each row in the estimate.
        outcomes: in the log, by which markets are averaged.
        noise: what chance adds to the candidate's figure in expectation.
    """

    served: float
    candidate: float
    influence: np.ndarray
    user: np.ndarray
    share: np.ndarray
    outcomes: int
    noise: float = 0.0


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
    - "contents": those that the served release may show in a market at the end of the newer log, and how many
      of these the candidate may.
    - "places filled": the share of the served release's places that slates fill, for some people of each
      market at that time; "shown before" says what share of the candidate's contents the served release
      shows them, too.
    - "ndcg@10": of contents that people wanted, in the order of the ranker's value, among all of the market.
      What a log of impressions shows as wanted is what its policy showed, which favours whoever learned that
      by heart. So "ndcg@10 by propensity" is of what was drawn, shown with a propensity below 1, and weighs
      each by 1 / propensity, as `evaluation.report` does; where nothing was, "ndcg@10 as logged" is told and
      refuses nothing.
    - "contents known": the share of a market's impressions or wanted outcomes of contents that a release has.
    - "probabilities": the share of those for which a release says one; NaN is none. None may be gone.
    - "auc of …", "ece of …": of the probability of every task among logged impressions of contents that both
      know, where there are `LEAST_OUTCOMES` outcomes; of "watch", a share, the error alone. The error is one
      where less is better.

    Args:
        examples: of a log cut by time, those of its rows are judged that come after what either release
            learned from; of another one its test part, which none of both must have learned from.
        seed: of which queries and people are asked.

    Raises:
        ValueError: nothing in the log is later than what the releases learned from, or it says too little of
            the markets and contents that both serve to judge anything.
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
        if not len(here):
            continue
        if (wanted := _wanted(examples, here)) is not None:
            figure, every = wanted
            drawn = np.sort(random.permutation(every)[: config.queries_per_market])
            pairs.setdefault(figure, {})[market] = _ndcg(figure, replays, drawn, len(every))
        known = [replay.row[examples.pairs.content[here]] >= 0 for replay in replays]
        new, old = (float(known_to_one.mean()) for known_to_one in known)
        lost = new < (1 - config.contents_lost) * old
        checks.append(_told(market, "contents known", old, new, refused=lost))
        both = here[known[0] & known[1]]
        said, figures = _impressions(replays, both, tasks, labels, config, random)
        new, old = (float(one.mean()) if len(one) else np.nan for one in said)
        gone = bool((said[1] & ~said[0]).any())
        checks.append(_told(market, "probabilities", old, new, refused=gone))
        for figure, pair in figures:
            pairs.setdefault(figure, {})[market] = pair
    checks += _judged(pairs, config)
    # A refusal needs no estimate, a permission does.
    if not any(check.refused or (np.isfinite(check.low) and check.figure != BIASED) for check in checks):
        raise ValueError(
            f"{examples.name} says too little to judge a release by: none of the markets "
            f"{', '.join(examples.markets)} has outcomes of {LEAST_PEOPLE} people with contents that both "
            "releases serve; give the log that they serve, or a longer one"
        )
    return checks


def faults(checks: Sequence[Check]) -> list[str]:
    """What speaks against the candidate, a text for each refused check."""
    found = []
    for check in [check for check in checks if check.refused]:
        where = "" if check.market == ALL else f" in {check.market}"
        new, old = (shown(check.figure, value) for value in (check.candidate, check.served))
        found.append(f"{check.figure}{where}: {new} where {old} is served")
    return found


def shown(figure: str, value: float) -> str:
    """A value of a figure as people read it: counts whole, NaN as nothing."""
    if np.isnan(value):
        return ""
    return f"{value:,.0f}" if figure in COUNTS else f"{value:.4f}"


def _told(market: str, figure: str, served: float, candidate: float, *, refused: bool = False) -> Check:
    """A figure that is counted, not estimated."""
    return Check(market, figure, float(served), float(candidate), np.nan, np.nan, refused)


def _later(examples: Examples, plans: tuple[Plan, Plan]) -> np.ndarray:
    """Rows of the log's pairs that no release learned from, int64[P]."""
    pairs = examples.pairs
    held_out = examples.split != "time"
    rows = np.flatnonzero(pairs.split == TEST) if held_out else np.arange(len(pairs.split))
    for plan in plans:
        if held_out and plan.split in ("", examples.split):
            continue  # its test part was held out of the release as well
        if not plan.learned_until or not examples.has_time:
            raise ValueError(
                f"nothing says which rows of {examples.name} a release learned from, since one of both has "
                "no times; give a log that is cut as the release's was"
            )
        rows = rows[examples.queries.time[pairs.query[rows]] >= plan.learned_until]
    if len(rows):
        return rows
    if held_out:
        raise ValueError(f"{examples.name} has no test part that neither release learned from")
    cut = datetime.fromtimestamp(max(plan.learned_until for plan in plans), timezone.utc)
    when = cut.isoformat(" ", timespec="minutes")
    raise ValueError(
        f"{examples.name} ends before what the releases learned from does ({when}), so nothing in it tells "
        "what they are worth; give a later data set (see `pasar data extend`)"
    )


def _slates(
    cascades: tuple[Cascade, Cascade], examples: Examples, config: GateConfig, seed: int
) -> Iterator[Check]:
    """What there is to show, and what is shown, at the end of the newer log."""
    new, old = (cascade.plan for cascade in cascades)
    for figure in ("markets", "tasks"):
        before, kept = getattr(old, figure), set(getattr(new, figure)) & set(getattr(old, figure))
        yield _told(ALL, figure, len(before), len(kept), refused=len(kept) < len(before))
    time = max(new.as_of, old.as_of) or max(
        int(shelf.opens.max(initial=0)) for cascade in cascades for shelf in cascade.retrieval.shelves
    )
    of_users = examples.users["market"].to_numpy(object)
    random = np.random.default_rng(seed)
    for market in [market for market in old.markets if market in new.markets]:
        now, was = (_running(cascade, market, time) for cascade in cascades)
        still = len(np.intersect1d(was, now))
        gone = still < (1 - config.contents_lost) * len(was)
        yield _told(market, "contents", len(was), still, refused=gone)
        users = np.sort(random.permutation(np.flatnonzero(of_users == market))[:USERS])
        if not len(users):
            continue
        ids = examples.users["user_id"].to_numpy(object)[users]
        after, slates = (_slate_ids(cascade, ids, market, time, seed) for cascade in cascades)
        filled, full = (int((slate != "").sum()) for slate in (after, slates))
        lost = full - filled > config.places_lost * slates.size
        yield _told(market, "places filled", full / slates.size, filled / slates.size, refused=lost)
        again = [np.isin(one, other[other != ""]).sum() for one, other in zip(after, slates)]
        yield _told(market, "shown before", np.nan, np.sum(again) / max(filled, 1))


def _running(cascade: Cascade, market: str, time: int) -> np.ndarray:
    """Ids of the contents that a market may show at a time (s since the epoch), object[C]."""
    shelf = cascade.retrieval.shelves[cascade.plan.markets.index(market)]
    return cascade.reordering.content_id[shelf.rows[(shelf.opens <= time) & (time < shelf.ends)]]


def _slate_ids(cascade: Cascade, ids: np.ndarray, market: str, time: int, seed: int) -> np.ndarray:
    """Ids of what users object[B] are shown at a time, object[B, S], "" where a place is empty."""
    asked = [FeedRequest(user, market, time, seed=seed) for user in ids]
    parts = [cascade(pack(asked[start : start + BATCH])) for start in range(0, len(asked), BATCH)]
    return np.concatenate([part["content_id"] for part in parts])


def _wanted(examples: Examples, rows: np.ndarray) -> tuple[str, np.ndarray] | None:
    """The wanted ones of a market's pairs by which orders are compared, int64[W], and the figure's name."""
    pairs = examples.pairs
    wanted = rows[pairs.positive[rows]]
    if not len(wanted):
        return None
    if examples.feedback != "impressions":
        return "ndcg@10", wanted
    # What was shown with certainty is what the policy of the log wanted, whatever it is weighed by.
    drawn = wanted[:0] if pairs.propensity is None else wanted[pairs.propensity[wanted] < 1]
    return (PROPENSITY, drawn) if len(drawn) else (BIASED, wanted)


def _ndcg(figure: str, replays: tuple[Replay, Replay], wanted: np.ndarray, outcomes: int) -> _Pair:
    """The nDCG@10 of some wanted pairs of one market, of so many in its log."""
    examples = replays[0].examples
    pairs = examples.pairs
    own = pairs.content[wanted][:, None]
    each, weights = np.ones(len(wanted), np.int64), np.ones(len(wanted))
    new, old = (metrics.ndcg(replay.lists(wanted)["cascade"][:, :10] == own, each) for replay in replays)
    if figure == PROPENSITY and pairs.propensity is not None:
        weights = 1 / pairs.propensity[wanted]
    return _means(new, old, examples.queries.user[pairs.query[wanted]], weights, outcomes)


def _means(new: np.ndarray, old: np.ndarray, user: np.ndarray, weights: np.ndarray, outcomes: int) -> _Pair:
    """The weighted means of what each row of both says, float64[N]; see `metrics.mean_interval`."""
    share = np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    served, candidate = float(share @ old), float(share @ new)
    influence = metrics.mean_influence(new - old - (candidate - served), user, share)
    return _Pair(served, candidate, influence, user, share, outcomes)


def _impressions(
    replays: tuple[Replay, Replay],
    rows: np.ndarray,
    tasks: list[str],
    labels: Mapping[str, np.ndarray],
    config: GateConfig,
    random: np.random.Generator,
) -> tuple[tuple[np.ndarray, np.ndarray], list[tuple[str, _Pair]]]:
    """Of a market's pairs whose contents both releases know: which of some each has probabilities for,
    bool[P], and where both have for all, AUC and calibration error of each task."""
    examples = replays[0].examples
    outcomes = {task: int(np.count_nonzero(labels[task][rows])) for task in tasks if task in labels}
    rows = draw_impressions(examples, rows, config.queries_per_market, random)
    chances = [replay.scores(rows)["served"] for replay in replays] if len(rows) else []
    said = tuple(np.isfinite(made).all(axis=1) for made in chances) or (np.ones(0, bool),) * 2
    figures: list[tuple[str, _Pair]] = []
    if not all(one.all() for one in said):
        return said, figures
    user = examples.queries.user[examples.pairs.query[rows]]
    equal = np.full(len(rows), 1 / max(len(rows), 1))
    for task, count in outcomes.items():
        label = np.asarray(labels[task][rows], np.float32)
        if min(label.sum(), (1 - label).sum()) < LEAST_OUTCOMES:
            continue
        new, old = (made[:, replay.cascade.plan.tasks.index(task)] for made, replay in zip(chances, replays))
        if task not in AMOUNTS:
            (after, moved), (before, moved_before) = (metrics.auc_influence(label, s) for s in (new, old))
            pair = _Pair(before, after, moved - moved_before, user, equal, count)
            figures.append((f"auc of {task}", pair))
        gaps = [metrics.calibration_gaps(label, chance) for chance in (new, old)]
        pair = _means(gaps[0], gaps[1], user, equal, count)
        figures.append((f"{ERROR} of {task}", pair._replace(noise=metrics.calibration_noise(new))))
    return said, figures


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
            if metrics.effective_number(metrics.by_cluster(pair.share, pair.user)) < LEAST_PEOPLE:
                low = high = np.nan
            worse, surely = (change, low > 0) if figure.startswith(ERROR) else (-change, high < 0)
            refused = bool(surely and worse > _allowed(figure, pair, config))
            checks.append(Check(market, figure, pair.served, pair.candidate, low, high, refused))
    return checks


def _allowed(figure: str, pair: _Pair, config: GateConfig) -> float:
    """By how much a figure may be worse than the served release's."""
    if figure == BIASED:
        return np.inf
    if figure.startswith(ERROR):
        # Predictions of few values have less noise than those of many, so that a difference may be its own.
        return max(config.calibration_error - pair.served, 0.0) + pair.noise
    chance = 0.5 if figure.startswith("auc") else 0.0
    return config.loss * max(pair.served - chance, 0.0)


def _mean(pairs: list[_Pair]) -> _Pair:
    """The mean of several markets, by their outcomes."""
    outcomes = np.array([pair.outcomes for pair in pairs])
    share = outcomes / outcomes.sum()
    return _Pair(
        float(share @ [pair.served for pair in pairs]),
        float(share @ [pair.candidate for pair in pairs]),
        np.concatenate([part * pair.influence for part, pair in zip(share, pairs)]),
        np.concatenate([pair.user for pair in pairs]),
        np.concatenate([part * pair.share for part, pair in zip(share, pairs)]),
        int(outcomes.sum()),
        float(share @ [pair.noise for pair in pairs]),
    )
