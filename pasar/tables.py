"""Tables of figures: of a build, a gate, a play, a readout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from evaluation.metrics import interval
from evaluation.readout import Figure, Readout
from evaluation.runs import ALL, Row
from pasar.show import rows_table


def report_table(rows: Sequence[Row]) -> Table:
    """What a build says of itself, a system a column."""
    systems = list(dict.fromkeys(row.system for row in rows))
    value = {(row.market, row.metric, row.system): row.value for row in rows}
    users = {(row.market, row.metric): row.users for row in rows}
    return rows_table(
        "Held-out outcomes of each market",
        ["market", "metric", "users", *systems],
        [
            [
                market,
                metric,
                str(count),
                *[
                    f"{value[key]:.4f}" if (key := (market, metric, system)) in value else ""
                    for system in systems
                ],
            ]
            for (market, metric), count in users.items()
        ],
    )


def played_table(rows: Sequence[Row], requests: int) -> Table:
    """What slates of each policy were worth in a play of so many requests."""
    from evaluation.closed_loop import EXPECTED, MEASURES

    found = {(row.system, row.metric): row for row in rows if row.market == ALL}
    table = []
    for system in dict.fromkeys(row.system for row in rows):
        sure = found[system, EXPECTED]
        figures = [f"{found[system, measure].value:.3f}" for measure in MEASURES[1:]]
        table.append([system, f"{sure.value:.3f}", f"{sure.low:.3f} to {sure.high:.3f}", *figures])
    return rows_table(
        f"Played in the simulated world: {requests:,} requests of held-out days, a slate each",
        ["policy", EXPECTED, "95 %", *MEASURES[1:]],
        table,
    )


def compared_table(title: str, rows: Sequence[Row], base: str) -> Table:
    """What slates are worth, and the differences from the policy `base`.

    Of one training the intervals are over people, of more (other seeds of the rows) over trainings.
    """
    from evaluation.closed_loop import EXPECTED

    trainings = len({row.seed for row in rows})

    def figure(system: str, metric: str) -> str:
        found = [row for row in rows if (row.market, row.system, row.metric) == (ALL, system, metric)]
        if not found:
            return ""
        value, low, high = found[0].value, found[0].low, found[0].high
        if len(found) > 1:
            value, low, high = interval(np.array([row.value for row in found]))
        return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"

    table = [
        [system, figure(system, EXPECTED), figure(system, f"{EXPECTED} over {base}")]
        for system in dict.fromkeys(row.system for row in rows)
    ]
    over = "people" if trainings == 1 else f"{trainings} trainings"
    return rows_table(
        f"{title}, {EXPECTED} of a slate, 95 % intervals over {over}",
        ["policy", "of its own", f"over {base}"],
        table,
    )


def rankers_table(rows: Sequence[Row], seeds: int) -> Table:
    """Validation AUCs of each variant of the ranker, means of so many seeds, the plain one first."""
    found = {(row.system, row.metric): row for row in rows}
    metrics = [metric for system, metric in found if system == rows[0].system and " over " not in metric]
    table = []
    for system in dict.fromkeys(row.system for row in rows):
        more = found[system, "auc over plain"]
        means = (f"{found[system, metric].value:.4f}" for metric in metrics)
        table.append([system, *means, f"{more.value:+.4f} ({more.low:+.4f} to {more.high:+.4f})"])
    title = f"Validation AUC by task, mean of {seeds} seeds"
    return rows_table(title, ["ranker", *metrics, "auc over plain"], table)


def check_table(checks: Sequence) -> Table:
    """What a gate found, a check a row."""
    from evaluation.gates import shown

    rows = []
    for check in checks:
        estimated = not math.isnan(check.low)
        rows.append(
            [
                check.figure,
                check.market,
                shown(check.figure, check.served),
                shown(check.figure, check.candidate),
                f"{check.candidate - check.served:+.4f}" if estimated else "",
                f"{check.low:+.4f} to {check.high:+.4f}" if estimated else "",
                "refused" if check.refused else "",
            ]
        )
    columns = ["figure", "market", "served", "new", "change", "interval", ""]
    return rows_table("The release beside the one that is served", columns, rows)


def readout_tables(made: Readout) -> list[Table]:
    """What slates of each release were worth, then each release over each that was served beside it."""
    own = [f for f in made.figures if not f.over]
    mean = {(f.market, f.release, f.figure): f.value for f in own}
    order = {pair: place for place, pair in enumerate(dict.fromkeys((f.market, f.figure) for f in own))}
    own.sort(key=lambda f: order[f.market, f.figure])
    tables = [
        rows_table(
            "Means over requests",
            ["figure", "market", "release", "requests", "people", "mean", "95 %"],
            [[f.figure, f.market, f.release, *_counts(f), *_figures(f, "")] for f in own],
        )
    ]
    for new, old in dict.fromkeys((f.release, f.over) for f in made.figures if f.over):
        rows = []
        for f in [f for f in made.figures if (f.release, f.over) == (new, old)]:
            of = mean[f.market, old, f.figure]
            rows.append(
                [f.figure, f.market, *_counts(f), *_figures(f, "+"), f"{f.value / of:+.1%}" if of else ""]
            )
        columns = ["figure", "market", "requests", "people", "difference", "95 %", "of the other's mean"]
        tables.append(rows_table(f"{new} over {old}, in hours of both", columns, rows))
    return tables


def _counts(figure: Figure) -> tuple[str, str]:
    return f"{figure.requests:,}", f"{figure.people:,}"


def _figures(figure: Figure, sign: str) -> tuple[str, str]:
    low, high = (f"{end:{sign}.4g}" for end in (figure.low, figure.high))
    return f"{figure.value:{sign}.4g}", "" if math.isnan(figure.low) else f"{low} to {high}"
