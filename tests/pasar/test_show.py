"""Tables keep their words however narrow the window is, and ids are shown as they are."""

import io

import pytest
from rich.console import Console

from ensemble.client import FeedRequest, Item, Slate
from ensemble.rules import Reason
from pasar.show import console, errors, rows_table, say, slate_tables, warn

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
