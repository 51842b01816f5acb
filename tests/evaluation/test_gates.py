"""The gate of a release: what it compares, what it refuses, and that chance alone refuses nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest

from ensemble.plan import FILE, Plan
from ensemble.release import Release, ReleaseWriter
from evaluation import gates, metrics
from evaluation.gates import GateConfig, _Pair, faults, gate
from evaluation.replay import Replay
from market.dataset import write_like
from workflows.examples import TEST, build_examples

pytestmark = pytest.mark.slow
CONFIG = GateConfig()
NDCG = gates.PROPENSITY


@pytest.fixture(scope="module")
def examples(small_build):
    return small_build.built.data.examples


@pytest.fixture(autouse=True)
def few_outcomes(monkeypatch):
    """The small world has no hundred clicks to test, and few people who click."""
    monkeypatch.setattr(gates, "LEAST_OUTCOMES", 5)
    monkeypatch.setattr(gates, "LEAST_PEOPLE", 2)


def changed(release, path, **arrays):
    """The release with other arrays of some names."""
    with ReleaseWriter(path, name="changed") as writer:
        writer.link(release, but=[f"{name}.npy" for name in arrays])
        for name, array in arrays.items():
            writer.array(f"{name}.npy", array)
    return Release.open(path)


def planned(release, path, **fields):
    """The release with another plan."""
    with ReleaseWriter(path, name="planned") as writer:
        writer.link(release, but=[FILE])
        writer.json(FILE, replace(Plan.of(release), **fields).to_json())
    return Release.open(path)


def with_probabilities(release, path, operator, *, before=()):
    """The release with a ranking graph that changes what it says, by an operator whose first inputs stand in
    `before`."""
    graph = onnx.load(release.onnx_path("ranking.onnx"))
    made = graph.graph.output[0].name
    assert made == "probabilities"
    for node in graph.graph.node:
        node.output[:] = ["said" if name == made else name for name in node.output]
    for place, value in enumerate(before):
        tensor = onnx.numpy_helper.from_array(np.float32(value), f"given_{place}")
        graph.graph.initializer.append(tensor)
    given = [f"given_{place}" for place in range(len(before))]
    graph.graph.node.append(onnx.helper.make_node(operator, [*given, "said"], [made]))
    with ReleaseWriter(path, name=operator) as writer:
        writer.link(release, but=["ranking.onnx"])
        onnx.save(graph, writer.path("ranking.onnx"))
    return Release.open(path)


def compare(candidate, served, examples):
    return gate(candidate, served, examples, CONFIG, seed=1)


def by_figure(checks):
    return {(check.figure, check.market): check for check in checks}


def test_a_release_is_no_worse_than_itself(small_release, examples):
    checks = compare(small_release, small_release, examples)
    figures = {check.figure for check in checks}
    told = {
        "markets",
        "tasks",
        "contents",
        "contents known",
        "probabilities",
        "places filled",
        "shown before",
    }
    assert told | {NDCG, "auc of click", "ece of click"} <= figures
    assert not faults(checks)
    for check in checks:
        if check.figure == "shown before":
            assert check.candidate == 1
        else:
            assert check.served == check.candidate
    judged = [check for check in checks if not np.isnan(check.low)]
    assert {check.market for check in judged} == {"all", *examples.markets}
    assert all(check.low == check.high == 0 for check in judged)
    assert compare(small_release, small_release, examples) == checks


def test_the_figures_are_those_of_each_release_alone(small_release, examples, tmp_path):
    """nDCG and AUC counted anew from what each release says of all later rows."""
    other = with_probabilities(small_release, tmp_path / "other", "Sqrt")
    checks = by_figure(compare(other, small_release, examples))
    pairs, queries = examples.pairs, examples.queries
    later = np.flatnonzero(pairs.split == TEST)
    for place, market in enumerate(examples.markets):
        here = later[queries.market[pairs.query[later]] == place]
        wanted = here[pairs.positive[here]]
        for name, release in (("served", small_release), ("candidate", other)):
            replay = Replay(release, examples)
            hit = replay.lists(wanted)["cascade"][:, :10] == pairs.content[wanted][:, None]
            gain = (hit / np.log2(np.arange(2, 12))).sum(axis=1)
            gain = np.average(gain, weights=1 / pairs.propensity[wanted])
            assert getattr(checks[NDCG, market], name) == pytest.approx(gain)
            click = replay.scores(here)["served"][:, replay.cascade.plan.tasks.index("click")]
            area = metrics.auc(pairs.outcomes["click"][here] > 0, click)
            assert getattr(checks["auc of click", market], name) == pytest.approx(area)


def test_what_ranks_the_other_way_round_is_refused(small_release, examples, tmp_path):
    # As if nothing had been learned from: the test days have two dozen clicks.
    small_release = planned(small_release, tmp_path / "whole", learned_until=1)
    upside_down = with_probabilities(small_release, tmp_path / "broken", "Sub", before=[1.0])
    checks = compare(upside_down, small_release, examples)
    found = by_figure(checks)
    for market in ("all", *examples.markets):
        served, candidate = (getattr(found["auc of click", market], side) for side in ("served", "candidate"))
        assert served + candidate == pytest.approx(1, abs=1e-4)  # near 1 some probabilities become one
    assert found["auc of click", "all"].refused
    assert any("auc of click" in text for text in faults(checks))
    # The other way round it is a gain, which nobody refuses.
    assert not faults(compare(small_release, upside_down, examples))


def test_probabilities_that_promise_too_much_are_refused(small_release, examples, tmp_path):
    checks = compare(with_probabilities(small_release, tmp_path / "loud", "Sqrt"), small_release, examples)
    refused = {check.figure for check in checks if check.refused}
    assert "ece of click" in refused
    # A root keeps every order.
    assert not any(figure.startswith("auc") for figure in refused)


def test_half_a_market_s_catalogue_less_is_refused(small_release, examples, tmp_path):
    plan = Plan.of(small_release)
    available = np.array(small_release.array("available.npy"))
    available[0, ::2] = False
    checks = compare(changed(small_release, tmp_path / "half", available=available), small_release, examples)
    found = by_figure(checks)
    assert found["contents", plan.markets[0]].refused
    assert not found["contents", plan.markets[1]].refused
    assert f"contents in {plan.markets[0]}" in " ".join(faults(checks))
    # What was gained is none the worse.
    more = by_figure(
        compare(small_release, changed(small_release, tmp_path / "again", available=available), examples)
    )
    assert not more["contents", plan.markets[0]].refused


def test_a_market_that_sells_nothing_any_more_is_refused(small_release, examples, tmp_path):
    """Whether its contents are there and not for it, or it has none: what says nothing is no crash."""
    market = Plan.of(small_release).markets[0]
    available = np.array(small_release.array("available.npy"))
    available[0] = False
    empty = changed(small_release, tmp_path / "empty", available=available)
    checks = compare(empty, small_release, examples)
    assert by_figure(checks)["contents", market].refused
    assert f"contents in {market}: 0 where" in " ".join(faults(checks))
    assert not by_figure(compare(small_release, empty, examples))["contents", market].refused


def test_a_catalogue_of_other_contents_is_refused(small_release, examples, tmp_path):
    ids = np.array([f"other {name}" for name in small_release.array("text_content_id.npy")])
    other = changed(small_release, tmp_path / "other", text_content_id=ids)
    found = by_figure(compare(other, small_release, replace(examples, feedback="positives")))
    for market in examples.markets:
        assert (found["contents", market].candidate, found["contents", market].refused) == (0, True)
        assert (found["contents known", market].candidate, found["contents known", market].refused) == (
            0,
            True,
        )
        assert found["shown before", market].candidate == 0


def test_a_log_that_says_nothing_of_what_is_served_is_an_error(
    small_release, examples, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match="of the markets VN, DE has outcomes of 2 people with contents that"):
        compare(small_release, small_release, replace(examples, markets=("VN", "DE")))
    monkeypatch.setattr(gates, "LEAST_OUTCOMES", 10_000)
    unlogged = replace(examples, pairs=replace(examples.pairs, propensity=None))
    with pytest.raises(ValueError, match="says too little"):
        compare(small_release, small_release, unlogged)
    monkeypatch.setattr(gates, "LEAST_PEOPLE", 10_000)
    with pytest.raises(ValueError, match=r"says too little to judge a release by: .* give the log that"):
        compare(small_release, small_release, examples)


def test_a_release_that_says_no_probability_is_refused(small_release, examples, tmp_path):
    silent = with_probabilities(small_release, tmp_path / "silent", "Mul", before=[np.nan])
    for log in (examples, replace(examples, feedback="positives")):
        checks = by_figure(compare(silent, small_release, log))
        for market in examples.markets:
            found = checks["probabilities", market]
            assert (found.served, found.candidate, found.refused) == (1, 0, True)
    assert not by_figure(compare(small_release, silent, examples))["probabilities", "ID"].refused


def test_a_probability_that_is_gone_is_refused_whatever_others_came(small_release, examples, monkeypatch):
    said = np.array([False, True, True]), np.array([True, False, False])
    monkeypatch.setattr(gates, "_impressions", lambda *_: (said, []))
    for market in examples.markets:
        found = by_figure(compare(small_release, small_release, examples))["probabilities", market]
        assert (found.served, found.candidate, found.refused) == (1 / 3, 2 / 3, True)


def test_shorter_slates_leave_places_empty(small_release, examples, tmp_path):
    plan = Plan.of(small_release)
    shorter = planned(small_release, tmp_path / "short", config=replace(plan.config, slate=3))
    found = by_figure(compare(shorter, small_release, examples))["places filled", "ID"]
    assert (found.served, found.candidate) == (1, pytest.approx(3 / plan.config.slate))
    assert found.refused


def test_where_no_log_had_times_slates_are_asked_for_when_contents_are_open(
    small_release, examples, tmp_path
):
    timeless = planned(small_release, tmp_path / "timeless", as_of=0, learned_until=0, split="given")
    given = replace(examples, split="given")
    found = by_figure(compare(timeless, timeless, given))
    assert found["contents", "ID"].served > 0
    assert found["places filled", "ID"].served == 1


def test_a_market_or_a_task_less_is_refused(small_release, examples):
    plan = Plan.of(small_release)

    def counts(new, old):
        cascades = tuple(SimpleNamespace(plan=replace(plan, **fields)) for fields in (new, old))
        return {check.figure: check for check in gates._slates(cascades, examples, CONFIG, 1)}

    none = {"markets": ()}
    less = counts(none | {"tasks": plan.tasks[1:]}, {"markets": ("ID",)})
    assert (less["markets"].candidate, less["markets"].refused) == (0, True)
    assert (less["tasks"].served, less["tasks"].candidate) == (len(plan.tasks), len(plan.tasks) - 1)
    assert less["tasks"].refused
    more = counts({"markets": ("ID",)}, none | {"tasks": plan.tasks[1:]})
    assert not any(check.refused for check in more.values())


def test_empty_places_are_refused(small_release, examples, tmp_path):
    ends = np.zeros_like(small_release.array("ended_at.npy"))
    ends[:5] = np.iinfo(np.int64).max
    checks = compare(changed(small_release, tmp_path / "ended", ended_at=ends), small_release, examples)
    assert any(check.refused for check in checks if check.figure == "places filled")


def test_only_what_neither_learned_from_is_judged(small_release, examples, tmp_path, small_world_dataset):
    """A log that goes on later than both; one that ends before is refused."""
    plan = Plan.of(small_release)
    assert plan.learned_until == examples.queries.time[examples.queries.rows(TEST)].min()
    assert plan.learned_until < plan.as_of
    late = planned(small_release, tmp_path / "late", learned_until=plan.as_of)
    with pytest.raises(ValueError, match="ends before what the releases learned"):
        compare(small_release, late, examples)
    half = int(np.median(examples.queries.time[examples.queries.rows(TEST)]))
    middle = planned(small_release, tmp_path / "middle", learned_until=half)
    rows = gates._later(examples, (plan, Plan.of(middle)))
    assert examples.queries.time[examples.pairs.query[rows]].min() >= half
    assert 0 < len(rows) < (examples.pairs.split == TEST).sum()


def test_a_test_part_is_trusted_only_where_the_release_held_it_out_as_well(small_release, examples):
    plan = Plan.of(small_release)
    assert plan.split == "time"
    by_person = replace(examples, split="leave_last")
    test = np.flatnonzero(examples.pairs.split == TEST)
    times = examples.queries.time[examples.pairs.query]
    half = int(np.median(times[test]))
    cut = replace(plan, learned_until=half)
    np.testing.assert_array_equal(gates._later(by_person, (plan, cut)), test[times[test] >= half])
    for split in ("leave_last", ""):
        same = replace(cut, split=split)
        np.testing.assert_array_equal(gates._later(by_person, (same, same)), test)
    with pytest.raises(ValueError, match="has no test part that neither release learned from"):
        gates._later(by_person, (plan, replace(plan, learned_until=plan.as_of)))
    timeless = replace(plan, learned_until=0, split="leave_last")
    for log, plans in (
        (examples, (plan, timeless)),
        (replace(by_person, has_time=False), (plan, plan)),
    ):
        with pytest.raises(ValueError, match=r"nothing says which rows of .* give a log that is cut as"):
            gates._later(log, plans)


def test_a_release_of_another_catalogue_is_asked_by_ids(
    small_release, examples, small_world_dataset, tmp_path
):
    """A log whose contents stand in another order, one of which no release knows, gives the same figures."""
    contents = small_world_dataset.contents().sample(frac=1, random_state=3)
    new = contents.iloc[:1].assign(content_id="new")
    turned = write_like(
        small_world_dataset,
        tmp_path / "turned",
        contents=pd.concat([contents[:100], new, contents[100:]]),
        impressions=small_world_dataset.impression_parts(),
        moments=small_world_dataset.moments(),
    )
    other = build_examples(turned, tmp_path / "examples", history_length=10, seen_length=40)
    pairs = np.flatnonzero(other.pairs.positive & (other.pairs.split == TEST))[:40]
    pairs = pairs[other.queries.market[other.pairs.query[pairs]] == 0]
    found, expected = Replay(small_release, other), Replay(small_release, examples)
    assert (found.row == -1).sum() == 1
    np.testing.assert_array_equal(found.row[found.place[:-1]], np.arange(len(found.place) - 1))
    for system, lists in found.lists(pairs).items():
        ids = np.append(other.contents["content_id"], "")[lists]
        same = np.append(examples.contents["content_id"], "")[expected.lists(pairs)[system]]
        np.testing.assert_array_equal(ids, same, system)
    np.testing.assert_array_equal(found.scores(pairs)["served"], expected.scores(pairs)["served"])


def estimates(change, users, seed, markets=40):
    """Figures of many markets in which a release differs by `change` in the mean."""
    random = np.random.default_rng(seed)
    pairs = {}
    for market in range(markets):
        old = random.normal(0.5, 0.2, users)
        new = old + random.normal(change, 0.2, users)
        pairs[str(market)] = gates._means(new, old, np.arange(users), np.ones(users), users)
    return {"ndcg@10": pairs}


def test_chance_refuses_hardly_ever_and_a_real_loss_always():
    none = [faults(gates._judged(estimates(0.0, 50, seed), CONFIG)) for seed in range(200)]
    assert sum(map(bool, none)) <= 200 * gates.DOUBT  # one-sided: half of it is expected
    lost = [faults(gates._judged(estimates(-0.2, 200, seed, markets=3), CONFIG)) for seed in range(20)]
    assert all(lost)


def test_counts_are_told_whole_and_shares_are_not():
    told = [("all", "markets", 5, 1), ("ID", "contents", 3000, 0), ("ID", "places filled", 1, 0.5)]
    checks = [gates.Check(*one, np.nan, np.nan, refused=True) for one in told]
    assert faults(checks) == [
        "markets: 1 where 5 is served",
        "contents in ID: 0 where 3,000 is served",
        "places filled in ID: 0.5000 where 1.0000 is served",
    ]
    assert faults([replace(check, refused=False) for check in checks]) == []


def test_a_loss_that_is_allowed_is_not_refused_however_sure():
    rows = np.full(100, 0.5)
    users = np.arange(100)
    for share, refused in ((0.04, False), (0.06, True)):
        pair = gates._means(rows * (1 - share), rows, users, np.ones(100), 100)
        [check] = gates._judged({"ndcg@10": {"ID": pair}}, CONFIG)
        assert check.refused == refused
        # An AUC loses of what it is above chance: .5 of them is nothing.
        area = _Pair(0.7, 0.7 - 0.2 * share, np.zeros(100), users, np.full(100, 0.01), 100)
        assert gates._judged({"auc of click": {"ID": area}}, CONFIG)[0].refused == refused


def test_a_calibration_error_counts_above_what_is_allowed_and_what_is_served():
    users = np.arange(100)
    for served, candidate, refused in (
        (0.001, 0.019, False),
        (0.001, 0.021, True),
        (0.05, 0.05, False),
        (0.05, 0.051, True),
    ):
        pair = _Pair(served, candidate, np.zeros(100), users, np.full(100, 0.01), 100)
        [check] = gates._judged({"ece of click": {"ID": pair}}, CONFIG)
        assert check.refused == refused, (served, candidate)


def test_all_markets_count_by_their_outcomes():
    users = np.arange(50)
    small = gates._means(np.ones(50), np.zeros(50), users, np.full(50, 3.0), 100)
    large = gates._means(np.zeros(50), np.zeros(50), users, np.full(50, 1.0), 300)
    every = gates._judged({"ndcg@10": {"ID": small, "GB": large}}, CONFIG)[0]
    assert (every.market, every.candidate) == ("all", 0.25)


def test_unlikely_impressions_weigh_more_and_the_interval_is_that_of_the_weighted_mean():
    random = np.random.default_rng(0)
    new, old, weights = random.random(60), random.random(60), random.random(60) + 0.1
    users = random.integers(0, 20, 60)
    [check] = gates._judged({NDCG: {"ID": gates._means(new, old, users, weights, 60)}}, CONFIG)
    change, low, high = metrics.mean_interval(new - old, users, weights)
    assert check.candidate - check.served == pytest.approx(change)
    assert (check.low, check.high) == (pytest.approx(low), pytest.approx(high))


def test_one_row_of_great_weight_makes_nothing_sure():
    weights = np.append(np.ones(299), 1e4)
    old, new = np.full(300, 0.5), np.append(np.full(299, 0.6), 0.0)
    pair = gates._means(new, old, np.arange(300), weights, 300)
    for least, judged in ((1, True), (2, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gates, "LEAST_PEOPLE", least)
            [check] = gates._judged({NDCG: {"ID": pair}}, CONFIG)
        assert check.candidate < 0.95 * check.served
        assert np.isfinite(check.low) == judged
        assert not check.refused


def test_chance_refuses_hardly_ever_where_weights_are_uneven():
    def refused(seed):
        random, pairs = np.random.default_rng(seed), {}
        for market in range(10):
            weights = np.exp(random.uniform(0, 7, 60))
            old, new = (np.where(random.random(60) < 0.2, random.random(60), 0) for _ in range(2))
            pairs[str(market)] = gates._means(new, old, np.arange(60), weights, 60)
        return bool(faults(gates._judged({NDCG: pairs}, CONFIG)))

    assert sum(map(refused, range(200))) <= 200 * gates.DOUBT


def test_predictions_of_many_values_are_not_refused_for_their_noise():
    """True probabilities against the mean of all, which is calibrated as well and of a single bin."""

    def refused(seed):
        random = np.random.default_rng(seed)
        chance = random.beta(1, 4, 800)
        label = (random.random(800) < chance).astype(np.float32)
        gaps = [metrics.calibration_gaps(label, p) for p in (chance, np.full(800, label.mean()))]
        assert gaps[0].mean() > CONFIG.calibration_error
        pair = gates._means(*gaps, np.arange(800), np.ones(800), 800)
        pair = pair._replace(noise=metrics.calibration_noise(chance))
        return gates._judged({"ece of click": {"ID": pair}}, CONFIG)[0].refused

    assert sum(map(refused, range(40))) <= 2


def test_what_was_shown_with_certainty_says_nothing_of_other_orders(examples):
    pairs = examples.pairs
    later = np.flatnonzero(pairs.split == TEST)
    wanted = later[pairs.positive[later]]
    sure = np.array(pairs.propensity)
    sure[wanted[1:]] = 1
    for propensity, figure, rows in (
        (pairs.propensity, NDCG, wanted),
        (sure, NDCG, wanted[:1]),
        (np.ones_like(sure), gates.BIASED, wanted),
    ):
        log = replace(examples, pairs=replace(pairs, propensity=propensity))
        found = gates._wanted(log, later)
        assert found[0] == figure
        np.testing.assert_array_equal(found[1], rows)


def test_what_the_logging_policy_alone_decided_is_told_and_refuses_nothing(small_release, examples, tmp_path):
    unlogged = replace(examples, pairs=replace(examples.pairs, propensity=None))
    checks = by_figure(compare(small_release, small_release, unlogged))
    assert (gates.BIASED, "all") in checks
    assert (NDCG, "all") not in checks
    lost = gates._means(np.zeros(50), np.ones(50), np.arange(50), np.ones(50), 50)
    [check] = gates._judged({gates.BIASED: {"ID": lost}}, CONFIG)
    assert (check.candidate, check.served, check.refused) == (0, 1, False)
    assert gates._judged({NDCG: {"ID": lost}}, CONFIG)[0].refused
