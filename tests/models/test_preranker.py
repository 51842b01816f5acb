"""The pre-ranker learns an order that vectors and numbers explain, and is repeatable."""

import numpy as np
import pytest

from ensemble.distil import kept_share
from ensemble.preranking import BIAS, CONTENTS, HIDDEN, OUT, QUERY, PreRanker
from models.preranker import PreRankerConfig, train_preranker

QUERIES, LIST, DIM = 300, 60, 8


@pytest.fixture(scope="module")
def lists():
    """Queries, contents, candidates, numbers, and a value that is no plain cosine; some places are empty."""
    random = np.random.default_rng(0)
    query, contents = random.normal(size=(QUERIES, DIM)), random.normal(size=(500, DIM))
    candidates = np.stack([random.permutation(500)[:LIST] for _ in range(QUERIES)])
    numbers = random.normal(size=(QUERIES, LIST, 2))
    value = 2 * (query[:, None, :3] * contents[candidates][..., :3]).sum(-1) + numbers[..., 0] ** 2
    candidates[:, -5:] = -1
    value[:, -5:] = -np.inf
    query, contents, numbers, value = (a.astype(np.float32) for a in (query, contents, numbers, value))
    return query, contents, candidates, numbers, value


def learned(lists, seed=0, **knobs):
    query, contents, candidates, numbers, value = lists
    config = PreRankerConfig(**({"epochs": 30, "dim": 8} | knobs))
    rows = slice(0, 250)
    weights = train_preranker(
        query[rows], contents[np.maximum(candidates, 0)][rows], numbers[rows], value[rows], config, seed
    )
    return PreRanker(
        {
            QUERY: weights.query,
            CONTENTS: contents @ weights.content,
            HIDDEN: weights.hidden,
            BIAS: weights.bias,
            OUT: weights.out,
        }
    )


def scores(preranker, lists):
    query, contents, candidates, numbers, _ = lists
    cosine = np.einsum("qd,qcd->qc", query, contents[np.maximum(candidates, 0)])
    return preranker(query, candidates, numbers, cosine), cosine


def first(score, count):
    return np.argsort(-score, axis=1)[:, :count]


def test_it_keeps_the_rankers_first_ten_on_lists_it_never_saw(lists):
    score, cosine = scores(learned(lists), lists)
    value = lists[-1]
    kept = kept_share(first(score[250:], 20), value[250:])
    assert kept > 0.85
    assert kept > kept_share(first(cosine[250:], 20), value[250:]) + 0.2
    assert (score[:, -5:] == -np.inf).all()


def test_the_same_seed_gives_the_same_weights(lists):
    first, again, other = (learned(lists, seed, epochs=1) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.hidden, again.hidden)
    assert not np.array_equal(first.hidden, other.hidden)


def test_the_share_kept_counts_the_first_ten_by_value():
    value = np.arange(20, 0, -1, dtype=np.float32)[None]
    assert kept_share(first(value, 10), value) == 1
    assert kept_share(first(-value, 10), value) == 0
    assert kept_share(first(value, 4), value) == pytest.approx(0.4)
