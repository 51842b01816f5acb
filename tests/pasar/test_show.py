"""Tables keep their words however narrow the window is."""

import io

import pytest
from rich.console import Console

from ensemble.client import FeedRequest, Item, Slate
from ensemble.rules import Reason
from pasar.show import slate_tables

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
