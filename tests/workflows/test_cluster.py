"""Where features are made: on cudf where it is, and on pandas on a GPU's host too."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from tests.conftest import CPU_TENSORFLOW, REPOSITORY
from tests.workflows.encode import assert_same_encoding

A_GPU_WITHOUT_CUDF = """
import sys, types
found = types.ModuleType("merlin.core.has_gpu")
found.HAS_GPU = True
sys.modules["merlin.core.has_gpu"] = found
sys.modules["cudf"] = None
from pathlib import Path
from tests.workflows.encode import encode, save
from merlin.core.dispatch import HAS_GPU
assert HAS_GPU
save(encode(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[2]))
"""


def test_a_gpu_without_cudf_gets_the_features_of_a_cpu(
    small_world_dataset, small_examples, small_features, tmp_path
):
    """As after `pip install .[gpu]`, which brings TensorFlow's CUDA build and no cudf."""
    command = [sys.executable, "-c", A_GPU_WITHOUT_CUDF, str(small_world_dataset.path), str(tmp_path)]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    for side in ("query", "content"):
        found = np.load(tmp_path / f"{side}.npz", allow_pickle=False)
        assert_same_encoding(dict(found), getattr(small_features, side).arrays)


def test_where_tensorflow_is_of_the_cpu_no_gpu_is_found():
    """Merlin asks the driver, and refuses a TensorFlow that cannot use what it finds."""
    program = "import workflows.runtime, os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == ("''" if CPU_TENSORFLOW else "'0'")
