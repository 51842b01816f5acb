"""A plan survives its file, and knobs that contradict one another are refused by name."""

import re

import pytest

from ensemble.plan import WEIGHTS, CascadeConfig, Plan
from models.ranker import TASKS
from tests.ensemble import synthetic


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = Plan.of(synthetic.release(tmp_path, 1))
    assert plan.markets == synthetic.MARKETS
    assert plan.tasks == synthetic.TASKS
    assert plan.columns == synthetic.COLUMNS
    assert plan.config.weights == synthetic.WEIGHTS
    assert plan == Plan.of(synthetic.release(tmp_path / "again", 1))
    assert isinstance(plan.config, CascadeConfig)


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"slate": 0}, "cascade.slate is 0"),
        ({"seller_cap": 0}, "cascade.seller_cap is 0"),
        ({"category_cap": -1}, "cascade.category_cap is -1"),
        ({"slate": 70}, "slate 70 <= pool 60"),
        ({"pool": 101}, "pool 101 <= candidates 100"),
        ({"candidates": 501}, "candidates 501 <= retrieved 500"),
        ({"quotas": {"popular": 3}}, "cascade.quotas has 'popular'; there are two_tower"),
        ({"quotas": {"trending": -1}}, "cascade.quotas.trending is -1"),
        ({"weights": {"clicks": 1.0}}, "has 'clicks'; there are relevant, click"),
    ],
)
def test_knobs_out_of_range_are_refused_by_name(knobs, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        CascadeConfig(**knobs)


def test_every_task_of_the_ranker_has_a_worth():
    assert set(WEIGHTS) == set(TASKS)
