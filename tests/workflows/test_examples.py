"""Examples: no query knows its own future, and every number is that of the tables."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.calendar import local_context
from market.dataset import Dataset, write_dataset
from market.profiles import MARKETS
from workflows.examples import (
    NO_TIME,
    TEST,
    TRAIN,
    VALID,
    Examples,
    Log,
    SplitConfig,
    assign_splits,
    build_examples,
    build_history,
    read_log,
    requests_of,
)
from workflows.frames import content_frame, followed, offers, query_tables, user_frame

USERS, CONTENTS, LENGTH, SEEN = 4, 6, 3, 5
quick = settings(max_examples=15)


def tables() -> dict[str, pd.DataFrame]:
    users = pd.DataFrame({"user_id": [f"u{k}" for k in range(USERS)], "market": ["ID", "GB", "ID", "GB"]})
    contents = pd.DataFrame(
        {
            "content_id": [f"c{k}" for k in range(CONTENTS)],
            "kind": "video",
            "markets": [["ID"], ["GB"], ["ID", "GB"], ["GB", "ID"], ["ID"], ["DE"]],
        }
    )
    return {"users": users, "contents": contents}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.booleans())
def test_impressions_of_one_request_are_one_query_in_whatever_order_they_were_logged(request, ascending):
    request = np.array(sorted(request) if ascending else request)
    rows = np.zeros(len(request), np.int32)
    log = Log(user=rows, content=rows, market=rows, split=rows, outcomes={}, request=request)
    first, of = requests_of(log)
    _, expected, back = np.unique(request, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(of, back)
    np.testing.assert_array_equal(requests_of(replace(log, request=None))[1], np.arange(len(rows)))


def test_a_request_number_is_one_of_its_user_in_its_market_and_part():
    of = np.array([[0, 0, 7, 0], [1, 0, 7, 0], [0, 0, 7, 0], [0, 1, 7, 0], [0, 0, 7, 1], [0, 0, 3, 0]])
    user, market, request, split = of.T
    log = Log(user=user, content=user, market=market, split=split, outcomes={}, request=request)
    first, request_of = requests_of(log)
    assert first.tolist() == [5, 0, 4, 3, 1]
    assert request_of.tolist() == [1, 4, 1, 3, 2, 0]
    ascending = np.array([3, 3, 4, 4])
    log = Log(*np.array([[0, 1, 1, 1], [0] * 4, [0] * 4, [0] * 4]), outcomes={}, request=ascending)
    assert requests_of(log)[1].tolist() == [0, 1, 2, 2]


def write(
    folder: Path, impressions: pd.DataFrame, split: str, feedback: str = "impressions", **other: pd.DataFrame
) -> Dataset:
    parts = np.array_split(np.arange(len(impressions)), 2) if len(impressions) > 1 else [[0]]
    return write_dataset(
        folder,
        name="tiny",
        feedback=feedback,
        split=split,
        impressions=(impressions.iloc[part].reset_index(drop=True) for part in parts),
        **tables() | other,
    )


def built(
    impressions: pd.DataFrame,
    split: str,
    feedback: str = "impressions",
    seed: int = 0,
    **other: pd.DataFrame,
) -> Examples:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write(Path(folder) / "data", impressions, split, feedback, **other)
        return build_examples(
            dataset, Path(folder) / "work", history_length=LENGTH, seen_length=SEEN, seed=seed
        )


def log_of(users: list[int], time: list[int] | None) -> Log:
    count = len(users)
    return Log(
        user=np.array(users, np.int32),
        content=np.arange(count, dtype=np.int32),
        market=np.zeros(count, np.int16),
        split=np.zeros(count, np.int8),
        outcomes={},
        time=None if time is None else np.array(time),
    )


@st.composite
def feeds(draw: st.DrawFn) -> pd.DataFrame:
    """Requests of one to three contents each, in the order of time, many of them at the same second."""
    requests = draw(
        st.lists(
            st.tuples(
                st.integers(0, 25),
                st.integers(0, USERS - 1),
                st.lists(st.tuples(st.integers(0, CONTENTS - 1), st.booleans()), min_size=1, max_size=3),
            ),
            min_size=2,
            max_size=25,
        )
    )
    rows = [
        (f"u{user}", f"c{content}", ["ID", "GB"][user % 2], 1_770_000_000 + time, 100 + number, int(clicked))
        for number, (time, user, shown) in enumerate(sorted(requests, key=lambda request: request[0]))
        for content, clicked in shown
    ]
    return pd.DataFrame(rows, columns=["user_id", "content_id", "market", "time", "request_id", "click"])


@st.composite
def orders(draw: st.DrawFn) -> pd.DataFrame:
    """Positives in the order of time, ties included."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 12), st.integers(0, USERS - 1), st.integers(0, CONTENTS - 1)),
            min_size=1,
            max_size=30,
        )
    )
    rows.sort(key=lambda row: row[0])
    return pd.DataFrame(
        {
            "user_id": [f"u{user}" for _, user, _ in rows],
            "content_id": [f"c{content}" for _, _, content in rows],
            "market": "ID",
            "time": [1_770_000_000 + time for time, _, _ in rows],
            "order": np.int8(1),
        }
    )


def row_number(ids: pd.Series) -> np.ndarray:
    return ids.str[1:].astype(int).to_numpy()


def history_of(events: list[int]) -> list[int]:
    last = events[-LENGTH:]
    return last + [-1] * (LENGTH - len(last))


@quick
@given(feeds())
def test_split_by_time_a_query_knows_all_of_its_users_past_and_nothing_else(feed):
    examples = built(feed, "time")
    queries = examples.queries
    user, content = row_number(feed["user_id"]), row_number(feed["content_id"])
    wanted, time = feed["click"].to_numpy() == 1, feed["time"].to_numpy()
    for row in range(len(queries)):
        before = wanted & (user == queries.user[row]) & (time < queries.time[row])
        assert queries.history[row].tolist() == history_of(content[before].tolist())
    for row in range(USERS):
        assert examples.latest_history[row].tolist() == history_of(content[wanted & (user == row)].tolist())
    assert examples.end == time.max() + 1


@quick
@given(feeds())
def test_split_by_time_the_parts_follow_one_another(feed):
    examples = built(feed, "time")
    time = examples.queries.time[examples.pairs.query]
    split = examples.pairs.split
    for earlier, later in ((TRAIN, VALID), (TRAIN, TEST), (VALID, TEST)):
        assert time[split == earlier].max(initial=-1) < time[split == later].min(
            initial=np.iinfo(np.int64).max
        )
    assert (examples.queries.split[examples.pairs.query] == split).all()


@quick
@given(feeds())
def test_impressions_of_one_request_share_one_query(feed):
    examples = built(feed, "time")
    queries, pairs = examples.queries, examples.pairs
    expected = Counter(zip(feed["request_id"], feed["user_id"], feed["time"]))
    found = Counter(
        (f"u{queries.user[query]}", int(queries.time[query]), count)
        for query, count in zip(*np.unique(pairs.query, return_counts=True))
    )
    assert len(queries) == feed["request_id"].nunique() == len(np.unique(pairs.query))
    assert found == Counter((user, time, count) for (_, user, time), count in expected.items())
    shown = Counter(zip(queries.user[pairs.query], queries.time[pairs.query], pairs.content, pairs.positive))
    logged = Counter(
        zip(row_number(feed["user_id"]), feed["time"], row_number(feed["content_id"]), feed["click"] == 1)
    )
    assert shown == logged


@quick
@given(feeds())
def test_numbers_that_count_the_requests_of_a_user_in_a_market_are_as_good_as_any(feed):
    counted = feed.assign(
        request_id=feed.groupby(["user_id", "market"])["request_id"].transform(lambda of: pd.factorize(of)[0])
    )
    expected, found = built(feed, "time"), built(counted, "time")
    for examples in (expected, found):
        asked = examples.queries.user[examples.pairs.query]
        assert Counter(zip(asked, examples.pairs.content)) == Counter(
            zip(row_number(feed["user_id"]), row_number(feed["content_id"]))
        )
    for name in ("user", "market", "time", "split", "history"):
        a, b = (getattr(e.queries, name)[e.pairs.query] for e in (expected, found))
        np.testing.assert_array_equal(a, b)


@quick
@given(feeds(), st.booleans(), st.data())
def test_impressions_of_one_request_are_of_one_part_and_unknown_to_it(feed, timed, data):
    split = st.sampled_from(["train", "train", "train", "test"])
    feed["split"] = [data.draw(split) for _ in range(len(feed))]
    # Each content once, so that a history says which event it holds.
    feed = feed.drop_duplicates(["user_id", "content_id"])
    examples = built(feed if timed else feed.drop(columns="time"), "given", seed=1)
    queries, pairs = examples.queries, examples.pairs
    np.testing.assert_array_equal(queries.split[pairs.query], pairs.split)
    assert not (queries.history[pairs.query] == pairs.content[:, None]).any()
    requests = feed[["request_id", "split"]].drop_duplicates()
    assert len(queries) == len(requests)
    assert (queries.split == VALID).sum() == int((requests["split"] == "train").sum() * 0.1)


@quick
@given(feeds(), st.sampled_from(["time", "leave_last"]))
def test_impressions_of_one_request_that_are_cut_apart_are_asked_for_in_their_own_parts(feed, split):
    # Each impression has the second in which it was seen.
    feed["time"] = 1_770_000_000 + np.arange(len(feed))
    examples = built(feed, split)
    queries, pairs = examples.queries, examples.pairs
    np.testing.assert_array_equal(queries.split[pairs.query], pairs.split)
    number = dict(zip(feed["time"], feed["request_id"]))
    asked = [(number[queries.time[query]], part) for query, part in zip(pairs.query, pairs.split)]
    assert len(queries) == len(set(asked)) == len(np.unique(pairs.query))


@quick
@given(feeds())
def test_popularity_counts_positives_of_the_training_part_in_their_market(feed):
    examples = built(feed, "time")
    last = examples.queries.time[examples.queries.rows(TRAIN)].max()
    expected = np.zeros((3, CONTENTS), np.float32)
    for _, row in feed[(feed["time"] <= last) & (feed["click"] == 1)].iterrows():
        expected[["DE", "GB", "ID"].index(row["market"]), int(row["content_id"][1:])] += 1
    assert examples.markets == ("DE", "GB", "ID")  # the catalogue names one that has no log
    np.testing.assert_array_equal(examples.popularity, expected)


@quick
@given(orders())
def test_leave_last_holds_out_a_users_last_row_and_the_one_before(log):
    examples = built(log, "leave_last", "positives")
    queries, pairs = examples.queries, examples.pairs
    user, content = row_number(log["user_id"]), row_number(log["content_id"])
    for row in range(USERS):
        events = content[user == row].tolist()
        mine = [
            (int(pairs.content[p]), int(pairs.split[p]), int(pairs.query[p]))
            for p in range(len(pairs.content))
            if queries.user[pairs.query[p]] == row
        ]
        held_out = 2 if len(events) >= 3 else 0
        kept = len(events) - held_out
        assert [c for c, split, _ in mine if split == TRAIN] == events[:kept]
        assert [c for c, split, _ in mine if split == VALID] == events[kept : kept + 1]
        assert [c for c, split, _ in mine if split == TEST] == events[kept + 1 :]
        # `pairs` keeps the order of the log within a part, so the k-th row has k events before it.
        for before, (_, _, query) in enumerate(sorted(mine, key=lambda pair: pair[1])):
            assert queries.history[query].tolist() == history_of(events[:before])


@quick
@given(orders(), st.data())
def test_given_held_out_rows_see_the_parts_before_theirs_and_never_one_another(log, data):
    names = ["train", "valid", "test"]
    log["split"] = data.draw(st.lists(st.sampled_from(names), min_size=len(log), max_size=len(log)))
    examples = built(log.drop(columns="time"), "given", "positives", seed=3)
    queries, split = examples.queries, np.array([names.index(name) for name in log["split"]])
    user, content = row_number(log["user_id"]), row_number(log["content_id"])
    asked = examples.pairs.content[np.argsort(examples.pairs.query)]
    assert not examples.has_time
    assert (queries.time == NO_TIME).all()
    train = np.zeros(CONTENTS)
    np.add.at(train, content[split == TRAIN], 1)
    np.testing.assert_array_equal(examples.popularity.sum(axis=0), train)
    for row in range(USERS):
        mine = np.flatnonzero(queries.user == row)
        lengths = (queries.history[mine] >= 0).sum(axis=1)
        in_train = queries.split[mine] == TRAIN
        # Without time every training event has the user's others around it.
        count = int(in_train.sum())
        assert lengths[in_train].tolist() == [min(count - 1, LENGTH)] * count
        for query in mine[in_train]:
            others = Counter(content[(user == row) & (split == TRAIN)])
            others[asked[query]] -= 1
            assert not Counter(c for c in queries.history[query].tolist() if c >= 0) - others
        for part in (VALID, TEST):
            seen = Counter(content[(user == row) & (split < part)])
            for query in mine[queries.split[mine] == part]:
                known = queries.history[query][queries.history[query] >= 0]
                assert len(known) == min(seen.total(), LENGTH)
                assert not Counter(known) - seen
    np.testing.assert_array_equal(queries.split, np.sort(split))


def test_without_time_the_order_of_training_events_is_drawn_from_the_seed():
    log = log_of([0] * 31, None)
    log.split[30] = VALID
    orders_of = [assign_splits(log, "given", SplitConfig(), seed)[1].tolist() for seed in (1, 1, 2)]
    assert sorted(orders_of[0][:30]) == list(range(30))
    assert orders_of[0] == orders_of[1] != orders_of[2]


def test_given_with_time_training_events_are_known_in_the_order_of_time():
    log = pd.DataFrame(
        {
            "user_id": "u0",
            "content_id": ["c0", "c1", "c2", "c3"],
            "market": "ID",
            "time": [10, 20, 30, 40],
            "order": 1,
            "split": ["test", "train", "train", "valid"],
        }
    )
    queries = built(log, "given", "positives").queries
    assert queries.time.tolist() == [20, 30, 40, 10]
    assert queries.history.tolist() == [[-1, -1, -1], [1, -1, -1], [1, 2, -1], [1, 2, 3]]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-20, 20), st.integers(0, 9)), max_size=40),
    st.lists(st.tuples(st.integers(0, 4), st.integers(-25, 25)), max_size=20),
    st.integers(1, 5),
)
def test_a_history_is_the_last_events_strictly_before_the_query(events, asked, length):
    user, order, content = (np.array([event[k] for event in events], np.int64) for k in range(3))
    query_user, query_order = (np.array([query[k] for query in asked], np.int64) for k in range(2))
    found = build_history(user, order, content, query_user, query_order, length)
    assert found.shape == (len(asked), length)
    assert found.dtype == np.int32
    in_order = sorted(events, key=lambda event: event[1])
    for row, (who, when) in enumerate(asked):
        past = [c for u, o, c in in_order if u == who and o < when][-length:]
        assert found[row].tolist() == past + [-1] * (length - len(past))


def test_queries_and_pairs_of_a_part_lie_side_by_side(small_examples):
    for table in (small_examples.queries, small_examples.pairs):
        assert {TRAIN, VALID, TEST} == set(table.split.tolist())
        for split in (TRAIN, VALID, TEST):
            assert (table.split[table.rows(split)] == split).all()
            assert table.rows(split).stop - table.rows(split).start == (table.split == split).sum()


def test_what_was_true_of_contents_is_read_by_row(small_world_dataset, small_examples):
    said, contents = small_world_dataset.moments(), small_examples.contents
    index = pd.Index(contents["content_id"])
    for column in ("viewers", "showing", "stock"):
        row = said[said[column].notna()].iloc[-1]
        content, time = index.get_indexer([row["content_id"]]), np.array([row["time"] + 1])
        if column == "stock":
            found = small_examples.moments.stock(content, time)[0]
        else:
            found = getattr(small_examples.moments(content, time), column)[0]
        assert found == (index.get_loc(row[column]) if column == "showing" else row[column])
    assert (small_examples.moments.room == (contents["kind"] == "live")).all()


def test_a_content_carries_what_is_known_of_its_seller(small_world_dataset, small_examples):
    sellers = small_world_dataset.sellers().set_index("seller_id")
    for name in ("rating", "followers"):
        expected = sellers.loc[small_examples.contents["seller_id"], name].to_numpy(np.float32)
        np.testing.assert_array_equal(content_frame(small_examples.contents)[f"seller_{name}"], expected)


def test_a_content_is_available_where_its_markets_say(small_examples):
    for place, market in enumerate(small_examples.markets):
        expected = [market in markets for markets in small_examples.contents["markets"]]
        assert small_examples.available[place].tolist() == expected


def test_the_memory_mapped_log_holds_the_data_sets_rows(small_world_dataset, tmp_path):
    done: list[int] = []
    log = read_log(small_world_dataset, tmp_path, done.append)
    rows = small_world_dataset.impressions()
    assert len(small_world_dataset.impression_files) > 1
    assert len(done) == len(small_world_dataset.impression_files)
    assert sum(done) == len(rows)
    users, contents = small_world_dataset.users()["user_id"], small_world_dataset.contents()["content_id"]
    assert users.to_numpy()[log.user].tolist() == rows["user_id"].tolist()
    assert contents.to_numpy()[log.content].tolist() == rows["content_id"].tolist()
    assert np.array(small_world_dataset.markets)[log.market].tolist() == rows["market"].tolist()
    np.testing.assert_array_equal(log.time, rows["time"])
    np.testing.assert_array_equal(log.request, rows["request_id"])
    assert set(log.outcomes) == {"watch_s", "click", "cart", "order", "refund", "negative", "value"}
    for name, values in log.outcomes.items():
        np.testing.assert_array_equal(values, rows[name].astype(np.float32))
        assert isinstance(values, np.memmap)
    assert isinstance(log.user, np.memmap)


def test_any_wanted_outcome_makes_an_impression_a_positive(small_examples):
    outcomes = small_examples.pairs.outcomes
    wanted = (outcomes["click"] > 0) | (outcomes["cart"] > 0) | (outcomes["order"] > 0)
    np.testing.assert_array_equal(small_examples.pairs.positive, wanted)
    assert (outcomes["negative"][~wanted] > 0).any()


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown split 'random'; use 'time', 'leave_last' or 'given'"):
        assign_splits(log_of([0], [1]), "random", SplitConfig(), 0)


@pytest.mark.parametrize("how", ["time", "leave_last"])
def test_a_split_by_time_needs_times(how):
    with pytest.raises(ValueError, match=f"split '{how}' needs a `time` column"):
        assign_splits(log_of([0], None), how, SplitConfig(), 0)


@pytest.mark.parametrize("fractions", [(0.0, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_a_split_that_leaves_a_part_empty_is_refused(fractions):
    with pytest.raises(ValueError, match="must be positive and leave something to train on"):
        SplitConfig(*fractions)


def test_prices_are_in_us_dollars():
    contents = pd.DataFrame(
        {
            "content_id": ["a", "b", "c"],
            "kind": "product",
            "price": np.array([226_000, 15.6, np.nan], np.float32),
            "currency": ["IDR", "GBP", None],
            "language": ["id", "en", None],
            "x_topic": ["t", None, "t"],
        }
    )
    frame = content_frame(contents)
    expected = [226_000 * MARKETS["ID"].usd_per_unit, 15.6 * MARKETS["GB"].usd_per_unit, np.nan]
    np.testing.assert_allclose(frame["price_usd"], expected, rtol=1e-6)
    assert frame["price_usd"].dtype == np.float32
    assert list(frame) == ["content_id", "kind", "content_language", "price_usd", "content_x_topic"]


def test_a_price_that_no_float_holds_in_dollars_leaves_features_of_prices_finite(small_examples):
    count = len(small_examples.contents)
    dearest = np.where(np.arange(count) % 2, np.finfo(np.float32).max, 1).astype(np.float32)
    examples = replace(small_examples, contents=small_examples.contents.assign(price=dearest, currency="GBP"))
    price, market = content_frame(examples.contents)["price_usd"], np.arange(2)[:, None]
    assert np.isfinite(price).all()
    assert np.isfinite(offers(examples)(market, np.arange(count)[None], np.full((1, 1), -1))).all()


def test_raw_queries_equal_the_tables(small_examples):
    rows = np.random.default_rng(0).permutation(len(small_examples.queries))[:150]
    found = pd.concat([table.to_pandas() for table in query_tables(small_examples, rows, chunk=64)])
    queries, users = small_examples.queries, user_frame(small_examples.users)
    market = np.array(small_examples.markets)[queries.market[rows]]
    assert len(found) == len(rows)
    for name in users:
        assert found[name].tolist() == users[name].to_numpy()[queries.user[rows]].tolist()
    assert found["market"].tolist() == market.tolist()
    context = local_context(market, queries.time[rows])
    for name in ("hour", "weekday", "is_weekend", "days_to_payday", "is_holiday"):
        assert found[name].tolist() == getattr(context, name).tolist()
    contents = content_frame(small_examples.contents)
    assert set(followed(contents)) == {"content_id", "seller_id", "category", "content_x_topic"}
    for name in followed(contents):
        values = contents[name].to_numpy()
        expected = [values[history[history >= 0]].tolist() for history in queries.history[rows]]
        assert [list(values) for values in found[f"hist_{name}"]] == expected
    assert found["history_length"].tolist() == [len(past) for past in found["hist_content_id"]]
    assert found["history_length"].max() > 3


def test_a_history_lists_only_what_is_known_of_its_contents(small_examples):
    contents = small_examples.contents.copy()
    contents.loc[::2, "category"] = None
    blind = replace(small_examples, contents=contents)
    rows = np.arange(100)
    [table] = query_tables(blind, rows)
    values = contents["category"].to_numpy()
    expected = [
        [values[content] for content in history if content >= 0 and values[content] is not None]
        for history in small_examples.queries.history[rows]
    ]
    assert table["hist_category"].to_pylist() == expected
    assert 0 < sum(map(len, expected)) < (small_examples.queries.history[rows] >= 0).sum()


def test_what_is_only_in_the_cart_may_be_shown_again():
    log = pd.DataFrame(
        [("u1", "c1", "GB", 10, 1, 0), ("u1", "c2", "GB", 11, 0, 1), ("u1", "c3", "GB", 12, 0, 1)],
        columns=["user_id", "content_id", "market", "time", "cart", "order"],
    )
    log["time"] += 1_770_000_000
    examples = built(log, "time", "positives")
    row = examples.users["user_id"].tolist().index("u1")
    contents = examples.contents["content_id"]
    assert contents[examples.latest_history[row]].tolist() == ["c1", "c2", "c3"]
    assert contents[[c for c in examples.latest_seen[row] if c >= 0]].tolist() == ["c2", "c3"]


@pytest.mark.parametrize("split", ["time", "leave_last", "given"])
def test_what_was_seen_before_the_test_part_does_not_tell_of_it(split):
    content, parts = [5, 5, 5, 5, 0, 2, 3, 4, 2, 0], [TRAIN] * 8 + [VALID, TEST]
    log = pd.DataFrame({"user_id": "u0", "content_id": [f"c{k}" for k in content], "market": "ID"})
    log = log.assign(click=1, time=range(10), split=["train"] * 8 + ["valid", "test"])

    def seen(log: pd.DataFrame) -> list[list[int]]:
        examples = built(log, split, "positives")
        assert examples.pairs.split.tolist() == parts
        return [examples.seen_before_test[0].tolist(), examples.latest_seen[0].tolist()]

    assert seen(log) == [[0, 2, 3, 4, 2], [2, 3, 4, 2, 0]]
    log.loc[9, "content_id"] = "c1"
    assert seen(log) == [[0, 2, 3, 4, 2], [2, 3, 4, 2, 1]]


@pytest.mark.parametrize("timed", [True, False])
def test_a_given_split_without_validation_rows_gets_some_of_the_training_part(timed):
    log = replace(log_of([0, 1] * 20, list(range(40))[::-1] if timed else None), split=np.zeros(40, np.int8))
    log.split[:8] = TEST
    split, order = assign_splits(log, "given", SplitConfig(valid_fraction=0.25), seed=1)
    assert (split[:8] == TEST).all()
    assert (split == VALID).sum() == 8
    again, other = (assign_splits(log, "given", SplitConfig(0.25), seed)[0].tolist() for seed in (1, 2))
    assert split.tolist() == again != other
    for user in (0, 1):
        own = np.arange(40) % 2 == user
        assert order[own & (split == TRAIN)].max() < order[own & (split == VALID)].min()
    assert (log.split[8:] == TRAIN).all()


@pytest.mark.parametrize("timed", [True, False])
def test_validation_rows_are_drawn_by_request(timed):
    count = 400
    log = log_of([0] * count, np.arange(count).tolist() if timed else None)
    log = replace(log, request=np.arange(count) // 10)
    split, order = assign_splits(log, "given", SplitConfig(valid_fraction=0.25), seed=1)
    of = split.reshape(-1, 10)
    assert (of == of[:, :1]).all()
    assert (split == VALID).sum() == count // 4
    train = order.reshape(-1, 10)[of[:, 0] == TRAIN]
    assert np.ptp(train, axis=1).tolist() == [9] * len(train)


def test_without_times_an_impression_is_asked_for_with_all_other_events():
    random = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "user_id": [f"u{k}" for k in range(USERS)] * 10,
            "content_id": random.choice([f"c{k}" for k in range(CONTENTS)], 10 * USERS),
            "market": "ID",
            "click": [0] * USERS + [1, 1, 0, 0] * 2 + [1, 0, 0, 0] + [0] * USERS * 6,
            "split": "train",
        }
    )
    log.loc[log.index[-USERS:], "split"] = "valid"
    examples = built(log, "given")
    queries, pairs = examples.queries, examples.pairs
    rows = pairs.rows(TRAIN)
    user, content = queries.user[pairs.query[rows]], pairs.content[rows]
    wanted, history = pairs.positive[rows], queries.history[pairs.query[rows]]
    for row in range(len(user)):
        others = Counter(content[wanted & (user == user[row])])
        others[content[row]] -= wanted[row]
        known = Counter(c for c in history[row] if c >= 0)
        assert known.total() == min(others.total(), LENGTH)
        assert not known - others


def test_without_times_or_requests_the_length_of_a_history_does_not_tell_the_label():
    random = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "user_id": [f"u{k}" for k in random.integers(0, 600, 1200)],
            "content_id": "c0",
            "market": "ID",
            "click": random.integers(0, 2, 1200),
            "split": "train",
        }
    )
    log.loc[:99, "split"] = "valid"
    users = pd.DataFrame({"user_id": [f"u{k}" for k in range(600)], "market": "ID"})
    examples = built(log, "given", users=users)
    rows = examples.pairs.rows(TRAIN)
    known = (examples.queries.history[examples.pairs.query[rows]] >= 0).sum(axis=1)
    wanted = examples.pairs.positive[rows]
    assert abs(known[wanted].mean() - known[~wanted].mean()) < 0.15
    assert abs(np.corrcoef(known, wanted)[0, 1]) < 0.08


def test_a_log_that_does_not_say_what_was_wanted_is_refused():
    log = pd.DataFrame(
        {"user_id": ["u0"], "content_id": ["c0"], "market": ["ID"], "time": [9], "watch_s": [1.0]}
    )
    with pytest.raises(ValueError, match=r"outcomes watch_s, negative, and none .* one of click, like"):
        built(log.assign(negative=1), "time")
    assert built(log, "time", "positives").pairs.positive.all()


def test_nothing_is_finished_in_a_log_that_knows_carts_alone():
    log = pd.DataFrame(
        {"user_id": "u0", "content_id": ["c0", "c2"], "market": "ID", "time": [8, 9], "cart": [0, 1]}
    )
    examples = built(log, "time")
    assert (examples.latest_seen == -1).all()
    assert examples.latest_history[0].tolist() == [2, -1, -1]


def test_positives_in_a_market_without_contents_are_refused_with_the_remedy():
    log = pd.DataFrame(
        {"user_id": "u0", "content_id": "c0", "market": ["ID", "BR", "BR"], "time": [7, 8, 9], "click": 1}
    )
    with pytest.raises(ValueError, match=r"2 impressions in the market BR.* list BR in contents.markets"):
        built(log, "time")
    assert len(built(log.assign(click=[1, 0, 0]), "time").pairs.content) == 3


def test_prices_without_a_currency_are_no_prices():
    contents = pd.DataFrame({"content_id": ["a"], "kind": "product", "price": np.array([np.nan], np.float32)})
    assert "price_usd" not in content_frame(contents)


def test_a_catalogue_without_categories_and_prices_has_neither():
    log = pd.DataFrame(
        {"user_id": "u0", "content_id": "c0", "market": ["ID"] * 3, "time": [7, 8, 9], "click": 1}
    )
    found = offers(built(log, "time"))
    assert found.category.tolist() == [-1] * CONTENTS
    assert np.isnan(found.price_usd).all()
