"""Many different texts, hashed as integers.

Arrow's table of texts costs several misses of the cache for each text, pandas' table of integers one or two.
So a text is known by a fingerprint of 64 bits, and what is found by it is compared: two texts of one
fingerprint cost time, and are never taken for one another.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

#: As many different texts leave the processor's caches: fewer are Arrow's.
MANY = 65_536

# Rows whose fingerprints are made at once, for the cache.
_ROWS = 32_768
# Bytes of a text that its fingerprint is made of, besides its length.
_BYTES = 128
# The bytes of a word, for each number of bytes that are left of a text.
_MASKS = np.array([(1 << 8 * left) - 1 for left in range(9)], np.uint64)
_ODD = np.uint64(0x9E3779B97F4A7C15)


def fingerprints(texts: pa.StringArray) -> np.ndarray:
    """int64[R]: equal texts have equal fingerprints; those of nulls mean nothing."""
    prints = np.empty(len(texts), np.uint64)
    if not len(texts):
        return prints.view(np.int64)
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int32)[texts.offset :][: len(texts) + 1].astype(np.int64)
    held = np.zeros(starts[-1] - starts[0] + 8, np.uint8)
    if data:
        held[:-8] = np.frombuffer(data, np.uint8)[starts[0] : starts[-1]]
    starts -= starts[0]
    words: np.ndarray = np.ndarray(held.size - 7, np.uint64, held, strides=(1,))
    for first in range(0, len(texts), _ROWS):
        lengths = np.diff(starts[first : first + _ROWS + 1])
        places = starts[first : first + lengths.size]
        block = lengths.astype(np.uint64)
        for at in range(0, min(lengths.max(), _BYTES), 8):
            left = lengths - at
            if left.min() >= 8:
                block = _mixed(block, words[places + at])
            else:
                inside = left > 0
                word = words[np.where(inside, places + at, 0)] & _MASKS[left.clip(0, 8)]
                block = np.where(inside, _mixed(block, word), block)
        prints[first : first + block.size] = block
    return prints.view(np.int64)


def _mixed(prints: np.ndarray, words: np.ndarray) -> np.ndarray:
    mixed = (prints ^ words) * _ODD
    return mixed ^ mixed >> np.uint64(32)


def counted(texts: pa.ChunkedArray) -> tuple[pa.StringArray, np.ndarray]:
    """The different texts in the order of their first rows, and int64: how often each comes. Null is none."""
    # Fingerprints are of texts with offsets of 32 bits; large ones are Arrow's.
    if pa.types.is_string(texts.type) and _differ(texts):
        valued = texts.drop_null()
        codes = pd.factorize(np.concatenate([fingerprints(chunk) for chunk in valued.chunks]))[0]
        # A code that is greater than all before it is new.
        new = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
        keys = valued.filter(pa.array(new)).combine_chunks()
        ends = np.cumsum([len(chunk) for chunk in valued.chunks])
        if all(
            keys.take(pa.array(of)).equals(chunk)
            for of, chunk in zip(np.split(codes, ends[:-1]), valued.chunks)
        ):
            return keys, np.bincount(codes)
    counts = pc.value_counts(texts)
    counts = counts.filter(counts.field("values").is_valid())
    return counts.field("values"), counts.field("counts").to_numpy()


class Vocabulary:
    """Different texts, which others are looked up among.

    Args:
        keys: K texts.
    """

    def __init__(self, keys: pa.StringArray) -> None:
        self._keys = keys
        self._index = None
        if len(keys) > MANY:
            index = pd.Index(fingerprints(keys))
            # To tell it pandas makes its table, which threads may share from then on.
            if index.is_unique:
                self._index = index

    def places(self, texts: pa.ChunkedArray) -> np.ndarray:
        """int64[R]: which of the keys each text is; -1 where it is none, or null."""
        if self._index is None:
            return pc.fill_null(pc.index_in(texts, value_set=self._keys), -1).to_numpy().astype(np.int64)
        return np.concatenate([np.zeros(0, np.int64), *[self._found(chunk) for chunk in texts.chunks]])

    def _found(self, texts: pa.StringArray) -> np.ndarray:
        assert self._index is not None
        places = self._index.get_indexer(fingerprints(texts))
        same = pc.equal(self._keys.take(pa.array(places.clip(0))), texts)
        return np.where(pc.fill_null(same, False).to_numpy(zero_copy_only=False), places, -1)


def _differ(texts: pa.ChunkedArray) -> bool:
    """Whether there are many texts and, as far as an even sample of them tells, most differ."""
    if len(texts) <= MANY:
        return False
    sampled = np.zeros(len(texts), bool)
    sampled[:: len(texts) // 4096] = True
    sample = texts.filter(pa.array(sampled))
    return len(sample.unique()) > 0.985 * len(sample)
