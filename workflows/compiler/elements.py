"""A graph over the elements of one list column, one after another, for whoever parts them into rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from workflows.compiler.graph import Column, Refused
from workflows.compiler.ordinals import OrdinalGraph


class ElementGraph(OrdinalGraph):
    """The graph of a column that is made element by element of one list column.

    Tensors of list columns are [elements], and all of it is there. What slices leave of a row is what the
    graph is to be given of it.

    Attributes:
        slices: start and end of each slice, in turn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slices: list[tuple[int, int]] = []

    @property
    def list_column(self) -> str:
        """The raw column."""
        (name,) = self._inputs
        return name

    def input(self, name: str, dtype: np.dtype, *, is_list: bool) -> str:
        if not is_list or self._inputs:
            raise Refused("it is not made of one list column alone")
        return super().input(name, dtype, is_list=False)

    def rank(self, column: Column) -> int:
        return 1

    def present(self, column: Column) -> str:
        return column.value  # all are there, so nobody asks

    def cut(self, column: Column, start: int, end: int, width: int) -> Column:
        self.slices.append((start, end))
        return replace(column, length=width)

    def filled(self, column: Column, value: Any) -> Column:
        raise Refused("what fills rows up is no element")

    def dense(self, column: Column) -> str:
        return column.value
