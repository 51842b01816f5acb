"""A graph that reads the places of keys in a vocabulary instead of the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from onnx import ModelProto, numpy_helper

from workflows.compiler.graph import BOOL, INT64, STRING, Column, Graph

#: The ordinal of a missing value; a vocabulary's are 1 and up, and -1 is what is in none.
MISSING = 0


@dataclass(frozen=True)
class _Table:
    """The codes that one lookup of a text input gives, before the ordinals of the input are known."""

    name: str
    input: str
    keys: pa.StringArray
    codes: np.ndarray
    default: int


class OrdinalGraph(Graph):
    """The graph of a workflow over ordinals: int64 tensors wherever `Graph` has text.

    Text that the workflow brings, such as a fill value, has the ordinals -2, -3, ...: a lookup is a Gather
    from a table that ends in their codes, and ONNX counts negative indices from the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._brought: dict[str, int] = {"": MISSING}
        self._tables: list[_Table] = []
        self._origins: dict[str, str] = {}

    def input(self, name: str, dtype: np.dtype, *, is_list: bool) -> str:
        super().input(name, dtype, is_list=is_list)
        if dtype == STRING:
            self._origins[name] = name
        return name

    def constant(self, values: Any, dtype: np.dtype) -> str:
        if dtype != STRING:
            return super().constant(values, dtype)
        texts = np.asarray(values, dtype=object)
        ordinals = [self._brought.setdefault(text, -1 - len(self._brought)) for text in texts.ravel()]

        def make() -> str:
            name = f"/constant_{len(self._initializers)}"
            array = np.array(ordinals, np.int64).reshape(texts.shape)
            self._initializers.append(numpy_helper.from_array(array, name))
            self._dtypes[name] = STRING
            return name

        return self.once(("text", tuple(ordinals), texts.shape), make)

    def emit(self, op: str, *inputs: str, dtype: np.dtype, **attributes: Any) -> str:
        name = super().emit(op, *inputs, dtype=dtype, **attributes)
        if dtype == STRING:
            for value in inputs:
                if value in self._origins:
                    self._origins[name] = self._origins[value]
        return name

    def encode(self, value: str, keys: np.ndarray | pa.Array, codes: np.ndarray, default: int) -> str:
        if self._dtypes[value] != STRING:
            return super().encode(value, keys, codes, default)
        name = f"/table_{len(self._tables)}"
        self._dtypes[name] = INT64
        self._tables.append(_Table(name, self._origins[value], keys, codes, default))
        return self.emit("Gather", name, value, dtype=INT64)

    def is_null(self, column: Column) -> str:
        if column.dtype == STRING:
            return self.emit("Equal", column.value, self.constant("", STRING), dtype=BOOL)
        return super().is_null(column)

    def raw(self, value: str) -> str | None:
        """The raw column that a value is as it came, if it is one."""
        return value if value in self._inputs else None

    def finish(
        self, name: str, outputs: Mapping[str, tuple[str, list[str | int]]]
    ) -> tuple[ModelProto, dict[str, pa.StringArray]]:
        """The model, and for each of its text inputs the keys: keys[i] has the ordinal i, the first is "".

        Inputs that nothing reads are left out.
        """
        vocabularies = {}
        for text in [n for n in self._inputs if self._dtypes[n] == STRING]:
            tables = [table for table in self._tables if table.input == text]
            known = [table.keys for table in tables]
            keys = known[0] if len(known) == 1 else pa.chunked_array([pa.array([""]), *known]).unique()
            vocabularies[text] = keys
            for table in tables:
                codes = self._codes(table, keys, alone=len(tables) == 1)
                self._initializers.append(numpy_helper.from_array(codes, table.name))
        read = {value for node in self._nodes for value in node.input} | {v for v, _ in outputs.values()}
        self._inputs = {n: spec for n, spec in self._inputs.items() if n in read}
        model = self.model(name, outputs)
        return model, {n: keys for n, keys in vocabularies.items() if n in self._inputs}

    def _codes(self, table: _Table, keys: pa.StringArray, *, alone: bool) -> np.ndarray:
        """int64: the codes of the ordinals 0, 1, ..., then of ..., -3, -2 (brought texts), then of -1."""

        def of(texts: pa.StringArray) -> np.ndarray:
            # Asked this way round, since a table of a million keys costs more than to look them up in a few.
            places = pc.index_in(table.keys, value_set=texts)
            made = np.full(len(texts), table.default, np.int64)
            found = places.is_valid().to_numpy(zero_copy_only=False)
            made[places.drop_null().to_numpy()] = table.codes[found]
            return made

        known = table.codes if alone else of(keys)
        tail = of(pa.array([text for text in reversed(self._brought) if text], pa.string()))
        return np.concatenate([known, tail, [table.default]]).astype(np.int64)

    def _stored(self, dtype: np.dtype) -> np.dtype:
        return INT64 if dtype == STRING else dtype
