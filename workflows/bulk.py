"""Transform whole tables: the compiled workflow over Arrow columns, without a Python object for each text.

The graph that serves one row looks text up itself. Here Arrow looks up all texts of a column at once, and the
graph computes on their places in the vocabulary. Both come from one compiler, so both give the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc

from market.machine import cores
from workflows import compile as compiler
from workflows.compiler.elements import ElementGraph
from workflows.compiler.graph import NULL_INTEGER, STRING
from workflows.compiler.ordinals import MISSING, OrdinalGraph
from workflows.texts import Vocabulary

import nvtabular as nvt  # isort: skip

#: Rows that go through a graph at once: few enough for memory, many enough to keep threads busy.
ROWS = 65_536

_NUMPY = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(double)": np.float64}
_MISSING = {"tensor(int64)": NULL_INTEGER, "tensor(float)": np.nan, "tensor(double)": np.nan}


class BulkTransform:
    """A fitted workflow as a function from an Arrow table to arrays.

    It gives what the graph of `compile_workflow` gives, row for row.

    Args:
        workflow: fitted; see `compile_workflow`.
        list_lengths: the length of list outputs, by output column.

    Raises:
        UnsupportedOperator: the workflow cannot be compiled.
        ValueError: an output is text that the workflow changes.
    """

    def __init__(self, workflow: nvt.Workflow, *, list_lengths: Mapping[str, int] | None = None) -> None:
        compiler.expect_fitted(workflow)
        self._names = workflow.output_schema.column_names
        lengths = dict(list_lengths or {})
        self._lists = {name: made for name in self._names if (made := _list_output(workflow, name, lengths))}
        names = {compiler.feature_name(name): name for name in self._names if name not in self._lists}
        graph = OrdinalGraph()
        lengths = {name: length for name, length in lengths.items() if name not in self._lists}
        outputs = compiler.write_outputs(graph, workflow, lengths, list(names.values()))
        self._texts = {}
        for output in [o for o, (value, _) in outputs.items() if graph.dtype(value) == STRING]:
            value, dims = outputs.pop(output)
            if dims != ["batch"] or value not in workflow.input_schema.column_names:
                raise ValueError(
                    f"output {names[output]!r} is text that the workflow changes; encode it with Categorify"
                )
            self._texts[names[output]] = value
        self._outputs = {output: names[output] for output in outputs}
        self._runner = Runner(graph, outputs)

    def transform(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Transform R rows.

        Args:
            table: the raw columns; nulls, NaN in floats and "" in text are missing values.

        Returns:
            By output column, arrays [R] or, for lists, [R, length] padded with 0 on the right, in the
            dtypes of `Workflow.transform`; text as objects.

        Raises:
            ValueError: the table lacks a column or has it in another type.
        """
        arrays = {self._outputs[output]: values for output, values in self._runner.run(table).items()}
        with ThreadPoolExecutor(cores()) as pool:
            arrays |= zip(self._lists, pool.map(lambda made: made(table), self._lists.values()))
        arrays |= {name: _texts(table, raw) for name, raw in self._texts.items()}
        return {name: arrays[name] for name in self._names}


class Runner:
    """Runs a finished ordinal graph over tables.

    Args:
        graph: the graph.
        outputs: for each output's name, the value that it carries and its dimensions.
    """

    def __init__(self, graph: OrdinalGraph, outputs: Mapping[str, tuple[str, list[str | int]]]) -> None:
        model, vocabularies = graph.finish("bulk", outputs)
        self._outputs = list(outputs)
        self._session = None
        if outputs:
            options = onnxruntime.SessionOptions()
            # Idle threads give their core back between batches.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        with ThreadPoolExecutor(cores()) as pool:
            self._vocabularies = dict(zip(vocabularies, pool.map(Vocabulary, vocabularies.values())))

    def run(self, table: pa.Table) -> dict[str, np.ndarray]:
        """The outputs, [R] or [R, length], of a table's R rows."""
        if self._session is None:
            return {}
        specs = self._session.get_inputs()
        with ThreadPoolExecutor(cores()) as pool:
            columns = dict(zip([s.name for s in specs], pool.map(lambda s: self._column(table, s), specs)))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._outputs}
        for start in range(0, max(table.num_rows, 1), ROWS):
            feeds = {name: column.rows(start, start + ROWS) for name, column in columns.items()}
            for name, values in zip(parts, self._session.run(self._outputs, feeds)):
                parts[name].append(values)
        return {name: _stacked(values) for name, values in parts.items()}

    def _column(self, table: pa.Table, spec: onnxruntime.NodeArg) -> _Column:
        """A graph input's values: numbers as they are, the ordinals of text."""
        name = spec.name
        column, offsets = elements(table, name) if len(spec.shape) == 2 else (scalars(table, name), None)
        try:
            if name not in self._vocabularies:
                return _Column(_numbers(column, _NUMPY[spec.type]), offsets, _MISSING[spec.type])
            return _Column(_ordinals(column, self._vocabularies[name]), offsets, MISSING)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"column {name!r} is {column.type}, not as fitted: {error}") from None


class Elements:
    """A list column that is made element by element of a raw one.

    Args:
        graph: the graph, finished.
        value: what the graph makes of the elements.
    """

    def __init__(self, graph: ElementGraph, value: str) -> None:
        self._raw, self._slices = graph.list_column, list(graph.slices)
        self._runner = Runner(graph, {"elements": (value, ["batch"])})

    def __call__(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray, int]:
        """Of a table's R rows: values [E], int64[R + 1] offsets that part them into rows, and how many
        elements the longest row had."""
        values, offsets = elements(table, self._raw)
        longest = int(np.diff(offsets).max(initial=0))
        values, offsets = sliced(values, offsets, self._slices)
        return self._runner.run(pa.table({self._raw: values}))["elements"], offsets, longest


@dataclass(frozen=True)
class _ListOutput:
    """An output; `width` is None where it is the raw column's."""

    elements: Elements
    width: int | None

    def __call__(self, table: pa.Table) -> np.ndarray:
        """[R, width], padded with zeros on the right."""
        values, offsets, longest = self.elements(table)
        lengths = np.diff(offsets)
        dense = np.zeros((len(lengths), longest if self.width is None else self.width), values.dtype)
        return _put(values, lengths, dense)


def _list_output(workflow: nvt.Workflow, name: str, lengths: Mapping[str, int]) -> _ListOutput | None:
    """List output `name`, where it is made element by element; None where it is not, or is no list."""
    if not workflow.output_schema[name].is_list:
        return None
    graph, own = ElementGraph(), {name: lengths[name]} if name in lengths else {}
    try:
        ((value, (_, width)),) = compiler.write_outputs(graph, workflow, own, [name]).values()
    except compiler.UnsupportedOperator:
        return None
    if graph.dtype(value) == STRING:
        return None
    return _ListOutput(Elements(graph, value), width if isinstance(width, int) else None)


def scalars(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The values of a column; ValueError where the table lacks it or it is a list."""
    column = _of_table(table, name)
    if _is_list(column):
        raise ValueError(f"column {name!r} is {column.type}; fitted was no list")
    return column


def elements(table: pa.Table, name: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    """The values of a list column's R rows and the int64[R + 1] offsets that part them into rows; ValueError
    where the table lacks it or it is no list."""
    column = _of_table(table, name)
    if not _is_list(column):
        raise ValueError(f"column {name!r} is {column.type}; fitted was a list")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return pc.list_flatten(column), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _is_list(column: pa.ChunkedArray) -> bool:
    return pa.types.is_list(column.type) or pa.types.is_large_list(column.type)


def sliced(
    values: pa.ChunkedArray, offsets: np.ndarray, slices: Sequence[tuple[int, int]]
) -> tuple[pa.ChunkedArray, np.ndarray]:
    """What slices leave of rows, one after another: values and offsets as of `elements`. Missing values at
    the end of a row are none of its elements."""
    begins, ends = offsets[:-1], offsets[1:]
    missing = _is_missing(values)
    if missing.any():
        valued = np.append(np.flatnonzero(~missing), 0)
        before = np.searchsorted(valued[:-1], offsets)
        ends = np.where(np.diff(before) > 0, valued[before[1:] - 1] + 1, begins)
    for start, end in slices:
        length = ends - begins
        first, last = (np.clip(at if at >= 0 else length + at, 0, length) for at in (start, end))
        begins, ends = begins + first, begins + np.maximum(first, last)
    if np.array_equal(begins, offsets[:-1]) and np.array_equal(ends, offsets[1:]):
        return values, offsets
    border = np.zeros(len(values) + 1, np.int8)
    some = ends > begins
    border[begins[some]] += 1
    border[ends[some]] -= 1
    kept = np.cumsum(border[:-1], dtype=np.int8).view(bool)
    return values.filter(pa.array(kept)), np.concatenate([[0], np.cumsum(ends - begins)])


def _is_missing(values: pa.ChunkedArray) -> np.ndarray:
    """bool[E]: null, NaN or, of text, empty."""
    missing = pc.is_null(values, nan_is_null=True)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(values, ""), False))
    return missing.to_numpy()


@dataclass(frozen=True)
class _Column:
    """A column's values; where it is a list, `offsets` (int64[R + 1]) part them into rows."""

    values: np.ndarray
    offsets: np.ndarray | None
    missing: float

    def rows(self, start: int, end: int) -> np.ndarray:
        """Rows start to end, [R] or [R, width], lists padded on the right with the missing value."""
        if self.offsets is None:
            return self.values[start:end]
        offsets = self.offsets[start : end + 1]
        lengths = np.diff(offsets)
        dense = np.full((len(lengths), lengths.max(initial=0)), self.missing, self.values.dtype)
        return _put(self.values[offsets[0] : offsets[-1]], lengths, dense)


def _put(values: np.ndarray, lengths: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """`dense` [R, width] with the values of rows of such lengths at the left."""
    dense[np.arange(dense.shape[1]) < lengths[:, None]] = values
    return dense


def _of_table(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise ValueError(f"the table has no column {name!r}; it has {', '.join(table.column_names)}")
    column = table[name]
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _numbers(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    missing = NULL_INTEGER if dtype == np.int64 else np.nan
    column = column.cast(pa.from_numpy_dtype(dtype))
    return (pc.fill_null(column, missing) if column.null_count else column).to_numpy()


def _ordinals(column: pa.ChunkedArray, vocabulary: Vocabulary) -> np.ndarray:
    """int64: each text's place in a vocabulary, of which the first is "", or -1."""
    column = column.cast(pa.string())
    ordinals = vocabulary.places(column)
    if column.null_count:
        ordinals[pc.is_null(column).to_numpy()] = MISSING
    return ordinals


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Parts of R rows below one another, lists padded with zeros to the widest part."""
    if parts[0].ndim == 2:
        width = max(part.shape[1] for part in parts)
        parts = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
    return np.concatenate(parts)


def _texts(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(pc.fill_null(_of_table(table, name), "").to_pandas(), dtype=object)
