"""A protocol runs from a folder to rows, for baselines and for Pasar's own systems."""

import pytest

import evaluation.cascade
import evaluation.command
from evaluation.command import chosen, load_tables, only_markets, run_protocol
from evaluation.protocols import benchmarks
from evaluation.systems import baselines


@pytest.fixture
def popularity_alone(monkeypatch):
    """Fitting every baseline is tested where they live; the first is enough here."""
    monkeypatch.setattr(evaluation.command, "baselines", lambda task: baselines(task)[:1])


def test_a_data_set_on_disk_gives_back_its_tables(small_world_dataset):
    tables = load_tables("dataset", small_world_dataset.path)
    assert tables.name == small_world_dataset.name
    assert len(tables.impressions) == small_world_dataset.description.rows["impressions"]
    assert len(tables.users) == small_world_dataset.description.rows["users"]


def test_a_market_can_be_judged_alone_and_is_still_learned_with_the_others(small_world_dataset):
    benchmark = benchmarks(load_tables("dataset", small_world_dataset.path))[0]
    alone = only_markets(benchmark, ["GB"])
    assert {exam.market for exam in alone.exams} == {"GB"}
    assert {exam.market for exam in benchmark.exams} == {"GB", "ID"}
    assert alone.task is benchmark.task


def test_a_market_without_an_exam_is_refused_with_those_there_are(small_world_dataset):
    benchmark = benchmarks(load_tables("dataset", small_world_dataset.path))[0]
    with pytest.raises(ValueError, match="no exam in market 'FR'; there are GB, ID"):
        only_markets(benchmark, ["FR"])


def test_a_benchmark_can_be_judged_alone_and_an_unknown_one_is_refused(small_world_dataset):
    found = benchmarks(load_tables("dataset", small_world_dataset.path))
    assert chosen(found, None) == found
    assert chosen(found, "world") == found
    with pytest.raises(ValueError, match="no benchmark 'else'; there are: world"):
        chosen(found, "else")


def test_baselines_are_judged_without_a_build(small_world_dataset, popularity_alone):
    rows = run_protocol("dataset", small_world_dataset.path, markets=["ID"], seeds=(1, 2))
    assert {row.system for row in rows} == {"popularity"}
    assert {row.market for row in rows} == {"ID"}
    assert {row.seed for row in rows} == {1}


def test_rows_are_kept_whenever_a_part_is_done(small_world_dataset, popularity_alone):
    kept: list[int] = []
    rows = run_protocol("dataset", small_world_dataset.path, keep=lambda rows: kept.append(len(rows)))
    assert kept == [len(rows)]


@pytest.mark.slow
def test_seeds_that_run_side_by_side_give_the_rows_of_seeds_one_after_another(
    small_build, small_world_dataset
):
    given = {"markets": ["ID"], "seeds": (1,), "build": small_build.config}
    kept: list[int] = []
    one_by_one = run_protocol("dataset", small_world_dataset.path, **given)
    rows = run_protocol(
        "dataset", small_world_dataset.path, **given, jobs=2, keep=lambda rows: kept.append(len(rows))
    )
    assert [(r.system, r.metric, r.seed) for r in rows] == [(r.system, r.metric, r.seed) for r in one_by_one]
    assert [r.value for r in rows] == pytest.approx([r.value for r in one_by_one], abs=0.02)
    assert len(kept) == 2
    assert kept[-1] == len(rows)


@pytest.mark.slow
def test_our_systems_are_judged_under_every_seed(
    small_build, small_world_dataset, popularity_alone, monkeypatch
):
    monkeypatch.setattr(evaluation.cascade, "build_release", lambda *_, **__: small_build.built)
    rows = run_protocol("dataset", small_world_dataset.path, seeds=(1, 2), build=small_build.config)
    ours = [row for row in rows if row.system != "popularity"]
    assert {(row.system, row.seed) for row in ours} == {
        (system, seed) for system in ("two-tower", "cascade", "cascade, validation known") for seed in (1, 2)
    }
    assert all(0 <= row.value <= 1 for row in ours)
    assert {row.market for row in ours} == {"GB", "ID"}
