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
        #: The row of "", which fills lists; mostly it is no id.
        self.filling = int(self.order[0]) if len(ids) and not self.sorted[0] else -1

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Rows of `ids` (text, any shape), int64 of that shape; -1 where unknown."""
        found = np.full(ids.shape, self.filling, np.int64)
        # Lists in a batch are as long as the longest, so most of what they hold may be no id at all.
        asked = ids != ""
        if len(self.sorted) and asked.any():
            wanted = ids[asked].astype(self.dtype)
            place = self.sorted.searchsorted(wanted)
            known = self.sorted.take(place, mode="clip") == wanted
            found[asked] = np.where(known, self.order.take(place, mode="clip"), -1)
        return found


def _named(release: Release, codes: str, texts: str) -> list[tuple[str, int]]:
    """What each code from 0 on in one array of a release is called in another, by code."""
    code = release.array(codes)
    known = np.flatnonzero(code >= 0)
    distinct, first = np.unique(code[known], return_index=True)
    return list(zip(release.array(texts)[known[first]].tolist(), distinct.tolist()))


def category_codes(release: Release) -> dict[str, int]:
    """The codes of the categories of a release's contents, by their names."""
    return dict(_named(release, "category_code.npy", "text_category.npy"))


def spoken(release: Release) -> tuple[dict[str, int], np.ndarray]:
    """The languages of a release's contents, dialects counted as their language ("pt-BR" is "pt").

    Returns:
        The code of each, by its name; the code of each content's language, int32[N], -1 where unknown.
    """
    code = release.array("language_code.npy")
    names: dict[str, int] = {}
    stands = np.full(int(code.max(initial=-1)) + 2, -1, np.int32)
    for text, own in _named(release, "language_code.npy", "text_content_language.npy"):
        stands[own] = names.setdefault(base(text), own)
    return names, stands[code]
