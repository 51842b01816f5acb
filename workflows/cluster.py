"""Where the workflows run: a LocalCUDACluster on a CUDA host, this process on any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gpu_cluster() -> Iterator[None]:
    """Run the block's Dask work on every local GPU; without a GPU, on threads of this process.

    Not executed on a CUDA host yet; the CPU branch is what the tests run.
    """
    from merlin.core.compat import HAS_GPU

    if not HAS_GPU:
        yield
        return
    from dask_cuda import LocalCUDACluster
    from distributed import Client

    with LocalCUDACluster(rmm_pool_size=0.7, local_directory="/tmp") as cluster, Client(cluster):
        yield
