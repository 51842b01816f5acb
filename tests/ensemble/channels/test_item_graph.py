"""The channel of the item graph proposes what most edges from the latest contents lead to."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.channels.item_graph import item_graph
from market.item_graph import Reach
from tests.ensemble.channels.asking import asked, shelf


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=40)
def test_the_most_reached_come_first_ties_by_place_and_the_seen_not_at_all(seed, count):
    random = np.random.default_rng(seed)
    # Few different weights, so that many contents are tied at the border.
    weight = random.integers(0, 4, (3, 9)).astype(np.float32)
    seen = random.integers(0, 9, (3, 2))
    row, content = weight.nonzero()
    reach = Reach(row, content, weight[row, content], 3, 9)
    found = item_graph(replace(asked(shelf(9), seen=seen.tolist()), affinity=reach), count)
    assert found.shape == (3, count)
    for one, own in enumerate(weight):
        own[seen[one]] = 0
        best = [place for place in np.argsort(-own, kind="stable") if own[place] > 0][:count]
        assert found[one].tolist() == best + [-1] * (count - len(best))
