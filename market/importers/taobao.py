"""Taobao in the split of MB-CGCN (Cheng et al., WWW 2023): buys and carts, without times.

    train.txt, valid.txt, test.txt, cart.txt    user item, 1-based, separated by a space

`train.txt` as published contains `valid.txt`; what is validation is taken out of training here. Carts are all
training: a row is one event, either a buy (order = 1) or a cart (cart = 1).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from market.importers.reading import (
    contents_of_one_market,
    find,
    given_split,
    read_pairs,
    users_of_one_market,
)
from market.tables import Tables, validate


def read(folder: Path) -> Tables:
    """The data set in `folder`; raises `ImportProblem`."""
    buys = {split: read_pairs(find(folder, f"{split}.txt")) for split in ("train", "valid", "test")}
    carts = read_pairs(find(folder, "cart.txt"))
    span = max(part[:, 1].max() for part in buys.values()) + 1
    train, valid = (part[:, 0] * span + part[:, 1] for part in (buys["train"], buys["valid"]))
    buys["train"] = buys["train"][~np.isin(train, valid)]
    everything = np.concatenate([*buys.values(), carts])
    impressions = pd.concat(
        [given_split(buys, order=1, cart=0), given_split({"train": carts}, order=0, cart=1)]
    )
    return validate(
        Tables(
            name="taobao",
            feedback="positives",
            split="given",
            users=users_of_one_market(everything[:, 0]),
            contents=contents_of_one_market(everything[:, 1], "product"),
            impressions=impressions,
        )
    )
