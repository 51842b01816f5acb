"""Files that appear whole: who reads one sees what was there before, or all that is new."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """A place beside `file` to write to, which takes its name at the end of the block, or vanishes if
    anything is raised. The folder is made where it does not exist."""
    file.parent.mkdir(parents=True, exist_ok=True)
    place = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield place
        os.replace(place, file)
    finally:
        place.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Write a value as JSON; ValueError for a NaN or an infinite number in it, which JSON lacks."""
    with written(file) as place:
        place.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def as_json(row: Any) -> dict[str, Any]:
    """A dataclass as JSON has it: what is NaN is null."""
    return {name: None if _is_nan(value) else value for name, value in asdict(row).items()}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
