"""Texts that are hashed as integers are counted and found as Arrow counts and finds them."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows import texts

some = st.none() | st.sampled_from(["", "a", "a\0", "b" * 8, "b" * 9, "สด"]) | st.text(max_size=20)
columns = st.lists(st.lists(some, max_size=12), max_size=3)


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MANY", 0)
    monkeypatch.setattr(texts, "_differ", lambda column: len(column.drop_null()) > 0)
    monkeypatch.setattr(texts, "_ROWS", 4)


def chunked(parts: list[list[str | None]]) -> pa.ChunkedArray:
    """The parts as chunks, each a slice of something larger."""
    return pa.chunked_array([pa.array(["x", *part, None], pa.string())[1:-1] for part in parts], pa.string())


def assert_counted_and_found(parts: list[list[str | None]]) -> None:
    column = chunked(parts)
    valued = [text for text in column.to_pylist() if text is not None]
    keys, counts = texts.counted(column)
    assert list(zip(keys.to_pylist(), counts)) == list(Counter(valued).items())
    known = keys[::2]
    places = texts.Vocabulary(known).places(column)
    expected = {text: place for place, text in enumerate(known.to_pylist())}
    assert places.tolist() == [expected.get(text, -1) for text in column.to_pylist()]


@settings(max_examples=300)
@given(columns)
def test_any_texts_are_counted_and_found(parts: list[list[str | None]]) -> None:
    assert_counted_and_found(parts)


def test_texts_that_differ_behind_their_fingerprint_are_told_apart() -> None:
    long = "x" * texts._BYTES
    parts = [[long + "a", long + "b", long + "a"], ["c", None, long + "b"]]
    prints = texts.fingerprints(pa.array(parts[0]))
    assert len(np.unique(prints)) == 1
    assert_counted_and_found(parts)
    # Known is one of them alone: the others have its fingerprint and are not it.
    found = texts.Vocabulary(pa.array([long + "b", "c"])).places(chunked(parts))
    assert found.tolist() == [-1, 0, -1, 1, -1, 0]


def test_texts_with_large_offsets_are_not_read_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.chunked_array([pa.array(["a", "b", None, "a", "ccc"], pa.large_string())])

    def refuse(of: pa.Array) -> np.ndarray:
        raise AssertionError(f"fingerprints of {of.type}")

    monkeypatch.setattr(texts, "fingerprints", refuse)
    keys, counts = texts.counted(column)
    assert (keys.to_pylist(), counts.tolist()) == (["a", "b", "ccc"], [2, 1, 1])


@pytest.mark.parametrize("kinds", [7, 100_000])
def test_a_large_column_is_counted_whatever_its_kinds(kinds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    picks = np.random.default_rng(0).permutation(150_000) % kinds
    column = pa.chunked_array([pa.array([f"key {pick}" for pick in picks.tolist()])])
    assert texts._differ(column) == (kinds > 7)
    keys, counts = texts.counted(column)
    assert keys.equals(column.unique())
    assert dict(zip(keys.to_pylist(), counts)) == {f"key {k}": n for k, n in enumerate(np.bincount(picks))}
    places = texts.Vocabulary(keys).places(column)
    assert keys.take(pa.array(places)).equals(column.combine_chunks())
