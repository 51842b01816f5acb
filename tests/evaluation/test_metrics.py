"""The metrics: agreement with ranx, ties, short lists, degenerate input."""

import importlib

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import metrics


def random_case(seed: int, queries: int, items: int, levels: int):
    """Scores of few levels, so that ties are frequent, and one to `items` relevant items per query."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, size=(queries, items)).astype(np.float32)
    relevant = rng.random((queries, items)) < 0.2
    relevant[np.arange(queries), rng.integers(0, items, queries)] = True
    return scores, sp.csr_matrix(relevant)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 8),
    items=st.integers(1, 300),
    levels=st.integers(1, 50),
    k=st.integers(1, 60),
)
def test_top_k_is_the_stable_descending_sort(seed, queries, items, levels, k):
    scores, _ = random_case(seed, queries, items, levels)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    listed = metrics.top_k(scores, k)
    assert listed.shape == (queries, k)
    np.testing.assert_array_equal(listed[:, : expected.shape[1]], expected)
    assert (listed[:, expected.shape[1] :] == metrics.NO_ITEM).all()


def test_of_equal_scores_the_lower_item_comes_first():
    assert metrics.top_k(np.array([[-0.0, 0.0, 1.0, 1.0, 0.0]]), 4).tolist() == [[2, 3, 0, 1]]


def test_a_masked_item_is_never_listed():
    scores = np.array([[1.0, -np.inf, 3.0], [-np.inf, -np.inf, -np.inf]])
    assert metrics.top_k(scores, 3).tolist() == [[2, 0, -1], [-1, -1, -1]]


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metrics.top_k(np.array([[0.0, np.nan]]), 1)


def test_lists_of_zero_length_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        metrics.top_k(np.zeros((1, 3)), 0)


@pytest.fixture(scope="module")
def ranx():
    """ranx, run as Python: to compile it takes minutes, for the same figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("numba.config.DISABLE_JIT", True)
        yield importlib.import_module("ranx")


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 5, 1000]), masked=st.sampled_from([0.0, 0.9]))
def test_ranking_metrics_agree_with_ranx(ranx, seed, levels, masked):
    queries, items, k = 6, 30, 10
    scores, relevant = random_case(seed, queries, items, levels)
    scores[np.random.default_rng(seed).random(scores.shape) < masked] = -np.inf  # lists shorter than k
    scores[:, 0] = np.maximum(scores[:, 0], 0)  # ranx wants at least one item per list
    lists = metrics.top_k(scores, k)
    hit = metrics.hits(lists, relevant)
    count = np.diff(relevant.indptr)

    # ranx has its own order of ties: it gets the place in our list as the score.
    qrels = ranx.Qrels({f"q{q:02d}": {str(i): 1 for i in relevant[q].indices} for q in range(queries)})
    run = ranx.Run(
        {
            f"q{q:02d}": {str(item): float(k - place) for place, item in enumerate(row) if item >= 0}
            for q, row in enumerate(lists)
        }
    )
    names = {"recall": "recall", "hr": "hit_rate", "ndcg": "ndcg"}
    ranx.evaluate(qrels, run, [f"{theirs}@{k}" for theirs in names.values()])
    for ours, theirs in names.items():
        expected = [run.scores[f"{theirs}@{k}"][f"q{q:02d}"] for q in range(queries)]
        np.testing.assert_allclose(metrics.RANKING[ours](hit, count), expected, atol=1e-9, err_msg=ours)


def test_recall_divides_by_all_relevant_items_and_ndcg_by_the_best_list_of_k():
    relevant = sp.csr_matrix(np.ones((1, 4)))
    hit = metrics.hits(np.array([[0, 1]]), relevant)
    assert metrics.recall(hit, np.array([4])) == 0.5
    assert metrics.ndcg(hit, np.array([4])) == 1.0


def test_nothing_relevant_gives_no_hits():
    assert not metrics.hits(np.array([[0, 1]]), sp.csr_matrix((1, 2))).any()


def test_lists_and_relevant_items_must_have_the_same_queries():
    with pytest.raises(ValueError, match="2 lists for 1 rows"):
        metrics.hits(np.zeros((2, 1), dtype=np.int64), sp.csr_matrix((1, 2)))


@pytest.mark.parametrize("name", ["recall", "recall@0", "precision@5", "recall@x", "recall@-1"])
def test_unknown_metric_names_are_refused(name):
    with pytest.raises(ValueError, match="metric@K"):
        metrics.ranking_metric(name)


def test_auc_of_one_class_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        metrics.auc(np.ones(3), np.arange(3))


def test_auc_is_the_share_of_ordered_pairs():
    assert metrics.auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8])) == pytest.approx(3.5 / 4)


def test_logits_are_not_taken_for_probabilities():
    with pytest.raises(ValueError, match="apply the sigmoid"):
        metrics.calibration_interval(np.array([0, 1]), np.array([-1.0, 0.5]), np.arange(2))


def test_calibration_error_is_small_for_true_probabilities_and_the_bias_for_biased_ones():
    rng = np.random.default_rng(0)
    truth = rng.beta(1, 20, 50_000)
    labels = rng.random(50_000) < truth
    alone = np.arange(50_000)
    assert metrics.calibration_interval(labels, truth, alone).mean < 0.005
    biased = metrics.calibration_interval(labels, truth + 0.1, alone)
    assert biased.mean == pytest.approx(0.1, abs=0.005)


def test_mean_absolute_error_keeps_the_unit():
    truth, predictions = np.array([10.0, 20.0]), np.array([12.0, 17.0])
    assert metrics.absolute_error_interval(truth, predictions, np.arange(2)).mean == 2.5


def test_the_interval_of_a_mean_covers_it_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    covered = [
        low <= 3 <= high for _, low, high in (metrics.interval(rng.normal(3, 2, 12)) for _ in range(2000))
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_an_interval_over_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        metrics.interval(np.array([]))


def test_the_bootstrap_interval_holds_the_statistic_and_repeats_under_a_seed():
    rng = np.random.default_rng(0)
    labels = np.tile([1, 0], (300, 1))
    scores = rng.normal(labels, 1.0)
    people = np.arange(300)
    first = metrics.bootstrap(metrics.auc, labels, scores, people, seed=3)
    assert first.low < first.mean < first.high
    assert first == metrics.bootstrap(metrics.auc, labels, scores, people, seed=3)
    assert first.mean == metrics.auc(labels, scores)


def test_the_bootstrap_interval_of_a_mean_is_about_its_t_interval():
    values = np.random.default_rng(0).normal(3, 2, 200)
    found = metrics.bootstrap(
        lambda labels, _: float(labels.mean()), values, values, np.arange(200), seed=3, resamples=2000
    )
    assert found == pytest.approx(metrics.interval(values), abs=0.03)


def test_the_bootstrap_draws_people_with_all_of_their_rows():
    rng = np.random.default_rng(0)
    labels = np.tile([1, 0], (100, 1))
    scores = rng.normal(labels, 1.0)
    people = rng.permutation(np.repeat(np.arange(100), 4))
    plain = metrics.bootstrap(metrics.auc, labels, scores, np.arange(100), seed=3)
    again = metrics.bootstrap(metrics.auc, labels[people], scores[people], people, seed=3)
    assert again == pytest.approx(plain)
    assert np.isnan(metrics.bootstrap(metrics.auc, labels, scores, np.zeros(100, int), seed=3).low)


def test_an_interval_over_clusters_of_one_is_the_plain_one():
    values = np.random.default_rng(0).normal(3, 2, 30)
    assert metrics.mean_interval(values, np.arange(30)) == pytest.approx(metrics.interval(values))


def test_rows_that_only_repeat_one_another_make_nothing_surer():
    values = np.random.default_rng(0).normal(3, 2, 30)
    again = metrics.mean_interval(np.repeat(values, 4), np.repeat(np.arange(30), 4))
    assert again == pytest.approx(metrics.interval(values))
    assert np.isnan(metrics.mean_interval(values, np.zeros(30, int)).low)


def test_weights_count_rows_as_if_they_were_there_so_often():
    values, weights = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1, 3, 2, 1])
    mean, low, high = metrics.mean_interval(values, np.arange(4), weights)
    assert mean == pytest.approx(np.repeat(values, weights).mean())
    assert low < mean < high


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=40), st.integers(1, 5))
def test_auc_without_resampling_is_scikit_learns_with_ties(pairs, clusters):
    labels, scores = (np.array(column, float) for column in zip(*pairs))
    cluster = np.arange(len(pairs)) % clusters
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="AUC needs both classes"):
            metrics.auc_interval(labels, scores, cluster)
        return
    assert metrics.auc_interval(labels, scores, cluster).mean == pytest.approx(metrics.auc(labels, scores))


def test_the_interval_of_an_auc_covers_it_also_where_rows_come_in_clusters():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        mood = np.repeat(rng.normal(0, 1, 60), 5)  # each person's rows have a common part
        labels = np.tile([1, 0, 0, 1, 0], 60)
        scores = labels + mood + rng.normal(0, 1, 300)
        _, low, high = metrics.auc_interval(labels, scores, np.repeat(np.arange(60), 5))
        covered += low <= 0.6915 <= high  # P(N(1, 4) > 0), the difference of two such scores
    assert covered / 400 == pytest.approx(0.95, abs=0.04)


def test_equal_predictions_are_one_bin_in_whatever_order_they_come():
    labels, constant, alone = np.repeat([1.0, 0.0], [100, 900]), np.full(1000, 0.1), np.arange(1000)
    assert metrics.calibration_interval(labels, constant, alone).mean == pytest.approx(0)
    rng = np.random.default_rng(5)
    chance = np.round(rng.random(1000), 1)
    found = metrics.calibration_interval(labels, chance, alone)
    mixed = rng.permutation(1000)
    assert metrics.calibration_interval(labels[mixed], chance[mixed], alone) == pytest.approx(found)


def test_the_interval_of_a_calibration_error_holds_it_and_is_over_people():
    random = np.random.default_rng(0)
    chance = random.uniform(0.05, 0.3, 4_000)
    labels = (random.random(4_000) < 0.8 * chance).astype(float)
    person = np.repeat(np.arange(800), 5)
    found = metrics.calibration_interval(labels, chance, person)
    assert found.mean == pytest.approx(0.2 * chance.mean(), abs=0.01)
    assert found.low < found.mean < found.high
    again = metrics.calibration_interval(np.tile(labels, 4), np.tile(chance, 4), np.tile(person, 4))
    assert again.high - again.low == pytest.approx(found.high - found.low, rel=0.02)
