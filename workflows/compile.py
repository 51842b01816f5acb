"""The feature compiler: a fitted NVTabular workflow becomes an ONNX graph that serves the same features.

docs/compiler.md lists the operators, the convention of inputs and outputs, and what is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial

import workflows.runtime  # isort: skip  (sets the environment before NVTabular is imported)

import numpy as np
from merlin.dag import Node
from merlin.dag.ops import (
    add_metadata,
    concat_columns,
    grouping,
    rename,
    selection,
    subset_columns,
    subtraction,
)
from nvtabular import Workflow, ops
from onnx import ModelProto

import workflows.patches  # noqa: F401  # isort: skip  (NVTabular hashes values, not rows)

from workflows.compiler import categories, continuous, hashing, lists, statistics
from workflows.compiler.graph import STRING, Column, Graph, Refused, tensor_dtype
from workflows.compiler.join import join
from workflows.compiler.site import Compiler, Site, passed_through, renamed

__all__ = ["UnsupportedOperator", "compile_workflow", "feature_name", "join"]

#: By exact type: a subclass may transform differently.
_COMPILERS: dict[type, Compiler] = {
    ops.Categorify: categories.categorified,
    ops.HashBucket: hashing.hashed,
    ops.FillMissing: continuous.filled,
    ops.FillMedian: continuous.filled_with_median,
    ops.Clip: continuous.clipped,
    ops.LogOp: continuous.logged,
    ops.Normalize: continuous.normalized,
    ops.NormalizeMinMax: continuous.normalized_to_range,
    ops.Bucketize: continuous.bucketized,
    ops.ReduceDtypeSize: continuous.narrowed,
    ops.TargetEncoding: statistics.target_encoded,
    ops.JoinGroupby: statistics.joined_by_group,
    ops.ListSlice: lists.sliced,
    ops.Rename: renamed,
    rename.Rename: renamed,
    **dict.fromkeys(
        [
            ops.AddMetadata,
            ops.AddTags,
            ops.AddProperties,
            ops.TagAsUserID,
            ops.TagAsItemID,
            ops.TagAsUserFeatures,
            ops.TagAsItemFeatures,
            ops.DataStats,
            ops.ValueCount,
            ops.DropLowCardinality,
            add_metadata.AddMetadata,
            add_metadata.AddTags,
            add_metadata.AddProperties,
            add_metadata.TagAsUserID,
            add_metadata.TagAsItemID,
            add_metadata.TagAsUserFeatures,
            add_metadata.TagAsItemFeatures,
            concat_columns.ConcatColumns,
            grouping.GroupingOp,
            selection.SelectionOp,
            subset_columns.SubsetColumns,
            subtraction.SubtractionOp,
        ],
        passed_through,
    ),
}


_REASONS: dict[type, str] = {
    ops.HashedCross: "it combines hashes of several columns; use Categorify(encode_type='combo')",
    ops.LambdaOp: "it is Python code; compute its columns before the workflow or, where they are labels, "
    "leave them out with workflow.remove_inputs",
}


class UnsupportedOperator(ValueError):
    """An operator of the workflow, or the way it is used, cannot become ONNX.

    Attributes:
        operator: the operator's class name.
        columns: the output columns that it was asked for.
        supported: the class names of all operators that can be compiled.
    """

    def __init__(self, operator: str, columns: list[str], reason: str) -> None:
        self.operator = operator
        self.columns = columns
        self.supported = sorted({op.__name__ for op in _COMPILERS})
        super().__init__(
            f"{operator} of {', '.join(map(repr, columns))} cannot be compiled to ONNX: {reason}. "
            f"Supported operators: {', '.join(self.supported)}"
        )


def feature_name(column: str) -> str:
    """The graph's output name of an output column.

    An ONNX graph cannot have an input and an output of one name, and most workflows encode a column in
    place, so every output is called "<column>/feature".
    """
    return f"{column}/feature"


def compile_workflow(
    workflow: Workflow, *, list_lengths: Mapping[str, int] | None = None, name: str = "features"
) -> ModelProto:
    """Compile a fitted workflow to an ONNX graph (opset 17, ai.onnx.ml 4).

    Inputs are the raw columns that the outputs need, named as the columns, in the order of
    first use: tensor(string), int64 for integers, float32 or float64 as fitted; [batch] for a scalar,
    [batch, <column>_width] for a list, padded on the right. A missing value is NaN, "" or the least int64;
    list padding is the same.

    Outputs are the workflow's output columns, named by `feature_name`, of NVTabular's dtype; lists are
    [batch, length], padded with 0 on the right.

    Args:
        workflow: fitted; its vocabularies and statistics must still lie in their out_path.
        list_lengths: the length of list outputs, by output column: longer lists keep their first elements.
            A list that is not named and not sliced is as wide as its input.
        name: the graph's name.

    Raises:
        UnsupportedOperator: an operator, or the way it is used, cannot become ONNX.
        ValueError: the workflow is not fitted, or `list_lengths` names a column that is not a list output.
    """
    graph = Graph()
    return graph.model(name, write_outputs(graph, workflow, list_lengths))


def write_outputs(
    graph: Graph,
    workflow: Workflow,
    list_lengths: Mapping[str, int] | None = None,
    names: Collection[str] | None = None,
) -> dict[str, tuple[str, list[str | int]]]:
    """Compile outputs of a fitted workflow into `graph`, by default all; see `compile_workflow`.

    Returns:
        For each output's name in the graph, the value that it carries and its dimensions.
    """
    expect_fitted(workflow)
    lengths = dict(list_lengths or {})
    if names is None:
        names = workflow.output_schema.column_names
    outputs: dict[str, tuple[str, list[str | int]]] = {}
    memo: dict[tuple[int, str], Column] = {}
    for column_name in names:
        column = write_column(graph, workflow, workflow.output_node, column_name, memo)
        dims: list[str | int] = ["batch"]
        if column.present is not None:
            if column_name in lengths:
                length = lengths.pop(column_name)
                if column.length != length:
                    column = graph.cut(column, 0, length, length)
            dims.append(f"{column_name}_length" if column.length is None else column.length)
        outputs[feature_name(column_name)] = (_output(graph, column), dims)
    if lengths:
        raise ValueError(
            f"list_lengths names {sorted(lengths)}, which are not list outputs of the workflow; "
            f"its outputs are {workflow.output_schema.column_names}"
        )
    return outputs


def expect_fitted(workflow: Workflow) -> None:
    """Raise ValueError where a workflow is not fitted."""
    fitting = workflow.graph.get_nodes_by_op_type([workflow.output_node], ops.StatOperator)
    if workflow.output_schema is None or not all(node.op.fitted for node in fitting):
        raise ValueError("the workflow is not fitted; call workflow.fit(dataset) before it is compiled")


def write_column(
    graph: Graph, workflow: Workflow, node: Node, name: str, memo: dict[tuple[int, str], Column]
) -> Column:
    """Compile output column `name` of a node, and what it needs upstream; each only once in a `memo`."""
    key = (id(node), name)
    if key in memo:
        return memo[key]

    operator = type(node.op)
    if operator not in _COMPILERS:
        raise UnsupportedOperator(
            "LambdaOp" if operator is ops.LambdaOp else operator.__name__,
            node.output_schema.column_names,
            _REASONS.get(operator, "it has no counterpart in ONNX"),
        )
    site = Site(
        graph,
        node.op,
        node.input_columns.resolve(node.input_schema),
        partial(read_column, graph, workflow, node, memo=memo),
    )
    try:
        memo[key] = _COMPILERS[operator](site, name)
    except Refused as refusal:
        raise UnsupportedOperator(operator.__name__, [name], str(refusal)) from None
    return memo[key]


def read_column(
    graph: Graph, workflow: Workflow, node: Node, source: str, memo: dict[tuple[int, str], Column]
) -> Column:
    """Compile the column that a node reads under the name `source`: an upstream column or a raw one."""
    # Of two upstream columns with one name NVTabular keeps the later.
    for upstream in reversed(node.parents_with_dependencies):
        if source in upstream.output_schema.column_names:
            return write_column(graph, workflow, upstream, source, memo)
    return graph.once(("raw", source), partial(_raw, graph, workflow, source))


def _raw(graph: Graph, workflow: Workflow, name: str) -> Column:
    schema = workflow.input_schema[name]
    element = schema.dtype.without_shape
    if element.name in ("object", "string", "str"):
        dtype = STRING
    elif re.fullmatch(r"u?int(8|16|32)|int64|float(32|64)", element.name):
        dtype = np.dtype(element.name)
    else:
        raise Refused(
            f"the raw column {name!r} is {element.name}; store it as text, int64, float32 or float64"
        )
    value = graph.input(name, tensor_dtype(dtype), is_list=schema.is_list)
    column = Column(value, dtype)
    return Column(value, dtype, graph.present(column)) if schema.is_list else column


def _output(graph: Graph, column: Column) -> str:
    """The column's tensor in NVTabular's dtype."""
    if column.dtype.kind in "iu" and column.dtype.itemsize < 8 and column.nullable:
        # A missing value stays the least integer of the type.
        least = graph.constant(np.iinfo(column.dtype).min, tensor_dtype(column.dtype))
        column = column.but(graph.where(graph.is_null(column), least, column.value))
    value = column.value if column.present is None else graph.dense(column)
    return graph.cast(value, column.dtype)
