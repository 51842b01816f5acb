"""Ids to row numbers, in batches: binary search in a sorted array of text, which may be memory-mapped."""

from __future__ import annotations

import numpy as np

from ensemble.release import Release
from market.languages import base


class IdIndex:
    """Finds rows by id.

    Args:
        ids: <U[N], in row order, distinct.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self.order = np.argsort(ids, kind="stable")
        # One character more than the longest known id tells a longer one apart, at any length it comes in.
        self.dtype = np.dtype(f"U{ids.dtype.itemsize // 4 + 1}")
        # Of the dtype that is looked for: `searchsorted` would copy the table at every call to make it so.
        self.sorted = np.asarray(ids)[self.order].astype(self.dtype)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Rows of `ids` (text, any shape), int64 of that shape; -1 where unknown."""
        if not len(self.sorted) or not ids.size:
            return np.full(ids.shape, -1, np.int64)
        wanted = ids.astype(self.dtype)
        place = self.sorted.searchsorted(wanted)
        found = self.sorted.take(place, mode="clip") == wanted
        return np.where(found, self.order.take(place, mode="clip"), -1)


def spoken(release: Release) -> tuple[dict[str, int], np.ndarray]:
    """The languages of a release's contents, dialects counted as their language ("pt-BR" is "pt").

    Returns:
        The code of each, by its name; the code of each content's language, int32[N], -1 where unknown.
    """
    code = release.array("language_code.npy")
    known = np.flatnonzero(code >= 0)
    codes, first = np.unique(code[known], return_index=True)
    texts = release.array("text_content_language.npy")[known[first]].tolist()
    names: dict[str, int] = {}
    stands = np.full(int(code.max(initial=-1)) + 2, -1, np.int32)
    for own, text in zip(codes.tolist(), texts):
        stands[own] = names.setdefault(base(text), own)
    return names, stands[code]
