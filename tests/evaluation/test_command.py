"""A protocol runs from a folder to rows, for baselines and for Pasar's own systems."""

import numpy as np
import pandas as pd
import pytest

import evaluation.cascade
import evaluation.command
from evaluation.command import alone, chosen, load_tables, only_markets, run_protocol
from evaluation.protocols import NothingToJudge, benchmarks
from evaluation.systems import baselines
from market.dataset import write_dataset


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


def test_a_seed_that_is_given_twice_counts_once(small_world_dataset, popularity_alone, monkeypatch):
    monkeypatch.setattr(evaluation.command, "_ours", lambda benchmark, *_: baselines(benchmark.task)[:1])
    rows = run_protocol("dataset", small_world_dataset.path, markets=["ID"], seeds=(2, 1, 2), build=object())
    both = [row.seed for row in rows if row.metric == "recall@20"]
    assert both == [2, 2, 1]  # the baselines' row first


def test_rows_are_kept_whenever_a_part_is_done(small_world_dataset, popularity_alone):
    kept: list[int] = []
    rows = run_protocol("dataset", small_world_dataset.path, keep=lambda rows: kept.append(len(rows)))
    assert kept == [len(rows)]


@pytest.fixture
def ratings(tmp_path):
    """Writes ratings (user, content, market), a second apart, as a data set that holds out the last ones."""

    def write(rows):
        log = pd.DataFrame(rows, columns=["user_id", "content_id", "market"])
        contents = log.groupby("content_id")["market"].agg(lambda codes: sorted(set(codes)))
        return write_dataset(
            tmp_path / "data",
            name="ratings",
            feedback="positives",
            split="leave_last",
            users=log[["user_id", "market"]].drop_duplicates("user_id"),
            contents=contents.rename("markets").reset_index().assign(kind="product"),
            impressions=[log.assign(time=1_700_000_000 + np.arange(len(log)), order=1)],
        ).path

    return write


COLUMNS = ["content_id", "markets"]
KNOWN = [(f"u{u}", f"c{(u + c) % 20}", "DE") for u in range(20) for c in range(4)]


def test_a_market_without_an_exam_does_not_cost_the_others_theirs(ratings, popularity_alone):
    path = ratings(KNOWN + [(f"v{u}", "k", "FR") for u in range(9)])
    told: list[str] = []
    rows = run_protocol("dataset", path, each_alone=True, step=told.append)
    assert {row.market for row in rows} == {"DE"}
    assert any("FR alone is left out" in line and "check the split 'leave_last'" in line for line in told)
    with pytest.raises(NothingToJudge, match="no user has a positive row"):
        run_protocol("dataset", path, each_alone=True, markets=["FR"])


def test_a_market_alone_has_its_visitors_and_what_it_shows_no_more(ratings, popularity_alone, monkeypatch):
    path = ratings(KNOWN + [(f"u{u}", f"k{(u + c) % 5}", "FR") for u in range(9) for c in range(3)])
    tables = load_tables("dataset", path)
    tables.contents["markets"] = [["DE"] if c == "k0" else m for c, m in tables.contents[COLUMNS].to_numpy()]
    monkeypatch.setattr(evaluation.command, "_tables", lambda *_: tables)
    own = alone(tables, "FR")
    assert set(own.users["user_id"]) == {f"u{u}" for u in range(9)}
    assert set(own.users["market"]) == {"FR"}
    sold = {content: list(markets) for content, markets in own.contents[COLUMNS].to_numpy()}
    assert sold == {"k0": ["DE"]} | {f"k{c}": ["FR"] for c in range(1, 5)}
    assert {row.market for row in run_protocol("dataset", path, each_alone=True)} == {"DE", "FR"}


def test_a_variant_in_which_a_market_has_no_exam_does_not_cost_the_other_its_rows(ratings, popularity_alone):
    path = ratings(KNOWN + [(f"v{u}", f"k{u % 3}", "FR") for u in range(9) for _ in range(2)])
    told: list[str] = []
    rows = run_protocol("dataset", path, markets=["DE", "FR"], step=told.append)
    assert {(row.data_set, row.market) for row in rows} == {
        ("ratings", "DE"),
        ("ratings", "FR"),
        ("ratings (without repeats)", "DE"),
    }
    assert "ratings (without repeats), FR: left out, nobody can be asked there" in told


def test_a_market_without_a_profile_is_judged_and_told_of(ratings, popularity_alone):
    path = ratings([(user, content, "NL") for user, content, _ in KNOWN])
    told: list[str] = []
    rows = run_protocol("dataset", path, told=told.append)
    assert {row.market for row in rows} == {"NL"}
    assert [remark.split(":")[0] for remark in told] == ["no profile of NL in market/profiles.py"]
    for benchmark in benchmarks(load_tables("dataset", path), stage="valid"):
        assert benchmark.remarks[0] == told[0]  # what `pasar tune` says


def test_an_unknown_protocol_is_told_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no protocol 'netflix'; there are gowalla.*, and dataset"):
        run_protocol("netflix", tmp_path)


def test_what_cannot_be_asked_is_told_and_not_only_as_a_step_that_the_next_one_hides(
    ratings, popularity_alone
):
    path = ratings(KNOWN + [(f"v{u}", f"k{u % 3}", "FR") for u in range(9) for _ in range(2)])
    told: list[str] = []
    run_protocol("dataset", path, markets=["DE", "FR"], told=told.append)
    assert told == ["ratings (without repeats), FR: left out, nobody can be asked there"]
    told.clear()
    run_protocol("dataset", path, told=told.append)  # a row that the table lacks would not be missed
    assert told == ["ratings (without repeats), FR: left out, nobody can be asked there"]
    told.clear()
    run_protocol("dataset", path, each_alone=True, told=told.append)
    (remark,) = told
    assert remark.startswith("ratings (without repeats): no user has a positive row")


def test_negatives_are_the_same_under_every_seed(ratings, monkeypatch):
    seen = []
    monkeypatch.setattr(
        evaluation.command, "evaluate", lambda benchmark, *_: seen.append(benchmark.exams[0]) or []
    )
    path = ratings(KNOWN)
    for seed in (0, 1):
        run_protocol("dataset", path, seeds=(seed,))
    np.testing.assert_array_equal(seen[0].candidates, seen[1].candidates)


@pytest.mark.slow
def test_seeds_that_run_side_by_side_give_the_rows_of_seeds_one_after_another(
    plain_config, small_world_dataset
):
    given = {"markets": ["ID"], "seeds": (1,), "build": plain_config}
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
