"""Conversions are the log-odds of orders among what was wanted, where a log tells of nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from models.conversion import PRIOR, conversions
from workflows.examples import TRAIN, VALID


@pytest.fixture(scope="module")
def wanted(small_examples):
    """The small log as if all of it had been wanted, by clicks or orders."""
    pairs = small_examples.pairs
    ordered = np.random.default_rng(3).random(len(pairs.content)) < 0.3
    told = replace(pairs, outcomes={**pairs.outcomes, "order": ordered.astype(np.float32)})
    return replace(small_examples, feedback="positives", pairs=told)


@pytest.mark.parametrize("last", [TRAIN, VALID])
def test_each_content_has_the_odds_of_its_own_outcomes_and_of_some_of_the_mean(wanted, last):
    pairs = wanted.pairs
    rows = np.flatnonzero(pairs.positive & (pairs.split <= last))
    share = (pairs.outcomes["order"][rows] > 0).mean()
    made = conversions(wanted, last)
    assert made.dtype == np.float32
    for content in range(len(wanted.contents)):
        own = pairs.outcomes["order"][rows[pairs.content[rows] == content]] > 0
        orders, others = own.sum() + PRIOR * share, (~own).sum() + PRIOR * (1 - share)
        assert made[content] == pytest.approx(np.log(orders / others), rel=1e-4)


def test_a_log_of_impressions_and_one_without_orders_or_of_nothing_else_have_none(small_examples, wanted):
    assert not conversions(small_examples).any()
    none = {**wanted.pairs.outcomes, "order": np.zeros(len(wanted.pairs.content), np.float32)}
    assert not conversions(replace(wanted, pairs=replace(wanted.pairs, outcomes=none))).any()
    alone = {**wanted.pairs.outcomes, "order": np.ones(len(wanted.pairs.content), np.float32)}
    assert not conversions(replace(wanted, pairs=replace(wanted.pairs, outcomes=alone))).any()
    clicks = {name: values for name, values in wanted.pairs.outcomes.items() if name != "order"}
    assert not conversions(replace(wanted, pairs=replace(wanted.pairs, outcomes=clicks))).any()
