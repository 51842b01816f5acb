"""NVTabular on cudf, in a LocalCUDACluster: its arrays are those of pandas."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.workflows.encode import encode
from workflows.cluster import ON_GPU

pytestmark = pytest.mark.gpu

RESERVED = 3
"""Ids of padding, null and unseen, which no key has."""


def assert_same_ids(found: np.ndarray, expected: np.ndarray) -> None:
    """One id a key on either side: keys that are equally frequent may have changed places."""
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    assert all(len(np.unique(side)) == pairs.shape[1] for side in pairs)
    np.testing.assert_array_equal(pairs[0, pairs[1] < RESERVED], pairs[1, pairs[1] < RESERVED])


def test_cudf_makes_the_arrays_of_pandas(small_world_dataset, tmp_path):
    if not ON_GPU:
        pytest.skip("no cudf on this machine")
    made = encode(small_world_dataset.path, tmp_path / "gpu")
    command = [sys.executable, "-m", "tests.workflows.encode", str(small_world_dataset.path)]
    subprocess.run(
        [*command, str(tmp_path / "cpu")],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=300,
    )
    for side in ("query", "content"):
        arrays = getattr(made, side).arrays
        with np.load(tmp_path / "cpu" / f"{side}.npz") as expected:
            assert set(arrays) == set(expected)
            for name, array in arrays.items():
                assert array.dtype == expected[name].dtype, name
                if array.dtype.kind == "f":
                    np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
                else:
                    assert_same_ids(array, expected[name])
