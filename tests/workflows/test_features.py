"""Features: fitted on the training part alone, and the same numbers when served."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import workflows.features
from market.dataset import write_dataset
from tests.workflows.encode import assert_same_encoding
from workflows.compile import feature_name
from workflows.examples import TEST, TRAIN, Examples, build_examples
from workflows.features import (
    LOG,
    Encoded,
    FeatureConfig,
    Features,
    build_workflow,
    fit_features,
    raw_schema,
    vocabulary,
)
from workflows.frames import content_frame, followed, query_tables

import nvtabular as nvt  # isort: skip
from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip
from tests.workflows.raw import raw_arrays

CONFIG = FeatureConfig(history_length=10, user_min_count=2)
NULL, UNSEEN, FIRST = 1, 2, 3


@pytest.fixture(scope="module")
def gappy_examples(small_examples: Examples) -> Examples:
    """The small world with every nullable attribute missing here and there, and attributes of its own."""
    random = np.random.default_rng(0)
    users, contents = small_examples.users.copy(), small_examples.contents.copy()
    contents["x_brand"] = random.choice(["acme", "Ünïcode 品牌", "z z"], len(contents)).astype(object)
    contents["x_level"] = random.integers(0, 5, len(contents))
    contents["x_weight"] = random.normal(10, 3, len(contents)).astype(np.float32)
    users["x_interest"] = random.choice(["sports", "music"], len(users)).astype(object)
    users["x_visits"] = random.integers(0, 9, len(users))
    users["x_spend"] = random.gamma(2, 3, len(users)).astype(np.float32)
    for name in (
        "seller_id",
        "category",
        "language",
        "price",
        "duration_s",
        "x_topic",
        "x_brand",
        "x_weight",
    ):
        contents.loc[random.random(len(contents)) < 0.2, name] = None
    for name in ("language", "age_band", "gender", "x_interest", "x_spend"):
        users.loc[random.random(len(users)) < 0.2, name] = None
    return replace(small_examples, users=users, contents=contents)


@pytest.fixture(scope="module")
def gappy_features(gappy_examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return fit_features(gappy_examples, tmp_path_factory.mktemp("gappy") / "features", CONFIG)


def served(graph: onnx.ModelProto, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the compiled graph makes of raw columns, by column."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    made = session.run(names, {tensor.name: raw[tensor.name] for tensor in session.get_inputs()})
    return {name.removesuffix(feature_name("")): array for name, array in zip(names, made)}


def raw_queries(examples: Examples, rows: np.ndarray) -> dict[str, np.ndarray]:
    [table] = query_tables(examples, rows)
    return {name.removeprefix("raw_"): array for name, array in raw_arrays(table).items()}


def raw_contents(examples: Examples) -> dict[str, np.ndarray]:
    frame = content_frame(examples.contents)
    return {
        name: frame[name].fillna("").to_numpy() if frame[name].dtype == object else frame[name].to_numpy()
        for name in frame
    }


def columns_of(content: Encoded) -> dict[str, np.ndarray]:
    """What the graph encodes: all but content vectors."""
    vectors = content.schema.select_by_tag(Tags.EMBEDDING).column_names
    return {name: array for name, array in content.arrays.items() if name not in vectors}


def assert_same(served_: dict[str, np.ndarray], trained: dict[str, np.ndarray]) -> None:
    assert set(served_) == set(trained)
    for name, expected in trained.items():
        assert served_[name].dtype == expected.dtype, name
        np.testing.assert_allclose(served_[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("split", [0, 1, 2], ids=["train", "valid", "test"])
@pytest.mark.parametrize("world", ["small", "gappy"])
def test_the_compiled_graph_encodes_every_query_as_training_did(world, split, request):
    examples = request.getfixturevalue(f"{world}_examples")
    features = request.getfixturevalue(f"{world}_features")
    rows = np.flatnonzero(examples.queries.split == split)
    trained = {name: array[rows] for name, array in features.query.arrays.items()}
    assert_same(served(features.query.graph, raw_queries(examples, rows)), trained)


@pytest.mark.parametrize("world", ["small", "gappy"])
def test_the_compiled_graph_encodes_every_content_as_training_did(world, request):
    examples = request.getfixturevalue(f"{world}_examples")
    features = request.getfixturevalue(f"{world}_features")
    assert_same(served(features.content.graph, raw_contents(examples)), columns_of(features.content))


def test_a_missing_value_is_id_1_or_the_number_0(gappy_examples, gappy_features):
    missing = gappy_examples.contents["category"].isna().to_numpy()
    ids = gappy_features.content.arrays["category"]
    assert missing.any()
    np.testing.assert_array_equal(ids == NULL, missing)
    bare = gappy_examples.contents["x_weight"].isna().to_numpy()
    numbers = gappy_features.content.arrays["content_x_weight"]
    assert bare.any()
    assert len(np.unique(numbers[bare])) == 1
    assert np.isfinite(numbers).all()


def test_a_content_without_positives_in_training_is_unseen(small_examples, small_features):
    ids = small_features.content.arrays["content_id"]
    seen = small_examples.popularity.sum(axis=0) >= CONFIG.content_min_count
    assert seen.any()
    assert not seen.all()
    assert (ids[~seen] == UNSEEN).all()
    assert sorted(ids[seen]) == list(range(FIRST, FIRST + seen.sum()))
    assert small_features.content.schema["content_id"].int_domain.max == FIRST + seen.sum() - 1


def test_a_category_that_only_unseen_contents_have_is_unseen(small_examples, small_features):
    seen = small_examples.popularity.sum(axis=0) >= CONFIG.content_min_count
    sellers = small_examples.contents["seller_id"]
    often = sellers[seen].value_counts()
    known = sellers.map(often).fillna(0).to_numpy() >= CONFIG.min_count
    assert not known.all()
    np.testing.assert_array_equal(small_features.content.arrays["seller_id"] >= FIRST, known)


def test_a_history_has_the_ids_of_its_contents(small_examples, small_features):
    history = small_examples.queries.history
    for name in followed(content_frame(small_examples.contents)):
        ids = small_features.content.arrays[name]
        expected = np.where(history >= 0, ids[history], 0)
        np.testing.assert_array_equal(small_features.query.arrays[f"hist_{name}"], expected)
        shared = small_features.query.schema[f"hist_{name}"].int_domain
        assert (shared.name, shared.max) == (name, small_features.content.schema[name].int_domain.max)
    assert (history >= 0).sum() > 1000


def test_a_history_of_attributes_keeps_the_known_ones_in_order(gappy_examples, gappy_features):
    ids = gappy_features.content.arrays["category"]
    for history, row in zip(gappy_examples.queries.history, gappy_features.query.arrays["hist_category"]):
        known = [ids[content] for content in history if content >= 0 and ids[content] != NULL]
        assert row.tolist() == known + [0] * (len(row) - len(known))


def test_test_rows_change_no_encoded_training_value(small_examples, small_features, tmp_path):
    queries, contents = small_examples.queries, small_examples.contents.copy()
    random, test = np.random.default_rng(1), queries.rows(TEST)
    user, market, time, history = (
        array.copy() for array in (queries.user, queries.market, queries.time, queries.history)
    )
    user[test] = 0
    market[test] = 0
    time[test] += 5 * 3600
    history[test] = random.integers(0, len(contents), history[test].shape)
    unseen = small_examples.popularity.sum(axis=0) < CONFIG.content_min_count
    contents.loc[unseen, "category"] = "of another world"
    contents.loc[unseen, "price"] = 1e9
    changed = replace(
        small_examples,
        contents=contents,
        queries=replace(queries, user=user, market=market, time=time, history=history),
    )
    features = fit_features(changed, tmp_path / "features", CONFIG)
    train = queries.rows(TRAIN)
    for name, array in small_features.query.arrays.items():
        if name != "hist_category":  # Training histories may hold contents that were just renamed.
            np.testing.assert_array_equal(features.query.arrays[name][train], array[train], err_msg=name)
    for name, array in small_features.content.arrays.items():
        np.testing.assert_array_equal(features.content.arrays[name][~unseen], array[~unseen], err_msg=name)
    for mine, theirs in ((features.query, small_features.query), (features.content, small_features.content)):
        assert initializers(mine.graph) == initializers(theirs.graph)
        assert [c.int_domain for c in mine.schema] == [c.int_domain for c in theirs.schema]
    assert not np.array_equal(
        features.query.arrays["user_id"][test], small_features.query.arrays["user_id"][test]
    )


def initializers(graph: onnx.ModelProto) -> list[bytes]:
    """Every vocabulary and statistic of a compiled workflow."""
    constants = [tensor.SerializeToString() for tensor in graph.graph.initializer]
    return constants + [a.SerializeToString() for node in graph.graph.node for a in node.attribute]


def test_many_parts_give_the_same_arrays_as_one(gappy_examples, gappy_features, tmp_path, monkeypatch):
    monkeypatch.setattr(workflows.features, "query_tables", partial(query_tables, chunk=40))
    features = fit_features(gappy_examples, tmp_path / "features", CONFIG)
    assert len(list((tmp_path / "features" / "raw" / "queries-train").iterdir())) > 10
    for name, array in gappy_features.query.arrays.items():
        np.testing.assert_allclose(features.query.arrays[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_encoded_arrays_are_memory_mapped_and_have_a_row_a_query(small_examples, small_features):
    assert len(small_features.query) == len(small_examples.queries)
    assert len(small_features.content) == len(small_examples.contents)
    for encoded in (small_features.query, small_features.content):
        for name, array in encoded.arrays.items():
            assert isinstance(array, np.memmap)
            tags = encoded.schema[name].tags
            assert array.dtype == (np.int64 if Tags.CATEGORICAL in tags else np.float32)
            width = (10,) if name.startswith("hist_") else (32,) if Tags.EMBEDDING in tags else ()
            assert array.shape[1:] == width


def test_nothing_to_learn_from_is_said_with_the_remedy(small_examples, tmp_path):
    with pytest.raises(ValueError, match=r"no content has 5000 positives.*lower features.content_min_count"):
        fit_features(small_examples, tmp_path / "features", FeatureConfig(content_min_count=5000))


def test_the_raw_columns_are_tagged_by_name_and_type():
    table = pa.schema(
        [
            ("content_id", pa.string()),
            ("price_usd", pa.float32()),
            ("content_x_level", pa.int64()),
            ("content_x_weight", pa.float32()),
            ("content_x_words", pa.list_(pa.string())),
        ]
    )
    schema = raw_schema(table, Tags.ITEM)
    kinds = {column.name: (Tags.CATEGORICAL in column.tags, column.is_list) for column in schema}
    assert kinds == {
        "content_id": (True, False),
        "price_usd": (False, False),
        "content_x_level": (True, False),
        "content_x_weight": (False, False),
        "content_x_words": (True, True),
    }
    assert schema.select_by_tag(Tags.ITEM_ID).column_names == ["content_id"]
    assert schema.select_by_tag(LOG).column_names == ["price_usd"]
    assert schema.select_by_tag(Tags.ITEM).column_names == schema.column_names


def test_the_tags_choose_the_operators(tmp_path):
    schema = Schema(
        [
            ColumnSchema("color", tags=[Tags.CATEGORICAL]),
            ColumnSchema("user_id", tags=[Tags.CATEGORICAL, Tags.USER_ID]),
            ColumnSchema("past", tags=[Tags.CATEGORICAL, Tags.LIST]),
            ColumnSchema("level", tags=[Tags.CONTINUOUS]),
            ColumnSchema("price", tags=[Tags.CONTINUOUS, LOG]),
        ]
    )
    frame = pd.DataFrame(
        {
            "color": ["red", "red", "blue", None, "red", "blue"],
            "user_id": ["a", "b", "a", "a", "b", "c"],
            "past": [["x"], ["x", "y", "z"], ["x", "y", "q", "x"], ["y"], ["z"], ["x"]],
            "level": np.array([-1, 2, np.nan, 4, 0, 1], np.float32),
            "price": np.array([-5, 10, np.nan, 1000, 3, 0], np.float32),
        }
    )
    config = FeatureConfig(history_length=2, user_min_count=3, min_count=3)
    workflow = build_workflow(schema, config, tmp_path, {"past": pd.Series(["x", "y", "z"])})
    found = workflow.fit_transform(nvt.Dataset(frame)).to_ddf().compute()

    assert found["color"].tolist() == [3, 3, UNSEEN, NULL, 3, UNSEEN]
    assert found["user_id"].tolist() == [3, UNSEEN, 3, 3, UNSEEN, UNSEEN]
    assert vocabulary(tmp_path, "color").tolist() == ["red"]
    assert [list(ids) for ids in found["past"]] == [[3], [4, 5], [UNSEEN, 3], [4], [5], [3]]
    for name, values in (
        ("level", frame["level"].fillna(0)),
        ("price", np.log1p(frame["price"].fillna(0).clip(lower=0))),
    ):
        expected = (values - values.mean()) / values.std(ddof=1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
        assert found[name].dtype == np.float32


def test_a_list_needs_the_vocabulary_of_the_column_it_follows(tmp_path):
    schema = Schema([ColumnSchema("hist_x", tags=[Tags.CATEGORICAL, Tags.LIST])])
    with pytest.raises(ValueError, match="'hist_x' needs the vocabulary of the column it follows"):
        build_workflow(schema, CONFIG, Path(tmp_path), {"hist_y": pd.Series(["a"])})


def test_an_attribute_that_training_does_not_know_is_left_out(small_examples, tmp_path):
    seen = small_examples.popularity.sum(axis=0) >= CONFIG.content_min_count
    contents = small_examples.contents.assign(category=None, price=np.nan)
    contents.loc[~seen, "category"] = "new"
    users = small_examples.users.assign(gender=None)
    blind = replace(small_examples, contents=contents, users=users)
    features = fit_features(blind, tmp_path / "features", CONFIG)
    assert not {"category", "price_usd"} & set(features.content.arrays)
    assert not {"gender", "hist_category"} & set(features.query.arrays)
    assert {"seller_id", "duration_s"} < set(features.content.arrays)
    assert {"age_band", "hist_seller_id"} < set(features.query.arrays)
    assert_same(served(features.content.graph, raw_contents(blind)), columns_of(features.content))


def test_an_attribute_without_a_common_value_is_not_followed(small_world_dataset, tmp_path):
    examples = build_examples(small_world_dataset, tmp_path / "work", history_length=5, seen_length=5)
    contents = examples.contents.assign(x_topic=[f"topic-{row}" for row in range(len(examples.contents))])
    features = fit_features(replace(examples, contents=contents), tmp_path / "features", FeatureConfig())
    assert "hist_content_x_topic" not in features.query.arrays
    assert set(np.unique(features.content.arrays["content_x_topic"])) <= {1, 2}


def small_log(train: int = 60, **contents: object) -> dict:
    """A log of one market with as many training queries, and validation and test queries behind them."""
    random = np.random.default_rng(0)
    rows = train + 20
    return {
        "users": pd.DataFrame({"user_id": [f"u{k}" for k in range(10)], "market": "GB"}),
        "contents": pd.DataFrame(
            {"content_id": [f"c{k}" for k in range(8)], "kind": "video", "markets": [["GB"]] * 8} | contents
        ),
        "impressions": pd.DataFrame(
            {
                "user_id": [f"u{k}" for k in random.integers(0, 10, rows)],
                "content_id": [f"c{k}" for k in random.integers(0, 6, rows)],
                "market": "GB",
                "time": np.arange(rows) * 100 + 1_700_000_000,
                "click": np.int8(1),
                "split": ["train"] * train + ["valid"] * 10 + ["test"] * 10,
            }
        ),
    }


def fitted(tables: dict, folder: Path) -> tuple[Examples, Features]:
    dataset = write_dataset(
        folder / "data",
        name="t",
        feedback="positives",
        split="given",
        users=tables["users"],
        contents=tables["contents"],
        impressions=[tables["impressions"]],
    )
    examples = build_examples(dataset, folder / "work", history_length=5, seen_length=5)
    return examples, fit_features(examples, folder / "features", FeatureConfig())


@pytest.fixture(params=["file by file", "through NVTabular, as on a GPU"])
def either_way(request, monkeypatch):
    """Features as they are made without cudf, and as they are made with it, but by pandas."""
    if request.param != "file by file":
        monkeypatch.setattr(workflows.features, "ON_GPU", True)
        monkeypatch.setattr(workflows.features, "gpu_cluster", contextlib.nullcontext)


@pytest.mark.usefixtures("either_way")
def test_a_first_part_without_a_value_in_a_column_is_a_part_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(workflows.features, "query_tables", partial(query_tables, chunk=10))
    tables = small_log()
    new = [f"v{k}" for k in range(10)]
    tables["users"] = pd.concat([tables["users"].assign(gender="f"), pd.DataFrame({"user_id": new})])
    tables["users"]["market"] = "GB"
    # Ten people of whom nothing is known ask first: no gender, no history.
    tables["impressions"].loc[:9, "user_id"] = new
    examples, features = fitted(tables, tmp_path)
    parts = sorted((tmp_path / "features" / "raw" / "queries-train").iterdir())
    assert pq.read_table(parts[0])["gender"].null_count == 10
    assert len({str(pq.read_schema(part)) for part in parts}) == 1
    arrays = features.query.arrays
    assert arrays["gender"][:11].tolist() == [NULL] * 10 + [FIRST]
    assert (arrays["hist_content_id"][:10] == 0).all()
    history = examples.queries.history[:, :1]
    expected = np.where(history >= 0, features.content.arrays["content_id"][history], 0)
    np.testing.assert_array_equal(arrays["hist_content_id"][:, :1], expected)
    assert_same(served(features.query.graph, raw_queries(examples, np.arange(len(examples.queries)))), arrays)


def test_an_attribute_of_no_content_in_a_training_history_is_not_followed(tmp_path):
    tables = small_log(category=["a"] * 2 + [None] * 6)
    log = tables["impressions"]
    log["content_id"] = log["content_id"].replace({"c0": "c2", "c1": "c3"})
    # Each user's last training event: nobody is asked with it in the history.
    last = log[log["split"] == "train"].drop_duplicates("user_id", keep="last").index
    log.loc[last, "content_id"] = ["c0", "c1"] * (len(last) // 2) + ["c0"] * (len(last) % 2)
    _, features = fitted(tables, tmp_path)
    assert "category" in features.content.arrays
    assert "hist_category" not in features.query.arrays
    assert "hist_content_id" in features.query.arrays


def test_no_history_at_all_in_training_is_no_column(tmp_path):
    tables = small_log()
    train = tables["impressions"]["split"] == "train"
    users = [f"w{k}" for k in range(train.sum())]
    tables["impressions"].loc[train, "user_id"] = users
    tables["users"] = pd.concat([tables["users"], pd.DataFrame({"user_id": users, "market": "GB"})])
    _, features = fitted(tables, tmp_path)
    assert "hist_content_id" not in features.query.arrays
    assert len(set(features.query.arrays["history_length"][:60])) == 1


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("usual", [0.1, 15.3, 19.99, 123456.78])
def test_a_new_value_of_a_column_that_training_saw_constant_is_not_divided_by_rounding(usual, tmp_path):
    new = np.float32(30)
    values = np.array([usual] * 6 + [new] * 2, np.float32)
    examples, features = fitted(small_log(x_score=values, duration_s=values), tmp_path)
    arrays = features.content.arrays
    score, duration = arrays["content_x_score"], arrays["duration_s"]
    np.testing.assert_allclose(score[:6], 0, atol=1e-6 * usual)
    np.testing.assert_allclose(score[6:], new - values[0], rtol=1e-5)
    np.testing.assert_allclose(duration[6:], np.log1p(new) - np.log1p(values[0]), rtol=1e-4)
    assert_same(served(features.content.graph, raw_contents(examples)), columns_of(features.content))


@pytest.mark.usefixtures("either_way")
def test_a_column_that_varies_little_keeps_its_deviation(tmp_path):
    values = np.array([1000, 1000.5] * 4, np.float32)
    _, features = fitted(small_log(x_score=values), tmp_path)
    np.testing.assert_allclose(features.content.arrays["content_x_score"].std(), 1, rtol=0.15)


def test_the_way_of_a_gpu_makes_the_same_features(small_examples, small_features, tmp_path, monkeypatch):
    monkeypatch.setattr(workflows.features, "ON_GPU", True)
    monkeypatch.setattr(workflows.features, "gpu_cluster", contextlib.nullcontext)
    made = fit_features(small_examples, tmp_path / "features", CONFIG)
    for side in ("query", "content"):
        assert_same_encoding(getattr(made, side).arrays, getattr(small_features, side).arrays)
