"""What a log says of users beyond what they wanted, against a walk through it row by row."""

import numpy as np
import pandas as pd
import pytest

from workflows.habits import FOLLOWED, followed_sellers


@pytest.fixture(scope="module")
def log(small_examples):
    """Impressions in order of time: user, seller, time and whether they bought."""
    pairs, queries = small_examples.pairs, small_examples.queries
    seller = pd.factorize(small_examples.contents["seller_id"], sort=True)[0]
    frame = pd.DataFrame(
        {
            "user": queries.user[pairs.query],
            "time": queries.time[pairs.query],
            "seller": seller[pairs.content],
            "bought": pairs.outcomes["order"] > 0,
        }
    )
    return seller, frame.sort_values("time", kind="stable")


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_followed_are_the_last_sellers_bought_from_each_once(small_examples, log, share):
    seller, frame = log
    before = int(frame["time"].quantile(share)) + (share == 1.0)
    made = followed_sellers(small_examples, seller, before=before)
    bought = frame[frame["bought"] & (frame["time"] < before)]
    assert len(bought) > 20
    assert made.shape == (len(small_examples.users), FOLLOWED)
    for user in range(len(small_examples.users)):
        sellers = bought.loc[bought["user"] == user, "seller"].tolist()
        last = list(dict.fromkeys(sellers[::-1]))[:FOLLOWED][::-1]
        assert made[user].tolist() == last + [-1] * (FOLLOWED - len(last))


def test_the_whole_log_counts_unless_it_is_cut(small_examples, log):
    seller, frame = log
    whole = followed_sellers(small_examples, seller)
    assert np.array_equal(whole, followed_sellers(small_examples, seller, before=frame["time"].max() + 1))


def test_a_seller_that_is_unknown_is_followed_by_nobody(small_examples, log):
    seller, _ = log
    assert (followed_sellers(small_examples, np.full_like(seller, -1)) == -1).all()
