"""Embeddings of what training hardly saw: a market is its neighbours, so far as it is short of outcomes; any
other unseen id is a mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.adaptation import select_markets
from market.neighbours import FULL
from models.batches import FORGOTTEN, UNSEEN, make_training_set
from models.blocks import EmbeddingTable
from models.item_graph import ItemGraphConfig, fit_item_graph
from models.ranker import RankerConfig, build_ranker
from models.unseen import fill_unseen, known_markets
from workflows.examples import TRAIN, build_examples
from workflows.features import FeatureConfig, fit_features

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cold(small_world_dataset, tmp_path_factory):
    """What the small world's models would train on had GB no log."""
    folder = tmp_path_factory.mktemp("cold")
    dataset = select_markets(small_world_dataset, ("ID",), folder / "data")
    examples = build_examples(dataset, folder / "work", history_length=10, seen_length=40)
    features = fit_features(examples, folder / "features", FeatureConfig(history_length=10, user_min_count=2))
    return make_training_set(examples, features, fit_item_graph(examples, ItemGraphConfig()), 3 * 86_400)


def with_outcomes(data, britain, indonesia):
    """The training set as if its markets had so many wanted outcomes."""
    popularity = np.zeros_like(data.examples.popularity)
    popularity[:, 0] = britain, indonesia
    return replace(data, examples=replace(data.examples, popularity=popularity))


def test_the_gates_of_a_market_without_a_log_are_its_neighbours(cold):
    config = RankerConfig(embedding_dim=4, bottom=(4,), top=(4,), gates=True)
    model = build_ranker(cold.features, ("click",), config, seed=1)
    kernel = model.blocks[0].gates.kernels["market"]
    drawn = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    kernel.assign(drawn)
    fill_unseen(model, cold)
    gb, indonesia = UNSEEN + 1, UNSEEN + 2
    np.testing.assert_allclose(kernel[gb], drawn[indonesia], atol=1e-6)
    np.testing.assert_allclose(np.delete(kernel, gb, axis=0), np.delete(drawn, gb, axis=0), atol=1e-6)


def filled(data, forgotten=()):
    """The ranker's table before and after, each by domain: float32[ids, D]."""
    features = data.features
    config = RankerConfig(embedding_dim=4, bottom=(4,), top=(4,))
    model = build_ranker(features, ("click",), config, seed=1)
    [table] = [layer for layer in model.submodules if isinstance(layer, EmbeddingTable)]
    ends = [*list(table.first.values())[1:], table.embeddings.shape[0]]

    def domains():
        rows = table.embeddings.numpy()
        return {name: rows[first:end] for (name, first), end in zip(table.first.items(), ends)}

    before = domains()
    fill_unseen(model, data, forgotten)
    return before, domains()


def test_every_market_has_an_id_of_its_own_whether_it_has_a_log_or_not(cold, small_training_set):
    for data in (cold, small_training_set):
        assert data.examples.markets == ("GB", "ID")
        queries = data.examples.queries
        np.testing.assert_array_equal(data.features.query.arrays["market"], UNSEEN + 1 + queries.market)
    assert known_markets(cold.examples).tolist() == [False, True]


def test_a_market_without_a_log_starts_as_its_neighbours(cold):
    before, after = filled(cold)
    gb, indonesia = UNSEEN + 1, UNSEEN + 2
    assert np.abs(before["market"][gb] - before["market"][indonesia]).max() > 0.01
    np.testing.assert_array_equal(after["market"][gb], after["market"][indonesia])
    np.testing.assert_array_equal(after["market"][indonesia], before["market"][indonesia])


def test_markets_with_outcomes_enough_stay_as_they_were_trained(small_training_set):
    before, after = filled(with_outcomes(small_training_set, FULL, 5 * FULL))
    np.testing.assert_array_equal(after["market"][UNSEEN + 1 :], before["market"][UNSEEN + 1 :])


@pytest.mark.parametrize("own", [1 / FULL, 0.5])
def test_a_market_short_of_outcomes_is_itself_and_its_neighbours(small_training_set, own):
    before, after = filled(with_outcomes(small_training_set, own * FULL, FULL))
    gb, indonesia = UNSEEN + 1, UNSEEN + 2
    expected = own * before["market"][gb] + (1 - own) * before["market"][indonesia]
    np.testing.assert_allclose(after["market"][gb], expected, atol=1e-6)
    np.testing.assert_array_equal(after["market"][indonesia], before["market"][indonesia])


def test_the_first_outcome_of_a_market_changes_no_embedding_by_much(small_training_set):
    """Nor that of its language, which nobody else speaks."""
    tables = [filled(with_outcomes(small_training_set, FULL, count))[1] for count in (0, 1, FULL)]
    for domain in ("market", "content_language"):
        none, one, full = (table[domain] for table in tables)
        assert np.abs(full - none).max() > 0.01
        assert np.abs(one - none).max() <= 1.01 * np.abs(full - none).max() / FULL


def test_a_market_is_known_from_half_the_outcomes_on(small_training_set):
    for count, known in ((0, False), (1, False), (FULL // 2 - 1, False), (FULL // 2, True), (FULL, True)):
        examples = with_outcomes(small_training_set, FULL, count).examples
        assert known_markets(examples).tolist() == [True, known]


def test_an_unseen_value_is_the_mean_of_those_that_training_showed(cold):
    before, after = filled(cold)
    train = cold.examples.queries.rows(TRAIN)
    count = np.bincount(cold.features.query.arrays["language"][train], minlength=len(before["language"]))
    assert count[UNSEEN] == 0
    mean = count @ before["language"] / count.sum()
    np.testing.assert_allclose(after["language"][UNSEEN], mean, atol=1e-6)
    np.testing.assert_array_equal(after["language"][count > 0], before["language"][count > 0])


def test_what_pads_histories_is_none_of_the_values_that_training_showed(small_training_set):
    """Nobody learned what it is, and of short histories it is the greater part."""
    before, after = filled(small_training_set)
    examples, features = small_training_set.examples, small_training_set.features
    queries, pairs = examples.queries.rows(TRAIN), examples.pairs.rows(TRAIN)
    ids = [
        features.query.arrays["hist_category"][queries].ravel(),
        features.content.arrays["category"][examples.pairs.content[pairs]],
    ]
    count = np.bincount(np.concatenate(ids), minlength=len(before["category"]))
    null, padding = 1, count[0]
    assert count[null] == 0
    assert padding > 0.2 * count.sum()
    count[0] = 0
    np.testing.assert_allclose(after["category"][null], count @ before["category"] / count.sum(), atol=1e-6)


def test_ids_that_training_forgets_on_purpose_and_padding_stay(cold):
    before, after = filled(cold, FORGOTTEN)
    for name in before:
        np.testing.assert_array_equal(after[name][0], before[name][0])
    for name in FORGOTTEN:
        np.testing.assert_array_equal(after[name], before[name])


def test_an_unseen_content_is_the_mean_of_the_others_where_only_users_are_forgotten(small_training_set):
    """As in the two-tower, where training has no content too rare for an id of its own."""
    features = small_training_set.features

    def known(encoded):
        named = {
            name: np.where(ids == UNSEEN, UNSEEN + 1, ids) if name.endswith("content_id") else ids
            for name, ids in encoded.arrays.items()
        }
        return replace(encoded, arrays=named)

    features = replace(features, query=known(features.query), content=known(features.content))
    data = replace(small_training_set, features=features)
    before, after = filled(data, ("user_id",))
    assert np.abs(after["content_id"][UNSEEN] - before["content_id"][UNSEEN]).max() > 0.001
    spread = before["content_id"][UNSEEN + 1 :].std(axis=0)
    assert (
        np.abs(after["content_id"][UNSEEN] - before["content_id"][UNSEEN + 1 :].mean(axis=0)) < spread
    ).all()


def test_a_language_that_only_a_market_without_a_log_speaks_is_its_neighbours_first(
    small_world_dataset, tmp_path
):
    """Britain alone has a log: contents of Indonesia's languages are its English ones, all else stays."""
    dataset = select_markets(small_world_dataset, ("GB",), tmp_path / "data")
    examples = build_examples(dataset, tmp_path / "work", history_length=10, seen_length=40)
    features = fit_features(
        examples, tmp_path / "features", FeatureConfig(history_length=10, user_min_count=2)
    )
    data = make_training_set(examples, features, fit_item_graph(examples, ItemGraphConfig()), 3 * 86_400)
    before, after = filled(data)
    spoken = examples.contents["language"].to_numpy(object)
    encoded = features.content.arrays["content_language"]
    english, indonesian = (np.unique(encoded[spoken == code]) for code in ("en", "id"))
    assert not np.array_equal(before["content_language"][indonesian], before["content_language"][english])
    np.testing.assert_allclose(
        after["content_language"][indonesian], before["content_language"][english], atol=1e-6
    )
    np.testing.assert_array_equal(after["content_language"][english], before["content_language"][english])
