"""A small ONNX graph builder, and what a workflow's column is while it is being compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    numpy_helper,
)

OPSET = 17
ML_OPSET = 4
IR_VERSION = 8

BOOL, INT64 = np.dtype(bool), np.dtype(np.int64)
FLOAT32, FLOAT64, STRING = np.dtype(np.float32), np.dtype(np.float64), np.dtype(object)

#: What stands for a missing value in an integer tensor; NaN does in floats, the empty string in strings.
NULL_INTEGER = np.iinfo(np.int64).min


class Refused(ValueError):
    """Raised by an operator's compiler; its text says why this operator cannot become ONNX."""


@dataclass(frozen=True)
class Column:
    """A column of the workflow inside the graph.

    Attributes:
        value: the tensor, [batch] or, for a list column, [batch, width]. Integers of every width are int64.
        dtype: NVTabular's dtype of the column or of its elements; object for strings.
        present: for a list column, the bool[batch, width] tensor that is true on elements and false on
            padding. None for a scalar column.
        length: the width of a list column that was sliced; None where it is the input's.
        nullable: whether an integer column can hold `NULL_INTEGER` for a missing value.
    """

    value: str
    dtype: np.dtype
    present: str | None = None
    length: int | None = None
    nullable: bool = True

    def but(self, value: str, dtype: np.dtype | None = None, *, nullable: bool = False) -> Column:
        """The same rows and elements with other values."""
        return replace(self, value=value, dtype=self.dtype if dtype is None else dtype, nullable=nullable)


def tensor_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the tensor that carries a column of `dtype`: integers travel as int64."""
    return INT64 if dtype.kind in "iu" else dtype


def zero(dtype: np.dtype) -> Any:
    """What pads a list output of this dtype."""
    return "" if dtype == STRING else dtype.type(0)


class Graph:
    """Collects nodes, constants and inputs; the same node asked for twice is made once."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._inputs: dict[str, tuple[np.dtype, list[str]]] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The result of `make()`, called only the first time this key is seen."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def input(self, name: str, dtype: np.dtype, *, is_list: bool) -> str:
        """Declare an input, [batch] or [batch, width]; each list has its own symbolic width."""
        self._inputs[name] = (self._stored(dtype), ["batch", f"{name}_width"] if is_list else ["batch"])
        self._dtypes[name] = dtype
        return name

    def constant(self, values: Any, dtype: np.dtype) -> str:
        """A constant tensor of this dtype; scalars become rank 0."""
        array = np.asarray(values, dtype=dtype)
        content = tuple(array.ravel()) if dtype == STRING else array.tobytes()

        def make() -> str:
            name = f"/constant_{len(self._initializers)}"
            self._initializers.append(numpy_helper.from_array(array, name))
            self._dtypes[name] = dtype
            return name

        return self.once(("constant", content, dtype, array.shape), make)

    def emit(self, op: str, *inputs: str, dtype: np.dtype, **attributes: Any) -> str:
        """Add a node with one output of `dtype` and return the output's name."""

        def make() -> str:
            name = self._name(op, dtype)
            self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
            return name

        return self.once((op, inputs, dtype, tuple(sorted(attributes.items()))), make)

    def encode(self, value: str, keys: np.ndarray | pa.Array, codes: np.ndarray, default: int) -> str:
        """The int64 tensor of the codes of `value` (string or int64): codes[i] at keys[i], else `default`.

        Keys of text are an Arrow array, of which the first is "".
        """
        name = self._name("LabelEncoder", INT64)
        node = helper.make_node("LabelEncoder", [value], [name], name=name, domain="ai.onnx.ml")
        if self._dtypes[value] == STRING:
            # Filled by hand: helper checks each of a million entries, one after another.
            entries = AttributeProto(name="keys_strings", type=AttributeProto.STRINGS)
            entries.strings.extend(pc.cast(keys, pa.binary()).to_numpy(zero_copy_only=False))
            values = AttributeProto(name="values_int64s", type=AttributeProto.INTS)
            values.ints.extend(codes.tolist())
            node.attribute.extend([entries, values, helper.make_attribute("default_int64", default)])
        else:
            tensors = {"keys_tensor": keys, "values_tensor": codes, "default_tensor": [default]}
            for attribute, integers in tensors.items():
                tensor = numpy_helper.from_array(np.asarray(integers, INT64), attribute)
                node.attribute.append(helper.make_attribute(attribute, tensor))
        self._nodes.append(node)
        return name

    def dtype(self, value: str) -> np.dtype:
        """What a value is; object for text."""
        return self._dtypes[value]

    def cast(self, value: str, dtype: np.dtype) -> str:
        """`value` as `dtype`; no node where it is one already."""
        if self._dtypes[value] == dtype:
            return value
        return self.emit("Cast", value, dtype=dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def where(self, condition: str, then: str, otherwise: str) -> str:
        """Elementwise `then` where `condition` holds, else `otherwise`."""
        return self.emit("Where", condition, then, otherwise, dtype=self._dtypes[then])

    def arithmetic(self, op: str, left: str, right: Any) -> str:
        """A binary operator that keeps the left side's dtype; a number on the right becomes a constant."""
        dtype = self._dtypes[left]
        other = right if isinstance(right, str) else self.constant(right, dtype)
        return self.emit(op, left, other, dtype=dtype)

    def compare(self, op: str, left: str, right: Any) -> str:
        """A comparison; a number or array on the right becomes a constant of the left side's dtype."""
        other = right if isinstance(right, str) else self.constant(right, self._dtypes[left])
        return self.emit(op, left, other, dtype=BOOL)

    def is_null(self, column: Column) -> str:
        """The bool tensor that is true where the column has no value."""
        if column.dtype == STRING:
            empty = self.once(
                ("empty", column.value),
                lambda: self.encode(column.value, pa.array([""]), np.array([1]), 0),
            )
            return self.cast(empty, BOOL)
        if column.dtype.kind == "f":
            return self.emit("IsNaN", column.value, dtype=BOOL)
        if column.dtype == BOOL:
            return self.emit("Xor", column.value, column.value, dtype=BOOL)
        return self.compare("Equal", column.value, NULL_INTEGER)

    def to_float(self, column: Column, dtype: np.dtype) -> str:
        """The column's values as floats of `dtype`, NaN where an integer column has no value."""
        value = self.cast(column.value, dtype)
        if column.dtype.kind in "iu" and column.nullable:
            return self.where(self.is_null(column), self.constant(np.nan, dtype), value)
        return value

    def rank(self, column: Column) -> int:
        """Dimensions of the column's tensor."""
        return 1 if column.present is None else 2

    def present(self, column: Column) -> str:
        """The bool[batch, width] tensor that is true up to the last element of a list that is not null."""
        valued = self.emit("Not", self.is_null(column), dtype=BOOL)
        axis = self.constant(1, INT64)
        later = self.emit("CumSum", self.cast(valued, INT64), axis, dtype=INT64, reverse=1)
        return self.cast(later, BOOL)

    def cut(self, column: Column, start: int, end: int, width: int) -> Column:
        """row[start:end] of every row of a list, as [batch, width]."""
        ones = self.cast(column.present or "", INT64)
        length = self.emit("ReduceSum", ones, self.constant([1], INT64), dtype=INT64, keepdims=1)
        first, last = self._position(length, start), self._position(length, end)
        index = self.arithmetic("Add", first, np.arange(width)[None, :])
        inside = self.compare("Less", index, last)
        # Element 0 is a null put before the row, so that there is one even in a row without elements.
        null = "" if column.dtype == STRING else NULL_INTEGER if column.dtype.kind in "iu" else 0
        dtype = tensor_dtype(column.dtype)
        shape = self.emit("Shape", length, dtype=INT64)
        nulls = self.emit("Expand", self.constant(null, dtype), shape, dtype=dtype)
        padded = self.emit("Concat", nulls, column.value, dtype=dtype, axis=1)
        place = self.where(inside, self.arithmetic("Add", index, 1), self.constant(0, INT64))
        value = self.emit("GatherElements", padded, place, dtype=dtype, axis=1)
        return Column(value, column.dtype, inside, width, column.nullable)

    def filled(self, column: Column, value: Any) -> Column:
        """The list with an element at every place, `value` where there was none."""
        filled = self._padded(column, value)
        everywhere = self.emit("Or", column.present or "", self.constant(True, BOOL), dtype=BOOL)
        return replace(column, value=filled, present=everywhere)

    def dense(self, column: Column) -> str:
        """A list's tensor with zeros (or empty strings) where there is no element."""
        return self._padded(column, zero(column.dtype))

    def _padded(self, column: Column, value: Any) -> str:
        if (column.dtype == STRING) != isinstance(value, str):
            raise Refused(f"pad_value {value!r} is not of the column's type")
        padding = self.constant(value, tensor_dtype(column.dtype))
        return self.where(column.present or "", column.value, padding)

    def _position(self, length: str, at: int) -> str:
        """Python's slice position, int64[batch, 1]: from the right where negative, never outside the row."""
        if at >= 0:
            return self.emit("Min", length, self.constant(at, INT64), dtype=INT64)
        return self.emit("Max", self.arithmetic("Add", length, at), self.constant(0, INT64), dtype=INT64)

    def model(self, name: str, outputs: Mapping[str, tuple[str, list[str | int]]]) -> ModelProto:
        """The finished model, its inputs in the order of their declaration.

        Args:
            name: the graph's name.
            outputs: for each public output name, the value that it carries and its dimensions.
        """
        public: dict[str, str] = {}
        for output, (value, _) in outputs.items():
            if value in public or value in self._inputs or value.startswith("/constant_"):
                copied = self._name("Identity", self._dtypes[value])
                self._nodes.append(helper.make_node("Identity", [value], [copied], name=copied))
                public[copied] = output
            else:
                public[value] = output
        nodes = [_renamed(node, public) for node in self._nodes]
        graph = helper.make_graph(
            nodes,
            name,
            [_value_info(n, dtype, dims) for n, (dtype, dims) in self._inputs.items()],
            [_value_info(n, self._stored(self._dtypes[value]), dims) for n, (value, dims) in outputs.items()],
            initializer=self._initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
            ir_version=IR_VERSION,
            producer_name="pasar",
        )
        checker.check_model(model)
        return model

    def _stored(self, dtype: np.dtype) -> np.dtype:
        """The dtype of the tensor that carries a value of `dtype`."""
        return dtype

    def _name(self, op: str, dtype: np.dtype) -> str:
        name = f"/{op}_{len(self._nodes)}"
        self._dtypes[name] = dtype
        return name


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    return node


def _value_info(name: str, dtype: np.dtype, dims: Sequence[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), dims)
