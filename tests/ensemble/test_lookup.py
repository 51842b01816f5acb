"""Ids are found as a dictionary would find them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensemble.lookup import IdIndex

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=6)


@given(st.lists(TEXT, unique=True, max_size=20), st.lists(TEXT, max_size=20))
def test_an_index_finds_what_a_dictionary_finds(ids, others):
    wanted = [*others, *ids, *(text + "x" for text in ids), *(text[:-1] for text in ids)]
    index, rows = IdIndex(np.array(ids, str)), {text: row for row, text in enumerate(ids)}
    assert index(np.array(wanted, object)).tolist() == [rows.get(text, -1) for text in wanted]


def test_ids_keep_their_shape():
    index = IdIndex(np.array(["b", "a", "c"]))
    found = index(np.array([["a", "?", "b"], ["c", "c", ""]], object))
    assert found.tolist() == [[1, -1, 0], [2, 2, -1]]
    assert index(np.empty((2, 0), object)).shape == (2, 0)


def test_what_fills_lists_is_not_looked_for():
    """A batch has lists as long as its longest: one of 10,000 ids made 63 requests beside it eight times as
    dear."""

    class Seen(np.ndarray):
        def searchsorted(self, wanted):
            looked_for.append(len(wanted))
            return super().searchsorted(wanted)

    looked_for, index = [], IdIndex(np.array(["a", "b"]))
    index.sorted = index.sorted.view(Seen)
    ids = np.full((64, 10), "", object)
    assert (index(ids) == -1).all()
    ids[0], ids[63, 0] = "b", "a"
    found = index(ids)
    assert looked_for == [11]
    assert found[0].tolist() == [1] * 10
    assert found[63].tolist() == [0] + [-1] * 9


def test_nothing_is_found_where_there_is_nothing():
    assert IdIndex(np.array([], str))(np.array(["a", ""], object)).tolist() == [-1, -1]


def test_a_very_long_id_is_unknown_and_costs_no_table_of_its_width():
    index = IdIndex(np.array(["abc", "abcd"]))
    wanted = np.array(["abcd" + "d" * 10_000_000, *["abc"] * 10_000], object)
    assert index(wanted)[:2].tolist() == [-1, 0]  # as wide a table of text would be 400 GB
