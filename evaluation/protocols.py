"""Protocols: how the tables of a data set become benchmarks, each figure's rules in one place.

`benchmarks(tables)` chooses by the kind of feedback and split, so the public data sets get their published
protocols, and so does any folder of the same kind with other markets and sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evaluation import metrics
from evaluation.tasks import BLOCK_ENTRIES, Benchmark, FullRanking, Interactions, Labelled, Task, pairs
from market.outcomes import OUTCOMES
from market.profiles import undeclared
from market.tables import Split, Tables

Stage = Literal["test", "valid"]
"""The part that the exams are about. At "valid" a task has no validation rows, and test rows are nowhere."""

NEGATIVES = 99
TIME_SHARES = (0.1, 0.1)  # validation and test, of the rows
WATCH_SHARES = (0.1, 0.2)  # the same where watch time is asked for
REACHED = 0.1  # share of users, those who know most, that the number of negatives may leave out
_CLICKS = ("click", "long_view", "like", "order")  # targets of an impression log, the first that it has


class NothingToJudge(ValueError):
    """A benchmark, or a market of one, in which nobody can be asked or nothing can be learned."""


def benchmarks(tables: Tables, stage: Stage = "test", seed: int = 0) -> list[Benchmark]:
    """The benchmarks of a data set.

    Args:
        tables: validated tables.
        stage: "test" for the figures of a report, "valid" for tuning.
        seed: of sampled negatives and of pairs held out.

    Raises:
        NothingToJudge: no user has anything to be asked for, or no row is left to train on.
        ValueError: the log has no outcome to ask for, or a market no contents.
    """
    if tables.name == "kuairand":
        made = _with_exams([partial(held_out_pairs, tables, stage, seed), partial(watch_time, tables, stage)])
    else:
        made = _by_kind(tables, stage, seed)
    if remark := undeclared(sorted(tables.users["market"].unique())):
        made = [replace(benchmark, remarks=(remark, *benchmark.remarks)) for benchmark in made]
    return made


def ranking(
    tables: Tables,
    stage: Stage,
    seed: int,
    *,
    name: str | None = None,
    target: str | None = None,
    auxiliary: tuple[str, ...] = (),
    full: tuple[str, ...] = (),
    sampled: tuple[str, ...] = (),
    refit: bool = False,
) -> Benchmark:
    """Retrieval: which contents will each user turn to next?

    Args:
        tables: validated tables.
        stage: the part to ask for.
        seed: of the negatives.
        name: of the task; the tables' own by default.
        target: the outcome to ask for; None where every row is positive.
        auxiliary: outcomes that help, but are not asked for.
        full: metrics over all contents of the market, known ones left out.
        sampled: metrics over the relevant content and `NEGATIVES` random ones of the market that the user
            has no row with; fewer where over `REACHED` of the users leave fewer. Others who do are not asked.
        refit: the validation rows are part of the training for the test.
    """
    part = parts(tables)
    log, markets = _index(tables)
    task = _task(
        tables,
        log,
        markets,
        part,
        stage,
        name=name or tables.name,
        target=target,
        auxiliary=auxiliary,
        refit=refit,
    )
    asked = log.positive(target) & (part == stage)
    trained = task.matrix()
    shape = (task.users, task.items)
    every = pairs(log.user, log.item, shape)
    rng = np.random.default_rng(seed)
    exams: list[FullRanking | Labelled] = []
    remarks: list[str] = []
    for place, market in enumerate(markets):
        rows = np.flatnonzero(asked & (log.market == place))
        if not len(rows):
            continue
        pool = _pool(tables, market)
        if sampled:
            leave = len(pool) - np.diff(every[:, pool][log.user[rows]].indptr)
            count = _negatives(leave)
            if few := int((leave < count).sum()):
                remarks.append(
                    f"{task.name}, {market}: {few} of {len(rows)} users know so many of its {len(pool)} "
                    f"contents that {count} negatives are not left, and are not asked against them"
                )
            able = rows[leave >= count]
            if len(able):
                exams.append(_against_sampled(rng, market, log, able, pool, every, count, sampled))
        if full:
            wanted = pairs(log.user[rows], log.item[rows], shape)
            wanted = wanted - wanted.multiply(trained)
            wanted.eliminate_zeros()
            users = np.flatnonzero(np.diff(wanted.indptr))
            if len(users):
                exams.append(FullRanking(market, users, wanted[users], trained[users], pool, full))
    asked_in = {exam.market for exam in exams}
    remarks += [nobody_in(task.name, market) for market in markets if market not in asked_in]
    return replace(_benchmark(task, exams, stage, tables.split), remarks=tuple(remarks))


def nobody_in(name: str, market: str) -> str:
    """The remark that a benchmark has no exam in a market."""
    return f"{name}, {market}: left out, nobody can be asked there"


def held_out_pairs(tables: Tables, stage: Stage, seed: int) -> Benchmark:
    """Preference: one liked and one hated content per user, drawn at random; AUC(like) over all of them.

    All rows of a user and a content are held out together: one would tell the label of the others. The
    columns of the contract that are known only after an exposure are outcomes, none a feature.
    """
    log, markets = _index(tables)
    part = np.full(len(log), "train", dtype=object)
    pair = log.user * len(tables.contents) + log.item
    rng = np.random.default_rng(seed)
    for held_out in ("test", "valid"):
        liked = _one_per_user(rng, log.user, (part == "train") & log.positive("like"))
        hated = _one_per_user(rng, log.user, (part == "train") & log.positive("negative"))
        both = liked.index.intersection(hated.index)
        rows = np.stack([liked[both], hated[both]], axis=1)
        part[np.isin(pair, pair[rows]) & (part == "train")] = held_out
        if held_out == stage:
            break
    task = _task(tables, log, markets, part, stage, name=f"{tables.name} (likes)", target="like")
    labels = np.tile(np.array([1, 0], dtype=np.float32), (len(rows), 1))
    exams = [
        Labelled(market, both.to_numpy()[here], log.item[rows[here]], labels[here], ("auc",))
        for place, market in enumerate(markets)
        if (here := log.market[rows[:, 0]] == place).any()
    ]
    return _benchmark(task, exams, stage, tables.split)


def watch_time(tables: Tables, stage: Stage) -> Benchmark:
    """Watch time: mean absolute error in seconds, of the last fifth of the log by time.

    Contents without a known duration are left out.
    """
    lasting = tables.contents.loc[tables.contents["duration_s"] > 0, "content_id"]
    rows = tables.impressions["content_id"].isin(lasting) & tables.impressions["watch_s"].notna()
    tables = replace(tables, impressions=tables.impressions[rows].reset_index(drop=True), split="time")
    part = parts(tables, WATCH_SHARES)
    log, markets = _index(tables)
    name = f"{tables.name} (watch time)"
    task = _task(tables, log, markets, part, stage, name=name, target="watch_s", refit=True)
    exams = []
    for place, market in enumerate(markets):
        asked = np.flatnonzero((part == stage) & (log.market == place))
        if len(asked):
            labels = log.outcomes["watch_s"][asked, None].astype(np.float32)
            exams.append(Labelled(market, log.user[asked], log.item[asked, None], labels, ("mae",)))
    return _benchmark(task, exams, stage, tables.split)


def parts(tables: Tables, shares: tuple[float, float] = TIME_SHARES) -> np.ndarray:
    """The part of each impression, object[N] of "train", "valid" and "test", as `Tables.split` says.

    With the split "leave_last" a user of two markets counts in each, and of two rows the last is for test.

    Args:
        tables: validated tables.
        shares: of the rows that come last in time: validation, test. For the split "time" alone; rows of one
            second stay together.
    """
    log = tables.impressions
    if tables.split == "given":
        return log["split"].to_numpy(dtype=object)
    part = np.full(len(log), "train", dtype=object)
    time = log["time"].to_numpy()
    if tables.split == "time":
        valid, test = shares
        first_valid, first_test = np.quantile(time, [1 - valid - test, 1 - test]) if len(time) else (0, 0)
        part[time >= first_valid] = "valid"
        part[time >= first_test] = "test"
        return part
    # Of rows of one time the later one in the file is the later one.
    order = np.argsort(time, kind="stable")
    groups = log.iloc[order].groupby(["market", "user_id"], sort=False)
    from_last = groups.cumcount(ascending=False).to_numpy()
    size = groups["user_id"].transform("size").to_numpy()
    part[order[(from_last == 0) & (size > 1)]] = "test"
    part[order[(from_last == 1) & (size > 2)]] = "valid"
    return part


def without_repeats(tables: Tables) -> Tables:
    """The tables with each (market, user, content) once: its first row by time, so that no later row removes
    one from the past."""
    log = tables.impressions
    if "time" in log:
        log = log.sort_values("time", kind="stable")
    log = log.drop_duplicates(["market", "user_id", "content_id"])
    return replace(tables, impressions=log.sort_index().reset_index(drop=True))


def _with_exams(makers: Sequence[Callable[[], Benchmark]]) -> list[Benchmark]:
    """The benchmarks that have an exam; one in which nothing can be judged is told in the first's remarks.

    Raises:
        NothingToJudge: none has.
    """
    found, missing = [], []
    for make in makers:
        try:
            found.append(make())
        except NothingToJudge as error:
            missing.append(error)
    if not found:
        raise missing[0]
    return [replace(found[0], remarks=(*found[0].remarks, *map(str, missing))), *found[1:]]


def _leave_last(tables: Tables, stage: Stage, seed: int) -> list[Benchmark]:
    """Ratings, last one by time held out: against 99 negatives and against all; with and without repeats."""
    variants, unique = {tables.name: tables}, without_repeats(tables)
    if len(unique.impressions) < len(tables.impressions):
        variants[f"{tables.name} (without repeats)"] = unique
    asked = partial(ranking, stage=stage, seed=seed, sampled=("ndcg@10",), full=("recall@20", "ndcg@10"))
    return _with_exams([partial(asked, variant, name=name) for name, variant in variants.items()])


def _orders(tables: Tables, stage: Stage, seed: int) -> list[Benchmark]:
    """Orders, with carts beside them; as published, the report trains on the validation orders as well."""
    full = ("hr@10", "ndcg@10")
    return [ranking(tables, stage, seed, target="order", auxiliary=("cart",), full=full, refit=True)]


def _by_kind(tables: Tables, stage: Stage, seed: int) -> list[Benchmark]:
    """Leave-last as xmarket, orders and carts as taobao, other positives as tiktok; else clicks."""
    if tables.split == "leave_last":
        return _leave_last(tables, stage, seed)
    if tables.feedback == "positives":
        if {"order", "cart"} <= set(tables.impressions):
            return _orders(tables, stage, seed)
        return [ranking(tables, stage, seed, full=("recall@20", "ndcg@20"))]
    targets = [name for name in _CLICKS if name in tables.impressions]
    if not targets:
        raise ValueError(
            f"data set {tables.name!r} logs impressions without any of {', '.join(_CLICKS)}: "
            "there is nothing to ask for"
        )
    return [ranking(tables, stage, seed, target=targets[0], full=("recall@20", "ndcg@10"))]


def _index(tables: Tables) -> tuple[Interactions, tuple[str, ...]]:
    """The log as indices, and the markets that these refer to."""
    log = tables.impressions
    markets = tuple(sorted(set(log["market"]) | set(tables.users["market"])))
    interactions = Interactions(
        user=pd.Index(tables.users["user_id"]).get_indexer(log["user_id"]).astype(np.int64),
        item=pd.Index(tables.contents["content_id"]).get_indexer(log["content_id"]).astype(np.int64),
        market=pd.Index(markets).get_indexer(log["market"]).astype(np.int64),
        outcomes={name: log[name].to_numpy() for name in OUTCOMES if name in log},
    )
    return interactions, markets


def _task(
    tables: Tables,
    log: Interactions,
    markets: tuple[str, ...],
    part: np.ndarray,
    stage: Stage,
    *,
    name: str,
    target: str | None,
    auxiliary: tuple[str, ...] = (),
    refit: bool = False,
) -> Task:
    train = part == "train"
    valid = (part == "valid") & (stage == "test")
    if refit:
        train, valid = train | valid, np.zeros(len(part), dtype=bool)
    visible = train | valid
    seen = tables.impressions[visible].reset_index(drop=True)
    seen = seen.assign(split=np.where(train[visible], "train", "valid").astype(object))
    return Task(
        name=name,
        markets=markets,
        tables=replace(tables, impressions=seen, split="given"),
        train=log.rows(train),
        valid=log.rows(valid) if valid.any() else None,
        target=target,
        auxiliary=auxiliary,
    )


def _benchmark(task: Task, exams: Sequence[FullRanking | Labelled], stage: Stage, split: Split) -> Benchmark:
    if not exams:
        raise NothingToJudge(
            f"{task.name}: no user has a positive row in the part {stage!r} that can be asked for; "
            f"check the split {split!r} of the data set and "
            + (f"its outcome {task.target!r}" if task.target else "whether its rows repeat those of training")
        )
    if not len(task.train):
        raise NothingToJudge(
            f"{task.name}: no row is left to train on; check the split {split!r} of the data set"
        )
    return Benchmark(task, tuple(exams))


def _pool(tables: Tables, market: str) -> np.ndarray:
    """int64[P], the contents that may be shown in a market.

    Raises:
        ValueError: there are none.
    """
    places = tables.contents["markets"].reset_index(drop=True).explode()
    pool = np.unique(places.index[places == market].to_numpy(dtype=np.int64))
    if not len(pool):
        raise ValueError(
            f"market {market} has rows in the log, but no content is sold there; "
            f"add {market} to `markets` of the contents that it sells"
        )
    return pool


def _negatives(leave: np.ndarray) -> int:
    """How many negatives each row is asked with, by how many its user leaves, int64[N]; at least 1."""
    most = int(np.quantile(leave, REACHED, method="lower"))
    return min(NEGATIVES, max(most, 1))


def _against_sampled(
    rng: np.random.Generator,
    market: str,
    log: Interactions,
    rows: np.ndarray,
    pool: np.ndarray,
    every: sp.csr_matrix,
    count: int,
    names: tuple[str, ...],
) -> Labelled:
    """Each row's content among `count` of the pool that its user has no row with, in random order."""
    users = log.user[rows]
    own = every[:, pool][users]
    negatives = np.empty((len(rows), count), dtype=np.int64)
    size = max(1, BLOCK_ENTRIES // len(pool))
    for start in range(0, len(rows), size):
        keys = rng.random((min(size, len(rows) - start), len(pool)), dtype=np.float32)
        keys[own[start : start + size].nonzero()] = -np.inf
        negatives[start : start + size] = pool[metrics.top_k(keys, count)]
    candidates = np.concatenate([log.item[rows, None], negatives], axis=1)
    labels = np.zeros(candidates.shape, dtype=np.float32)
    labels[:, 0] = 1
    order = rng.permuted(np.tile(np.arange(count + 1), (len(rows), 1)), axis=1)
    return Labelled(
        market,
        users,
        np.take_along_axis(candidates, order, axis=1),
        np.take_along_axis(labels, order, axis=1),
        names,
        remark=f"{count} negatives",
    )


def _one_per_user(rng: np.random.Generator, users: np.ndarray, eligible: np.ndarray) -> pd.Series:
    """One random eligible row of each user that has one: rows, indexed by user."""
    rows = rng.permutation(np.flatnonzero(eligible))
    return pd.Series(rows, index=users[rows]).groupby(level=0).first()
