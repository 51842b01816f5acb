"""Where features are made: on cudf where it is, and on pandas on a GPU's host too."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from distributed import LocalCluster

from tests.conftest import CPU_TENSORFLOW, REPOSITORY
from tests.workflows.encode import assert_same_encoding
from workflows import cluster

import merlin.dataloader.tf_utils as merlin_tensorflow  # isort: skip

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
A_DRIVER_AND_ITS_TENSORFLOW = """
import importlib.metadata, os, pathlib

def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

importlib.metadata.version = version
pathlib.Path.exists = lambda path: True
import workflows.runtime
print(repr(os.environ["CUDA_VISIBLE_DEVICES"]))
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


@pytest.mark.parametrize(("asked", "seen"), [("1", "1"), ("", ""), ("-1", "")])
def test_where_there_is_a_gpu_it_can_be_hidden(asked, seen):
    """Merlin takes "-1", by which TensorFlow and CUDA hide all GPUs, for one of them."""
    said = subprocess.run(
        [sys.executable, "-c", A_DRIVER_AND_ITS_TENSORFLOW],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == repr(seen)


def test_tensorflow_may_take_most_of_a_gpu(monkeypatch):
    """Merlin ends what it takes at half, unless it is told."""
    limits = []

    def limit(device, configurations):
        limits.extend(each.memory_limit for each in configurations)

    config = SimpleNamespace(
        list_physical_devices=lambda kind: ["GPU:0"],
        set_logical_device_configuration=limit,
        LogicalDeviceConfiguration=merlin_tensorflow.tf.config.LogicalDeviceConfiguration,
        experimental=SimpleNamespace(
            set_virtual_device_configuration=limit,
            VirtualDeviceConfiguration=merlin_tensorflow.tf.config.LogicalDeviceConfiguration,
        ),
    )
    monkeypatch.setattr(merlin_tensorflow, "HAS_GPU", True)
    monkeypatch.setattr(merlin_tensorflow, "device_mem_size", lambda kind, cpu: 1000 * 2**20)
    monkeypatch.setattr(
        merlin_tensorflow, "tf", SimpleNamespace(config=config, __version__=merlin_tensorflow.tf.__version__)
    )
    merlin_tensorflow.configure_tensorflow()
    assert set(limits) == {900}


def test_the_cluster_listens_on_this_host_alone(monkeypatch):
    def without_gpus(rmm_pool_size, **options):
        return LocalCluster(n_workers=1, processes=False, **options)

    def listening():
        opened = psutil.Process().connections("inet")
        return {tuple(each.laddr) for each in opened if each.status == psutil.CONN_LISTEN}

    monkeypatch.setattr(cluster, "ON_GPU", True)
    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=without_gpus))
    before = listening()
    with cluster.gpu_cluster():
        opened = listening() - before
    assert {address for address, _ in opened} == {"127.0.0.1"}
