"""The compiled graph gives what Workflow.transform gives, and what NVTabular promises where it fails."""

import workflows.runtime  # noqa: F401  # isort: skip  (before NVTabular)

from collections.abc import Callable
from pathlib import Path

import numpy as np
import nvtabular as nvt
import onnxruntime
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merlin.io import Dataset
from nvtabular import ops
from onnx import ModelProto, TensorProto, helper

from workflows.compile import UnsupportedOperator, compile_workflow, feature_name, join

NULL = np.iinfo(np.int64).min
TEXTS = ["a", "b", "c", "ñandú", "สด", "🛒", " ", "A"]
IDS = [1, 2, 3, 5, 8, -7, 2**40]

FITTED = pd.DataFrame(
    {
        "text": ["a", "b", None, "a", "ñandú", "สด", "b", "a"],
        "other": ["x", None, "x", "y", "z", "x", "y", None],
        "id": np.array([1, 2, 3, 1, 5, -7, 2**40, 1]),
        "small": np.array([1, 2, 3, 1, 5, -7, 9, 1], np.int32),
        "whole": np.array([1, np.nan, 3, 1, 5, -7, 9, 1]),
        "price": np.array([1.5, np.nan, 0, -2, 3e4, 7, 1, 0.25], np.float32),
        "ratio": np.array([0.1, 2, np.nan, 1e-9, -4, 0.5, 1e6, 3]),
        "constant": np.full(8, 3, np.float32),
        "tags": [["a", "b"], ["c"], ["a", "a", "b"], ["ñandú"], ["b"], ["สด", "a"], ["a"], ["c"]],
        "history": [[1, 2, 3], [5], [8, 1], [-7], [2], [3, 3], [1], [2**40]],
        "scores": [[0.5, 1.0], [2.0], [-3.0], [4.0, 0.0, 1.0], [1.0], [1.5], [9.0], [0.1]],
        "label": np.array([0, 1, 1, 0, 1, 0, 1, 1], np.float32),
    }
)

few = settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Compiled = tuple[nvt.Workflow, onnxruntime.InferenceSession]


def fit(node: object, frame: pd.DataFrame = FITTED) -> nvt.Workflow:
    workflow = nvt.Workflow(node)
    workflow.fit(Dataset(frame))
    return workflow


def session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def fit_and_compile(node: object, frame: pd.DataFrame = FITTED, **options: object) -> Compiled:
    workflow = fit(node, frame)
    return workflow, session(compile_workflow(workflow, **options))


NULL_OF = {"tensor(string)": "", "tensor(int64)": NULL, "tensor(float)": np.nan, "tensor(double)": np.nan}
DTYPE_OF = {
    "tensor(string)": object,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


def as_input(spec: onnxruntime.NodeArg, column: pd.Series) -> np.ndarray:
    """A pandas column by the graph's input convention."""
    null = NULL_OF[spec.type]

    def clean(value: object) -> object:
        return null if value is None or value is pd.NA or value != value else value

    if len(spec.shape) == 1:
        return np.array([clean(v) for v in column], dtype=DTYPE_OF[spec.type])
    rows = [list(row) if row is not None else [] for row in column]
    dense = np.full((len(rows), max(map(len, rows), default=0)), null, dtype=DTYPE_OF[spec.type])
    for row, values in zip(dense, rows):
        row[: len(values)] = [clean(v) for v in values]
    return dense


def run(graph: onnxruntime.InferenceSession, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    feeds = {spec.name: as_input(spec, frame[spec.name]) for spec in graph.get_inputs()}
    names = [output.name for output in graph.get_outputs()]
    return {name.removesuffix("/feature"): value for name, value in zip(names, graph.run(names, feeds))}


def assert_same(compiled: Compiled, frame: pd.DataFrame) -> None:
    """Every output equals Workflow.transform's, in value and dtype; lists are padded with zeros."""
    workflow, graph = compiled
    with np.errstate(all="ignore"):
        expected = workflow.transform(frame.reset_index(drop=True).copy())
    got = run(graph, frame)
    assert list(got) == list(expected.columns)
    for name, value in got.items():
        column = expected[name]
        if value.ndim == 2:
            dense = np.zeros_like(value)
            for row, elements in zip(dense, column):
                row[: len(elements)] = elements
            assert {np.asarray(elements).dtype for elements in column if len(elements)} <= {value.dtype}, name
            column = dense
        else:
            assert value.dtype == column.dtype, name
            column = column.to_numpy()
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, column, rtol=2e-6, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(value, column, err_msg=name)


words = st.sampled_from(TEXTS) | st.text(min_size=1, max_size=5)
texts = st.none() | words
ids = st.sampled_from(IDS) | st.integers(NULL + 1, 2**63 - 1)
small = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([1, 2, 3, 5, -7, 9])
float32s = st.floats(width=32) | st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 3.0])
float64s = st.floats() | st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1e300])
wholes = st.sampled_from([1.0, 3.0, -7.0, 9.0, np.nan]) | float64s


@st.composite
def batches(draw: Callable, **columns: st.SearchStrategy) -> pd.DataFrame:
    """Drawn rows after one fitted row: NVTabular fails on a column that is null throughout a batch."""
    rows = draw(st.lists(st.tuples(*columns.values()), max_size=12))
    drawn = pd.DataFrame(rows, columns=list(columns)).astype(
        {n: FITTED[n].dtype for n in columns if FITTED[n].dtype != object}
    )
    return pd.concat([FITTED.loc[[0], list(columns)], drawn], ignore_index=True)


@pytest.fixture(scope="module")
def categories(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    path = tmp_path_factory.mktemp("categories")
    return fit_and_compile(
        (["text", "id", "small", "whole"] >> ops.Categorify(out_path=str(path / "plain")))
        + (["other"] >> ops.Categorify(out_path=str(path / "often"), freq_threshold=2, dtype=np.int32))
    )


@few
@given(batches(text=texts, id=ids, small=small, whole=wholes, other=texts))
def test_categories_are_encoded_as_nvtabular_does(categories: Compiled, batch: pd.DataFrame) -> None:
    assert_same(categories, batch)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    path = tmp_path_factory.mktemp("lists")
    return fit_and_compile(
        ([["text", "tags"]] >> ops.Categorify(out_path=str(path)))
        + (["history"] >> ops.ListSlice(-2) >> ops.Categorify(out_path=str(path)))
        + (["scores"] >> ops.LogOp() >> ops.Normalize())
    )


@few
@given(
    batches(
        text=texts,
        tags=st.lists(words, max_size=4),
        history=st.lists(ids, max_size=4),
        scores=st.lists(st.floats(-0.5, 1e6), max_size=3),
    )
)
def test_lists_are_encoded_and_share_a_vocabulary_with_a_scalar(lists: Compiled, batch: pd.DataFrame) -> None:
    assert_same(lists, batch)


@pytest.fixture(scope="module")
def numbers() -> Compiled:
    chain = (
        ["price", "ratio"]
        >> ops.FillMissing(fill_val=1, add_binary_cols=True)
        >> ops.Clip(min_value=0, max_value=1000)
        >> ops.LogOp()
        >> ops.Normalize(out_dtype=np.float32)
    )
    return fit_and_compile(
        chain
        + (["price"] >> ops.FillMedian() >> ops.NormalizeMinMax() >> ops.Rename(postfix="_range"))
        + (["ratio"] >> ops.Normalize() >> ops.Rename(postfix="_normal"))
        + (["ratio"] >> ops.Bucketize([-1.5, 0, 0.5, 2]) >> ops.Rename(postfix="_bucket"))
        + (["price"] >> ops.Bucketize([9, 0]) >> ops.Rename(name="price_falling"))
        + (["small"] >> ops.Normalize() >> ops.Rename(postfix="_normal"))
        + (["id"] >> ops.LogOp() >> ops.Rename(postfix="_log"))
        + (["id"] >> ops.Clip(min_value=-5, max_value=2**41) >> ops.Rename(postfix="_clip"))
        + (["small"] >> ops.Bucketize([-7, 3, 2**31]) >> ops.Rename(postfix="_bucket"))
        + (["constant"] >> ops.NormalizeMinMax() >> ops.Rename(postfix="_range"))
        + (["constant"] >> ops.Normalize(out_dtype=np.float32))
        + ["id"]
    )


@few
@given(batches(price=float32s, ratio=float64s, id=ids, small=small, constant=float32s))
def test_numbers_are_transformed_as_nvtabular_does(numbers: Compiled, batch: pd.DataFrame) -> None:
    assert_same(numbers, batch)


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    path = str(tmp_path_factory.mktemp("hashes"))
    buckets = {"id": 10, "small": 7, "tiny": 2**31 - 1, "unsigned": 1}
    spilled = {"id": 3, "small": 50, "history": 9}
    kept = {"id": 6, "small": 53, "history": 12}
    return fit_and_compile(
        (["id", "small", "tiny", "unsigned"] >> ops.HashBucket(buckets))
        + (
            ["id", "small", "history"]
            >> ops.Categorify(out_path=path, num_buckets=spilled, max_size=kept)
            >> ops.Rename(postfix="_category")
        ),
        HASHED,
    )


HASHED = FITTED.assign(tiny=FITTED["small"].astype(np.int8), unsigned=FITTED["small"].astype(np.uint32))


@few
@given(
    rows=st.lists(
        st.tuples(
            ids | st.sampled_from([NULL + 1, 2**63 - 1, -1, 0]),
            small,
            st.integers(-128, 127),
            st.integers(0, 2**32 - 1),
            st.lists(ids, max_size=3),
        ),
        max_size=12,
    )
)
def test_integers_are_hashed_as_nvtabular_does(hashes: Compiled, rows: list[tuple]) -> None:
    names = ["id", "small", "tiny", "unsigned", "history"]
    drawn = pd.DataFrame(rows, columns=names).astype({n: HASHED[n].dtype for n in names})
    assert_same(hashes, pd.concat([HASHED.loc[[0], names], drawn], ignore_index=True))


def test_a_missing_integer_has_the_bucket_of_pandas_null(tmp_path: Path) -> None:
    _, graph = fit_and_compile(["id"] >> ops.HashBucket(1000))
    null = pd.util.hash_pandas_object(pd.Series([None, "a"]), index=False)[0]
    assert run(graph, pd.DataFrame({"id": [None]}))["id"].tolist() == [int(null) % 1000]


@pytest.fixture(scope="module")
def encodings(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    path = tmp_path_factory.mktemp("encodings")
    return fit_and_compile(
        (
            ["text", "id", ["text", "other"]]
            >> ops.TargetEncoding(["label"], kfold=1, p_smooth=3, out_path=str(path / "target"))
        )
        + (
            ["text", ["other", "id"]]
            >> ops.JoinGroupby(
                cont_cols=["price"],
                stats=["sum", "mean", "std", "max"],
                out_path=str(path / "group"),
            )
            >> ops.FillMissing(0)
        )
        + ([["text", "other", "id"]] >> ops.Categorify(encode_type="combo", out_path=str(path / "combo")))
    )


@few
@given(batches(text=texts, other=texts | st.sampled_from(["x", "y", "z"]), id=ids))
def test_statistics_and_combinations_are_looked_up_as_nvtabular_does(
    encodings: Compiled, batch: pd.DataFrame
) -> None:
    assert_same(encodings, batch.assign(label=np.float32(0), price=np.float32(0)))


def test_a_batch_may_be_empty(
    categories: Compiled, lists: Compiled, numbers: Compiled, encodings: Compiled, hashes: Compiled
) -> None:
    for _, graph in (categories, lists, numbers, encodings, hashes):
        for (name, value), output in zip(run(graph, HASHED.iloc[:0]).items(), graph.get_outputs()):
            assert value.shape[0] == 0, name
            assert value.ndim == len(output.shape), name


def test_lists_may_all_be_empty(lists: Compiled) -> None:
    got = run(lists[1], FITTED.assign(tags=[[]] * 8, history=[[]] * 8, scores=[None] * 8))
    assert got["tags"].shape == (8, 0)
    assert got["scores"].shape == (8, 0)
    np.testing.assert_array_equal(got["history"], np.zeros((8, 2)))


def test_one_graph_serves_one_row_and_many(categories: Compiled, numbers: Compiled) -> None:
    many = pd.concat([FITTED] * 200, ignore_index=True)
    for compiled in (categories, numbers):
        assert_same(compiled, many)
        assert_same(compiled, FITTED.iloc[:1])


def test_max_size_and_given_vocabularies_are_kept(tmp_path: Path) -> None:
    vocabulary = {"text": pd.Series(["b", "a", "zz"]), "id": pd.Series([5, 1])}
    given_keys = ["text", "id"] >> ops.Categorify(vocabs=vocabulary, out_path=str(tmp_path / "given"))
    limited = ["other", "small"] >> ops.Categorify(max_size=5, out_path=str(tmp_path / "limited"))
    assert_same(fit_and_compile(given_keys + limited), FITTED)


def test_columns_pass_through_metadata_selection_and_narrowing(tmp_path: Path) -> None:
    tagged = ["text", "id"] >> ops.TagAsUserFeatures() >> ops.AddMetadata(properties={"p": 1})
    encoded = tagged >> ops.Categorify(out_path=str(tmp_path)) >> ops.ReduceDtypeSize()
    node = (
        (encoded - encoded["id"])
        + (["ratio", "small", "price"] >> ops.ReduceDtypeSize())[["ratio", "small"]]
        + ["price"]
    )
    assert_same(fit_and_compile(node), FITTED)


def test_categories_feed_statistics(tmp_path: Path) -> None:
    encoded = ["text", "id"] >> ops.Categorify(out_path=str(tmp_path / "a"))
    stats = encoded >> ops.JoinGroupby(
        cont_cols=["price"], stats=["count", "sum"], out_path=str(tmp_path / "b")
    )
    assert_same(fit_and_compile(encoded + stats), FITTED)


def test_vocabularies_fitted_in_many_partitions_are_read(tmp_path: Path) -> None:
    FITTED[["text", "tags", "price"]].to_parquet(tmp_path / "data.parquet", row_group_size=2)
    data = Dataset(str(tmp_path / "data.parquet"), engine="parquet", part_size=1)
    workflow = nvt.Workflow(
        (["text", "tags"] >> ops.Categorify(out_path=str(tmp_path / "a")))
        + (["text"] >> ops.JoinGroupby(cont_cols=["price"], stats=["sum"], out_path=str(tmp_path / "b")))
    )
    assert data.to_ddf().npartitions > 1
    workflow.fit(data)
    assert_same((workflow, session(compile_workflow(workflow))), FITTED)


def test_a_label_can_be_removed_before_compiling() -> None:
    label = ["label"] >> ops.LambdaOp(lambda column: column > 0)
    workflow = fit((["price"] >> ops.LogOp()) + label)
    with pytest.raises(UnsupportedOperator, match="remove_inputs"):
        compile_workflow(workflow)
    graph = session(compile_workflow(workflow.remove_inputs(["label"])))
    assert [output.name for output in graph.get_outputs()] == [feature_name("price")]


def test_a_vocabulary_may_be_large(tmp_path: Path) -> None:
    keys = np.arange(200_000) * 7
    frame = pd.DataFrame({"id": keys, "text": keys.astype(str).astype(object)})
    compiled = fit_and_compile(["id", "text"] >> ops.Categorify(out_path=str(tmp_path)), frame)
    assert_same(compiled, frame.iloc[::1000])


def test_text_nulls_can_be_filled(tmp_path: Path) -> None:
    node = ["text"] >> ops.FillMissing(fill_val="none") >> ops.Categorify(out_path=str(tmp_path))
    assert_same(fit_and_compile(node), FITTED)


def test_labels_are_not_inputs_of_the_graph(encodings: Compiled) -> None:
    assert [spec.name for spec in encodings[1].get_inputs()] == ["text", "id", "other"]


def test_inputs_and_outputs_keep_their_names_types_and_symbolic_sizes(lists: Compiled) -> None:
    graph = lists[1]
    assert {spec.name: (spec.type, spec.shape) for spec in graph.get_inputs()} == {
        "text": ("tensor(string)", ["batch"]),
        "tags": ("tensor(string)", ["batch", "tags_width"]),
        "history": ("tensor(int64)", ["batch", "history_width"]),
        "scores": ("tensor(double)", ["batch", "scores_width"]),
    }
    assert [spec.name for spec in graph.get_outputs()] == [
        feature_name(name) for name in ("text", "tags", "history", "scores")
    ]
    assert [output.shape for output in graph.get_outputs()][1:] == [
        ["batch", "tags_length"],
        ["batch", 2],
        ["batch", "scores_length"],
    ]


@pytest.mark.parametrize("dtype", [bool, "uint64", "datetime64[ns]", "float16"])
def test_a_raw_column_of_another_type_is_refused(dtype: str) -> None:
    workflow = fit(["odd"] >> ops.Rename(postfix="_"), pd.DataFrame({"odd": np.ones(3).astype(dtype)}))
    with pytest.raises(UnsupportedOperator, match="raw column 'odd'"):
        compile_workflow(workflow)


def test_two_compilations_of_one_workflow_are_equal(categories: Compiled) -> None:
    first, second = (compile_workflow(categories[0]).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


# Where NVTabular 23.8 fails on a CPU, the graph gives what its documentation promises.


def test_a_null_integer_and_a_null_list_element_are_encoded_as_one(tmp_path: Path) -> None:
    _, graph = fit_and_compile(["id", "history"] >> ops.Categorify(out_path=str(tmp_path)))
    batch = pd.DataFrame({"id": [None, 1, 99], "history": [[1, None, 2], [None], [99]]})
    got = run(graph, batch)
    np.testing.assert_array_equal(got["id"], [1, 3, 2])
    np.testing.assert_array_equal(got["history"][:, 1] == 1, [True, False, False])
    np.testing.assert_array_equal(got["history"][1], [0, 0, 0])
    np.testing.assert_array_equal(got["history"][2], [2, 0, 0])


def test_a_batch_may_be_null_throughout(categories: Compiled) -> None:
    got = run(
        categories[1], pd.DataFrame({name: [None] for name in ("text", "id", "small", "whole", "other")})
    )
    assert [value.tolist() for value in got.values()] == [[1]] * 5


def test_null_integers_are_filled_logged_clipped_and_bucketized_as_missing(tmp_path: Path) -> None:
    node = (
        (["id"] >> ops.FillMissing(7, add_binary_cols=True))
        + (["id"] >> ops.LogOp() >> ops.Rename(postfix="_log"))
        + (["small"] >> ops.Clip(min_value=0))
        + (["small"] >> ops.Bucketize([0, 5]) >> ops.Rename(postfix="_bucket"))
    )
    _, graph = fit_and_compile(node)
    got = run(graph, pd.DataFrame({"id": [None, 1], "small": [None, -3]}))
    np.testing.assert_array_equal(got["id"], [7, 1])
    np.testing.assert_array_equal(got["id_filled"], [True, False])
    np.testing.assert_allclose(got["id_log"], [np.nan, np.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(got["small"], np.array([np.iinfo(np.int32).min, 0], np.int32))
    np.testing.assert_array_equal(got["small_bucket"], [2, 0])


def test_a_fraction_in_an_integer_column_makes_it_float64() -> None:
    _, graph = fit_and_compile((["id"] >> ops.FillMissing(0.5)) + (["small"] >> ops.Clip(max_value=2.5)))
    got = run(graph, pd.DataFrame({"id": [None, 2], "small": [1, 9]}))
    np.testing.assert_array_equal(got["id"], np.array([0.5, 2]), strict=True)
    np.testing.assert_array_equal(got["small"], np.array([1, 2.5]), strict=True)


def test_an_unknown_group_has_count_zero_and_no_mean(tmp_path: Path) -> None:
    node = ["text"] >> ops.JoinGroupby(
        cont_cols=["small"], stats=["count", "mean", "max"], out_path=str(tmp_path)
    )
    _, graph = fit_and_compile(node)
    got = run(graph, pd.DataFrame({"text": ["a", "nobody"]}))
    np.testing.assert_array_equal(got["text_count"], np.array([3, 0], np.int32))
    np.testing.assert_array_equal(got["text_small_mean"], np.array([1, np.nan], np.float32))
    np.testing.assert_array_equal(got["text_small_max"], np.array([1, np.iinfo(np.int32).min], np.int32))


def test_target_encoding_of_new_data_uses_all_folds(tmp_path: Path) -> None:
    def encoded(folds: int) -> dict[str, np.ndarray]:
        path = str(tmp_path / str(folds))
        _, graph = fit_and_compile(["text"] >> ops.TargetEncoding(["label"], kfold=folds, out_path=path))
        return run(graph, FITTED)

    np.testing.assert_array_equal(encoded(3)["TE_text_label"], encoded(1)["TE_text_label"])


def test_a_padded_slice_is_padded_with_its_value(tmp_path: Path) -> None:
    _, graph = fit_and_compile(["history"] >> ops.ListSlice(3, pad=True, pad_value=-1))
    got = run(graph, pd.DataFrame({"history": [[4, 5, 6, 7], [8], []]}))
    np.testing.assert_array_equal(got["history"], [[4, 5, 6], [8, -1, -1], [-1, -1, -1]])


@pytest.mark.parametrize("bounds", [(2, None), (1, 3), (-2, None), (-3, -1), (0, 2), (-1, None), (2, 5)])
def test_slices_follow_python(bounds: tuple[int, int | None]) -> None:
    _, graph = fit_and_compile(["history"] >> ops.ListSlice(*bounds))
    start, end = (0, bounds[0]) if bounds[0] > 0 and bounds[1] is None else bounds
    rows = [list(range(1, length + 1)) for length in range(7)]
    got = run(graph, pd.DataFrame({"history": rows}))["history"]
    for row, value in zip(rows, got):
        expected = row[start:end]
        assert value.tolist() == expected + [0] * (len(value) - len(expected))


def test_list_lengths_cut_and_pad_the_outputs(tmp_path: Path) -> None:
    node = ["tags", "history"] >> ops.Categorify(out_path=str(tmp_path))
    workflow = fit(node)
    model = compile_workflow(workflow, list_lengths={"tags": 2, "history": 5})
    got = run(session(model), FITTED)
    whole = run(session(compile_workflow(workflow)), FITTED)
    np.testing.assert_array_equal(got["tags"], whole["tags"][:, :2])
    np.testing.assert_array_equal(got["history"][:, :3], whole["history"])
    assert not got["history"][:, 3:].any()
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [0, 2]


# What is refused, and how it says so.


@pytest.mark.parametrize(
    ("node", "operator", "word"),
    [
        (lambda path: ["price"] >> ops.LambdaOp(lambda c: c + 1), "LambdaOp", "price"),
        (lambda path: ["price", "id"] >> ops.Dropna(), "Dropna", "price"),
        (lambda path: [["text", "other"]] >> ops.HashedCross(9), "HashedCross", "text_X_other"),
        (lambda path: ["text"] >> ops.HashBucket(9), "HashBucket", "SipHash"),
        (lambda path: ["whole"] >> ops.HashBucket(9), "HashBucket", "bits of a float"),
        (
            lambda path: ["tags"] >> ops.Categorify(out_path=path, num_buckets=5, max_size=8),
            "Categorify",
            "SipHash",
        ),
        (
            lambda path: ["text"] >> ops.Categorify(out_path=path, num_buckets=5, max_size=8),
            "Categorify",
            "SipHash",
        ),
        (
            lambda path: (
                [["id", "small"]]
                >> ops.Categorify(out_path=path, num_buckets={"id_small": 5, "id": 5, "small": 5}, max_size=8)
            ),
            "Categorify",
            "several columns",
        ),
        (lambda path: ["ratio"] >> ops.Categorify(out_path=path), "Categorify", "fractions"),
        (
            lambda path: ["id"] >> ops.Categorify(out_path=path, single_table=True),
            "Categorify",
            "single_table",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(
    tmp_path: Path, node: Callable[[str], object], operator: str, word: str
) -> None:
    workflow = fit(node(str(tmp_path)))
    with pytest.raises(UnsupportedOperator, match=word) as refusal:
        compile_workflow(workflow)
    assert refusal.value.operator == operator
    assert refusal.value.columns
    assert "Supported operators" in str(refusal.value)
    assert {"Categorify", "Normalize", "ListSlice"} <= set(refusal.value.supported)


def test_an_operator_that_no_output_needs_is_not_refused(tmp_path: Path) -> None:
    label = ["label"] >> ops.LambdaOp(lambda column: (column > 0).astype("float32"))
    node = ["text"] >> ops.TargetEncoding(label, kfold=1, out_path=str(tmp_path))
    assert_same(fit_and_compile(node), FITTED)


def test_a_vocabulary_with_the_empty_string_is_refused(tmp_path: Path) -> None:
    workflow = fit(["text"] >> ops.Categorify(out_path=str(tmp_path)), FITTED.fillna({"text": ""}))
    with pytest.raises(UnsupportedOperator, match="empty strings by nulls"):
        compile_workflow(workflow)


def test_statistics_written_over_by_another_operator_are_refused(tmp_path: Path) -> None:
    node = (["text"] >> ops.TargetEncoding(["label"], kfold=1, out_path=str(tmp_path / "a"))) + (
        ["text"] >> ops.JoinGroupby(cont_cols=["price"], stats=["sum"], out_path=str(tmp_path / "b"))
    )
    workflow = fit(node)
    part = "categories/cat_stats.text.parquet/part.0.parquet"
    (tmp_path / "a" / part).write_bytes((tmp_path / "b" / part).read_bytes())
    with pytest.raises(UnsupportedOperator, match="out_path of its own"):
        compile_workflow(workflow)


def test_a_lost_vocabulary_is_refused_and_an_all_null_column_is_not(tmp_path: Path) -> None:
    workflow = fit(["text"] >> ops.Categorify(out_path=str(tmp_path)))
    (tmp_path / "categories" / "unique.text.parquet").rename(tmp_path / "elsewhere")
    unknown = session(compile_workflow(workflow))
    assert run(unknown, FITTED)["text"].tolist() == [2, 2, 1, 2, 2, 2, 2, 2]
    (tmp_path / "categories" / "meta.text.parquet").unlink()
    with pytest.raises(UnsupportedOperator, match=r"unique\.text\.parquet is gone"):
        compile_workflow(workflow)


def test_a_workflow_that_was_not_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="not fitted"):
        compile_workflow(nvt.Workflow(["price"] >> ops.Normalize()))


def test_lengths_of_columns_that_are_no_list_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="price"):
        compile_workflow(fit(["price"] >> ops.LogOp()), list_lengths={"price": 3})


# Joining graphs.


def scorer(name: str = "scorer", *, elem: int = TensorProto.FLOAT, opset: int = 17) -> ModelProto:
    """score = price + bias, with an inner constant and names that the feature graph uses too."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["price", "/constant_0"], ["/Add_0"], name="/Add_0"),
            helper.make_node("Add", ["/Add_0", "bias"], ["score"], name="/Add_1"),
        ],
        name,
        [helper.make_tensor_value_info(n, elem, ["n"]) for n in ("price", "bias")],
        [helper.make_tensor_value_info("score", elem, ["n"])],
        [helper.make_tensor("/constant_0", elem, [], [10.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_joined_graphs_give_what_they_give_one_after_the_other() -> None:
    workflow = fit(["price", "small"] >> ops.FillMissing() >> ops.LogOp())
    features = compile_workflow(workflow)
    joined = join(features, scorer(), connect={feature_name("price"): "price"}, name="query")
    assert joined.graph.name == "query"
    graph = session(joined)
    assert [spec.name for spec in graph.get_inputs()] == ["price", "small", "bias"]
    assert [spec.name for spec in graph.get_outputs()] == [feature_name("small"), "score"]
    bias = np.arange(8, dtype=np.float32)
    feeds = {"price": FITTED["price"].to_numpy(), "small": FITTED["small"].to_numpy(np.int64), "bias": bias}
    small, score = graph.run(None, feeds)
    expected = workflow.transform(FITTED[["price", "small"]].copy())
    np.testing.assert_allclose(small, expected["small"], rtol=1e-6)
    np.testing.assert_allclose(score, expected["price"] + 10 + bias, rtol=1e-6)


def test_a_joined_graph_can_be_joined_again() -> None:
    features = compile_workflow(fit(["price"] >> ops.Normalize(out_dtype=np.float32)))
    once = join(features, scorer(), connect={feature_name("price"): "price"}, name="query")
    second = scorer()
    second.graph.input[1].name = second.graph.node[1].input[1] = "bias_2"
    second.graph.output[0].name = second.graph.node[1].output[0] = "score_2"
    twice = session(join(once, second, connect={"score": "price"}, name="all"))
    feeds = {
        "price": np.ones(2, np.float32),
        "bias": np.zeros(2, np.float32),
        "bias_2": np.full(2, 5, np.float32),
    }
    first = session(once).run(None, {k: feeds[k] for k in ("price", "bias")})[0]
    np.testing.assert_allclose(twice.run(None, feeds)[0], first + 15, rtol=1e-6)


@pytest.mark.parametrize(
    ("second", "connect", "message"),
    [
        (scorer(), {"missing": "price"}, "no output 'missing'"),
        (scorer(), {feature_name("price"): "missing"}, "no input 'missing'"),
        (scorer(elem=TensorProto.DOUBLE), {feature_name("price"): "price"}, "float64"),
        (scorer(opset=13), {feature_name("price"): "price"}, "13"),
        (scorer(), {}, r"both have inputs or outputs \['price'\]"),
    ],
)
def test_graphs_that_do_not_fit_are_not_joined(
    second: ModelProto, connect: dict[str, str], message: str
) -> None:
    features = compile_workflow(fit(["price"] >> ops.LogOp()))
    with pytest.raises(ValueError, match=message):
        join(features, second, connect=connect, name="query")
