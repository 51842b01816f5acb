"""The public data sets reproduce the figures that are known of them, so protocol and metrics are right."""

from functools import lru_cache
from pathlib import Path

import pytest

from evaluation.protocols import benchmarks
from evaluation.published import figures
from evaluation.runs import Row, evaluate
from evaluation.systems import baselines
from evaluation.tasks import Benchmark
from market.importers import read
from tests.conftest import public_data

pytestmark = pytest.mark.real_data


@lru_cache(maxsize=1)  # one data set at a time in memory
def benchmarks_of(root: Path, name: str) -> list[Benchmark]:
    return benchmarks(read(name, public_data(root, name)))


def rows_of(root: Path, data_set: str, system: str) -> list[Row]:
    name = data_set.split(" (")[0]
    for benchmark in benchmarks_of(root, name):
        if benchmark.task.name == data_set:
            chosen = [each for each in baselines(benchmark.task) if each.name == system]
            return list(evaluate(benchmark, chosen))
    raise AssertionError(f"no benchmark {data_set!r}")


def published(row: Row) -> float:
    known = figures(row.data_set, row.market, row.metric, row.users)
    (value,) = (figure.value for figure in known if figure.system == row.system)
    return value


@pytest.mark.parametrize(
    ("data_set", "system"),
    [
        ("tiktok", "popularity"),
        pytest.param("tiktok", "ease", marks=pytest.mark.slow),
        pytest.param("taobao", "ease", marks=pytest.mark.slow),
        pytest.param("taobao", "ease, with carts", marks=pytest.mark.slow),
        pytest.param("gowalla", "gf-cf", marks=pytest.mark.slow),
    ],
)
def test_full_rankings_reproduce_their_figures_to_the_fourth_decimal(data_root, data_set, system):
    rows = rows_of(data_root, data_set, system)
    assert len(rows) == 2
    for row in rows:
        assert row.value == pytest.approx(published(row), abs=0.00016), row


def test_popularity_of_xmarket_is_the_known_one_within_the_error_of_its_negatives(data_root):
    rows = [row for row in rows_of(data_root, "xmarket", "popularity") if "negatives" in row.metric]
    assert {row.market for row in rows} == {"DE", "GB", "CA", "JP", "IN"}
    for row in rows:
        assert row.low <= published(row) <= row.high, row


@pytest.mark.parametrize("system", ["median", "median by duration"])
def test_watch_time_reproduces_the_errors_of_the_medians(data_root, system):
    (row,) = rows_of(data_root, "kuairand (watch time)", system)
    assert row.value == pytest.approx(published(row), abs=0.15)


def test_identity_alone_tells_what_kuairand_liked(data_root):
    """Liked videos recur, hated ones hardly do, because of how the set was cut."""
    (row,) = rows_of(data_root, "kuairand (likes)", "item rate")
    assert row.value > 0.95
