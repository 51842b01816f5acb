"""Runs systems through benchmarks; keeps the figures as files and prints them beside published ones."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import interval
from evaluation.published import figures
from evaluation.tasks import Benchmark, ProgressLog, System
from market.files import as_json, write_json

ALL = "all"
"""Market of the figures over all markets."""


@dataclass(frozen=True)
class Row:
    """One figure: a metric of a system in a market, with the ends of its 95 % interval over the users.

    Attributes:
        data_set: name of the task.
        market: code.
        system: name.
        metric: such as "recall@20" or "ndcg@10 (99 negatives)"; "mae" is in the unit of the target.
        value: the figure.
        low: lower end of its interval; NaN where there is one user.
        high: upper end.
        users: different people behind the figure, however often each was asked.
        seed: of the system's training.
    """

    data_set: str
    market: str
    system: str
    metric: str
    value: float
    low: float
    high: float
    users: int
    seed: int


def evaluate(
    benchmark: Benchmark,
    systems: Iterable[System],
    seeds: Sequence[int] = (0,),
    progress: ProgressLog | None = None,
) -> Iterator[Row]:
    """Fits every system under every seed and yields each figure as soon as it is known.

    Raises:
        ValueError: a system returned scores of a wrong shape, or NaN.
    """
    for system in systems:
        for seed in seeds:
            if progress:
                progress(f"{benchmark.task.name}: fitting {system.name}, seed {seed}")
            system.fit(benchmark.task, seed=seed, progress=progress)
            for exam in benchmark.exams:
                for metric, value, users in exam.measure(system):
                    yield Row(benchmark.task.name, exam.market, system.name, metric, *value, users, seed)


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Writes rows, `Row` or another dataclass, as JSON in one step, so that a reader sees the old file or the
    new one whole; NaN is null there."""
    write_json(path, {"format": 1, "rows": [as_json(row) for row in rows]})


def read_rows(path: Path) -> list[Row]:
    """The rows that `write_rows` wrote.

    Raises:
        ValueError: the file is no such file.
    """
    try:
        return [_row(told) for told in json.loads(path.read_text())["rows"]]
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no evaluation rows ({error}); write it with write_rows") from error


def _row(told: dict[str, Any]) -> Row:
    values: dict[str, Any] = {name: float("nan") if v is None else v for name, v in told.items()}
    return Row(**values)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of the rows, the mean over seeds, each group followed by the published figures of the
    same people.

    "95 %" is the mean of the seeds' intervals over users; "seeds" is the interval of the mean over seeds.
    """
    lines = ["| data set | market | metric | system | ours | 95 % | seeds | published | remark |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for data_set, market, metric in dict.fromkeys((row.data_set, row.market, row.metric) for row in rows):
        group = [row for row in rows if (row.data_set, row.market, row.metric) == (data_set, market, metric)]
        known = {f.system: f for f in figures(data_set, market, metric, group[0].users)}
        start = f"| {data_set} | {market} | {metric} |"
        for system in dict.fromkeys(row.system for row in group):
            runs = [row for row in group if row.system == system]
            over_seeds = interval(np.array([row.value for row in runs]))
            low, high = (float(np.mean([getattr(row, end) for row in runs])) for end in ("low", "high"))
            seeds = f"{len(runs)}, ± {over_seeds.high - over_seeds.mean:.4f}" if len(runs) > 1 else ""
            figure = known.pop(system, None)
            beside = f" {figure.value:.4f} | {figure.remark} |" if figure else "  |  |"
            ours = f"{over_seeds.mean:.4f} | {low:.4f} to {high:.4f} | {seeds}"
            lines.append(f"{start} {system} | {ours} |{beside}")
        lines += [f"{start} {f.system} |  |  |  | {f.value:.4f} | {f.remark} |" for f in known.values()]
    return "\n".join(lines) + "\n"
