"""What people see: progress bars, tables, slates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ensemble.client import FeedRequest, Slate
from ensemble.explanation import Explanation

# An id such as "shop:new:12" is shown as it is, not with the picture that ":new:" stands for.
_Plain = partial(Console, highlight=False, emoji=False)
console = _Plain()
if not console.is_terminal:  # in a pipe or a log nobody can widen the window
    console = _Plain(width=max(console.width, 132))
errors = _Plain(stderr=True, soft_wrap=True)


def say(text: str) -> None:
    """Print a line as it is: paths in it are neither wrapped nor read as markup."""
    console.print(text, soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """Print a line about what goes on but may not be meant, beside what is printed for others to read."""
    errors.print(f"[yellow]warning:[/] {escape(text)}")


class Reporter(Protocol):
    """Shows the progress of a build."""

    def step(self, name: str) -> None:
        """A step begins."""

    def training(self, name: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """A batch or an epoch of a training is done."""


class _Bars:
    """In a terminal: a line that turns into the next step's, a bar for each training."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.spinner = bars.add_task("", total=None, metrics="")

    def step(self, name: str) -> None:
        self.bars.update(self.spinner, description=name)

    def training(self, name: str, done: int, total: int, metrics: dict[str, float]) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total, metrics="")
        self.bars.update(self.tasks[name], completed=done, total=total)
        if metrics:
            self.bars.update(self.tasks[name], metrics=_metrics(metrics))


QUIET_S = 60.0
"""A log hears of a training when it ends, and before that so often (seconds)."""


class _Lines:
    """In a log, which shows nothing that moves: a line when a step begins and when a training has ended."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()
        self.ended = ""

    def step(self, name: str) -> None:
        self._say(name)

    def training(self, name: str, done: int, total: int, metrics: dict[str, float]) -> None:
        text = f"{name}: {done:,} of {total:,} batches  {_metrics(metrics)}".rstrip()
        # A training that uses up all its epochs tells the last of them twice.
        ends = done == total and "loss" not in metrics and text != self.ended
        if ends or time.monotonic() - self.last >= QUIET_S:
            self._say(text)
        if ends:
            self.ended = text

    def _say(self, text: str) -> None:
        self.last = time.monotonic()
        say(f"{timedelta(seconds=int(self.last - self.start))}  {text}")


def _metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{key} {value:.4f}" for key, value in list(metrics.items())[:3])


@contextmanager
def reporter() -> Iterator[Reporter]:
    """Show progress while the block runs: bars in a terminal, else lines."""
    if not console.is_interactive:
        yield _Lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    with Progress(*columns, console=console) as bars:
        made = _Bars(bars)
        yield made
        bars.update(made.spinner, description="done", total=1, completed=1)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Say what goes on while the block runs: a line that vanishes from a terminal and stays in a log."""
    if not console.is_interactive:
        say(text)
        yield
        return
    with console.status(escape(text)):
        yield


@contextmanager
def counted(text: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar while the block runs, and in a log a line as it begins and one as it ends.

    Yields:
        What to tell of how many are done and, where `total` was not known, of how many.
    """
    if not console.is_interactive:
        say(text)
    with Progress(console=console) as bars:
        task = bars.add_task(escape(text), total=total)
        yield lambda done, of=total: bars.update(task, completed=done, total=of)


WIDE = 129
"""Columns of a window that a slate's one table needs."""


def slate_tables(request: FeedRequest, slate: Slate, width: int) -> list[Table]:
    """A slate: where each item came from, what each stage thought of it, why it stands there.

    One table where the window is wide enough, else two: words that are cut say nothing.

    Args:
        width: of the window (columns).
    """
    tasks = list(slate.items[0].probabilities) if slate.items else []
    words = ["#", "content", "retrieved by", "candidate", "reason"]
    numbers = ["cosine", *tasks, "value"]
    rows = [
        {
            "#": str(place),
            "content": item.content,
            "retrieved by": ", ".join(item.channels),
            "candidate": str(item.candidate_rank),
            "cosine": f"{item.retrieval_score:.2f}",
            **{task: f"{item.probabilities[task]:.3f}".removeprefix("0") for task in tasks},
            "value": f"{item.value:.2f}",
            "reason": item.reason,
        }
        for place, item in enumerate(slate.items, 1)
    ]
    parts = [[*words[:-1], *numbers, "reason"]] if width >= WIDE else [words, ["#", "content", *numbers]]
    title = escape(f"{request.market}  {request.user}")
    made = []
    for part, columns in enumerate(parts):
        table = Table(
            title=None if part else title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for name in columns:
            wraps = name in ("retrieved by", "reason")
            number = name in ("candidate", *numbers)
            table.add_column(name, justify="right" if number else "left", no_wrap=not wraps)
        for row in rows:
            table.add_row(*(escape(row[name]) for name in columns))
        made.append(table)
    return made


def explanation_tables(told: Explanation) -> list[Table]:
    """The funnel of a request, why its items stand where they stand, and the best of what was left out."""
    funnel = rows_table(
        "The funnel",
        ["stage", "ms", "took", "kept", "dropped"],
        [
            [
                stage.stage,
                f"{stage.ms:.2f}" if stage.ms else "",
                f"{stage.took:,}" if stage.took else "",
                f"{stage.kept:,}" if stage.took else "",
                ", ".join(f"{number:,} {reason}" for reason, number in stage.dropped.items()),
            ]
            for stage in told.stages
        ],
    )
    items = rows_table(
        "Its items",
        ["content", "pre-ranking score", "rank by value", "what kept others of higher value from its place"],
        [
            [item.content, f"{item.preranking_score:.2f}", str(item.value_rank), ", ".join(item.rules)]
            for item in told.items
        ],
    )
    others = rows_table(
        "Left out",
        ["content", "value", "reason"],
        [[other.content, f"{other.value:.2f}", other.reason] for other in told.others[:10]],
    )
    rows = [[slot.slot, slot.reason] for slot in told.given_up]
    given_up = [rows_table("Slots given up", ["slot", "because"], rows)] if rows else []
    return [funnel, items, *given_up, others]


def rows_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table; every column but the first is right-aligned."""
    table = Table(title=escape(title), title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(escape(name), justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
