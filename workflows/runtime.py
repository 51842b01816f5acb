"""Import this before NVTabular: it sets the process environment that the Merlin stack reads at import.

Values that are already set win, but for one: where TensorFlow is the CPU's, there is no NVIDIA driver, or all
GPUs are hidden, the stack is kept off CUDA: Merlin asks the driver for GPUs, and refuses a TensorFlow that
cannot use them.
"""

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("DASK_DATAFRAME__QUERY_PLANNING", "False")
os.environ.setdefault("DASK_DATAFRAME__CONVERT_STRING", "False")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A training step is many small operations: side by side they use the cores, cut among threads they wait.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
# TensorFlow takes what it needs of a GPU's memory, for features and models share it; to Merlin that is never
# more than half.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("TF_MEMORY_ALLOCATION", "0.9")


def _tensorflow_is_of_the_cpu() -> bool:
    try:
        return bool(version("tensorflow-cpu"))
    except PackageNotFoundError:
        return False


if (
    _tensorflow_is_of_the_cpu()
    or not Path("/dev/nvidiactl").exists()
    or os.environ.get("CUDA_VISIBLE_DEVICES") == "-1"
):
    # Merlin takes "-1" for one GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Said at every import: PyTorch is not there, and there is no GPU to make data sets on.
warnings.filterwarnings("ignore", message="PyTorch dtype mappings did not load")
warnings.filterwarnings("ignore", message="Initializing an NVTabular Dataset in CPU mode")
