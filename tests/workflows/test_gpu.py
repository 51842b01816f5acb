"""NVTabular on cudf, in a LocalCUDACluster: its arrays are those of pandas."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.workflows.encode import assert_same_encoding, encode
from workflows.cluster import ON_GPU

pytestmark = pytest.mark.gpu


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
    )
    for side in ("query", "content"):
        with np.load(tmp_path / "cpu" / f"{side}.npz") as expected:
            assert_same_encoding(getattr(made, side).arrays, expected)
