"""Batches: negatives of the right market, every row once, and no look at the future."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from market.item_graph import ItemGraph
from market.statistics import DAY_S, PAIR_FEATURES
from models.batches import (
    LOG_Q,
    UNSEEN,
    RankingBatches,
    RetrievalBatches,
    draw_log_ratio,
    draw_negatives,
    history_match,
    make_training_set,
    match_name,
)
from workflows.examples import TRAIN, VALID

WINDOW_S = 3 * DAY_S


@pytest.fixture(scope="module")
def positives(small_training_set):
    pairs = small_training_set.examples.pairs
    return np.flatnonzero(pairs.positive & (pairs.split == TRAIN))


@pytest.fixture(scope="module")
def untimed(small_examples, small_features, small_training_set):
    """The small world as a data set of positives with a split of its own."""
    graph = small_training_set.graph
    return make_training_set(replace(small_examples, split="given"), small_features, graph, WINDOW_S)


def ranking(data, rows, **options) -> RankingBatches:
    labels = {"click": data.examples.pairs.outcomes["click"]}
    return RankingBatches(data, rows, labels, **({"batch_size": 100} | options))


def contents_of(batches) -> list[tuple[float, ...]]:
    """What each row of each batch shows: query and content features, in order."""
    rows: list[tuple[float, ...]] = []
    for place in range(len(batches)):
        x, y = batches[place]
        columns = [*x.values(), *([] if y is None else [y])]
        rows += [tuple(row) for row in np.concatenate(columns, axis=1).tolist()]
    return rows


def test_negatives_come_from_the_querys_market(small_examples):
    query = np.arange(len(small_examples.queries))
    drawn = draw_negatives(small_examples, query, 7, np.random.default_rng(0))
    assert drawn.shape == (len(query), 7)
    assert small_examples.available[small_examples.queries.market[query][:, None], drawn].all()
    for market in range(2):
        offered = np.flatnonzero(small_examples.available[market])
        reached = np.unique(drawn[small_examples.queries.market == market])
        assert len(reached) > 0.95 * len(offered)


def test_a_share_of_the_negatives_is_drawn_by_popularity(small_examples):
    market = 0
    query = np.flatnonzero(small_examples.queries.market == market)[:1].repeat(4000)
    uniform, mixed = (
        draw_negatives(small_examples, query, 8, np.random.default_rng(0), popular) for popular in (0.0, 0.25)
    )
    popularity = small_examples.popularity[market]
    offered = small_examples.available[market]
    expected = (popularity**1.75).sum() / (popularity**0.75).sum()
    assert popularity[mixed[:, :2]].mean() == pytest.approx(expected, rel=0.1)
    assert expected > 1.5 * popularity[offered].mean()
    np.testing.assert_array_equal(mixed[:, 2:], uniform[:, 2:])
    assert offered[mixed].all()


def test_the_log_ratio_says_how_unevenly_negatives_are_drawn(small_examples):
    market, popular = 1, 0.25
    offered = np.flatnonzero(small_examples.available[market])
    query = np.full(len(offered), np.flatnonzero(small_examples.queries.market == market)[0])
    ratio = np.exp(draw_log_ratio(small_examples, query, offered, popular))
    assert ratio.mean() == pytest.approx(1, rel=1e-5)  # shares of the market's contents
    often = draw_negatives(small_examples, query.repeat(400), 8, np.random.default_rng(0), popular)
    drawn = np.bincount(often.ravel(), minlength=len(small_examples.contents))[offered] / often.size
    best = np.argsort(-ratio)[:20]
    np.testing.assert_allclose(drawn[best] * len(offered), ratio[best], rtol=0.1)
    assert (draw_log_ratio(small_examples, query, offered, 0.0) == 0).all()


def test_drawn_pairs_carry_their_log_ratio_and_logged_ones_none(untimed, positives):
    drawn = ranking(untimed, positives, negatives=8, popular_negatives=0.25)
    x, _ = drawn[0]
    expected = draw_log_ratio(untimed.examples, drawn.query[:100], drawn.content[:100], 0.25)
    np.testing.assert_array_equal(x[LOG_Q][:, 0], expected)
    assert LOG_Q not in ranking(untimed, positives)[0][0]


def test_every_positive_gets_its_negatives_with_labels_of_zero(untimed, positives):
    batches = ranking(untimed, positives, negatives=3, shuffle=False)
    count = len(positives)
    pairs = untimed.examples.pairs
    assert len(batches.query) == 4 * count
    np.testing.assert_array_equal(batches.query[:count], pairs.query[positives])
    np.testing.assert_array_equal(batches.query[count:], np.repeat(pairs.query[positives], 3))
    np.testing.assert_array_equal(batches.labels[:count, 0], pairs.outcomes["click"][positives])
    assert not batches.labels[count:].any()
    assert not batches.own[count:].any()
    market = untimed.examples.queries.market[batches.query]
    assert untimed.examples.available[market, batches.content].all()


def test_a_ranking_epoch_holds_every_row_once(small_training_set):
    pairs = small_training_set.examples.pairs
    rows = np.arange(*pairs.rows(TRAIN).indices(len(pairs.query))[:2])
    batches = ranking(small_training_set, rows, seed=4)
    assert [len(batches[place][1]) for place in (0, len(batches) - 1)] == [
        100,
        len(rows) % 100 or 100,
    ]
    assert len(batches) == -(-len(rows) // 100)
    shown = Counter(zip(batches.query, batches.content, batches.labels[:, 0]))
    assert shown == Counter(zip(pairs.query[rows], pairs.content[rows], pairs.outcomes["click"][rows]))
    in_order = contents_of(ranking(small_training_set, rows, shuffle=False))
    assert sorted(contents_of(batches)) == sorted(in_order)


def test_a_ranking_batch_holds_the_rows_features(small_training_set):
    rows = np.array([3, 500, 20])
    x, y = ranking(small_training_set, rows, shuffle=False)[0]
    examples, features = small_training_set.examples, small_training_set.features
    query, content = examples.pairs.query[rows], examples.pairs.content[rows]
    for name, array in features.query.arrays.items():
        np.testing.assert_array_equal(x[name], array[query].reshape(3, -1))
    for name, array in features.content.arrays.items():
        np.testing.assert_array_equal(x[name], array[content].reshape(3, -1))
    assert all(x[name].shape == (3, 1) for name in PAIR_FEATURES)
    np.testing.assert_array_equal(y[:, 0], examples.pairs.outcomes["click"][rows])


@pytest.mark.parametrize("kind", ["ranking", "retrieval"])
def test_a_seed_gives_the_same_batches_and_another_epoch_another_order(kind, small_training_set, positives):
    def epoch(seed: int) -> list[tuple[float, ...]]:
        if kind == "ranking":
            return contents_of(ranking(small_training_set, positives, seed=seed, negatives=2))
        return contents_of(RetrievalBatches(small_training_set, positives, batch_size=64, seed=seed))

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert first == again
    assert first != other
    if kind == "retrieval":
        assert sorted(first) == sorted(other)


def test_validation_rows_keep_their_order_and_their_negatives(small_training_set, positives):
    made = [ranking(small_training_set, positives, negatives=2, seed=3, shuffle=False) for _ in range(2)]
    np.testing.assert_array_equal(made[0].content, made[1].content)
    pairs = small_training_set.examples.pairs
    np.testing.assert_array_equal(made[0].content[: len(positives)], pairs.content[positives])


def test_a_retrieval_batch_is_of_one_market(small_training_set, positives):
    batches = RetrievalBatches(small_training_set, positives, batch_size=32, seed=1)
    market = small_training_set.examples.queries.market[small_training_set.examples.pairs.query[positives]]
    held = [set(market[rows]) for rows in batches.batches]
    assert all(len(markets) == 1 for markets in held)
    assert set.union(*held) == {0, 1}
    assert len({tuple(markets) for markets in held[: len(held) // 2]}) == 2


def test_a_retrieval_epoch_holds_every_positive_once_in_batches_of_about_the_size(
    small_training_set, positives
):
    batches = RetrievalBatches(small_training_set, positives, batch_size=32, seed=1)
    assert sorted(np.concatenate(batches.batches)) == list(range(len(positives)))
    assert all(20 <= len(rows) <= 48 for rows in batches.batches)
    query = np.concatenate([batches.query[rows] for rows in batches.batches])
    content = np.concatenate([batches.content[rows] for rows in batches.batches])
    pairs = small_training_set.examples.pairs
    assert Counter(zip(query, content)) == Counter(zip(pairs.query[positives], pairs.content[positives]))


def test_log_q_is_the_log_share_among_the_markets_positives(small_training_set, positives):
    pairs, queries = small_training_set.examples.pairs, small_training_set.examples.queries
    market, content = queries.market[pairs.query[positives]], pairs.content[positives]
    count = Counter(zip(market, content))
    of_market = Counter(market)
    batches = RetrievalBatches(small_training_set, positives, batch_size=32, seed=1)
    for place in range(len(batches)):
        rows = batches.batches[place]
        expected = [np.log(count[market[r], content[r]] / of_market[market[r]]) for r in rows]
        np.testing.assert_allclose(batches[place][0][LOG_Q][:, 0], expected, rtol=1e-5)


def test_the_popularity_of_a_positive_leaves_its_own_event_out(untimed, positives):
    examples = untimed.examples
    query, content = examples.pairs.query[positives], examples.pairs.content[positives]
    market = examples.queries.market[query]
    x, _ = ranking(untimed, positives, shuffle=False, batch_size=len(positives))[0]
    others = examples.popularity[market, content] - 1
    assert (others == 0).any()
    np.testing.assert_allclose(x["popularity_market"][:, 0], np.log1p(others) / 3, rtol=1e-5)
    world = examples.popularity.sum(axis=0)[content] - 1
    np.testing.assert_allclose(x["popularity_world"][:, 0], np.log1p(world) / 3, rtol=1e-5)
    np.testing.assert_array_equal(untimed.latest, examples.popularity)


def test_rows_that_are_no_training_positives_see_every_training_event(untimed):
    pairs, queries = untimed.examples.pairs, untimed.examples.queries
    for rows in (
        np.flatnonzero(pairs.split == VALID),
        np.flatnonzero(~pairs.positive & (pairs.split == TRAIN)),
    ):
        x, _ = ranking(untimed, rows, shuffle=False, batch_size=len(rows))[0]
        total = untimed.examples.popularity[queries.market[pairs.query[rows]], pairs.content[rows]]
        np.testing.assert_allclose(x["popularity_market"][:, 0], np.log1p(total) / 3, rtol=1e-5)


def test_popularity_in_time_counts_the_window_before_the_query(small_training_set):
    examples = small_training_set.examples
    pairs, queries = examples.pairs, examples.queries
    event_time, event_market = queries.time[pairs.query], queries.market[pairs.query]
    rows = np.random.default_rng(0).permutation(len(pairs.query))[:60]
    x, _ = ranking(small_training_set, rows, shuffle=False)[0]
    for place, row in enumerate(rows):
        now = event_time[row]
        inside = pairs.positive & (pairs.content == pairs.content[row])
        inside &= (event_time < now) & (event_time >= now - WINDOW_S)
        here = (inside & (event_market == event_market[row])).sum()
        np.testing.assert_allclose(x["popularity_market"][place, 0], np.log1p(here) / 3, rtol=1e-5)
        np.testing.assert_allclose(x["popularity_world"][place, 0], np.log1p(inside.sum()) / 3, rtol=1e-5)
    assert x["popularity_market"].any()


def test_popularity_in_time_sees_nothing_of_the_future(small_examples, small_features, small_training_set):
    pairs, queries = small_examples.pairs, small_examples.queries
    now = int(np.median(queries.time[queries.rows(TRAIN)]))
    later = queries.time[pairs.query] >= now
    turned = replace(pairs, positive=np.where(later, ~pairs.positive, pairs.positive))
    other = make_training_set(
        replace(small_examples, pairs=turned), small_features, small_training_set.graph, WINDOW_S
    )
    row_times = queries.time[pairs.query]
    past, future = np.flatnonzero(row_times <= now), np.flatnonzero(row_times > now + DAY_S)
    for rows, same in ((past, True), (future, False)):
        own = np.zeros(len(rows), bool)
        args = (pairs.query[rows], pairs.content[rows], own)
        first, second = small_training_set.pair_arrays(*args), other.pair_arrays(*args)
        assert all(np.array_equal(first[name], second[name]) for name in PAIR_FEATURES) == same


def test_serving_starts_from_the_last_window_of_training(small_training_set):
    pairs, queries = small_training_set.examples.pairs, small_training_set.examples.queries
    end = queries.time[queries.rows(TRAIN)].max()
    time = queries.time[pairs.query]
    counted = pairs.positive & (time <= end) & (time > end - WINDOW_S)
    expected = np.zeros_like(small_training_set.latest)
    np.add.at(expected, (queries.market[pairs.query[counted]], pairs.content[counted]), 1)
    np.testing.assert_array_equal(small_training_set.latest, expected)
    assert expected.sum() < small_training_set.examples.popularity.sum()


def test_an_unknown_age_is_zero(small_examples, small_features, small_training_set):
    graph = small_training_set.graph
    contents = small_examples.contents.copy()
    contents.loc[::2, "created_at"] = np.nan
    data = make_training_set(replace(small_examples, contents=contents), small_features, graph, WINDOW_S)
    content = np.arange(len(contents))
    query = np.full(len(contents), len(small_examples.queries) - 1)
    age = data.pair_arrays(query, content, np.zeros(len(contents), bool))["age"][:, 0]
    assert not age[::2].any()
    assert (age[1::2] > 0).mean() > 0.5
    timeless = make_training_set(replace(small_examples, has_time=False), small_features, graph, WINDOW_S)
    assert not timeless.pair_arrays(query, content, np.zeros(len(contents), bool))["age"].any()


def test_a_match_counts_how_often_a_known_value_is_in_the_history():
    history = np.array([[5, 3, 5, 0], [2, 2, 7, 0], [0, 0, 0, 0], [1, 4, 4, 4]])
    own = np.array([5, 2, 0, 4])  # 0 pads, 1 is null, 2 unseen: none of them is a value
    np.testing.assert_allclose(np.exp(history_match(history, own)) - 1, [2, 0, 0, 3], rtol=1e-6)


def test_a_ranking_batch_counts_its_contents_in_their_queries_histories(small_training_set, positives):
    x, _ = ranking(small_training_set, positives, shuffle=False, batch_size=len(positives))[0]
    for name in ("content_id", "category", "seller_id", "content_x_topic"):
        own, history = x[name], x[f"hist_{name}"]
        count = ((history == own) & (own > UNSEEN)).sum(axis=1)
        np.testing.assert_allclose(x[match_name(f"hist_{name}")][:, 0], np.log1p(count), rtol=1e-6)
    assert x["match_category"].any()


def test_training_forgets_a_share_of_ids_and_nothing_else(small_training_set, positives):
    def batch(id_dropout: float) -> dict[str, np.ndarray]:
        return ranking(small_training_set, positives, batch_size=len(positives), id_dropout=id_dropout)[0][0]

    whole, half = batch(0.0), batch(0.5)
    for name, column in whole.items():
        if name in ("user_id", "content_id"):
            known = column > UNSEEN
            forgotten = half[name] != column
            assert (half[name][forgotten] == UNSEEN).all()
            assert forgotten[known].mean() == pytest.approx(0.5, abs=0.15)
        else:
            np.testing.assert_array_equal(half[name], column)
    np.testing.assert_array_equal(batch(0.5)["content_id"], half["content_id"])
    assert (batch(1.0)["user_id"] == UNSEEN).all()


def test_retrieval_forgets_users_and_never_contents(small_training_set, positives):
    def batch(share: float) -> dict[str, np.ndarray]:
        return RetrievalBatches(small_training_set, positives, batch_size=64, seed=1, user_dropout=share)[0][
            0
        ]

    whole, all_unseen = batch(0.0), batch(1.0)
    assert (whole["user_id"] > UNSEEN).any()
    assert (all_unseen["user_id"] == UNSEEN).all()
    for name in whole.keys() - {"user_id"}:
        np.testing.assert_array_equal(all_unseen[name], whole[name])


@pytest.mark.parametrize("negatives", [0, 3])
def test_pair_features_that_are_known_already_change_no_batch(negatives, untimed, positives, tmp_path):
    logged = untimed.logged_pairs(positives, tmp_path / "pairs.npy")
    assert logged.shape[0] == len(positives)
    options = {"negatives": negatives, "seed": 2}
    fresh, known = (ranking(untimed, positives, logged=given, **options) for given in (None, logged))
    assert contents_of(fresh) == contents_of(known)
    # They are what is read, not computed again.
    marked = ranking(untimed, positives, logged=np.full_like(logged, 7), **options)
    shown = np.concatenate([marked[place][0]["age"] for place in range(len(marked))])
    assert (shown == 7).sum() == len(positives)


def test_related_negatives_are_neighbours_of_the_history_that_were_not_wanted(small_training_set):
    data = small_training_set
    examples, graph = data.examples, data.graph.graph
    pairs = np.flatnonzero(examples.pairs.positive & (examples.pairs.split == TRAIN))
    query, content = examples.pairs.query[pairs], examples.pairs.content[pairs]
    drawn = draw_negatives(
        examples, query, 8, np.random.default_rng(0), related=0.5, graph=graph, wanted=content
    )
    history = examples.queries.history[query]
    close = np.zeros(drawn.shape, bool)
    for row, past in enumerate(history):
        known = past[past >= 0]
        close[row] = np.isin(drawn[row], graph.neighbours[known])
    rich = (history >= 0).sum(axis=1) >= 3
    assert close[rich, 4:].mean() > close[rich, :4].mean() + 0.05
    market = examples.queries.market[query]
    assert examples.available[market[:, None], drawn].all()
    plain = draw_negatives(examples, query, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn[(history < 0).all(axis=1)], plain[(history < 0).all(axis=1)])


def test_a_wanted_neighbour_is_no_related_negative(small_training_set):
    """A graph that leads to what is wanted alone leaves the places to uniform ones."""
    examples = small_training_set.examples
    query = np.flatnonzero((examples.queries.history >= 0).any(axis=1))[:200]
    market = examples.queries.market[query]
    history = examples.queries.history[query]
    wanted = np.array([
        np.setdiff1d(np.flatnonzero(examples.available[code]), past)[0] for code, past in zip(market, history)
    ])  # fmt: skip
    for code in np.unique(market):
        here = market == code
        [only] = np.unique(wanted[here])[:1]
        graph = ItemGraph(
            np.full((len(examples.contents), 1), only, np.int32),
            np.ones((len(examples.contents), 1), np.float32),
        )
        related = dict(related=0.5, graph=graph)
        free = draw_negatives(examples, query[here], 8, np.random.default_rng(0), **related)
        kept = draw_negatives(
            examples, query[here], 8, np.random.default_rng(0), **related, wanted=wanted[here]
        )
        same = wanted[here] == only
        assert (free[same, 4:] == only).all()
        np.testing.assert_array_equal(
            kept[same, 4:], draw_negatives(examples, query[here], 8, np.random.default_rng(0))[same, 4:]
        )
