"""Sides take turns, ratios are against ours, reports are whole files, peers answer or say why not."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.features import check
from benchmarks.harness import (
    BenchmarkError,
    Cost,
    compare,
    peer,
    seconds,
    table,
    timed,
    timed_once,
    write_report,
)
from pasar.cli import _expected


def side(name: str, cpu: float, turns: list[str]) -> harness.Side:
    def run() -> Cost:
        turns.append(name)
        return Cost(wall=2 * cpu, cpu=cpu)

    return run


def test_sides_take_turns_and_are_told_in_multiples_of_the_first() -> None:
    turns: list[str] = []
    results = compare("work", 7, {"us": side("us", 0.5, turns), "peer": side("peer", 5, turns)}, repeats=2)
    assert turns == ["us", "peer"] * 3
    assert [r.times_ours for r in results] == [1, 10]
    assert [r.runs for r in results] == [2, 2]
    assert results[1].wall.median == 10


def test_a_slow_side_has_one_turn_and_says_so() -> None:
    turns: list[str] = []
    sides = {"us": side("us", 1, turns), "peer": side("peer", 100, turns)}
    results = compare("work", 7, sides, repeats=3, budget_s=60)
    assert turns.count("peer") == 1
    assert [r.runs for r in results] == [3, 1]


def test_a_side_is_slow_by_what_it_took_not_by_what_it_says_of_one_of_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def thousand() -> Cost:
        now[0] += 50
        return Cost(0.05, 0.05)

    results = compare("a query", 7, {"us": lambda: Cost(0.001, 0.001), "peer": thousand}, repeats=5)
    assert [r.runs for r in results] == [5, 1]
    assert now == [50]


def test_short_work_is_repeated_until_it_can_be_measured() -> None:
    calls = []
    run = timed(lambda: calls.append(1), at_least=1.0)
    run()
    assert len(calls) > 2
    assert run().wall > 0


def test_work_that_goes_on_from_where_it_was_is_done_once_a_turn() -> None:
    calls: list[int] = []
    compare("a pass", 7, {"us": timed_once(lambda: calls.append(1))}, repeats=3)
    assert len(calls) == 4


def test_errors_of_a_benchmark_are_told_by_the_command_line() -> None:
    assert issubclass(BenchmarkError, _expected())


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    results = compare("work", 7, {"us": lambda: Cost(1, 1)}, repeats=1)
    file = tmp_path / "new" / "report.json"
    write_report(file, "test", {}, harness.machine(), {}, results)
    assert json.loads(file.read_text())["results"][0]["case"] == "work"
    assert [f.name for f in file.parent.iterdir()] == ["report.json"]
    assert "| work | 7 | us | 1 s" in table(results)


def test_times_are_told_in_the_unit_that_reads_best() -> None:
    assert [seconds(t) for t in (12.3, 0.0123, 0.0000123)] == ["12.3 s", "12.3 ms", "12.3 µs"]
    assert [seconds(t) for t in (1119.6, 999.5, 0.9996)] == ["1,120 s", "1,000 s", "1 s"]
    assert seconds(float("nan")) == ""


def test_a_machine_without_linuxs_files_and_calls_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(harness.os, "sched_getaffinity")
    monkeypatch.setattr(harness, "Path", lambda name: Path(f"/nowhere{name}"))
    found = harness.machine()
    assert found["cores"] >= 1
    assert found["processor"]


def test_a_peer_answers_each_line_and_its_prints_do_not_disturb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "print('imported')\nfrom answering import serve\n"
        "serve({'add': lambda a, b: print('noise') or {'sum': a + b}})\n"
    )
    (tmp_path / "adder.py").write_text(script)
    (tmp_path / "answering.py").write_text((harness.PEERS / "answering.py").read_text())
    monkeypatch.setattr(harness, "PEERS", tmp_path)
    with peer("adder.py", Path(sys.executable)) as adder:
        assert adder.ask("add", a=2, b=3)["sum"] == 5
        cost = adder.side("add", a=1, b=1)()
        assert cost.wall >= 0
        with pytest.raises(BenchmarkError, match=r"adder\.py ended while it was asked to add"):
            adder.ask("add", a=1)


def test_outputs_that_differ_are_refused_and_a_renumbering_of_ties_is_not(tmp_path: Path) -> None:
    np.save(tmp_path / "category.npy", np.array([3, 4, 5, 3, 1]))
    np.save(tmp_path / "number.npy", np.array([0.5, 1.5]))
    number = {"number": np.array([0.5, 1.5], np.float32)}
    check({"category": np.array([3, 5, 4, 3, 1]), **number}, tmp_path, "peer")
    for wrong in ([3, 4, 4, 3, 1], [4, 3, 5, 4, 1], [3, 4, 5, 3, 2], [3, 4, 5, 3]):
        with pytest.raises(ValueError, match="category"):
            check({"category": np.array(wrong), **number}, tmp_path, "peer")
    with pytest.raises(ValueError, match="number differs"):
        check({"number": np.array([0.5, 1.6], np.float32)}, tmp_path, "peer")
