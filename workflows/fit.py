"""Fit a workflow on Arrow tables: the statistics that NVTabular computes, without its pandas and Dask.

Keys are counted by Arrow and pandas' hash table; what lies between a raw column and a statistic is compiled,
as it is for serving. The result is the same workflow, with NVTabular's own files. Of the tables only one is
in memory at a time, and all that is kept of it are its different keys and its moments.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import runtime  # noqa: F401  # isort: skip  (sets the environment before NVTabular is imported)

import merlin.dtypes as merlin_types
import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from merlin.dag import Node
from merlin.dag.executors import clear_stats
from merlin.schema import ColumnSchema, Schema
from nvtabular import ops
from nvtabular.ops.categorify import NULL_OFFSET, OOV_OFFSET, PAD_OFFSET

from market.machine import cores

from .bulk import Elements, Runner, elements, scalars, sliced
from .compile import UnsupportedOperator, read_column
from .compiler.elements import ElementGraph
from .compiler.graph import NULL_INTEGER, STRING, Column
from .compiler.ordinals import OrdinalGraph
from .texts import counted


def fit(workflow: nvt.Workflow, tables: Iterable[pa.Table], schema: Schema | None = None) -> nvt.Workflow:
    """Fit a workflow on the rows of all tables, and return it, as `Workflow.fit` does.

    Vocabularies fall in frequency; of equally frequent keys the one that came first is first, where
    NVTabular's order differs between machines. Text "" is missing, as in the compiled graph. What does not
    vary has the deviation 0, where NVTabular's is one of rounding.

    Categorify of single columns and Normalize are fitted here. A workflow with any other statistic, or with
    one on text that it changed first or lists that it filled up, goes through `Workflow.fit`, with all rows
    in memory.

    Args:
        workflow: the workflow; what it was fitted on before is forgotten.
        tables: the raw columns, of one type in all; walked through once for each statistic that needs others.
        schema: of the raw columns, with their tags; by default made from the first table.

    Raises:
        ValueError: there is no table, `tables` can be walked through but once, a table lacks a column, or a
            category has no value.
    """
    if iter(tables) is tables:
        raise ValueError(
            "tables is an iterator, of which nothing is left after its first walk; give a list, or an object "
            "that reads them anew"
        )
    if schema is None:
        schema = merlin_schema(next(_some(tables)).schema)
    statistics = workflow.graph.get_nodes_by_op_type([workflow.output_node], ops.StatOperator)
    clear_stats(workflow.graph)
    workflow.fit_schema(schema)
    if not all(_is_fitted_here(node) for node in statistics):
        return _fit_by_nvtabular(workflow, tables, schema)
    pending = {
        node: set(workflow.graph.get_nodes_by_op_type(node.parents_with_dependencies, ops.StatOperator))
        for node in statistics
    }
    while pending:
        ready = [node for node, needed in pending.items() if not needed & pending.keys()]
        try:
            inputs = _Inputs(workflow, ready)
        except (_Changed, UnsupportedOperator):
            return _fit_by_nvtabular(workflow, tables, schema)
        found: dict[Node, Any] = {
            node: {name: _STATISTICS[type(node.op)]() for name in inputs.columns[node]} for node in ready
        }
        # Each column is counted for itself, by libraries that let go of Python's lock.
        with ThreadPoolExecutor(cores()) as pool:
            for table in _some(tables):
                added = [
                    pool.submit(found[node][name].add, values)
                    for node, columns in inputs.read(table).items()
                    for name, values in columns.items()
                ]
                for column in added:
                    column.result()
            for node in ready:
                if type(node.op) is ops.Categorify:
                    _categorify(node.op, found[node], pool)
                else:
                    _normalize(node.op, found[node])
                node.op.fitted = True
                del pending[node]
    workflow.graph.construct_schema(schema, preserve_dtypes=True)
    return workflow


def _some(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables; ValueError where there is none."""
    table = None
    for table in tables:
        yield table
    if table is None:
        raise ValueError("there is no table to fit on; give one at least")


def _fit_by_nvtabular(workflow: nvt.Workflow, tables: Iterable[pa.Table], schema: Schema) -> nvt.Workflow:
    return workflow.fit(nvt.Dataset(pa.concat_tables(_some(tables)).to_pandas(), schema=schema))


def merlin_schema(schema: pa.Schema) -> Schema:
    """The Merlin schema of an Arrow table, without tags."""
    columns = []
    for field in schema:
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        element = field.type.value_type if is_list else field.type
        text = (
            pa.types.is_string(element)
            or pa.types.is_large_string(element)
            or pa.types.is_dictionary(element)
        )
        dtype = merlin_types.string if text else element.to_pandas_dtype()
        columns.append(ColumnSchema(field.name, dtype=dtype, is_list=is_list, is_ragged=is_list))
    return Schema(columns)


class _Changed(Exception):
    """A statistic is on text that the workflow changed, which ordinals do not tell apart."""


def _is_fitted_here(node: Node) -> bool:
    op = node.op
    if type(op) is ops.Normalize:
        return True
    return (
        type(op) is ops.Categorify
        and op.encode_type == "joint"
        and not op.single_table
        and all(isinstance(group, str) for group in node.input_columns.grouped_names)
    )


_Values = Callable[[pa.Table, Mapping[str, np.ndarray]], "pa.ChunkedArray | np.ndarray"]
"""A column's values of a table, those of lists one after another, and of what the graph made of the table."""


class _Inputs:
    """What statistics are taken of: for each node and column, values of tables."""

    def __init__(self, workflow: nvt.Workflow, nodes: Iterable[Node]) -> None:
        self._workflow, self._graph = workflow, OrdinalGraph()
        self._memo: dict[tuple[int, str], Column] = {}
        self._outputs: dict[str, tuple[str, list[str | int]]] = {}
        self.columns: dict[Node, dict[str, _Values]] = {
            node: {
                name: (self._of_list if node.input_schema[name].is_list else self._of_scalar)(node, name)
                for name in node.input_columns.names
                if not (isinstance(node.op, ops.Categorify) and name in node.op.vocabs)
            }
            for node in nodes
        }
        self._runner = Runner(self._graph, self._outputs)

    def read(self, table: pa.Table) -> dict[Node, dict[str, pa.ChunkedArray | np.ndarray]]:
        """The values of one table."""
        made = self._runner.run(table)
        return {
            node: {name: values(table, made) for name, values in columns.items()}
            for node, columns in self.columns.items()
        }

    def _of_scalar(self, node: Node, name: str) -> _Values:
        value = read_column(self._graph, self._workflow, node, name, self._memo).value
        raw = self._graph.raw(value)
        if raw is not None:
            return lambda table, _: scalars(table, raw)
        if self._graph.dtype(value) == STRING:
            raise _Changed
        self._outputs[f"{value}!"] = (value, ["batch"])
        return lambda _, made: made[f"{value}!"]

    def _of_list(self, node: Node, name: str) -> _Values:
        graph = ElementGraph()
        value = read_column(graph, self._workflow, node, name, {}).value
        raw, slices = graph.raw(value), graph.slices
        if raw is not None:
            return lambda table, _: _elements(table, raw, slices)
        if graph.dtype(value) == STRING:
            raise _Changed
        made = Elements(graph, value)
        return lambda table, _: made(table)[0]


def _elements(table: pa.Table, raw: str, slices: Sequence[tuple[int, int]]) -> pa.ChunkedArray:
    values, offsets = elements(table, raw)
    # Uncut, missing values at the end of a row are counted, as NVTabular does.
    return sliced(values, offsets, slices)[0] if slices else values


class _Keys:
    """The different keys of a column in the order in which they came.

    Attributes:
        missing: values that are none.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[pa.Array, np.ndarray]] = []
        self.missing = 0

    def add(self, values: pa.ChunkedArray | np.ndarray) -> None:
        keys, counts, missing = _counted(values)
        self.missing += missing
        if not len(keys):
            return
        self._parts.append((keys, counts))
        # Merged when twice as many wait as were merged before, so that each key is merged a few times in all.
        if sum(len(waiting) for waiting, _ in self._parts[1:]) > 2 * len(self._parts[0][0]):
            self._parts = [self.counts()]

    def counts(self) -> tuple[pa.Array, np.ndarray]:
        """The K keys and how often each came, int64[K]."""
        if len(self._parts) < 2:
            return self._parts[0] if self._parts else (pa.array([], pa.null()), np.zeros(0, np.int64))
        keys = pa.concat_arrays([keys for keys, _ in self._parts]).dictionary_encode()
        counts = np.zeros(len(keys.dictionary), np.int64)
        np.add.at(counts, keys.indices.to_numpy(), np.concatenate([counts for _, counts in self._parts]))
        return keys.dictionary, counts


class _Moments:
    """Mean and sample deviation of what is not missing in a column; NaN where too little is there."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, np.nan, 0.0

    def add(self, values: pa.ChunkedArray | np.ndarray) -> None:
        numbers = _valued(values).astype(np.float64)
        if not numbers.size:
            return
        # From the first number, so that what does not vary has exactly its own value as the mean.
        mean = float(numbers[0] + (numbers - numbers[0]).mean())
        squares = float(np.square(numbers - mean).sum())
        count = self._count + numbers.size
        if self._count:
            # Chan, Golub and LeVeque, 1979.
            apart = mean - self._mean
            squares += self._squares + apart * apart * self._count * numbers.size / count
            mean = self._mean + apart * numbers.size / count
        self._count, self._mean, self._squares = count, mean, squares

    def moments(self) -> tuple[float, float]:
        return self._mean, np.sqrt(self._squares / (self._count - 1)) if self._count > 1 else np.nan


_STATISTICS: dict[type, type[_Keys] | type[_Moments]] = {ops.Categorify: _Keys, ops.Normalize: _Moments}


def _categorify(op: ops.Categorify, columns: Mapping[str, _Keys], pool: ThreadPoolExecutor) -> None:
    folder = Path(op.out_path) / "categories"
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str) -> str:
        keys, counts = columns[name].counts()
        if not len(keys):
            raise ValueError(f"column {name!r} has no value to fit on; leave it out of the workflow")
        order = np.argsort(-counts, kind="stable")
        buckets = _of_column(op.num_buckets, name) or 1
        first = OOV_OFFSET + buckets
        size, least = _of_column(op.max_size, name), _of_column(op.freq_threshold, name)
        if least:
            order = order[: np.count_nonzero(counts >= least)]
        if size:
            order = order[: max(size - first, 0)]
        kept = counts[order]
        meta = {
            "kind": ["pad", "null", "oov", "unique"],
            "offset": [PAD_OFFSET, NULL_OFFSET, OOV_OFFSET, first],
            "num_indices": [1, 1, buckets, len(kept)],
            "num_observed": [0, columns[name].missing, counts.sum() - kept.sum(), kept.sum()],
        }
        _save(folder / f"meta.{name}.parquet", pa.table(meta), pd.RangeIndex(4))
        return _save(
            folder / f"unique.{name}.parquet",
            pa.table({name: keys.take(pa.array(order)), f"{name}_size": kept}),
            pd.RangeIndex(first, first + len(kept)),
        )

    op.fit_finalize(dict(zip(columns, pool.map(write, columns))))


def _save(file: Path, table: pa.Table, index: pd.RangeIndex) -> str:
    """Write a table as NVTabular writes a frame with this index, and return where."""
    if file.is_dir():
        # Another fit, by Dask, wrote it in parts.
        shutil.rmtree(file)
    described = pa.Schema.from_pandas(pd.DataFrame(index=index)).metadata
    pq.write_table(table.replace_schema_metadata(described), file, compression="none", use_dictionary=False)
    return str(file)


def _of_column(option: int | dict[str, int] | None, name: str) -> int | None:
    return (option[name] if isinstance(option, dict) else option) or None


def _counted(values: pa.ChunkedArray | np.ndarray) -> tuple[pa.Array, np.ndarray, int]:
    """The distinct keys in the order of their first rows, how often each comes, and how many are missing."""
    if isinstance(values, pa.ChunkedArray) and not pa.types.is_integer(values.type):
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            keys, counts = counted(values)
            empty = pc.index(keys, "").as_py()
            if empty >= 0:
                present = np.arange(len(keys)) != empty
                keys, counts = keys.filter(pa.array(present)), counts[present]
            return keys, counts, len(values) - int(counts.sum())
    array = _valued(values)
    codes, keys = pd.factorize(array)  # type: ignore[call-overload]
    return pa.array(keys), np.bincount(codes, minlength=len(keys)), len(values) - len(array)


def _valued(values: pa.ChunkedArray | np.ndarray) -> np.ndarray:
    """The numbers that are not missing."""
    array = values.drop_null().to_numpy() if isinstance(values, pa.ChunkedArray) else values
    valued = ~np.isnan(array) if array.dtype.kind == "f" else array != NULL_INTEGER
    return array if valued.all() else array[valued]


def _normalize(op: ops.Normalize, columns: Mapping[str, _Moments]) -> None:
    moments = {name: column.moments() for name, column in columns.items()}
    op.fit_finalize(pd.DataFrame.from_dict(moments, orient="index", columns=["mean", "std"]))
