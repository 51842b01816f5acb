"""The corrections of Merlin: one value has one hash, and list columns keep every element."""

import importlib.util
from itertools import chain
from types import ModuleType

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merlin.core import dispatch
from merlin.io import Dataset
from nvtabular import ops

from workflows import patches


@pytest.fixture(scope="module")
def upstream() -> ModuleType:
    """merlin.core.dispatch as it was installed, without the corrections."""
    spec = importlib.util.spec_from_file_location("unpatched_dispatch", dispatch.__file__)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_upstream_hashes_the_row_with_the_value(upstream: ModuleType) -> None:
    assert len(set(upstream.hash_series(pd.Series([7] * 100)))) == 100


@pytest.mark.parametrize("values", [[7] * 100, ["a"] * 100, [None] * 100, [0.5] * 100])
def test_one_value_has_one_hash_in_every_row(values: list) -> None:
    assert len(set(dispatch.hash_series(pd.Series(values)))) == 1


def test_a_hash_does_not_depend_on_the_index_or_on_other_rows() -> None:
    whole = dispatch.hash_series(pd.Series([3, 5, 3, 8]))
    part = dispatch.hash_series(pd.Series([8, 3], index=[70, 71]))
    assert whole[[3, 0]].tolist() == part.tolist()


def test_a_list_column_is_hashed_by_element() -> None:
    lists = pd.Series([np.array([3, 5]), np.array([], np.int64), np.array([3])])
    assert dispatch.hash_series(lists).tolist() == dispatch.hash_series(pd.Series([3, 5, 3])).tolist()


def test_a_workflow_puts_one_value_into_one_bucket() -> None:
    frame = pd.DataFrame({"id": [7, 9, 7, 7], "text": ["a", "a", "b", "a"]})
    bucketed = nvt.Workflow(["id", "text"] >> ops.HashBucket(10_000)).fit_transform(Dataset(frame)).compute()
    assert len(set(bucketed["id"][[0, 2, 3]])) == len(set(bucketed["text"][[0, 1, 3]])) == 1
    assert bucketed["id"][0] != bucketed["id"][1]


def test_every_operator_holds_the_corrections() -> None:
    from nvtabular.ops import hash_bucket, hashed_cross, logop, moments, normalize

    for module in (dispatch, hash_bucket, hashed_cross):
        assert module.hash_series is patches.hash_series
    for module in (dispatch, logop, moments, normalize):
        assert module.flatten_list_column_values is patches.flatten_list_column_values
    for module in (dispatch, hash_bucket, logop, normalize):
        assert module.encode_list_column is patches.encode_list_column


def arrays(dtype: str, elements: st.SearchStrategy) -> st.SearchStrategy:
    row = st.lists(elements, max_size=4).map(lambda row: np.array(row, dtype=dtype))
    return st.lists(row, max_size=6)


ROWS = {
    "int64": arrays("int64", st.integers(-(2**63), 2**63 - 1)),
    "int32": arrays("int32", st.integers(-(2**31), 2**31 - 1)),
    "uint64": arrays("uint64", st.integers(0, 2**64 - 1)),
    "float32": arrays("float32", st.floats(width=32)),
    "float64": arrays("float64", st.floats()),
    "bool": arrays("bool", st.booleans()),
    "text": arrays("object", st.none() | st.text(max_size=3)),
    "python lists": st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=6),
    "lists with nulls": st.lists(st.lists(st.none() | st.integers(-5, 5), max_size=4), max_size=6),
    # What pandas makes of integer lists of which one holds a null.
    "mixed": st.lists(st.sampled_from([np.array([1, 2]), np.array([1, np.nan]), np.array([])]), max_size=6),
}


@pytest.mark.parametrize("kind", ROWS)
def test_list_columns_are_flattened_as_upstream_does(kind: str, upstream: ModuleType) -> None:
    @settings(max_examples=60)
    @given(ROWS[kind])
    def check(rows: list) -> None:
        column = pd.Series(rows, name="list", dtype=object)
        pd.testing.assert_series_equal(
            dispatch.flatten_list_column_values(column), upstream.flatten_list_column_values(column)
        )

    check()


@pytest.mark.parametrize("dtype", [None, np.int64, np.int32, np.float32])
@pytest.mark.parametrize("as_series", [True, False])
def test_list_columns_are_encoded_as_upstream_does(
    dtype: type | None, as_series: bool, upstream: ModuleType
) -> None:
    @settings(max_examples=60)
    @given(ROWS["int64"], st.booleans())
    def check(rows: list, fractions: bool) -> None:
        original = pd.Series(rows, name="list", dtype=object)
        encoded = np.arange(sum(map(len, rows)))
        encoded = encoded / 2 if fractions else encoded
        given_as = pd.Series(encoded) if as_series else encoded
        got = dispatch.encode_list_column(original, given_as, dtype)
        expected = upstream.encode_list_column(original, given_as, dtype)
        assert got.dtype == expected.dtype
        assert got.index.equals(expected.index)
        for ours, theirs in zip(got, expected):
            np.testing.assert_array_equal(ours, theirs, strict=True)

    check()


def test_lists_that_are_all_empty_stay_empty(upstream: ModuleType) -> None:
    empty = pd.Series([np.array([], np.int32)] * 3)
    pd.testing.assert_series_equal(
        dispatch.flatten_list_column_values(empty), upstream.flatten_list_column_values(empty)
    )
    assert [len(row) for row in dispatch.encode_list_column(empty, np.array([], np.int64))] == [0, 0, 0]


def test_a_null_row_is_refused_with_its_place(upstream: ModuleType) -> None:
    rows = pd.Series([np.array([1]), None], name="history")
    with pytest.raises(TypeError):
        list(chain(*rows))
    for call in (dispatch.flatten_list_column_values, lambda s: dispatch.encode_list_column(s, [1])):
        with pytest.raises(ValueError, match="'history' is null in 1 of 2 rows, first in row 1"):
            call(rows)
