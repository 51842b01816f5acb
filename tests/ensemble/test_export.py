"""A release says what the trained models say, and appears, or is replaced, whole or not at all."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest
from scipy.special import expit, logit

import ensemble.build
import ensemble.export
from ensemble.adjust import adjust
from ensemble.build import BuildConfig, build_release
from ensemble.cascade import Cascade, cascade_steps
from ensemble.export import content_vectors, raw_contents, search_indexes, shown_where, write_release
from ensemble.plan import Plan
from ensemble.search import MOST_QUERIES, MarketIndex
from ensemble.stages.user_state import NULL_INTEGER
from evaluation.replay import ranking_and_ranker
from market.dataset import write_dataset
from market.folders import FolderInUse, only_user
from market.neighbours import FULL
from market.statistics import DAY_S, PAIR_FEATURES
from models.batches import RankingBatches
from models.calibration import Calibration, calibrate
from models.ranker import predict, task_labels, train_ranker
from models.seasons import Seasons
from models.two_tower import encode, train_two_tower
from tests.ensemble.asking import requests
from tests.workflows.raw import raw_arrays
from workflows.examples import TEST, TRAIN
from workflows.frames import content_frame, query_tables, user_frame

pytestmark = pytest.mark.slow

PAIRS = 200
NEIGHBOURLY = ("popularity", "available", "stand_in_ids")
"""Arrays that a market short of outcomes has from its neighbours, or for want of its own."""


@pytest.fixture(scope="module")
def models(small_build):
    """The build's Keras models; training that has ended gives them back as they were."""
    data, config, work = small_build.built.data, small_build.config, small_build.folder / "build" / "work"
    two_tower, _ = train_two_tower(data, config.two_tower, work / "two_tower", config.seed)
    ranker, tasks, _ = train_ranker(data, config.ranker, work / "ranker", config.seed)
    return two_tower, ranker, tasks


@pytest.fixture(scope="module")
def test_pairs(small_build):
    """Rows of test pairs, and the raw columns of their queries as the served graph reads them."""
    examples = small_build.built.data.examples
    rows = np.arange(examples.pairs.rows(TEST).start, examples.pairs.rows(TEST).stop)[:PAIRS]
    return rows, raw_arrays(next(query_tables(examples, examples.pairs.query[rows])))


def test_the_query_graph_says_what_the_query_tower_says(small_build, small_release, models, test_pairs):
    rows, raw = test_pairs
    data = small_build.built.data
    made = Cascade(small_release).apply("query", raw)["query_vector"]
    expected = encode(models[0].query_encoder, data.query_arrays(data.examples.pairs.query[rows]))
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_the_graphs_say_what_the_ranker_says_from_raw_columns_on(
    small_build, small_release, models, test_pairs
):
    rows, raw = test_pairs
    data, (_, ranker, tasks) = small_build.built.data, models
    labels = task_labels(data.examples, small_build.config.ranker.min_outcomes)
    batches = RankingBatches(data, rows, labels, batch_size=64, shuffle=False)
    expected, _ = predict(ranker, batches)
    cascade = Cascade(small_release)
    made = cascade.apply("query", raw)
    query, content = data.examples.pairs.query[rows], data.examples.pairs.content[rows]
    retrieval = cascade.retrieval
    served = retrieval.describe(
        content[:, None].astype(np.int64),
        data.examples.queries.market[query].astype(np.int64),
        data.examples.queries.time[query],
        data.examples.queries.history[query].astype(np.int64),
        data.speaks[data.examples.queries.user[query]],
    )
    # What a pair knows of popularity is that of its own moment while training, the latest while serving.
    pairs = data.pair_arrays(query, content, np.zeros(len(rows), bool))
    own = np.concatenate([pairs[name] for name in PAIR_FEATURES], axis=1)[:, None]
    served["content_numbers"] = np.concatenate(
        [served["content_numbers"][..., : -own.shape[-1]], own], axis=-1
    )
    packed = {name: made[name] for name in ("query_ids", "query_lists", "query_numbers")}
    market = data.examples.queries.market[query].astype(np.int64)
    also = {
        "candidates": served.pop("candidates"),
        "recent": data.examples.queries.history[query].astype(np.int64),
        "market_affinity": served.pop("market_affinity"),
        "low_rank_affinity": served.pop("low_rank_affinity"),
        "conversion": served.pop("conversion"),
    }
    packed |= {name: also[name] for name in cascade.plan.ranking_reads}
    made = ranking_and_ranker(small_release, threads=1)(**packed, **served, market_index=market)
    np.testing.assert_allclose(made["ranker_probabilities"][:, 0], expected, rtol=1e-3, atol=1e-5)
    fitted = calibrate(ranker, data, tasks, small_build.config.ranker, small_build.config.calibration)
    kind = data.features.content.arrays["kind"][content]
    price = served["content_numbers"][:, 0, PAIR_FEATURES.index("price_local") - len(PAIR_FEATURES)]
    assert len(np.unique(kind)) == 3
    assert (price > 0).all()
    dear = (price - fitted.usual)[:, None]
    logits = fitted.slope[market] * logit(expected) + fitted.intercept[market, kind]
    calibrated = expit(logits + fitted.price[market] * dear)
    assert np.abs(calibrated - expected).max() > 1e-3
    np.testing.assert_allclose(made["probabilities"][:, 0], calibrated, rtol=1e-3, atol=1e-5)
    only = cascade.run["ranking"](**packed, **served, market_index=market)
    np.testing.assert_array_equal(only["probabilities"], made["probabilities"])
    assert cascade.plan.tasks == tasks


def test_the_content_graph_reproduces_the_vectors_and_the_content_tower(small_build, small_release, models):
    data = small_build.built.data
    stored = small_release.array("content_vectors.npy")
    graph = onnx.load(str(small_release.onnx_path("content.onnx")))
    made = content_vectors(graph, raw_contents(data.examples), batch=100)
    np.testing.assert_allclose(made, stored, atol=1e-6)
    tower = encode(models[0].candidate_encoder, data.content_arrays(np.arange(len(stored))))
    np.testing.assert_allclose(stored, tower, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-5)


def test_a_served_user_is_the_user_of_the_examples(small_build, small_release):
    """What user-state writes for a stored user equals the raw columns that training would read."""
    examples = small_build.built.data.examples
    stage, plan = Cascade(small_release).user_state, Plan.of(small_release)
    users = examples.users.head(20)
    made = stage(
        user_id=users["user_id"].to_numpy(object),
        market=users["market"].to_numpy(object),
        time=np.full(len(users), plan.as_of),
        history=np.full((len(users), 0), "", object),
        exclude=np.full((len(users), 0), "", object),
        shown=np.full((len(users), 0), "", object),
    )
    frame = user_frame(users)
    for column in (column for column in plan.columns if column.source == "user"):
        assert column.kind == "string"
        assert made[f"raw_{column.name}"].tolist() == frame[column.name].fillna("").tolist()
    np.testing.assert_array_equal(made["speaks"], small_build.built.data.speaks[:20])
    contents = small_release.array("text_content_id.npy")
    for row, history in enumerate(examples.latest_history[:20]):
        known = history[history >= 0]
        assert made["raw_hist_content_id"][row][: len(known)].tolist() == contents[known].tolist()


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (pd.Series(["a", None], dtype=object), "string", ["a", ""]),
        (pd.Series([3, None], dtype="Int64"), "integer", [3, NULL_INTEGER]),
        (pd.Series([1.5, None]), "number", [1.5, 0.0]),
    ],
)
def test_nulls_of_users_are_stored_as_the_stage_writes_those_of_strangers(values, kind, expected):
    stored = ensemble.export._attribute(values, kind)
    assert stored.tolist() == expected
    assert not stored.dtype.hasobject


@pytest.mark.parametrize(
    ("languages", "shown"),
    [
        (["id", None, "id"], [True, True, True]),
        (["id", None, "de"], [False, True, True]),
        (["id", "id", "id"], [True, True, True]),
        ([None, None, None], [True, True, True]),
    ],
)
def test_a_little_known_market_shows_all_unless_it_sells_something_in_its_languages(languages, shown):
    examples = SimpleNamespace(
        markets=("DE",),
        available=np.ones((1, 3), bool),
        contents=pd.DataFrame({"language": languages}),
        users=pd.DataFrame({"language": ["de"]}),
    )
    assert shown_where(examples, np.array([False])).tolist() == [shown]


def test_moments_and_groups_that_are_unknown_have_their_own_codes():
    contents = pd.DataFrame({"ended_at": pd.array([5, None], "Int64"), "seller_id": ["b", None]})
    assert ensemble.export.whole_numbers(contents, "ended_at", 99).tolist() == [5, 99]
    assert ensemble.export.whole_numbers(contents, "created_at", 0).tolist() == [0, 0]
    assert ensemble.export._seller_codes(contents).tolist() == [0, -1]
    assert ensemble.export._seller_codes(contents.drop(columns="seller_id")).tolist() == [-1, -1]


def test_prices_and_categories_of_a_release_are_those_of_the_catalogue(small_build, small_release):
    contents = content_frame(small_build.built.data.examples.contents)
    price, category = (small_release.array(f"{name}.npy") for name in ("price_usd", "category_code"))
    assert (price.dtype, category.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(price, contents["price_usd"])
    np.testing.assert_array_equal(category, pd.factorize(contents["category"], sort=True)[0])


def test_every_market_is_indexed_with_its_contents_and_tuned_with_queries_logged_there(
    small_build, models, monkeypatch
):
    data, given = small_build.built.data, []
    vectors = np.random.default_rng(0).normal(size=(len(data.examples.contents), 64)).astype(np.float32)
    monkeypatch.setattr(
        MarketIndex, "build", lambda vectors, queries, *, k: given.append((vectors, queries, k))
    )
    search_indexes(models[0], data, data.examples.available, vectors, 10)
    assert len(given) == len(data.examples.markets)
    for market, (contents, queries, k) in enumerate(given):
        np.testing.assert_array_equal(contents, vectors[data.examples.available[market]])
        rows = np.flatnonzero(data.examples.queries.market == market)
        logged = encode(models[0].query_encoder, data.query_arrays(rows))
        assert len(queries) == min(len(rows), MOST_QUERIES)
        assert (queries @ logged.T).max(axis=1).min() > 0.99999
        assert k == 10


def test_a_market_with_one_outcome_is_served_nearly_as_one_with_none(small_build, models, tmp_path):
    """Britain is known; Indonesia has no outcome, its first, or enough of them to be itself alone."""
    data, (two_tower, ranker, tasks) = small_build.built.data, models

    def arrays(outcomes):
        popularity, latest = np.zeros_like(data.examples.popularity), data.latest.copy()
        popularity[:, 0] = FULL, outcomes
        if outcomes < FULL:
            latest[1] = popularity[1]
        made = write_release(
            tmp_path / f"release-{outcomes}",
            name="few",
            data=replace(data, examples=replace(data.examples, popularity=popularity), latest=latest),
            two_tower=two_tower,
            ranker=ranker,
            tasks=tasks,
            calibration=Calibration.identity(2, 6, len(tasks)),
            config=small_build.config.cascade,
        )
        return {name: made.array(f"{name}.npy") for name in NEIGHBOURLY}

    none, one, full = arrays(0), arrays(1), arrays(FULL)
    np.testing.assert_array_equal(none["popularity"][1], none["popularity"][0])
    assert np.abs(one["popularity"] - none["popularity"]).max() <= 1.01 * none["popularity"].max() / FULL
    np.testing.assert_array_equal(full["popularity"], data.latest)
    np.testing.assert_array_equal(full["available"], data.examples.available)
    assert not full["stand_in_ids"].any()
    assert none["stand_in_ids"][1].any()
    for name in ("available", "stand_in_ids"):
        np.testing.assert_array_equal(one[name], none[name])


def test_a_release_that_could_not_be_finished_leaves_nothing(small_build, models, tmp_path, monkeypatch):
    two_tower, ranker, tasks = models

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ensemble.export, "content_vectors", stop)
    with pytest.raises(KeyboardInterrupt):
        write_release(
            tmp_path / "release",
            name="broken",
            data=small_build.built.data,
            two_tower=two_tower,
            ranker=ranker,
            tasks=tasks,
            calibration=Calibration.identity(2, 6, len(tasks)),
            config=small_build.config.cascade,
        )
    assert not list(tmp_path.iterdir())


def test_a_release_says_its_tasks_and_how_training_went(small_release):
    assert small_release.info["feed"]["tasks"].split(",") == list(Plan.of(small_release).tasks)
    [tower], [ranker] = small_release.info["two_tower"], small_release.info["ranker"]
    assert tower["best_epoch"] == 1
    assert ranker["validation"]


def test_a_build_that_fails_at_its_last_step_keeps_the_old_release(
    small_build, small_world_dataset, monkeypatch
):
    folder, steps = small_build.folder / "build", []
    before = {file.name: file.read_bytes() for file in (folder / "release").iterdir()}

    def fail(draft, fresh, *_):
        assert draft.files, "a draft is complete"
        fresh.mkdir()
        raise OSError("no space left")

    monkeypatch.setattr(ensemble.build, "with_preranker", fail)
    with pytest.raises(OSError, match="no space left"):
        build_release(small_world_dataset, folder, small_build.config, step=steps.append)
    assert steps[-1] == "pre-ranker"
    assert {file.name: file.read_bytes() for file in (folder / "release").iterdir()} == before
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "release", "work"]


def test_a_build_with_other_knobs_of_the_cascade_keeps_all_that_was_learned(
    small_build, small_world_dataset, tmp_path
):
    folder = shutil.copytree(small_build.folder / "build", tmp_path / "build")
    (folder / "work" / "kept").touch()
    cascade = replace(small_build.config.cascade, seller_cap=1, explore=0.3)
    trained = []
    built = build_release(
        small_world_dataset,
        folder,
        replace(small_build.config, cascade=cascade),
        progress=lambda name, done, total, metrics: trained.append((name, total - done)),
    )
    assert (folder / "work" / "kept").exists()
    assert trained
    assert {left for _, left in trained} == {0}
    assert Plan.of(built.release).config == cascade
    made = adjust(small_build.folder / "build" / "release", tmp_path / "made", cascade).release
    # The names of a graph's nodes depend on what this process converted before.
    graphs = {"query.onnx", "ranking.onnx", "content.onnx"}
    assert {file for file in made.files if made.sums[file] != built.release.sums[file]} <= graphs
    asked = requests(made, 40, seed=1)
    for (name, slate), expected in zip(Cascade(built.release)(asked).items(), Cascade(made)(asked).values()):
        np.testing.assert_array_equal(slate, expected, name)

    # A slate of another size has other tensors, which is no reason to train.
    longer = replace(small_build.config, cascade=replace(cascade, slate=12, weights={"click": 1.0}))
    built = build_release(small_world_dataset, folder, longer)
    assert (folder / "work" / "kept").exists()
    assert Plan.of(built.release).config == longer.cascade
    taught = "preranking_hidden.npy"
    assert not np.array_equal(built.release.array(taught), made.array(taught))


def test_a_build_with_other_knobs_of_the_training_begins_anew(
    small_build, small_world_dataset, tmp_path, monkeypatch
):
    folder = shutil.copytree(small_build.folder / "build", tmp_path / "build")
    (folder / "work" / "kept").touch()

    def stop(*_, **__):
        raise RuntimeError("begun")

    monkeypatch.setattr(ensemble.build, "build_examples", stop)
    towers = replace(small_build.config.two_tower, temperature=0.2)
    with pytest.raises(RuntimeError, match="begun"):
        build_release(small_world_dataset, folder, replace(small_build.config, two_tower=towers))
    assert not (folder / "work" / "kept").exists()


@pytest.mark.parametrize("place", ["work", "release"])
def test_what_no_build_made_is_not_replaced(small_build, small_world_dataset, tmp_path, place):
    thesis = tmp_path / place / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(
        FolderInUse, match=rf"{place} exists and has no .*; choose another folder to build in"
    ):
        build_release(small_world_dataset, tmp_path, small_build.config)
    assert thesis.read_text() == "years of work"


def everybody_once(folder, times):
    """A log in which each of sixty people came once, at these times."""
    people = [f"u{number}" for number in range(60)]
    contents = pd.DataFrame({"content_id": ["a", "b"], "kind": "video", "markets": [["GB"], ["GB"]]})
    log = pd.DataFrame({"user_id": people, "content_id": ["a", "b"] * 30, "market": "GB", "time": times})
    return write_dataset(
        folder / "data",
        name="once",
        feedback="impressions",
        split="time",
        users=pd.DataFrame({"user_id": people, "market": "GB"}),
        contents=contents,
        impressions=[log.assign(click=1)],
    )


def test_a_log_without_a_history_is_refused_before_anything_is_trained(tmp_path):
    """Nobody has a past."""
    with pytest.raises(ValueError, match="no training query has a history"):
        build_release(everybody_once(tmp_path, range(60)), tmp_path / "build", BuildConfig())


@pytest.mark.parametrize(("days", "knob"), [(4, "valid_fraction"), (8, "test_fraction")])
def test_a_log_told_by_the_day_that_leaves_nothing_to_judge_by_is_refused(tmp_path, days, knob):
    times = np.arange(60) * days // 60 * DAY_S
    with pytest.raises(ValueError, match=rf"no row of once is left .*; raise split\.{knob}, which is 0\.1"):
        build_release(everybody_once(tmp_path, times), tmp_path / "build", BuildConfig())


def test_two_builds_do_not_work_in_one_folder(small_build, small_world_dataset, tmp_path):
    with (
        only_user(tmp_path, "wait"),
        pytest.raises(FolderInUse, match=r"another process works in .*; choose another folder to build in"),
    ):
        build_release(small_world_dataset, tmp_path, small_build.config)


def test_another_seed_replaces_the_release_with_one_of_the_same_borders(small_release, command_build):
    assert command_build.replaced.info["seed"] == small_release.info["seed"]
    assert command_build.release.info["seed"] != small_release.info["seed"]
    old, new = (r.array("content_vectors.npy") for r in (small_release, command_build.release))
    assert old.shape == new.shape
    assert not np.allclose(old, new)
    assert cascade_steps(Plan.of(small_release)) == cascade_steps(Plan.of(command_build.release))
    folder = command_build.release.path.parent
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "release", "report.json", "work"]
    assert not (folder / "work" / "drafts").exists()


def test_a_release_that_knows_seasons_counts_as_training_does(small_build, models, test_pairs, tmp_path):
    """Popularity around the latest event, of a query of the log and of whoever asks now."""
    built, (two_tower, ranker, tasks) = small_build.built.data, models
    examples = built.examples
    seasons = Seasons.of(examples, DAY_S)
    data = replace(built, seasons=seasons)
    release = write_release(
        tmp_path / "release",
        name="seasons",
        data=data,
        two_tower=two_tower,
        ranker=ranker,
        tasks=tasks,
        calibration=Calibration.identity(len(examples.markets), 6, len(tasks)),
        config=small_build.config.cascade,
    )
    cascade, (rows, _) = Cascade(release), test_pairs
    query, content = examples.pairs.query[rows], examples.pairs.content[rows]
    queries = examples.queries
    served = cascade.retrieval.describe(
        content[:, None].astype(np.int64),
        queries.market[query].astype(np.int64),
        queries.time[query],
        queries.history[query].astype(np.int64),
        data.speaks[queries.user[query]],
        seasons.since[query],
    )["content_numbers"][:, 0]
    pairs = data.pair_arrays(query, content, np.zeros(len(rows), bool))
    assert pairs["season"].any()
    column = PAIR_FEATURES.index("season") - len(PAIR_FEATURES)
    np.testing.assert_array_equal(served[:, column], pairs["season"][:, 0])
    own = np.flatnonzero(examples.pairs.positive & (examples.pairs.split == TRAIN))[:PAIRS]
    asked = examples.pairs.query[own], examples.pairs.content[own]
    counted = [data.pair_arrays(*asked, np.full(len(own), flag))["season"] for flag in (False, True)]
    near = (queries.time[asked[0]] - seasons.since[asked[0]]) < DAY_S
    np.testing.assert_allclose(np.expm1(2 * counted[0]) - np.expm1(2 * counted[1]), near[:, None], atol=1e-4)

    asking = requests(release, 40, seed=3)
    asking["history"][::2] = ""
    assert (cascade(asking)["content_id"] != "").any()
    state, made = cascade.user_state, cascade.apply("user_state", asking)["since"]
    row = state.users(asking["user_id"])
    stays = (row >= 0) & (state.contents(asking["history"]) < 0).all(axis=1)
    stored = np.minimum(seasons.latest[row], asking["time"])
    np.testing.assert_array_equal(made, np.where(stays, stored, asking["time"]))
    assert 0 < stays.sum() < len(stays)
