"""Parts of the ranker, each with and without."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.ranker_ablations import VARIANTS, ablate_ranker
from models.ranker import RankerConfig, train_ranker
from workflows.examples import VALID

pytestmark = pytest.mark.slow


def test_a_seed_that_is_given_twice_counts_once(small_training_set, monkeypatch):
    def train(data, config, folder, seed, progress):
        state = SimpleNamespace(history=[{"auc": seed / 10}], best_epoch=1)
        return None, None, [state]

    monkeypatch.setattr("evaluation.ranker_ablations.train_ranker", train)
    rows = {
        seeds: repr(list(ablate_ranker(small_training_set, RankerConfig(), seeds)))
        for seeds in ((1, 2), (1, 2, 1))
    }
    assert rows[1, 2, 1] == rows[1, 2]
    assert "value=0.15" in rows[1, 2]


def test_every_variant_is_measured_and_compared_with_the_first(small_training_set, monkeypatch):
    """Each is trained under one seed; under the other it is as it was, and its figures a little lower."""
    trained = {}

    def train(data, config, folder, seed, progress):
        if config not in trained:
            trained[config] = train_ranker(data, config, folder, seed, progress)
        model, tasks, states = trained[config]
        lower = [{name: value - (seed - 1) / 100 for name, value in one.items()} for one in states[0].history]
        return model, tasks, [replace(states[0], history=lower)]

    monkeypatch.setattr("evaluation.ranker_ablations.train_ranker", train)
    config = RankerConfig(embedding_dim=4, bottom=(4,), top=(8, 4), epochs=1, min_outcomes=60)
    rows = list(ablate_ranker(small_training_set, config, (1, 2)))
    found = {(row.system, row.metric): row for row in rows}
    assert len(found) == len(rows)
    assert {row.system for row in rows} == set(VARIANTS)
    pairs, queries = small_training_set.examples.pairs, small_training_set.examples.queries
    people = set(queries.user[pairs.query[pairs.split == VALID]].tolist())
    assert {(row.users, row.seed) for row in rows} == {(len(people), 1)}
    for name in VARIANTS:
        more = found[name, "auc over plain"].value
        assert more == pytest.approx(found[name, "auc"].value - found["plain", "auc"].value)
        assert found[name, "auc"].low <= found[name, "auc"].value <= found[name, "auc"].high
        assert (name == "plain") == (more == 0)
    tasks = [metric for system, metric in found if system == "plain" and metric.startswith("auc_")]
    means = [found["plain", metric].value for metric in tasks if " over " not in metric]
    assert found["plain", "auc"].value == pytest.approx(np.mean(means))
