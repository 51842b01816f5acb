"""A table goes through the bulk transform as its rows go through the graph that serves them."""

import workflows.runtime  # noqa: F401  # isort: skip  (before NVTabular)

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import nvtabular as nvt
import onnxruntime
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from merlin.io import Dataset
from nvtabular import ops

from workflows.bulk import BulkTransform
from workflows.compile import compile_workflow, feature_name

NULL = np.iinfo(np.int64).min
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.int64()),
        ("small", pa.int32()),
        ("whole", pa.float64()),
        ("price", pa.float32()),
        ("tags", pa.list_(pa.string())),
        ("history", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
    ]
)
FITTED = pa.table(
    {
        "text": ["a", "b", None, "a", "ñandú", "สด", "b"],
        "id": [1, 2, 3, 1, 5, -7, 2**40],
        "small": [1, 2, 3, 1, 5, -7, 9],
        "whole": [1, None, 3, 1, 5, -7, 9],
        "price": [1.5, None, 0, -2, 3e4, 7, 1],
        "tags": [["a", "b"], ["c"], ["a", "a", "b"], ["none"], ["b"], ["สด", "a"], []],
        "history": [[1, 2, 3], [5], [8, 1], [-7], [2], [3, 3], [1]],
        "scores": [[0.5, 1.0], [2.0], [0.0], [4.0, 0.0, 1.0], [1.0], [1.5], [9.0]],
    },
    SCHEMA,
)
texts = st.none() | st.sampled_from(["a", "b", "none", "zz", "", "สด"]) | st.text(max_size=3)
ids = st.none() | st.sampled_from([1, 2, 5, -7, 2**40, 99]) | st.integers(NULL, 2**63 - 1)
floats = st.none() | st.floats(width=32) | st.sampled_from([1.0, 3.0])
lists = st.none() | st.lists(texts, max_size=4)
ROW = st.fixed_dictionaries(
    {
        "text": texts,
        "id": ids,
        "small": st.none() | st.sampled_from([1, 2, -7]) | st.integers(-(2**31) + 1, 2**31 - 1),
        "whole": floats,
        "price": floats,
        "tags": lists,
        "history": st.none() | st.lists(ids, max_size=4),
        "scores": st.none() | st.lists(st.floats(0, 1e6), max_size=3),
    }
)


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> nvt.Workflow:
    """Every way that text and keys take through a workflow."""

    def path(name: str) -> str:
        return str(tmp_path_factory.mktemp(name))

    node = (
        (["text", "small", "whole"] >> ops.Categorify(out_path=path("plain")))
        + (["text"] >> ops.Rename(postfix="_raw"))
        + (
            ["text"]
            >> ops.FillMissing("none")
            >> ops.Rename(postfix="_filled")
            >> ops.Categorify(out_path=path("f"))
        )
        + (["text"] >> ops.FillMissing("b") >> ops.Rename(postfix="_b") >> ops.Categorify(out_path=path("b")))
        + ([["text", "tags"]] >> ops.Categorify(out_path=path("joint")) >> ops.Rename(postfix="_joint"))
        + (["tags"] >> ops.ListSlice(-2) >> ops.Categorify(out_path=path("tags")))
        + (["history"] >> ops.Categorify(out_path=path("history")))
        + (["scores"] >> ops.LogOp() >> ops.Normalize())
        + (["id"] >> ops.HashBucket(7))
        + (["text", ["text", "id"]] >> ops.TargetEncoding(["price"], kfold=1, out_path=path("target")))
        + ([["text", "small"]] >> ops.Categorify(encode_type="combo", out_path=path("combo")))
        + (
            ["price"]
            >> ops.FillMissing(add_binary_cols=True)
            >> ops.Clip(0)
            >> ops.LogOp()
            >> ops.Normalize()
        )
    )
    return nvt.Workflow(node).fit(Dataset(FITTED.to_pandas()))


@pytest.fixture(scope="module")
def bulk(workflow: nvt.Workflow) -> Iterator[BulkTransform]:
    """The transform, in batches of three rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workflows.bulk.ROWS", 3)
        yield BulkTransform(workflow)


@pytest.fixture(scope="module")
def graph(workflow: nvt.Workflow) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(compile_workflow(workflow).SerializeToString())


def served(graph: onnxruntime.InferenceSession, table: pa.Table) -> dict[str, np.ndarray]:
    """The table's rows through the serving graph, by its convention of inputs."""
    feeds = {}
    for spec in graph.get_inputs():
        null = {"tensor(string)": "", "tensor(int64)": NULL}.get(spec.type, np.nan)
        dtype = {"tensor(string)": object, "tensor(int64)": np.int64, "tensor(float)": np.float32}
        rows = table[spec.name].to_pylist()
        if len(spec.shape) == 2:
            width = max((len(row) for row in rows if row), default=0)
            rows = [[*(row or []), *[null] * (width - len(row or []))] for row in rows]
            rows = [[null if value is None else value for value in row] for row in rows]
        else:
            rows = [null if value is None else value for value in rows]
        array = np.array(rows, dtype=dtype.get(spec.type, np.float64))
        feeds[spec.name] = array.reshape(len(rows), width) if len(spec.shape) == 2 else array
    names = [output.name for output in graph.get_outputs()]
    return dict(zip(names, graph.run(names, feeds)))


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert [feature_name(name) for name in got] == list(expected)
    for name, values in got.items():
        other = expected[feature_name(name)]
        if values.dtype.kind == "f":
            # A logarithm's last bit hangs on its place in a batch, and normalising may leave little more.
            last_bits = 1e-6 if name in ("scores", "price") else 0
            np.testing.assert_allclose(values, other, rtol=1e-6, atol=last_bits, err_msg=name)
        else:
            np.testing.assert_array_equal(values, other, err_msg=name, strict=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(ROW, max_size=8))
@example([{}, {}, {}, {}, {"scores": [0.0, 0.0]}, {"scores": [1.3359375]}])
def test_a_table_is_transformed_as_its_rows_are_served(
    bulk: BulkTransform, graph: onnxruntime.InferenceSession, rows: list[dict]
) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA)
    assert_same(bulk.transform(table), served(graph, table))


CUT = {
    "tags": st.none() | st.lists(texts, max_size=7),
    "history": st.none() | st.lists(ids, max_size=7),
    "scores": st.none() | st.lists(st.floats(0, 1e6) | st.none() | st.just(np.nan), max_size=7),
}
"""Lists of more elements than are kept, with what is missing anywhere in them."""


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> nvt.Workflow:
    """Of every list the last elements alone."""

    def path(name: str) -> str:
        return str(tmp_path_factory.mktemp(name))

    node = (
        (["tags"] >> ops.ListSlice(-2) >> ops.Categorify(out_path=path("tags")))
        + (["tags"] >> ops.Rename(postfix="_3") >> ops.ListSlice(-3) >> ops.Categorify(out_path=path("3")))
        + (["history"] >> ops.Categorify(out_path=path("history")) >> ops.ListSlice(-3))
        + (["scores"] >> ops.LogOp() >> ops.ListSlice(-2, pad=True, pad_value=-1.0))
    )
    return nvt.Workflow(node).fit(Dataset(FITTED.to_pandas()))


@pytest.fixture(scope="module")
def last_bulk(last: nvt.Workflow) -> Iterator[BulkTransform]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workflows.bulk.ROWS", 3)
        yield BulkTransform(last)


@pytest.fixture(scope="module")
def last_graph(last: nvt.Workflow) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(compile_workflow(last).SerializeToString())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.fixed_dictionaries(CUT), max_size=8))
@example([{"tags": ["a", "b", "c", None, ""]}, {"tags": [None, None, None]}, {"tags": ["", "a", "", "b"]}])
def test_lists_that_are_cut_give_what_their_rows_give(
    last_bulk: BulkTransform, last_graph: onnxruntime.InferenceSession, rows: list[dict]
) -> None:
    schema = pa.schema([SCHEMA.field(name) for name in CUT])
    table = pa.Table.from_pylist(rows, schema)
    assert_same(last_bulk.transform(table), served(last_graph, table))


def both_ends(path: str) -> object:
    encoded = ["tags"] >> ops.Categorify(out_path=path)
    return (encoded >> ops.ListSlice(-2)) + (encoded >> ops.ListSlice(1) >> ops.Rename(postfix="_first"))


def whole_as_well(path: str) -> object:
    whole = ["tags"] >> ops.Rename(postfix="_all") >> ops.Categorify(out_path=f"{path}/all")
    return (["tags"] >> ops.ListSlice(-2) >> ops.Categorify(out_path=f"{path}/last")) + whole


def to_an_end(path: str) -> object:
    return ["tags"] >> ops.ListSlice(-3, -1) >> ops.Categorify(out_path=path)


def the_first(path: str) -> object:
    return ["tags"] >> ops.ListSlice(2) >> ops.Categorify(out_path=path)


def twice(path: str) -> object:
    return ["history"] >> ops.ListSlice(-3) >> ops.ListSlice(0, 2) >> ops.Categorify(out_path=path)


def hashed(path: str) -> object:
    return ["history"] >> ops.Categorify(out_path=path, num_buckets=3, max_size=5) >> ops.ListSlice(-2)


def as_it_came(path: str) -> object:
    return (["history", "scores"] >> ops.ListSlice(-2)) + (["history"] >> ops.Rename(postfix="_raw"))


def filled_up(path: str) -> object:
    return ["history"] >> ops.ListSlice(-3, pad=True, pad_value=7) >> ops.Categorify(out_path=path)


OF_HISTORIES = [twice, hashed, as_it_came, filled_up]
OF_TAGS = [both_ends, whole_as_well, to_an_end, the_first]


@pytest.mark.parametrize(
    ("make", "lengths"),
    [(make, {}) for make in OF_TAGS]
    + [(make, lengths) for make in OF_HISTORIES for lengths in ({}, {"history": 2}, {"history": 6})],
)
def test_however_lists_are_cut_and_encoded_tables_give_what_rows_give(
    make: Callable[[str], object], lengths: dict[str, int], tmp_path: Path
) -> None:
    workflow = nvt.Workflow(make(str(tmp_path))).fit(Dataset(FITTED.to_pandas()))
    table = pa.table(
        {
            "tags": [["a", "b", "c", "a", "b", "c", "a"], ["b"], None, ["", "a", None], [], [None, ""]],
            "history": [[1, 2, 3, 5, 8], [9], [], [None, 2, None], None, [None] * 7],
            "scores": [[0.5, None], [], None, [1.0, 2.0, 3.0], [None], [np.nan]],
        },
        pa.schema([SCHEMA.field(name) for name in CUT]),
    )
    graph = onnxruntime.InferenceSession(compile_workflow(workflow, list_lengths=lengths).SerializeToString())
    assert_same(BulkTransform(workflow, list_lengths=lengths).transform(table), served(graph, table))


def test_chunks_slices_and_dictionaries_of_a_table_do_not_matter(
    bulk: BulkTransform, graph: onnxruntime.InferenceSession
) -> None:
    expected = served(graph, FITTED)
    chunked = pa.concat_tables([FITTED.slice(0, 2), FITTED.slice(2)])
    encoded = FITTED.set_column(0, "text", FITTED["text"].dictionary_encode())
    larger = pa.concat_tables([FITTED, FITTED]).slice(7)
    for table in (chunked, encoded, larger):
        assert_same(bulk.transform(table), expected)


def test_a_table_gives_what_nvtabular_gives(tmp_path: Path) -> None:
    node = (["text", "id"] >> ops.Categorify(out_path=str(tmp_path))) + (
        ["price"] >> ops.FillMissing() >> ops.Normalize()
    )
    workflow = nvt.Workflow(node).fit(Dataset(FITTED.to_pandas()))
    expected = workflow.transform(FITTED.to_pandas())
    for name, values in BulkTransform(workflow).transform(FITTED).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)
        assert values.dtype == expected[name].dtype


def test_list_lengths_are_kept(workflow: nvt.Workflow) -> None:
    got = BulkTransform(workflow, list_lengths={"history": 2}).transform(FITTED)
    assert got["history"].shape == (7, 2)


def test_columns_that_lack_or_changed_their_type_are_named(bulk: BulkTransform) -> None:
    with pytest.raises(ValueError, match="no column 'small'"):
        bulk.transform(FITTED.drop(["small"]))
    for name, values in (("history", FITTED["id"]), ("id", FITTED["history"]), ("small", FITTED["text"])):
        table = FITTED.set_column(FITTED.column_names.index(name), name, values)
        with pytest.raises(ValueError, match=f"column '{name}' is"):
            bulk.transform(table)


def test_text_that_the_workflow_changes_is_no_output(tmp_path: Path) -> None:
    workflow = nvt.Workflow(["text"] >> ops.FillMissing("none")).fit(Dataset(FITTED.to_pandas()))
    with pytest.raises(ValueError, match="'text' is text that the workflow changes"):
        BulkTransform(workflow)
