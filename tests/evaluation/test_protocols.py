"""The protocols: who is asked for what, and that nobody sees the answers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.protocols import (
    NothingToJudge,
    benchmarks,
    held_out_pairs,
    parts,
    ranking,
    watch_time,
    without_repeats,
)
from evaluation.systems import baselines
from evaluation.tasks import FullRanking, Labelled
from market.outcomes import OUTCOMES
from market.tables import Tables, validate

MARKETS = ("DE", "ID")
BEGIN = 1_700_000_000


def a_log(seed: int, users: int = 30, items: int = 40, rows: int = 600) -> Tables:
    """An impression log of two markets with every outcome that the protocols ask for."""
    rng = np.random.default_rng(seed)
    market = np.array(MARKETS)[np.arange(users) % 2]
    user = rng.integers(0, users, rows)
    item = (rng.integers(0, items // 2, rows) * 2 + user % 2) % items  # contents of the user's market
    like = rng.random(rows) < 0.5
    return validate(
        Tables(
            name="a log",
            feedback="impressions",
            split="time",
            users=pd.DataFrame({"user_id": [f"u{u}" for u in range(users)], "market": market}),
            contents=pd.DataFrame(
                {
                    "content_id": [f"c{c}" for c in range(items)],
                    "kind": "video",
                    "markets": [[MARKETS[c % 2]] for c in range(items)],
                    "duration_s": rng.uniform(5, 60, items),
                }
            ),
            impressions=pd.DataFrame(
                {
                    "user_id": [f"u{u}" for u in user],
                    "content_id": [f"c{c}" for c in item],
                    "market": market[user],
                    "time": BEGIN + rng.permutation(rows),
                    "click": (rng.random(rows) < 0.4).astype(np.int8),
                    "like": like.astype(np.int8),
                    "negative": (~like).astype(np.int8),
                    "watch_s": rng.exponential(20, rows),
                }
            ),
        )
    )


def as_positives(tables: Tables, split: str) -> Tables:
    """The clicked rows alone, in a positives data set."""
    log = tables.impressions
    log = log[log["click"] == 1].drop(columns=["click", "like", "negative", "watch_s"]).assign(order=1)
    if split == "given":
        log = log.assign(split=np.random.default_rng(0).choice(["train", "valid", "test"], len(log)))
    return validate(replace(tables, feedback="positives", split=split, impressions=log))


def every_benchmark(seed: int = 0, stage: str = "test"):
    log = a_log(seed)
    tables = [log, as_positives(log, "leave_last"), as_positives(log, "given"), replace(log, name="kuairand")]
    return [benchmark for each in tables for benchmark in benchmarks(each, stage)]


def same_task(one, other) -> None:
    """Everything that a system gets is equal."""
    for table in ("users", "contents", "impressions"):
        pd.testing.assert_frame_equal(getattr(one.tables, table), getattr(other.tables, table))
    for rows, others in ((one.train, other.train), (one.valid, other.valid)):
        assert (rows is None) == (others is None)
        if rows is not None:
            np.testing.assert_array_equal(rows.user, others.user)
            np.testing.assert_array_equal(rows.item, others.item)
            np.testing.assert_array_equal(rows.market, others.market)
            for name, values in rows.outcomes.items():
                np.testing.assert_array_equal(values, others.outcomes[name])


def labels_of(benchmark) -> list:
    return [
        exam.truth.toarray().tolist() if isinstance(exam, FullRanking) else exam.labels.tolist()
        for exam in benchmark.exams
    ]


def with_other_test_labels(tables: Tables) -> Tables:
    """Each test row gets a content of its market new to its user, and the outcomes of another test row."""
    rng = np.random.default_rng(2)
    log = tables.impressions.copy()
    test = np.flatnonzero(parts(tables) == "test")
    sold = tables.contents.explode("markets").groupby("markets")["content_id"].agg(set)
    for row in test:
        user, market = log.loc[row, ["user_id", "market"]]
        unknown = sold[market] - set(log.loc[log["user_id"] == user, "content_id"])
        log.loc[row, "content_id"] = rng.choice(sorted(unknown or sold[market]))
    outcomes = [name for name in log if name in OUTCOMES]
    log.loc[test, outcomes] = log.loc[rng.permutation(test), outcomes].to_numpy()
    return validate(replace(tables, impressions=log))


@pytest.mark.parametrize("kind", ["time", "leave_last", "without repeats", "given", "watch time"])
def test_other_test_labels_change_nothing_that_a_system_sees(kind):
    log = a_log(1)
    tables = {
        "time": log,
        "leave_last": as_positives(log, "leave_last"),
        "without repeats": without_repeats(as_positives(log, "leave_last")),
        "given": as_positives(log, "given"),
        "watch time": replace(log, name="kuairand"),
    }[kind]
    # Of the watch times the last fifth by time is the test, more than the test of a log.
    which = -1 if kind == "watch time" else 0
    benchmark, other = (benchmarks(each)[which] for each in (tables, with_other_test_labels(tables)))
    same_task(benchmark.task, other.task)
    assert labels_of(benchmark) != labels_of(other), "the other labels must reach the exams"
    users = np.arange(benchmark.task.users)
    for system in baselines(benchmark.task):
        system.fit(benchmark.task, seed=0)
        before = system.score(users)
        system.fit(other.task, seed=0)
        np.testing.assert_allclose(system.score(users), before, atol=1e-5, err_msg=system.name)


def test_hiding_the_labels_of_held_out_pairs_changes_nothing_that_a_system_sees():
    tables = a_log(3)
    benchmark = held_out_pairs(tables, "test", seed=0)
    visible = set(benchmark.task.tables.impressions["time"])  # times are unique
    hidden = ~tables.impressions["time"].isin(visible)
    log = tables.impressions
    asked = {
        (f"u{user}", f"c{item}")
        for exam in benchmark.exams
        for user, items in zip(exam.users, exam.candidates)
        for item in items
    }
    assert hidden.tolist() == [pair in asked for pair in zip(log["user_id"], log["content_id"])]
    assert hidden.sum() > sum(exam.labels.size for exam in benchmark.exams), "no pair has two rows"
    assert len(benchmark.task.train) == (~hidden).sum()


@pytest.mark.parametrize("stage", ["test", "valid"])
def test_the_rows_of_a_task_are_those_of_its_tables(stage):
    for benchmark in every_benchmark(stage=stage):
        task = benchmark.task
        log = task.tables.impressions
        assert task.tables.split == "given"
        for part, rows in (("train", task.train), ("valid", task.valid)):
            here = log[log["split"] == part]
            assert len(here) == (0 if rows is None else len(rows))
            if rows is not None:
                np.testing.assert_array_equal(
                    here["user_id"], task.tables.users["user_id"].to_numpy()[rows.user]
                )
                items = task.tables.contents["content_id"].to_numpy()[rows.item]
                np.testing.assert_array_equal(here["content_id"], items)
                np.testing.assert_array_equal(here["market"], np.array(task.markets)[rows.market])
        validate(task.tables)
        if stage == "valid":
            assert task.valid is None


def test_the_last_row_of_each_user_is_test_and_the_one_before_validation():
    tables = as_positives(a_log(4), "leave_last")
    log = tables.impressions.assign(part=parts(tables))
    for _, rows in log.groupby(["market", "user_id"]):
        ordered = rows.sort_values("time")["part"].tolist()
        expected = ["train"] * len(rows)
        if len(rows) > 1:
            expected[-1] = "test"
        if len(rows) > 2:
            expected[-2] = "valid"
        assert ordered == expected


def test_of_rows_of_one_time_the_later_in_the_file_is_held_out():
    tables = as_positives(a_log(4), "leave_last")
    tables = replace(tables, impressions=tables.impressions.assign(time=BEGIN))
    last = ~tables.impressions.duplicated(["market", "user_id"], keep="last")
    several = tables.impressions.duplicated(["market", "user_id"], keep=False)
    np.testing.assert_array_equal(parts(tables) == "test", last & several)


@settings(max_examples=20)
@given(seed=st.integers(0, 100), valid=st.floats(0.05, 0.3), test=st.floats(0.05, 0.3))
def test_a_cut_by_time_lets_nothing_of_the_future_into_the_past(seed, valid, test):
    tables = a_log(seed, rows=200)
    part = parts(tables, (valid, test))
    time = tables.impressions["time"].to_numpy()
    assert time[part == "train"].max() < time[part == "valid"].min()
    assert time[part == "valid"].max() < time[part == "test"].min()
    assert abs((part == "test").mean() - test) < 0.02
    assert abs((part == "valid").mean() - valid) < 0.02


def test_without_repeats_each_user_has_each_content_once_at_its_first_time():
    tables = as_positives(a_log(5), "leave_last")
    keys = ["market", "user_id", "content_id"]
    unique = without_repeats(tables).impressions
    assert len(unique) < len(tables.impressions)
    first = tables.impressions.groupby(keys)["time"].min()
    pd.testing.assert_series_equal(unique.set_index(keys)["time"].sort_index(), first.sort_index())


def test_repeats_are_reported_beside_the_unique_rows():
    names = [benchmark.task.name for benchmark in benchmarks(as_positives(a_log(5), "leave_last"))]
    assert names == ["a log", "a log (without repeats)"]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_negatives_are_of_the_market_and_unknown_to_the_user(seed):
    tables = as_positives(a_log(seed), "leave_last")
    log = tables.impressions
    known = set(zip(log["user_id"], log["content_id"], strict=True))
    users = tables.users["user_id"].to_numpy()
    contents = tables.contents["content_id"].to_numpy()
    market_of = dict(zip(contents, tables.contents["markets"], strict=True))
    for exam in ranking(tables, "test", seed, sampled=("ndcg@10",)).exams:
        assert isinstance(exam, Labelled)
        assert (exam.labels.sum(axis=1) == 1).all()
        for user, row, labels in zip(exam.users, exam.candidates, exam.labels, strict=True):
            assert len(set(row)) == len(row)
            for candidate, label in zip(contents[row], labels, strict=True):
                assert exam.market in market_of[candidate]
                assert ((users[user], candidate) in known) == (label == 1)


def test_the_relevant_candidate_stands_anywhere():
    exam = ranking(as_positives(a_log(6), "leave_last"), "test", 0, sampled=("ndcg@10",)).exams[0]
    assert len(np.unique(exam.labels.argmax(axis=1))) > 3


def test_negatives_repeat_under_a_seed_and_differ_between_seeds():
    tables = as_positives(a_log(7), "leave_last")
    one, same, other = (ranking(tables, "test", seed, sampled=("ndcg@5",)).exams[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.candidates, same.candidates)
    assert (one.candidates != other.candidates).any()


def ratings(rows: list[tuple[str, str, str]], sold: dict[str, list[str]] | None = None) -> Tables:
    """Ratings (user, content, market), a second apart; contents are sold where they were rated."""
    log = pd.DataFrame(rows, columns=["user_id", "content_id", "market"])
    log = log.assign(time=BEGIN + np.arange(len(log)), order=1)
    contents = log.groupby("content_id")["market"].agg(lambda codes: sorted(set(codes)))
    contents = contents.rename("markets").reset_index().assign(kind="product")
    if sold:
        contents["markets"] = contents["content_id"].map(sold)
    users = log[["user_id", "market"]].drop_duplicates("user_id")
    return validate(Tables("ratings", "positives", "leave_last", users, contents, log))


def some_ratings(users: int = 150, items: int = 400) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(0)
    return [
        (f"u{u}", f"c{c}", "DE") for u in range(users) for c in rng.choice(items, 5, replace=False).tolist()
    ]


def test_one_user_of_nearly_everything_takes_no_negatives_from_the_others():
    rows = some_ratings()
    everyone = ranking(ratings(rows), "test", 0, sampled=("ndcg@10",))
    heavy = [("heavy", f"c{c}", "DE") for c in range(390)]
    benchmark = ranking(ratings(rows + heavy), "test", 0, sampled=("ndcg@10",))
    (exam,) = benchmark.exams
    assert exam.remark == "99 negatives"
    assert len(exam.users) == len(everyone.exams[0].users) == 150
    assert everyone.remarks == ()
    assert "1 of 151 users" in benchmark.remarks[0]


def test_a_market_whose_users_know_all_of_it_is_left_out_and_told():
    tiny = [(f"i{u}", f"k{c}", "IN") for u in range(3) for c in range(4)]
    for benchmark in benchmarks(ratings(some_ratings() + tiny)):
        assert {exam.market for exam in benchmark.exams if isinstance(exam, Labelled)} == {"DE"}
        assert {exam.market for exam in benchmark.exams if isinstance(exam, FullRanking)} == {"DE", "IN"}
        assert "ratings, IN: 3 of 3 users" in benchmark.remarks[0]


def test_a_market_that_sells_nothing_is_told_apart():
    rows = [("u", "a", "DE"), ("u", "b", "DE")]
    with pytest.raises(ValueError, match="no content is sold there; add DE to `markets`"):
        benchmarks(ratings(rows, {"a": ["GB"], "b": ["GB"]}))


def test_a_variant_without_an_exam_is_told_and_the_other_is_judged():
    rows = [(f"u{u}", f"c{u % 30}", "DE") for u in range(60) for _ in range(2)]
    (benchmark,) = benchmarks(ratings(rows))
    assert len(benchmark.exams[0].users) == 60
    assert "ratings (without repeats): no user" in benchmark.remarks[0]


def test_a_log_of_lengths_or_of_likes_alone_is_judged_by_what_it_has():
    log = replace(a_log(2), name="kuairand")
    no_lengths = replace(log, contents=log.contents.assign(duration_s=np.nan))
    no_hate = replace(log, impressions=log.impressions.assign(negative=0))
    for tables, judged, told in (
        (no_lengths, "kuairand (likes)", "kuairand (watch time): no user"),
        (no_hate, "kuairand (watch time)", "kuairand (likes): no user"),
    ):
        (benchmark,) = benchmarks(tables)
        assert benchmark.task.name == judged
        assert told in benchmark.remarks[0]
    with pytest.raises(NothingToJudge, match=r"kuairand \(likes\)"):
        benchmarks(replace(no_hate, contents=no_lengths.contents))


def test_watch_time_is_asked_of_contents_of_known_length_where_it_was_logged():
    log = replace(a_log(2), name="kuairand")
    whole = watch_time(log, "test")
    short = np.arange(len(log.contents)) % 3 == 0
    contents = log.contents.assign(duration_s=np.where(short, 0, log.contents["duration_s"]))
    silent = np.arange(len(log.impressions)) % 4 == 0
    impressions = log.impressions.assign(watch_s=np.where(silent, np.nan, log.impressions["watch_s"]))
    fewer = watch_time(replace(log, contents=contents, impressions=impressions), "test")
    asked = np.concatenate([exam.candidates.ravel() for exam in fewer.exams])
    assert 0 < len(asked) < sum(exam.candidates.size for exam in whole.exams)
    assert not short[asked].any()
    assert not short[fewer.task.train.item].any()
    for amounts in (fewer.task.train.outcomes["watch_s"], *(exam.labels for exam in fewer.exams)):
        assert np.isfinite(amounts).all()


def test_the_split_that_is_named_is_the_one_of_the_data_set():
    with pytest.raises(NothingToJudge, match="check the split 'leave_last'"):
        benchmarks(ratings([("u", "a", "DE"), ("v", "b", "DE")]))


def test_a_log_whose_last_rows_repeat_those_of_training_is_told_so():
    with pytest.raises(NothingToJudge, match="whether its rows repeat those of training"):
        benchmarks(ratings([("u", "a", "DE")] * 3))


def test_full_rankings_ask_for_new_contents_of_the_market():
    for benchmark in every_benchmark():
        for exam in benchmark.exams:
            if isinstance(exam, FullRanking):
                assert exam.truth.multiply(exam.known).nnz == 0
                assert (np.diff(exam.truth.indptr) > 0).all()
                assert np.isin(exam.truth.indices, exam.pool).all()
                shown = benchmark.task.tables.contents["markets"].iloc[exam.pool]
                assert all(exam.market in markets for markets in shown)


def test_orders_train_on_the_validation_orders_for_the_report_alone():
    log = a_log(8).impressions
    log = log.drop(columns=["click", "negative", "watch_s", "time"]).rename(columns={"like": "order"})
    log["cart"] = 1 - log["order"]
    log["split"] = np.where(
        log["cart"] == 1, "train", np.random.default_rng(0).choice(["train", "valid"], len(log))
    )
    log.loc[log.index[log["order"] == 1][:50], "split"] = "test"
    tables = validate(replace(a_log(8), feedback="positives", split="given", impressions=log))
    (report,) = benchmarks(tables)
    (tuning,) = benchmarks(tables, "valid")
    assert report.task.valid is None
    assert len(report.task.train) == (log["split"] != "test").sum()
    assert len(tuning.task.train) == (log["split"] == "train").sum()
    assert report.task.target == "order"
    assert report.task.matrix("order", "cart").nnz > report.task.matrix().nnz
    # Carts are no known orders: a content in the cart may still be asked for.
    known = report.exams[0].known.nnz + report.exams[1].known.nnz
    assert known <= report.task.matrix("order").nnz


def test_held_out_pairs_are_one_like_and_one_dislike_of_each_user():
    tables = a_log(9)
    benchmark = held_out_pairs(tables, "test", seed=0)
    users = np.concatenate([exam.users for exam in benchmark.exams])
    assert len(np.unique(users)) == len(users) == 30
    assert all((exam.labels == [1, 0]).all() for exam in benchmark.exams)


def test_watch_time_holds_out_the_last_fifth():
    tables = a_log(10)
    benchmark = watch_time(tables, "test")
    assert sum(len(exam.users) for exam in benchmark.exams) == 120
    assert len(benchmark.task.train) == 480


def test_contents_of_unknown_duration_are_no_part_of_watch_time():
    tables = a_log(10)
    contents = tables.contents.assign(
        duration_s=tables.contents["duration_s"].where(tables.contents.index > 5)
    )
    benchmark = watch_time(validate(replace(tables, contents=contents)), "test")
    assert benchmark.task.train.item.min() > 5


def test_a_log_without_anything_to_ask_for_is_refused():
    tables = a_log(11)
    log = tables.impressions.drop(columns=["click", "like"])
    with pytest.raises(ValueError, match="there is nothing to ask for"):
        benchmarks(replace(tables, impressions=log))


def test_a_split_without_test_rows_is_refused_by_name():
    tables = as_positives(a_log(12), "given")
    log = tables.impressions.assign(split="train")
    with pytest.raises(ValueError, match="no user has a positive row in the part 'test'"):
        benchmarks(replace(tables, impressions=log))


def test_an_outcome_that_the_log_lacks_is_named():
    with pytest.raises(ValueError, match="no outcome 'cart' in the log"):
        ranking(a_log(13), "test", 0, target="cart", full=("recall@20",))
