"""Tables say over what their intervals are."""

import pytest
from rich.console import Console

from evaluation.closed_loop import EXPECTED
from evaluation.metrics import interval
from evaluation.runs import ALL, Row
from pasar.tables import compared_table


def played(seed, whole, part):
    over = f"{EXPECTED} over whole"
    return [
        Row("world", ALL, "whole", EXPECTED, whole, whole - 0.25, whole + 0.25, 50, seed),
        Row("world", "DE", "whole", EXPECTED, 9.0, 8.0, 10.0, 20, seed),
        Row("world", ALL, "part", EXPECTED, part, part - 0.5, part + 0.5, 50, seed),
        Row("world", ALL, "part", over, part - whole, part - whole - 0.125, part - whole + 0.125, 50, seed),
    ]


def printed(rows):
    console = Console(width=200)
    with console.capture() as shown:
        console.print(compared_table("100 requests", rows, "whole"))
    return " ".join(shown.get().split())


def test_one_training_is_compared_over_people():
    text = printed(played(7, 3.0, 2.5))
    assert "intervals over people" in text
    assert "+3.000 (+2.750 to +3.250)" in text
    assert "-0.500 (-0.625 to -0.375)" in text
    assert "9.0" not in text


def test_several_trainings_are_compared_by_their_means_over_trainings():
    trained = {7: (3.0, 2.5), 8: (2.9, 2.6), 9: (3.2, 2.9)}
    text = printed([row for seed, values in trained.items() for row in played(seed, *values)])
    assert "intervals over 3 trainings" in text
    for values in ([3.0, 2.9, 3.2], [2.5, 2.6, 2.9], [-0.5, -0.3, -0.3]):
        mean, low, high = interval(values)
        assert f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" in text
    assert mean == pytest.approx(-0.3667, abs=1e-3)
