"""Looks at the machine: Python, GPU, training stack, server; and says what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from market.machine import cores

PATIENCE_S = 20.0
"""Seconds that `nvidia-smi` has to answer."""
DRIVER = 535
"""The first NVIDIA driver of CUDA 12.2. Older ones cannot compile all PTX of TensorFlow 2.15.1, which is all
that it has for newer GPUs."""


def install() -> str:
    """How this environment gets what it lacks; `make` knows nothing of a conda one."""
    if (Path(sys.prefix) / "conda-meta").is_dir():
        return 'run `uv pip install -e ".[gpu,dev]"` in this conda environment; see environment.yml'
    return "run `make setup`"


class Finding(NamedTuple):
    """One line of the report; `remedy` is empty where nothing is missing."""

    what: str
    found: str
    remedy: str


def examine() -> list[Finding]:
    """What a build and a server on this machine would find."""
    return [_python(), _memory(), _gpu(), _package("cudf", "24.2", gpu=True), *_training(), *_serving()]


def _python() -> Finding:
    version = platform.python_version()
    fits = sys.version_info[:2] in ((3, 10), (3, 11))
    return Finding("Python", version, "" if fits else "use 3.10 or 3.11: NVTabular has no wheels for others")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    own = cores()
    return Finding("machine", f"{own} core{'s' * (own != 1)}, {total:.0f} GiB", "")


def _gpu() -> Finding:
    if not shutil.which("nvidia-smi"):
        return Finding(
            "GPU", "none", "nothing, or a CUDA 12 host with environment.yml: all runs on the CPU here"
        )
    remedy = f"install the NVIDIA driver ({DRIVER} or newer)"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("GPU", "nvidia-smi fails", remedy)
    found = answer.stdout.strip()
    drivers = re.findall(r", (\d+)\.[\d.]+$", found, re.MULTILINE)
    old = any(int(driver) < DRIVER for driver in drivers)
    return Finding("GPU", found.replace("\n", "; "), remedy if old else "")


def _package(name: str, wanted: str, gpu: bool = False) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        remedy = "only for GPUs: conda env create -f environment.yml" if gpu else install()
        return Finding(name, "not installed", remedy)
    return Finding(name, version, "" if version.startswith(wanted) else f"pinned at {wanted}: {install()}")


def _training() -> list[Finding]:
    tensorflow = _package("tensorflow-cpu", "2.15")
    if tensorflow.found == "not installed":
        tensorflow = _package("tensorflow", "2.15")
    found = [_package("nvtabular", "23.8"), _package("merlin-models", "23.12"), tensorflow]
    try:
        import models.blocks  # noqa: F401  (imports Merlin as training does)

        found.append(Finding("Merlin imports", "yes", ""))
    except Exception as error:
        found.append(Finding("Merlin imports", f"no: {error}", install()))
    return found


def _serving() -> list[Finding]:
    from ensemble.server import ServerError, find_server

    try:
        server = Finding("Triton", str(find_server().name), "")
    except ServerError as error:
        server = Finding("Triton", "not found", str(error))
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free / 2**20 if shm.is_dir() else 0
    room = Finding(
        "/dev/shm", f"{free:.0f} MiB free", "" if free > 64 else "Triton's stages need 64 MiB of it"
    )
    return [_package("onnxruntime", "1.23"), _package("tritonclient", "2.51"), server, room]
