"""Running systems: the figures, their files, their table."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation import protocols, tasks
from evaluation.metrics import interval
from evaluation.protocols import benchmarks
from evaluation.published import PUBLISHED
from evaluation.runs import Row, evaluate, read_rows, table, write_rows
from evaluation.systems import MedianAmount, baselines
from evaluation.tasks import Benchmark, FullRanking, Labelled
from market.tables import Tables, validate
from tests.evaluation.test_protocols import a_log, as_positives


class Fixed:
    """Scores every user alike, by a given array over contents."""

    name = "fixed"

    def __init__(self, scores):
        self.scores = np.asarray(scores, dtype=np.float32)

    def fit(self, task, *, seed, progress=None):
        self.seed = seed

    def score(self, users, candidates=None):
        every = np.broadcast_to(self.scores, (len(users), len(self.scores)))
        return every if candidates is None else np.take_along_axis(every, candidates, axis=1)


class Drawn:
    """Scores drawn for each pair, the same whatever other users are asked for; no two are equal."""

    name = "drawn"

    def fit(self, task, *, seed, progress=None):
        self.scores = np.random.default_rng(seed).random((task.users, task.items))

    def score(self, users, candidates=None):
        every = self.scores[users]
        return every if candidates is None else np.take_along_axis(every, candidates, axis=1)


@pytest.fixture
def two_markets() -> Benchmark:
    """Contents 0 to 3 in DE, 2 to 5 in ID; u0 has 0 and wants 1 and 2, u1 has 5 and wants 3."""
    markets = [["DE"], ["DE"], ["DE", "ID"], ["DE", "ID"], ["ID"], ["ID"]]
    rows = [
        ("u0", "c0", "DE", "train"),
        ("u0", "c1", "DE", "test"),
        ("u0", "c2", "DE", "test"),
        ("u1", "c5", "ID", "train"),
        ("u1", "c3", "ID", "test"),
    ]
    tables = Tables(
        name="small",
        feedback="positives",
        split="given",
        users=pd.DataFrame({"user_id": ["u0", "u1"], "market": ["DE", "ID"]}),
        contents=pd.DataFrame(
            {"content_id": [f"c{i}" for i in range(6)], "kind": "video", "markets": markets}
        ),
        impressions=pd.DataFrame(rows, columns=["user_id", "content_id", "market", "split"]).assign(click=1),
    )
    (benchmark,) = benchmarks(validate(tables))
    return replace(
        benchmark, exams=tuple(replace(e, metrics=("recall@1", "ndcg@2", "hr@4")) for e in benchmark.exams)
    )


def test_figures_are_those_of_lists_without_known_contents_and_other_markets(two_markets):
    # u0: known 0 and foreign 5 and 4 are left out: 3, 1, 2. u1: foreign 0, 1 and known 5: 4, 3, 2.
    rows = list(evaluate(two_markets, [Fixed([9, 4, 1, 5, 6, 8])]))
    figures = {(row.market, row.metric): row.value for row in rows}
    ideal = 1 + 1 / math.log2(3)
    assert figures == pytest.approx(
        {
            ("DE", "recall@1"): 0,
            ("DE", "ndcg@2"): (1 / math.log2(3)) / ideal,
            ("DE", "hr@4"): 1,
            ("ID", "recall@1"): 0,
            ("ID", "ndcg@2"): 1 / math.log2(3),
            ("ID", "hr@4"): 1,
        }
    )
    assert {(row.data_set, row.system, row.users, row.seed) for row in rows} == {("small", "fixed", 1, 0)}


def test_scores_may_be_whole_numbers_such_as_counts(two_markets):
    counts = [9, 4, 1, 5, 6, 8]
    expected = repr(list(evaluate(two_markets, [Fixed(counts)])))  # NaN ends of one user's interval
    whole = Fixed(counts)
    whole.score = lambda users, candidates=None: np.tile(np.array(counts, np.int64), (len(users), 1))
    assert repr(list(evaluate(two_markets, [whole]))) == expected


def test_ranking_and_sampling_in_small_blocks_give_the_same_figures(monkeypatch):
    tables = as_positives(a_log(0), "leave_last")
    whole = benchmarks(tables)

    def figures_of(made):
        # Popularity counts, so it has ties that no rounding turns.
        return [list(evaluate(one, [Drawn(), *baselines(one.task)[:1]])) for one in made]

    figures = figures_of(whole)
    for module in (tasks, protocols):
        monkeypatch.setattr(module, "BLOCK_ENTRIES", 100)
    split = benchmarks(tables)
    kinds = set()
    for exam, other in zip(exams_of(whole), exams_of(split), strict=True):
        kinds.add(type(exam))
        if isinstance(exam, Labelled):
            pool = sum(exam.market in sold for sold in tables.contents["markets"])
            assert len(exam.users) * pool > 2 * 100, "sampled in one block"
            np.testing.assert_array_equal(exam.candidates, other.candidates)
            np.testing.assert_array_equal(exam.labels, other.labels)
        else:
            assert exam.truth.shape[0] * exam.truth.shape[1] > 2 * 100, "ranked in one block"
    assert kinds == {FullRanking, Labelled}
    assert repr(figures_of(split)) == repr(figures)


def test_a_baseline_scores_a_user_alone_as_among_all():
    for benchmark in benchmarks(as_positives(a_log(0), "leave_last")):
        users = np.arange(benchmark.task.users)
        for system in baselines(benchmark.task):
            system.fit(benchmark.task, seed=0)
            every = system.score(users)
            # Products of another size may differ in their last bits, and so may the ranks of equal contents.
            alone = np.concatenate([system.score(users[user : user + 1]) for user in users])
            np.testing.assert_allclose(alone, every, rtol=1e-4, atol=1e-6, err_msg=system.name)
            assert np.ptp(every, axis=0).max() > 0, f"{system.name} scores all users alike"


def exams_of(made: list[Benchmark]) -> list[FullRanking | Labelled]:
    return [exam for benchmark in made for exam in benchmark.exams]


def test_every_seed_is_fitted_and_named(two_markets):
    said: list[str] = []
    rows = list(evaluate(two_markets, [Fixed(np.zeros(6))], seeds=(3, 4), progress=said.append))
    assert [row.seed for row in rows] == [3] * 6 + [4] * 6
    assert said == ["small: fitting fixed, seed 3", "small: fitting fixed, seed 4"]


def test_rows_come_as_soon_as_they_are_known(two_markets):
    class Broken(Fixed):
        def fit(self, task, *, seed, progress=None):
            raise RuntimeError("no memory")

    rows = evaluate(two_markets, [Fixed(np.zeros(6)), Broken(np.zeros(6))])
    assert next(rows).system == "fixed"
    with pytest.raises(RuntimeError, match="no memory"):
        list(rows)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(5), r"'fixed' returned scores of shape \(1, 5\) for \(1, 6\)"),
        ([0, 0, np.nan, 0, 0, 0], "1 scores that are NaN"),
    ],
)
def test_a_system_that_returns_nonsense_is_named(two_markets, scores, message):
    with pytest.raises(ValueError, match=message):
        list(evaluate(two_markets, [Fixed(scores)]))


def test_an_amount_is_judged_in_its_unit_and_a_preference_over_all_queries(two_markets):
    candidates = np.array([[0, 1], [2, 3]])
    users = np.array([0, 1])
    exams = (
        Labelled("DE", users, candidates, np.array([[1, 0], [1, 0]], dtype=np.float32), ("auc",)),
        Labelled("DE", users, candidates, np.array([[5, 5], [5, 5]], dtype=np.float32), ("mae",)),
        Labelled(
            "DE", users, candidates, np.array([[1, 0], [1, 0]], dtype=np.float32), ("ndcg@1",), "1 negative"
        ),
    )
    rows = list(evaluate(replace(two_markets, exams=exams), [Fixed([4, 3, 2, 1, 0, 0])]))
    assert [(row.metric, row.value) for row in rows] == [
        ("auc", 0.75),
        ("mae", 2.5),
        ("ndcg@1 (1 negative)", 1.0),
    ]


def test_the_interval_of_an_amount_is_over_people_however_many_rows_they_have(two_markets):
    users, items = np.arange(2).repeat(50), np.zeros((100, 1), np.int64)
    labels = np.where(users == 0, 3, 9).astype(np.float32)[:, None]
    exam = Labelled("DE", users, items, labels, ("mae",))
    (measure,) = exam.measure(Fixed(np.zeros(6)))
    assert measure.interval == pytest.approx(interval(np.array([3.0, 9.0])))
    assert measure.users == 2


def test_the_median_by_duration_follows_the_duration(two_markets):
    duration = np.array([10, 10, 10, 50, 50, 50], dtype=np.float32)
    contents = two_markets.task.tables.contents.assign(duration_s=duration)
    train = tasks.Interactions(
        user=np.zeros(6, dtype=np.int64),
        item=np.arange(6),
        market=np.zeros(6, dtype=np.int64),
        outcomes={"watch_s": np.array([1, 2, 3, 30, 31, 32], dtype=np.float32)},
    )
    tables = replace(two_markets.task.tables, contents=contents)
    task = replace(two_markets.task, tables=tables, train=train, target="watch_s")
    predictions = {}
    for system in baselines(task):
        system.fit(task, seed=0)
        predictions[system.name] = system.score(np.array([0]), np.array([[0, 5]])).tolist()
    assert predictions == {"median": [[16.5, 16.5]], "median by duration": [[2, 31]]}
    assert MedianAmount(1).name == "median"


def test_rows_survive_the_way_through_a_file(tmp_path, two_markets):
    rows = [row for row in evaluate(two_markets, [Fixed(np.arange(6))])]
    write_rows(tmp_path / "deep" / "rows.json", rows)
    assert "NaN" not in (tmp_path / "deep" / "rows.json").read_text()
    assert repr(read_rows(tmp_path / "deep" / "rows.json")) == repr(rows)  # NaN ends of one user's interval
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rows.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.json"
    row = Row("small", "DE", "fixed", "recall@1", 0.5, 0.4, 0.6, 9, 0)
    write_rows(path, [row])
    with pytest.raises(TypeError):
        write_rows(path, [replace(row, value=object())])
    assert read_rows(path) == [row]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no evaluation rows"):
        read_rows(tmp_path / "rows.json")


def test_the_table_prints_published_figures_beside_ours():
    rows = [
        Row("tiktok", "XX", "ease", "recall@20", value, 0.08, 0.10, 6130, seed)
        for seed, value in enumerate((0.08, 0.09))
    ]
    lines = table(rows).splitlines()
    assert "| tiktok | XX | recall@20 | ease | 0.0850 | 0.0800 to 0.1000 | 2, ± 0.0635 | 0.0884 |  |" in lines
    assert "| tiktok | XX | recall@20 | diffmm |  |  |  | 0.1129 | uses content features |" in lines
    assert sum("| ease |" in line for line in lines) == 1


def test_the_interval_beside_a_mean_over_seeds_is_the_mean_of_theirs():
    rows = [
        Row("mine", "XX", "cascade", "auc", value, low, high, 50, seed)
        for seed, (value, low, high) in enumerate([(0.6, 0.5, 0.8), (0.7, 0.4, 0.9), (0.8, 0.6, 1.0)])
    ]
    assert "| cascade | 0.7000 | 0.5000 to 0.9000 | 3, ± 0.2484 |" in table(rows)


def test_another_data_set_in_a_public_format_stands_beside_no_published_figure():
    said = table([Row("tiktok", "XX", "ease", "recall@20", 0.52, 0.4, 0.6, 50, 0)])
    assert "| tiktok | XX | recall@20 | ease | 0.5200 | 0.4000 to 0.6000 |  |  |  |" in said
    assert "0.0884" not in said
    assert "diffmm" not in said


def test_published_figures_are_each_given_once_with_a_source():
    keys = [(f.data_set, f.market, f.metric, f.system) for f in PUBLISHED]
    assert len(keys) == len(set(keys))
    assert all(figure.source for figure in PUBLISHED)
