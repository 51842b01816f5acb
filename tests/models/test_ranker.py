"""The ranker: its tasks are the outcomes that the log can teach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.batches import LOG_Q, RankingBatches
from models.ranker import (
    TASKS,
    RankerConfig,
    _ndcg,
    build_ranker,
    followed_tasks,
    losses,
    predict,
    task_labels,
    train_ranker,
)
from tests.models.conftest import Trained
from workflows.examples import TRAIN, VALID, Examples, Pairs

UNSEEN = 2


def with_outcomes(examples: Examples, **outcomes: np.ndarray) -> Examples:
    return replace(examples, pairs=replace(examples.pairs, outcomes=outcomes))


def flags(examples: Examples, split: int, count: int) -> np.ndarray:
    """An outcome that `count` rows of a split have."""
    made = np.zeros(len(examples.pairs.split), np.float32)
    made[np.flatnonzero(examples.pairs.split == split)[:count]] = 1
    return made


def test_tasks_are_the_outcomes_of_the_log_in_the_order_of_all_tasks(small_examples):
    labels = task_labels(small_examples, 1)
    outcomes = small_examples.pairs.outcomes
    assert list(labels) == ["click", "watch", "cart", "order", "negative"]
    assert list(labels) == [task for task in TASKS if task in labels]
    for task in ("click", "cart", "order", "negative"):
        np.testing.assert_array_equal(labels[task], outcomes[task] > 0)
    kinds = {task: values.dtype for task, values in labels.items()}
    assert kinds == {task: np.float32 if task == "watch" else bool for task in labels}


def test_a_task_needs_enough_outcomes_in_the_training_part(small_examples):
    examples = with_outcomes(
        small_examples,
        click=flags(small_examples, TRAIN, 50),
        like=flags(small_examples, TRAIN, 49),
        cart=flags(small_examples, VALID, 50),
    )
    assert list(task_labels(examples, 50)) == ["click"]


def test_a_log_that_teaches_nothing_is_refused_with_the_remedy(small_examples):
    examples = with_outcomes(small_examples, click=flags(small_examples, TRAIN, 3))
    with pytest.raises(ValueError, match=r"no outcome has 100 training rows.*lower ranker.min_outcomes"):
        task_labels(examples, 100)


def test_a_log_of_outcomes_that_no_task_learns_is_told_those_that_are(small_examples):
    examples = with_outcomes(small_examples, share=flags(small_examples, TRAIN, 500))
    with pytest.raises(ValueError, match=r"that are learned \(click, watch_s, like, .*\).*log one of them"):
        task_labels(examples, 100)


def test_where_positives_alone_were_logged_the_one_task_is_relevance(small_examples):
    labels = task_labels(replace(small_examples, feedback="positives"), 10**6)
    assert list(labels) == ["relevant"]
    np.testing.assert_array_equal(labels["relevant"], small_examples.pairs.positive)


seconds = st.floats(0, 1e6, width=32) | st.just(np.nan)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(watch_s=arrays(np.float32, 20, elements=seconds))
def test_watch_time_becomes_a_place_among_its_like(small_examples, watch_s):
    assume(np.isfinite(watch_s).any())
    zeros = np.zeros(len(watch_s), np.int64)
    pairs = Pairs(zeros, zeros, zeros > 0, {"watch_s": watch_s}, zeros)
    share = task_labels(replace(small_examples, pairs=pairs), 0)["watch"]
    assert ((share >= 0) & (share <= 1)).all()
    assert (np.diff(share[np.argsort(np.nan_to_num(watch_s))]) >= 0).all()


def test_each_task_has_its_head(small_ranker: Trained, small_training_set):
    assert small_ranker.tasks == ("click", "watch", "cart", "negative")
    labels = task_labels(small_training_set.examples, small_ranker.config.min_outcomes)
    rows = np.arange(30)
    batches = RankingBatches(small_training_set, rows, labels, batch_size=8, shuffle=False)
    predicted, truth = predict(small_ranker.model, batches)
    assert predicted.shape == truth.shape == (30, 4)
    assert ((predicted > 0) & (predicted < 1)).all()
    for place, task in enumerate(small_ranker.tasks):
        np.testing.assert_array_equal(truth[:, place], labels[task][rows])
    assert len({tuple(column) for column in predicted.T.tolist()}) == 4


def test_validation_tells_the_auc_of_each_task_and_their_mean(small_ranker: Trained):
    [metrics] = small_ranker.state.history
    assert set(metrics) == {"auc", *(f"auc_{task}" for task in small_ranker.tasks)}
    each = [metrics[f"auc_{task}"] for task in small_ranker.tasks]
    assert metrics["auc"] == pytest.approx(np.mean(each))
    assert all(0 <= value <= 1 for value in each)


def test_popularity_age_history_and_content_all_reach_the_prediction(
    small_ranker: Trained, small_training_set
):
    labels = task_labels(small_training_set.examples, small_ranker.config.min_outcomes)
    rich = np.flatnonzero(small_training_set.examples.queries.history[:, 2] >= 0)
    rows = np.flatnonzero(np.isin(small_training_set.examples.pairs.query, rich))[:16]
    x, _ = RankingBatches(small_training_set, rows, labels, batch_size=16, shuffle=False)[0]

    def scores(x: dict) -> np.ndarray:
        return small_ranker.model(x, training=False).numpy()

    before = scores(x)
    for name in ("popularity_market", "popularity_world", "age", "hist_content_id", "content_id", "market"):
        changed = x[name] + 1 if x[name].dtype == np.float32 else np.where(x[name] > 0, UNSEEN, 0)
        assert np.abs(scores(x | {name: changed}) - before).max() > 1e-6, name


def test_one_task_makes_a_model_of_one_output(small_training_set):
    features = small_training_set.features
    config = RankerConfig(embedding_dim=4, bottom=(8,), top=(8,))
    model = build_ranker(features, ("relevant",), config, seed=1)
    labels = {"relevant": small_training_set.examples.pairs.positive.astype(np.float32)}
    batches = RankingBatches(small_training_set, np.arange(10), labels, batch_size=4, shuffle=False)
    predicted, truth = predict(model, batches)
    assert predicted.shape == truth.shape == (10, 1)


def test_orders_follow_carts_and_carts_clicks_where_the_log_says_so_throughout():
    click, cart, order = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0]), np.array([0, 1, 0, 0])
    assert followed_tasks({"click": click, "watch": click, "cart": cart, "order": order}) == (-1, -1, 0, 2)
    assert followed_tasks({"click": click, "order": order}) == (-1, 0)
    assert followed_tasks({"cart": cart, "order": order}) == (-1, 0)
    # An order without a cart, and one without a click.
    assert followed_tasks({"click": click, "cart": cart, "order": np.array([0, 0, 1, 0])}) == (-1, 0, 0)
    assert followed_tasks({"click": click, "order": np.array([0, 0, 0, 1])}) == (-1, -1)


def test_with_esmm_no_order_is_likelier_than_its_click(small_training_set, tmp_path):
    config = RankerConfig(
        embedding_dim=4, bottom=(4,), top=(8,), epochs=1, min_outcomes=20, esmm=True, experts=0
    )
    model, tasks, _ = train_ranker(small_training_set, config, tmp_path, 1)
    labels = task_labels(small_training_set.examples, config.min_outcomes)
    batches = RankingBatches(small_training_set, np.arange(500), labels, batch_size=512, shuffle=False)
    predicted, _ = predict(model, batches)
    click, cart, order = (predicted[:, tasks.index(name)] for name in ("click", "cart", "order"))
    assert (cart < click).all()
    assert (order < cart).all()


def test_experts_without_a_layer_for_them_are_refused():
    with pytest.raises(ValueError, match=r"ranker.experts is 2, but ranker.top = \[8\].*second width"):
        RankerConfig(top=(8,), experts=2)


def test_the_validation_of_positives_is_their_ndcg_among_rivals():
    content = np.array([7, 8, 9, *[1, 2, 3], *[8, 1, 2], *[1, 2, 3]])
    # First of its list; first but for its own double; behind two and level with one.
    score = np.array([0.9, 0.5, 0.4, *[0.1, 0.2, 0.3], *[0.5, 0.1, 0.2], *[0.8, 0.7, 0.4]])
    expected = np.mean([1, 1, 1 / np.log2(1 + 4)])
    assert _ndcg(score, content, 3) == pytest.approx(expected)
    beyond = np.r_[0.0, np.ones(20)]
    assert _ndcg(beyond, np.arange(21), 1) == 0


def test_contents_that_are_drawn_often_are_not_learned_to_be_unlikely():
    """Of contents wanted equally often, one drawn eight times as often keeps the same chance."""
    wanted = np.array([100.0, 100.0])
    drawn = np.array([80.0, 10.0])  # uniformly it were 45 each
    log_q = np.log(drawn / 45)
    logit = tf.Variable(np.zeros(2, np.float32))
    optimizer = tf.keras.optimizers.Adam(0.05)
    optimizer.build([logit])

    def loss() -> tf.Tensor:
        total = 0.0
        for content in range(2):
            x = {"content": tf.constant([[content]]), LOG_Q: tf.constant([[log_q[content]]], tf.float32)}
            for label, count in ((1.0, wanted[content]), (0.0, drawn[content])):
                model = lambda x, training: tf.sigmoid(tf.gather(logit, x["content"]))  # noqa: E731
                total += count * losses(model, dict(x), tf.constant([[label]]))[0]
        return total

    step = tf.function(lambda: optimizer.minimize(loss, [logit]))
    for _ in range(400):
        step()
    np.testing.assert_allclose(logit.numpy(), np.log(100 / 45), atol=0.02)
