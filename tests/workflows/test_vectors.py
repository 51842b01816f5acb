"""Content vectors as features: likeness is kept, what is unknown is average, nothing else moves them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from workflows.features import FeatureConfig
from workflows.vectors import (
    VectorSpace,
    raw_vectors,
    read_spaces,
    space_of,
    vector_columns,
    write_spaces,
)

from merlin.schema import Tags  # isort: skip


def drawn(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def test_with_all_directions_products_are_cosines_of_the_centred_vectors():
    vectors = drawn(50, 6) + 3
    made = VectorSpace.fit("v_image", vectors, 6)(vectors)
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(made @ made.T, centred @ centred.T, atol=1e-5)


def test_the_directions_that_are_kept_are_those_in_which_contents_differ_most():
    wide, narrow = drawn(500, 2, 1) * 10, drawn(500, 4, 2)
    vectors = np.concatenate([narrow, wide], axis=1)
    space = VectorSpace.fit("v_image", vectors, 2)
    assert space.directions.shape == (6, 2)
    assert np.abs(space.directions[:4]).max() < 0.1 * np.abs(space.directions[4:]).max()


@settings(max_examples=30)
@given(arrays(np.float32, (7, 3), elements=st.floats(-1e3, 1e3, width=32)))
def test_numbers_are_finite_and_neither_length_nor_company_changes_them(vectors):
    space = VectorSpace.fit("v_image", drawn(20, 3), 2)
    made = space(vectors)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made[2:5], space(vectors[2:5]))
    longer = space.mean + 2 * (vectors - space.mean)
    far = np.linalg.norm(vectors - space.mean, axis=1) > 1e-2
    np.testing.assert_allclose(space(longer)[far], made[far], atol=1e-3)


def test_an_unknown_vector_is_all_zeros_and_teaches_nothing():
    vectors = drawn(30, 4)
    with_gaps = vectors.copy()
    with_gaps[[3, 7]] = np.nan
    known = np.delete(np.arange(30), [3, 7])
    space, expected = VectorSpace.fit("v_a", with_gaps, 3), VectorSpace.fit("v_a", vectors[known], 3)
    np.testing.assert_array_equal(space.directions, expected.directions)
    np.testing.assert_array_equal(space(with_gaps)[[3, 7]], 0)
    np.testing.assert_array_equal(space(with_gaps)[known], expected(vectors[known]))
    nothing = VectorSpace.fit("v_a", np.full((2, 4), np.nan, np.float32), 3)
    np.testing.assert_array_equal(nothing(vectors * np.nan), 0)


def test_raw_vectors_of_a_table_have_gaps_where_a_content_has_none():
    contents = pd.DataFrame({"v_audio": [[1.0, 2.0], None, [3.0, 4.0]], "price": [1, 2, 3]})
    assert vector_columns(contents) == ["v_audio"]
    np.testing.assert_array_equal(raw_vectors(contents, "v_audio"), [[1, 2], [np.nan, np.nan], [3, 4]])


def test_encoded_contents_have_the_vectors_of_the_contents_seen_in_training(small_features, small_examples):
    content, [space] = small_features.content, small_features.spaces
    assert content.schema.select_by_tag(Tags.EMBEDDING).column_names == ["v_image"] == [space.name]
    assert content.arrays["v_image"].shape == (len(content), FeatureConfig().vector_dims)
    raw = raw_vectors(small_examples.contents, "v_image")
    np.testing.assert_array_equal(content.arrays["v_image"], space(raw))
    seen = small_examples.popularity.sum(axis=0) >= FeatureConfig().content_min_count
    np.testing.assert_allclose(space.mean, raw[seen].mean(axis=0), atol=1e-6)
    assert "v_image" not in {value.name for value in content.graph.graph.input}


def test_spaces_that_were_kept_encode_as_they_did(tmp_path):
    spaces = [VectorSpace.fit(name, drawn(30, 6, seed), 4) for seed, name in enumerate(("v_image", "v_a b"))]
    write_spaces(tmp_path / "spaces.npz", spaces)
    found = read_spaces(tmp_path / "spaces.npz")
    assert found.keys() == {"v_image", "v_a b"}
    for space in spaces:
        np.testing.assert_array_equal(found[space.name](drawn(9, 6, 5)), space(drawn(9, 6, 5)))
    write_spaces(tmp_path / "none.npz", [])
    assert read_spaces(tmp_path / "none.npz") == {}


def test_spaces_that_were_not_written_to_their_end_replace_none(tmp_path, monkeypatch):
    path = tmp_path / "spaces.npz"
    write_spaces(path, [VectorSpace.fit("v_image", drawn(30, 6), 4)])

    def stopped(file, **arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_spaces(path, [])
    assert read_spaces(path).keys() == {"v_image"}


def test_spaces_that_were_cut_short_are_named(tmp_path):
    path = tmp_path / "spaces.npz"
    write_spaces(path, [VectorSpace.fit("v_image", drawn(30, 6), 4)])
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        ValueError, match=f"{path} is damaged .*build what made it once more, or build without"
    ):
        read_spaces(path)


def test_a_space_of_an_earlier_build_is_kept_and_one_that_says_nothing_is_not():
    vectors, seen = drawn(30, 6, 1), np.arange(30) < 20
    earlier, fitted = VectorSpace.fit("v_a", drawn(9, 6), 4), VectorSpace.fit("v_a", vectors[seen], 4)
    assert space_of("v_a", vectors, seen, 4, earlier) is earlier
    nothing = VectorSpace.fit("v_a", vectors * np.nan, 4)
    for known in (None, nothing):
        found = space_of("v_a", vectors, seen, 4, known)
        np.testing.assert_array_equal(found.directions, fitted.directions)
    np.testing.assert_array_equal(nothing(vectors), 0)


def test_a_space_of_other_vectors_or_of_other_dims_is_refused():
    vectors, seen = drawn(30, 6, 1), np.ones(30, bool)
    with pytest.raises(
        ValueError, match=r"contents.v_a have 6 numbers, in the earlier build they had 5.*build"
    ):
        space_of("v_a", vectors, seen, 4, VectorSpace.fit("v_a", drawn(9, 5), 4))
    earlier = VectorSpace.fit("v_a", drawn(9, 6), 4)
    for most, own in ((3, 3), (8, 6)):
        said = rf"vector_dims = {most} makes {own} numbers of contents.v_a.*knows 4; set it to 4, or build"
        with pytest.raises(ValueError, match=said):
            space_of("v_a", vectors, seen, most, earlier)
    whole = VectorSpace.fit("v_a", drawn(9, 6), 8)
    assert space_of("v_a", vectors, seen, 32, whole) is whole  # no more than there are
