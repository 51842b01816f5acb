"""Import this before NVTabular: it sets the process environment that the Merlin stack reads at import.

Values that are already set win. On a machine without an NVIDIA driver the stack is kept off CUDA.
"""

import os
import warnings
from pathlib import Path

os.environ.setdefault("DASK_DATAFRAME__QUERY_PLANNING", "False")
os.environ.setdefault("DASK_DATAFRAME__CONVERT_STRING", "False")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A training step is many small operations: side by side they use the cores, cut among threads they wait.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# Said at every import: PyTorch is not there, and there is no GPU to make data sets on.
warnings.filterwarnings("ignore", message="PyTorch dtype mappings did not load")
warnings.filterwarnings("ignore", message="Initializing an NVTabular Dataset in CPU mode")
