"""What this process may use of the machine."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may use: `taskset`, a container or a batch system may leave it a few alone."""
    if hasattr(os, "sched_getaffinity"):  # Linux has the call, macOS has not
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
