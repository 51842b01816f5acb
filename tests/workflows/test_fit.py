"""A workflow fitted on an Arrow table is the workflow that NVTabular fits."""

import workflows.runtime  # noqa: F401  # isort: skip  (before NVTabular)

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nvtabular import ops

from workflows.bulk import BulkTransform
from workflows.fit import fit, merlin_schema

ROWS = 400
Make = Callable[[Path], object]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = np.random.default_rng(3)
    picks = np.minimum(rng.pareto(0.7, (5, ROWS)), 60).astype(int)
    numbers = rng.lognormal(0, 2, ROWS)
    gaps = rng.random(ROWS) < 0.1
    lengths = rng.integers(0, 5, ROWS)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    flat = np.minimum(rng.pareto(0.7, lengths.sum()), 40).astype(np.int64)
    return pa.table(
        {
            "text": pa.array([f"k{pick}" for pick in picks[0]], mask=gaps),
            "label": pa.array([f"é{pick}" for pick in picks[1]]).dictionary_encode(),
            "id": pa.array(picks[2] * 10**15 - 7),
            "small": pa.array(picks[3].astype(np.int32)),
            "whole": pa.array(picks[4].astype(np.float64), mask=gaps),
            "price": pa.array(numbers.astype(np.float32), mask=gaps),
            "ratio": pa.array(numbers[::-1].copy()),
            "history": pa.ListArray.from_arrays(offsets, pa.array(flat)),
            "tags": pa.ListArray.from_arrays(offsets, pa.array([f"t{key}" for key in flat])),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(flat.astype(np.float32))),
        }
    )


def every_kind(path: Path) -> object:
    return (
        (["text", "label", "id", "small", "whole", "tags"] >> ops.Categorify(out_path=str(path / "a")))
        + (["history"] >> ops.ListSlice(-2) >> ops.Categorify(out_path=str(path / "b")))
        + (
            ["price", "ratio"]
            >> ops.FillMissing(0)
            >> ops.Clip(min_value=0, max_value=100)
            >> ops.LogOp()
            >> ops.Normalize(out_dtype=np.float32)
        )
        + (["scores"] >> ops.LogOp() >> ops.Normalize(out_dtype=np.float32))
        + (["small"] >> ops.Normalize() >> ops.Rename(postfix="_normal"))
        + (["price"] >> ops.Normalize() >> ops.Rename(postfix="_normal"))
    )


def of_the_last_elements(path: Path) -> object:
    return (["tags", "history"] >> ops.ListSlice(-2) >> ops.Categorify(out_path=str(path / "a"))) + (
        ["scores"] >> ops.ListSlice(-1) >> ops.Normalize(out_dtype=np.float32)
    )


def of_filled_lists(path: Path) -> object:
    return ["history"] >> ops.ListSlice(-2, pad=True, pad_value=7) >> ops.Categorify(out_path=str(path / "a"))


def limited(path: Path) -> object:
    return (
        (["text", "id"] >> ops.Categorify(out_path=str(path / "a"), freq_threshold={"text": 5, "id": 9}))
        + (["label"] >> ops.Categorify(out_path=str(path / "b"), max_size=9))
        + (["small"] >> ops.Categorify(out_path=str(path / "c"), max_size=12, num_buckets=4))
        + (["tags"] >> ops.Categorify(vocabs={"tags": pd.Series(["t1", "t0"])}, out_path=str(path / "d")))
    )


def in_two_phases(path: Path) -> object:
    encoded = ["text", "id"] >> ops.Categorify(out_path=str(path))
    return encoded >> ops.Normalize()


def with_other_statistics(path: Path) -> object:
    return (["text"] >> ops.TargetEncoding(["ratio"], kfold=1, out_path=str(path / "a"))) + (
        ["price"] >> ops.FillMedian()
    )


def of_changed_text(path: Path) -> object:
    return ["text"] >> ops.FillMissing("none") >> ops.Categorify(out_path=str(path))


def of_several_columns(path: Path) -> object:
    return [["text", "label"]] >> ops.Categorify(out_path=str(path))


def as_pandas(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas().astype({"label": object})


def vocabularies(folder: Path) -> dict[str, pd.DataFrame]:
    """Each vocabulary file, equally frequent keys in the order of their names."""
    files = {}
    for file in folder.rglob("unique.*.parquet"):
        frame = pd.read_parquet(file)
        sizes = [name for name in frame if name.endswith("_size")]
        by = [*sizes, *[name for name in frame if name not in sizes]]
        ascending = [name not in sizes for name in by]
        labels = frame.index.to_numpy()
        ordered = frame.sort_values(by, ascending=ascending, ignore_index=True)
        files[str(file.relative_to(folder))] = ordered.set_index(labels)
    return files


@pytest.mark.parametrize(
    "make",
    [
        every_kind,
        of_the_last_elements,
        of_filled_lists,
        limited,
        in_two_phases,
        with_other_statistics,
        of_changed_text,
        of_several_columns,
    ],
)
def test_vocabularies_and_statistics_are_those_of_nvtabular(
    make: Make, table: pa.Table, tmp_path: Path
) -> None:
    frame = as_pandas(table)
    theirs = nvt.Workflow(make(tmp_path / "theirs"))
    theirs.fit(nvt.Dataset(frame, schema=merlin_schema(table.schema)))
    ours = fit(nvt.Workflow(make(tmp_path / "ours")), [table])

    expected = vocabularies(tmp_path / "theirs")
    found = vocabularies(tmp_path / "ours")
    assert found.keys() == expected.keys()
    if make is not limited:  # a limit cuts through keys that are equally frequent
        for name, vocabulary in found.items():
            pd.testing.assert_frame_equal(vocabulary, expected[name], check_dtype=False)
    for name in [f.relative_to(tmp_path / "ours") for f in (tmp_path / "ours").rglob("meta.*.parquet")]:
        mine, upstream = (pd.read_parquet(tmp_path / side / name) for side in ("ours", "theirs"))
        pd.testing.assert_frame_equal(mine, upstream, check_dtype=False)
    assert ours.output_schema.column_names == theirs.output_schema.column_names
    for column in theirs.output_schema:
        mine = ours.output_schema[column.name]
        assert (mine.dtype, mine.shape, mine.tags) == (column.dtype, column.shape, column.tags), column.name
        assert mine.properties.get("embedding_sizes") == column.properties.get("embedding_sizes")
    for mine, upstream in zip(_normalizers(ours), _normalizers(theirs)):
        assert mine.means == pytest.approx(upstream.means, rel=1e-6)
        assert mine.stds == pytest.approx(upstream.stds, rel=1e-6)


def _sizes(workflow: nvt.Workflow) -> dict[str, object]:
    return {column.name: column.properties.get("embedding_sizes") for column in workflow.output_schema}


def _normalizers(workflow: nvt.Workflow) -> list[ops.Normalize]:
    nodes = workflow.graph.get_nodes_by_op_type([workflow.output_node], ops.Normalize)
    return sorted((node.op for node in nodes), key=lambda op: sorted(op.means))


@pytest.mark.parametrize("make", [every_kind, of_the_last_elements, limited, in_two_phases])
def test_a_workflow_fitted_here_transforms_in_nvtabular_and_here_alike(
    make: Make, table: pa.Table, tmp_path: Path
) -> None:
    workflow = fit(nvt.Workflow(make(tmp_path)), [table])
    expected = workflow.transform(as_pandas(table))
    for name, values in BulkTransform(workflow).transform(table).items():
        column = expected[name].to_numpy()
        if values.ndim == 2:
            inside = np.arange(values.shape[1]) < np.array([len(row) for row in column])[:, None]
            assert not values[~inside].any()
            values, column = values[inside], np.concatenate(column)
        np.testing.assert_allclose(values, column, rtol=2e-5, atol=1e-6, err_msg=name)


def test_lists_are_fitted_here_whatever_is_cut_of_them(
    table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("NVTabular's own fit takes minutes for these")

    monkeypatch.setattr("workflows.fit._fit_by_nvtabular", refuse)
    for make in (every_kind, of_the_last_elements):
        assert fit(nvt.Workflow(make(tmp_path)), [table]).output_schema


def test_equally_frequent_keys_keep_the_order_of_their_first_rows(tmp_path: Path) -> None:
    table = pa.table({"text": ["z", "a", "m", "m"], "id": [9, 2, 5, 5]})
    workflow = fit(nvt.Workflow(["text", "id"] >> ops.Categorify(out_path=str(tmp_path))), [table])
    got = BulkTransform(workflow).transform(table)
    assert got["text"].tolist() == got["id"].tolist() == [4, 5, 3, 3]


def test_what_is_missing_is_no_category(tmp_path: Path) -> None:
    table = pa.table({"text": ["", None, "a"], "nothing": pa.array([None, None, None], pa.string())})
    workflow = fit(nvt.Workflow(["text"] >> ops.Categorify(out_path=str(tmp_path))), [table])
    assert BulkTransform(workflow).transform(table)["text"].tolist() == [1, 1, 3]
    with pytest.raises(ValueError, match="'nothing' has no value to fit on"):
        fit(nvt.Workflow(["nothing"] >> ops.Categorify(out_path=str(tmp_path))), [table])


def test_a_workflow_can_be_fitted_again(table: pa.Table, tmp_path: Path) -> None:
    workflow = fit(nvt.Workflow(["text"] >> ops.Categorify(out_path=str(tmp_path))), [table])
    fit(workflow, [table.filter(pa.array(np.arange(ROWS) < 5))])
    assert workflow.output_schema["text"].properties["embedding_sizes"]["cardinality"] <= 8


class Parts:
    """A table cut anew each time it is walked through, as files are read."""

    def __init__(self, table: pa.Table, sizes: list[int]) -> None:
        self.table, self.ends = table, np.cumsum([0, *sizes]).tolist()

    def __iter__(self) -> Iterator[pa.Table]:
        return (self.table.slice(a, b - a) for a, b in zip(self.ends, self.ends[1:]))


@pytest.mark.parametrize("make", [every_kind, limited, in_two_phases, with_other_statistics, of_changed_text])
@pytest.mark.parametrize("sizes", [[1, 0, 7, 300, 92], [50] * 8], ids=str)
def test_a_table_in_parts_is_fitted_as_the_whole(
    make: Make, sizes: list[int], table: pa.Table, tmp_path: Path
) -> None:
    whole = fit(nvt.Workflow(make(tmp_path / "whole")), [table])
    parts = fit(nvt.Workflow(make(tmp_path / "parts")), Parts(table, sizes))
    names = [file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*.parquet")]
    assert names
    for name in names:
        assert pq.read_table(tmp_path / "parts" / name).equals(pq.read_table(tmp_path / "whole" / name)), name
    for mine, other in zip(_normalizers(parts), _normalizers(whole)):
        # A graph may round a number by where in a batch it stands.
        assert mine.means == pytest.approx(other.means, rel=1e-8)
        assert mine.stds == pytest.approx(other.stds, rel=1e-8)
    assert _sizes(parts) == _sizes(whole)


def test_many_keys_are_merged_in_the_order_of_their_first_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picks = rng.integers(0, 300, 4_000)
    table = pa.table({"id": picks, "text": [f"k{pick}" for pick in picks]})
    workflow = fit(
        nvt.Workflow(["id", "text"] >> ops.Categorify(out_path=str(tmp_path))), Parts(table, [40] * 100)
    )
    keys, first, counts = np.unique(picks, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    saved = pq.read_table(tmp_path / "categories" / "unique.id.parquet")
    assert saved["id"].to_pylist() == keys[order].tolist()
    assert saved["id_size"].to_pylist() == counts[order].tolist()
    got = BulkTransform(workflow).transform(table)
    np.testing.assert_array_equal(got["id"], got["text"])


@pytest.mark.parametrize("usual", [0.1, 19.99, 123456.78, -7e8])
def test_what_does_not_vary_has_no_deviation(usual: float, tmp_path: Path) -> None:
    table = pa.table({"number": np.full(1001, usual)})
    workflow = fit(nvt.Workflow(["number"] >> ops.Normalize()), Parts(table, [1, 500, 500]))
    assert _normalizers(workflow)[0].stds == {"number": 0.0}
    assert _normalizers(workflow)[0].means == {"number": usual}


@pytest.mark.parametrize(
    "statistic", [ops.Categorify, lambda out_path: ops.Normalize(), lambda out_path: ops.FillMedian()]
)
@pytest.mark.parametrize("told", [True, False])
def test_nothing_to_fit_on_is_an_error(statistic: Make, told: bool, tmp_path: Path) -> None:
    """With a schema, too, whatever is to be fitted."""
    workflow = nvt.Workflow(["id"] >> statistic(out_path=str(tmp_path)))
    schema = merlin_schema(pa.schema([("id", pa.float64())])) if told else None
    with pytest.raises(ValueError, match="no table to fit on"):
        fit(workflow, [], schema)


def test_tables_that_could_be_walked_through_but_once_are_refused(table: pa.Table, tmp_path: Path) -> None:
    """To make a schema of the first would lose it, and the next statistic would find none."""
    workflow = nvt.Workflow(["id"] >> ops.Categorify(out_path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"tables is an iterator, .* give a list"):
        fit(workflow, (part for part in [table]))
