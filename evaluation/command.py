"""One protocol from folder to rows: import, benchmark, baselines, our systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.protocols import NothingToJudge, benchmarks, nobody_in
from evaluation.runs import Row, evaluate
from evaluation.side_by_side import side_by_side
from evaluation.systems import baselines
from evaluation.tasks import Benchmark, System
from market.dataset import Dataset
from market.importers import IMPORTERS, read
from market.tables import Tables


def load_tables(protocol: str, path: Path) -> Tables:
    """The tables of a public data set, or of a data set on disk where `protocol` is "dataset".

    Raises:
        ValueError: there is no such protocol; or as `market.importers.read` and `Dataset.open` do.
    """
    if protocol not in (*IMPORTERS, "dataset"):
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(IMPORTERS)}, and dataset for any")
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
        NothingToJudge: a market that has no exam.
    """
    have = [exam.market for exam in benchmark.exams]
    for market in markets:
        if market not in have:
            raise NothingToJudge(
                f"{benchmark.task.name}: no exam in market {market!r}; there are "
                f"{', '.join(dict.fromkeys(have))}"
            )
    return replace(benchmark, exams=tuple(exam for exam in benchmark.exams if exam.market in markets))


def chosen(found: Sequence[Benchmark], name: str | None) -> Sequence[Benchmark]:
    """The benchmark of that name alone; all where there is no name.

    Raises:
        NothingToJudge: there is none of that name.
    """
    named = [benchmark for benchmark in found if name in (None, benchmark.task.name)]
    if not named:
        names = ", ".join(benchmark.task.name for benchmark in found)
        raise NothingToJudge(f"there is no benchmark {name!r}; there are: {names}")
    return named


def alone(tables: Tables, market: str) -> Tables:
    """What one market's own tables would be: its outcomes, its users and visitors, the contents that it sells
    and, though it may show them no more, those that were shown there.

    Raises:
        ValueError: a market without users.
    """
    impressions = tables.impressions[tables.impressions["market"] == market]
    users = tables.users
    users = users[(users["market"] == market) | users["user_id"].isin(impressions["user_id"])]
    if users.empty:
        known = ", ".join(sorted(tables.users["market"].unique()))
        raise ValueError(f"no users in market {market!r}; there are {known}")
    contents = tables.contents
    sold = np.array([market in places for places in contents["markets"]], bool)
    contents = contents[sold | contents["content_id"].isin(impressions["content_id"])]
    markets = [[market] if market in places else places for places in contents["markets"]]
    return replace(
        tables,
        users=users.assign(market=market).reset_index(drop=True),
        contents=contents.assign(markets=markets).reset_index(drop=True),
        impressions=impressions.reset_index(drop=True),
    )


def run_protocol(
    protocol: str,
    path: Path,
    *,
    markets: Sequence[str] = (),
    benchmark: str | None = None,
    each_alone: bool = False,
    seeds: Sequence[int] = (0,),
    build: Any | None = None,
    jobs: int = 1,
    step: Callable[[str], None] = lambda name: None,
    training: Callable[..., None] | None = None,
    keep: Callable[[list[Row]], None] = lambda rows: None,
    told: Callable[[str], None] = lambda remark: None,
) -> list[Row]:
    """Rows of every system in every market under every seed.

    The baselines are one part of the work and each seed of our models is another. How many parts run side by
    side changes the rows no more than the number of cores does, by which sums are rounded.

    Args:
        protocol: name of a public data set, or "dataset".
        markets: report these alone; all where empty.
        benchmark: report this one alone of the protocol's benchmarks; all where None.
        each_alone: learn each of `markets` from nothing but itself.
        seeds: of models, each counted once; sampled negatives and held-out pairs are the same under each.
        build: a `BuildConfig`; None leaves our models out.
        jobs: parts that run side by side, each in a process with its share of the cores.
        step: told the name of each step as it begins.
        training: told of every batch of training where one part runs at a time.
        keep: given all rows so far whenever a part is done.
        told: what is left out or asked of fewer, and why; each once, whatever the seeds.
    """
    # Baselines draw nothing, so one seed says all.
    parts = [_Part(protocol, path, tuple(markets), benchmark, each_alone, seeds[0], None)]
    if build is not None:
        parts += [replace(parts[0], seed=seed, build=build) for seed in dict.fromkeys(seeds)]
    rows: list[Row] = []
    jobs = min(jobs, len(parts))
    made = side_by_side(_run, parts, jobs) if jobs > 1 else (part.run(step, training) for part in parts)
    for part, (found, remarks) in zip(parts, made):
        if part.build is None:  # all parts have the same exams
            for remark in dict.fromkeys(remarks):
                told(remark)
        rows += found
        keep(rows)
        step(f"{part} done")
    return rows


@lru_cache(maxsize=1)
def _tables(protocol: str, path: Path) -> Tables:
    """Parts that run one after another in a process learn from the same tables."""
    return load_tables(protocol, path)


@dataclass(frozen=True)
class _Part:
    """What one process can do on its own: the baselines (no `build`), or our models under one seed."""

    protocol: str
    path: Path
    markets: tuple[str, ...]
    benchmark: str | None
    each_alone: bool
    seed: int
    build: Any | None

    def __str__(self) -> str:
        return f"{self.protocol}, " + (f"seed {self.seed}" if self.build else "baselines")

    def run(
        self, step: Callable[[str], None], training: Callable[..., None] | None
    ) -> tuple[list[Row], list[str]]:
        """Rows and remarks."""
        remarks: list[str] = []

        def leave(remark: str) -> None:
            step(remark)
            remarks.append(remark)

        step(f"reading {self.protocol}")
        tables = _tables(self.protocol, self.path)
        if not self.each_alone:
            return self._learn(tables, self.markets, step, training, leave), remarks
        rows: list[Row] = []
        refused: list[NothingToJudge] = []
        for market in self.markets or sorted({*tables.users["market"], *tables.impressions["market"]}):
            step(f"{market} alone")
            try:
                rows += self._learn(alone(tables, market), (market,), step, training, leave)
            except NothingToJudge as error:
                refused.append(error)
                leave(f"{market} alone is left out: {error}")
        if refused and not rows:
            raise refused[0]
        return rows, remarks

    def _learn(
        self,
        tables: Tables,
        markets: Sequence[str],
        step: Callable[[str], None],
        training: Callable[..., None] | None,
        leave: Callable[[str], None],
    ) -> list[Row]:
        rows: list[Row] = []
        for benchmark in _asked(chosen(benchmarks(tables), self.benchmark), markets, leave):
            for remark in benchmark.remarks:
                leave(remark)
            systems: Sequence[System] = baselines(benchmark.task)
            if self.build is not None:
                systems = _ours(benchmark, self.build, training)
            rows += evaluate(benchmark, systems, (self.seed,), step)
        return rows


def _asked(
    found: Sequence[Benchmark], markets: Sequence[str], leave: Callable[[str], None]
) -> Iterator[Benchmark]:
    """Each benchmark with the exams of these markets, all where empty; what one of several lacks is told.

    Raises:
        NothingToJudge: a market that has no exam in any.
    """
    have = [{exam.market for exam in benchmark.exams} for benchmark in found]
    only_markets(found[0], [market for market in markets if market not in set().union(*have)])
    for benchmark, its in zip(found, have):
        for market in markets:
            if market not in its:
                leave(nobody_in(benchmark.task.name, market))
        if here := [market for market in markets if market in its]:
            yield only_markets(benchmark, here)
        elif not markets:
            yield benchmark


def _ours(benchmark: Benchmark, build: Any, training: Callable[..., None] | None) -> list[System]:
    from evaluation.cascade import FullCascade, Released, TwoTower

    released = Released(build, training)
    # A cosine is no amount of seconds.
    systems: list[System] = [] if benchmark.task.target == "watch_s" else [TwoTower(released)]
    systems.append(FullCascade(released))
    if benchmark.task.valid is not None:
        systems.append(FullCascade(released, known=True))
    return systems


def _run(part: _Part) -> tuple[list[Row], list[str]]:
    return part.run(lambda name: None, None)
