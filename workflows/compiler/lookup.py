"""From keys to codes: one LabelEncoder for a key column, a chain of them for several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workflows.compiler.graph import BOOL, INT64, NULL_INTEGER, STRING, Column, Graph, Refused

# A float key is looked up as an integer. No float equals either of these, so neither can be a key.
_NAN_KEY = 2**53 + 1
_FRACTION_KEY = 2**53 + 3

#: Text in a pandas frame that stays in Arrow's memory: no Python object is made for it.
TEXT = pd.StringDtype("pyarrow")


def codes(
    graph: Graph,
    column: Column,
    keys: pd.Series,
    values: np.ndarray,
    *,
    null: int,
    other: int,
    unique: bool = False,
) -> str:
    """The int64 tensor, shaped as the column: values[i] where it equals keys[i].

    Args:
        graph: the graph to add to.
        column: strings, integers or floats; scalar or list.
        keys: the known keys, without nulls.
        values: int64, one for each key.
        null: the code of a missing value.
        other: the code of any other value.
        unique: the keys are known to differ, as those that were counted do.

    Raises:
        Refused: keys hold a fraction, a duplicate, the stand-in of a missing value, or another type
            than the column.
    """
    missing: str | int
    if column.dtype == STRING:
        known, missing = _texts(keys), ""
        remedy = "replace empty strings by nulls in the data before fitting"
    else:
        known, missing = pa.array(_integers(keys)), NULL_INTEGER
        remedy = f"replace {NULL_INTEGER} by nulls in the data before fitting"
    if not unique and len(known.unique()) != len(known):
        raise Refused("its fitted keys hold one key twice; make the vocabulary's keys unique")
    if pc.any(pc.equal(known, missing)).as_py():
        raise Refused(f"its fitted keys hold {missing!r}, which stands for a missing value; {remedy}")

    value = column.value
    if column.dtype.kind == "f":
        value, missing = _float_keys(graph, column), _NAN_KEY
    elif column.dtype == BOOL:
        value = graph.cast(value, INT64)
    keyed = pa.concat_arrays([pa.array([missing], known.type), known])
    return graph.encode(value, keyed, np.concatenate([[null], values]), other)


def rows(
    graph: Graph, columns: Sequence[Column], keys: pd.DataFrame, values: np.ndarray, *, other: int
) -> str:
    """The int64[batch] tensor: values[i] where the columns equal row i of `keys`; null equals null.

    Args:
        graph: the graph to add to.
        columns: one key column for each column of `keys`, all scalar.
        keys: the known keys; nulls are keys too.
        values: int64, one for each row of `keys`.
        other: the code of a row that is not known.

    Raises:
        Refused: see `codes`; or two rows of `keys` are equal.
    """
    if any(column.present is not None for column in columns):
        raise Refused("a key is a list; combine scalar columns only")
    if len(columns) == 1:
        series = keys.iloc[:, 0]
        known = series.notna().to_numpy()
        null = values[~known]
        if null.size > 1:
            raise Refused("its fitted keys hold null twice")
        return codes(
            graph,
            columns[0],
            series[known],
            values[known],
            null=int(null[0]) if null.size else other,
            other=other,
        )

    part, distinct = _part(graph, columns[0], keys.iloc[:, 0])
    row, size = distinct, len(keys)
    for position, column in enumerate(columns[1:], start=1):
        digit, known_digit = _part(graph, column, keys.iloc[:, position])
        base = int(known_digit.max(initial=0)) + 2
        part = graph.arithmetic("Add", graph.arithmetic("Mul", part, base), digit)
        row = row * base + known_digit
        if position < len(columns) - 1:
            # Renumber what exists, so that the product of many large vocabularies cannot overflow.
            unique, row = np.unique(row, return_inverse=True)
            part = graph.encode(part, unique, np.arange(unique.size), size)
    if np.unique(row).size != size:
        raise Refused("two rows of its fitted table have the same keys")
    return graph.encode(part, row, values, other)


def _part(graph: Graph, column: Column, keys: pd.Series) -> tuple[str, np.ndarray]:
    """The column as a digit, and the digits of `keys`: 0..n-1 for keys, n for null, n + 1 for the rest."""
    digits, unique = pd.factorize(keys)
    n = len(unique)
    value = codes(graph, column, pd.Series(unique), np.arange(n), null=n, other=n + 1)
    return value, np.where(digits < 0, n, digits).astype(np.int64)


def _texts(keys: pd.Series) -> pa.StringArray:
    if keys.dtype != TEXT and keys.size and pd.api.types.infer_dtype(keys, skipna=False) != "string":
        raise Refused("the column is text and its fitted keys are not; fit again on the data that is served")
    texts = pa.array(keys, pa.string())
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts


def _integers(keys: pd.Series) -> np.ndarray:
    array = np.asarray(keys)
    if array.dtype == object and array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iubf":
        raise Refused(
            "the column is numeric and its fitted keys are not; fit again on the data that is served"
        )
    if (
        array.dtype.kind == "f"
        and not (np.isfinite(array) & (array == np.trunc(array)) & (abs(array) <= 2**53)).all()
    ):
        raise Refused(
            "its fitted keys are fractions; categories are integers or text: use Bucketize, or cast them"
        )
    return array.astype(np.int64)


def _float_keys(graph: Graph, column: Column) -> str:
    whole = graph.cast(column.value, INT64)
    is_whole = graph.compare("Equal", graph.cast(whole, column.dtype), column.value)
    missing = graph.where(
        graph.is_null(column), graph.constant(_NAN_KEY, INT64), graph.constant(_FRACTION_KEY, INT64)
    )
    return graph.where(is_whole, whole, missing)
