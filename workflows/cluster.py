"""Where the workflows run: a LocalCUDACluster on a CUDA host with cudf, this process on any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from . import runtime  # noqa: F401  (sets the environment before Merlin is imported)

from merlin.core.compat import cudf  # isort: skip

ON_GPU = cudf is not None
"""Whether NVTabular computes on cudf. Merlin takes cudf only where there is a GPU; on a CUDA host without it
models train on the GPU and features are made on the CPU."""


@contextmanager
def gpu_cluster() -> Iterator[None]:
    """Run the block's Dask work on every local GPU; without cudf there is none."""
    if not ON_GPU:
        yield
        return
    from dask_cuda import LocalCUDACluster
    from distributed import Client

    # The pool grows; what it does not hold is left to the models, which train in this process. Dashboards ask
    # for no password, and would listen on every address.
    with (
        TemporaryDirectory(prefix="pasar-dask-") as folder,
        LocalCUDACluster(
            rmm_pool_size="1GB",
            local_directory=folder,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster),
    ):
        yield
