"""Tables keep their words however narrow the window is, and ids are shown as they are."""

import io

import pytest
from rich.console import Console

from ensemble.client import FeedRequest, Item, Slate
from ensemble.rules import Reason
from pasar import show
from pasar.show import console, counted, errors, reporter, rows_table, say, slate_tables, warn, working

TASKS = {"click": 0.11, "watch": 0.52, "cart": 0.02, "order": 0.01, "negative": 0.002}


@pytest.mark.parametrize("width", [80, 100, 132, 200])
def test_reasons_channels_and_scores_are_never_cut(width):
    channels = ("two-tower", "item-graph")
    items = tuple(
        Item(f"v{place:05d}", channels, place, 0.5, TASKS, 0.25, reason.text, 1.0)
        for place, reason in enumerate(Reason)
    )
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in slate_tables(FeedRequest("u1", "GB", 0), Slate(items), width):
        console.print(table)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    for text in ("two-tower,", *TASKS, *(word for reason in Reason for word in reason.text.split())):
        assert text in shown


@pytest.mark.parametrize("name", ["shop:new:12", "a:id:7", "[red]b", "[/b]", "c\\"])
def test_what_is_named_is_shown_letter_by_letter(name):
    slate = Slate((Item(name, ("two-tower",), 1, 0.5, TASKS, 0.25, "highest value", 1.0),))
    with console.capture() as shown:
        console.print(rows_table(f"{name} over another", [f"over {name}"], [[name]]))
        for table in slate_tables(FeedRequest(name, "GB", 0), slate, 200):
            console.print(table)
        say(name)
    with errors.capture() as told:
        warn(name)
    assert shown.get().count(name) == 6
    assert told.get().count(name) == 1


class Log(io.StringIO):
    """Keeps what had been written when it was last flushed."""

    def flush(self):
        self.flushed = self.getvalue()


def screen(monkeypatch, file, **terminal):
    monkeypatch.setattr(show, "console", Console(file=file, width=132, **terminal))


def build(report):
    """What a build tells: two steps, and two epochs of two batches of a training."""
    report.step("features")
    report.step("ranker")
    for done, metrics in ((1, {"loss": 0.4}), (2, {"loss": 0.3}), (2, {"auc": 0.6}), (3, {"loss": 0.2})):
        report.training("ranker", done, 4, metrics)
    report.training("ranker", 4, 4, {"loss": 0.1})
    for metrics in ({"auc": 0.61}, {"auc": 0.62}, {"auc": 0.62}):  # the best epoch, told once more
        report.training("ranker", 4, 4, metrics)


def test_a_log_has_a_line_for_each_step_and_each_training_that_ended_as_it_happens(monkeypatch):
    log = Log()
    screen(monkeypatch, log)
    with reporter() as report:
        report.step("features")
        assert log.flushed == "0:00:00  features\n"
        build(report)
    lines = [line.partition("  ")[2] for line in log.getvalue().splitlines()]
    ended = "ranker: 4 of 4 batches  auc "
    assert lines == ["features", "features", "ranker", f"{ended}0.6100", f"{ended}0.6200"]
    assert "\r" not in log.getvalue()


def test_a_log_hears_of_a_long_training_once_a_minute(monkeypatch):
    log, now = Log(), [0.0]
    screen(monkeypatch, log)
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    with reporter() as report:
        for batch in range(1, 200):
            now[0] += 1
            report.training("ranker", batch, 1000, {"loss": 0.5})
    assert log.getvalue().splitlines() == [
        f"0:0{minute}:00  ranker: {60 * minute} of 1,000 batches  loss 0.5000" for minute in (1, 2, 3)
    ]


def test_a_terminal_has_bars(monkeypatch):
    window = io.StringIO()
    screen(monkeypatch, window, force_terminal=True)
    with reporter() as report:
        build(report)
    assert "━" in window.getvalue()
    assert "auc 0.6200" in window.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", ["data [1]", "a[/b]"])
def test_what_is_done_to_a_folder_is_told_by_its_name_letter_by_letter(monkeypatch, terminal, name):
    file = io.StringIO()
    screen(monkeypatch, file, force_terminal=terminal)
    with working(f"checking {name}"):
        pass
    with counted(f"joining {name}", 3) as tell:
        tell(1)
        tell(4, 4)
    assert f"checking {name}" in file.getvalue()
    assert f"joining {name}" in file.getvalue()
    assert "100%" in file.getvalue()
    assert ("\r" in file.getvalue()) == terminal


def test_a_log_says_that_something_has_begun_before_it_ends(monkeypatch):
    log = Log()
    screen(monkeypatch, log)
    for begin in (working, counted):
        with begin("reading a long log"):
            assert log.flushed.splitlines()[-1] == "reading a long log"
