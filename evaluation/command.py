"""One protocol from folder to rows: import, benchmark, baselines, our two systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.protocols import benchmarks
from evaluation.runs import Row, evaluate
from evaluation.systems import baselines
from evaluation.tasks import Benchmark, System
from market.dataset import Dataset
from market.importers import read
from market.tables import Tables


def load_tables(protocol: str, path: Path) -> Tables:
    """The tables of a public data set, or of a data set on disk where `protocol` is "dataset"."""
    if protocol != "dataset":
        return read(protocol, path)
    dataset = Dataset.open(path)
    return Tables(
        name=dataset.name,
        feedback=dataset.feedback,
        split=dataset.split,
        users=dataset.users(),
        contents=dataset.contents(),
        sellers=dataset.sellers(),
        impressions=dataset.impressions(),
    )


def only_markets(benchmark: Benchmark, markets: Sequence[str]) -> Benchmark:
    """The benchmark with the exams of some markets; every market is still learned from.

    Raises:
        ValueError: a market that has no exam.
    """
    have = [exam.market for exam in benchmark.exams]
    for market in markets:
        if market not in have:
            raise ValueError(f"no exam in market {market!r}; there are {', '.join(dict.fromkeys(have))}")
    return replace(benchmark, exams=tuple(exam for exam in benchmark.exams if exam.market in markets))


def alone(tables: Tables, market: str) -> Tables:
    """What one market's own tables would be: its users, its outcomes, and the contents that it sells.

    Raises:
        ValueError: a market without users.
    """
    users = tables.users[tables.users["market"] == market]
    if users.empty:
        known = ", ".join(sorted(tables.users["market"].unique()))
        raise ValueError(f"no users in market {market!r}; there are {known}")
    contents = tables.contents[[market in sold for sold in tables.contents["markets"]]]
    impressions = tables.impressions[tables.impressions["market"] == market]
    return replace(
        tables,
        users=users.reset_index(drop=True),
        contents=contents.assign(markets=[[market]] * len(contents)).reset_index(drop=True),
        impressions=impressions.reset_index(drop=True),
    )


def run_protocol(
    protocol: str,
    path: Path,
    *,
    markets: Sequence[str] = (),
    each_alone: bool = False,
    seeds: Sequence[int] = (0,),
    build: Any | None = None,
    step: Callable[[str], None] = lambda name: None,
    training: Callable[..., None] | None = None,
) -> list[Row]:
    """Rows of every system in every market under every seed.

    Args:
        protocol: name of a public data set, or "dataset".
        markets: report these alone; all where empty.
        each_alone: learn each of `markets` from nothing but itself.
        seeds: of models and of sampled negatives.
        build: a `BuildConfig`; None leaves our models out.
    """
    step(f"reading {protocol}")
    tables = load_tables(protocol, path)
    rows: list[Row] = []
    if each_alone:
        for market in markets or sorted(tables.users["market"].unique()):
            step(f"{market} alone")
            rows += _run(alone(tables, market), (market,), seeds, build, step, training)
        return rows
    return _run(tables, markets, seeds, build, step, training)


def _run(
    tables: Tables,
    markets: Sequence[str],
    seeds: Sequence[int],
    build: Any | None,
    step: Callable[[str], None],
    training: Callable[..., None] | None,
) -> list[Row]:
    rows: list[Row] = []
    for benchmark in benchmarks(tables):
        benchmark = only_markets(benchmark, markets) if markets else benchmark
        # Baselines draw nothing, so one seed says all.
        rows += evaluate(benchmark, baselines(benchmark.task), seeds[:1], step)
        if build is not None:
            from evaluation.cascade import FullCascade, Released, TwoTower

            for seed in seeds:
                released = Released(build, training)
                # A cosine is no amount of seconds.
                ours: list[System] = [] if benchmark.task.target == "watch_s" else [TwoTower(released)]
                ours.append(FullCascade(released))
                if benchmark.task.valid is not None:
                    ours.append(FullCascade(released, known=True))
                rows += evaluate(benchmark, ours, (seed,), step)
    return rows
