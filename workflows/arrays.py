"""Arrays that are written piece by piece and then mapped from files: they may be larger than memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from npy_append_array import NpyAppendArray


class ArrayFiles:
    """Arrays by name, each in a file *.npy of a folder; a file that is there is made anew."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._written: dict[str, NpyAppendArray] = {}

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows to an array, in the dtype and the width of the first ones."""
        if name not in self._written:
            self._written[name] = NpyAppendArray(str(self._folder / f"{name}.npy"), delete_if_exists=True)
        self._written[name].append(np.ascontiguousarray(rows))

    def mapped(self) -> dict[str, np.ndarray]:
        """All arrays by name, whole; nothing is added from then on."""
        for array in self._written.values():
            array.close()
        return {name: np.load(self._folder / f"{name}.npy", mmap_mode="r") for name in self._written}
