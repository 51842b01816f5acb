"""The growth benchmark says what each part of a world's way took, and draws it."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from benchmarks import growth
from benchmarks.growth import Grown, Meter, memory, plot, summed
from benchmarks.harness import BenchmarkError, table


def test_a_meter_tells_the_highest_memory_of_each_part_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": (2, 1)}
    monkeypatch.setattr(growth, "memory", lambda: held["now"])
    meter = Meter(every_s=0.001)
    meter.begin("small")
    meter.begin("large")
    held["now"] = (9, 8)
    while meter.parts[-1]["resident"] < 9:
        time.sleep(0.001)
    held["now"] = (3, 2)
    meter.begin("after")
    small, large, after = meter.stop()
    assert [part["part"] for part in (small, large, after)] == ["small", "large", "after"]
    told = [(part["resident"], part["anonymous"]) for part in (small, large, after)]
    assert told == [(2, 1), (9, 8), (3, 2)]
    assert min(part["wall"] for part in (small, large, after)) > 0


def test_files_that_are_mapped_are_resident_but_not_anonymous(tmp_path: Path) -> None:
    # In a process of its own: of one that ran other tests, the system may take pages back meanwhile.
    np.save(tmp_path / "array.npy", np.ones(64 << 20, np.uint8))
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        before, mapped, copied = alone.submit(memory_of_a_file, tmp_path / "array.npy").result()
    assert mapped[0] - before[0] > 48 << 20
    assert mapped[1] - before[1] < 30 << 20
    assert copied[0] - mapped[0] > 48 << 20
    assert copied[1] - mapped[1] > 48 << 20


def memory_of_a_file(path: Path) -> list[tuple[int, int]]:
    """Memory before a file is mapped, when all of it was read, and beside a copy of it."""
    found = [memory()]
    mapped = np.load(path, mmap_mode="r")
    assert mapped.sum() == mapped.size
    found.append(memory())
    copied = mapped.copy()
    found.append(memory())
    assert copied.sum() == copied.size
    return found


def ends(*_: object) -> None:
    """A world whose process ends before it says anything."""
    raise SystemExit(3)


def test_a_smallest_world_that_ends_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "grow", ends)
    with pytest.raises(BenchmarkError, match=r"100 contents, 10 impressions: ended by 3, see its error"):
        growth.run(rows=1000, report=lambda line: None)


def parts(factor: int) -> list[dict]:
    names = ("simulate", "examples", "ranker", "load", "request of 1", "request of 64")
    return [
        {"part": name, "wall": factor, "cpu": 2 * factor, "resident": factor << 30, "anonymous": factor << 29}
        for name in names
    ]


def test_the_build_is_the_sum_of_its_steps_and_the_highest_of_their_memory() -> None:
    steps = parts(3)
    steps[2]["resident"] = 9 << 30
    [build] = [line for line in summed(10, 300, steps) if line.part == "build"]
    assert build == Grown(10, 300, "build", 6, 12, 9 << 30, 3 << 29)


def test_the_table_has_a_line_a_part_and_the_figure_is_drawn(tmp_path: Path) -> None:
    results = [line for n in (1, 2, 3) for line in summed(10**n, 30 * 10**n, parts(n))]
    assert len(table(results).splitlines()) == 2 + len(results)
    assert "| 1,000 | 30,000 | build | 6 s | 12 s | 3.00 GiB | 1.50 GiB |" in table(results)
    plot(results, tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")
