"""XMarket: Amazon ratings in many markets (Bonab et al., CIKM 2021), in the five-core files of ECIR 2023.

    <cc>_5core.txt    userId itemId rate date, with a header, separated by a space

Every rating counts as an order. Of each user the last item by date is for test, the one before for
validation; on one day the order of the file decides. Rows that repeat a (user, item) are kept: evaluation
decides on them. Items carry across markets: one content, shown wherever it was rated. A few people rate in
two markets: a user is one person in one market, `<market>:<userId>`, the same whichever files are there.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from market.importers.reading import ImportProblem, dates, expect_text, find, numbers, read_text
from market.profiles import KNOWN, is_market
from market.tables import Tables, validate

_PATTERN = "[a-z][a-z]_5core.txt"
_ISO_CODES = {"uk": "GB"}
"""Markets that XMarket calls by another name than ISO 3166."""


def read(folder: Path) -> Tables:
    """The markets whose files are in `folder`; raises `ImportProblem`."""
    files = {path.name[:2]: path for path in sorted(folder.glob(_PATTERN))}
    if not files:
        raise ImportProblem(f"{folder} has no file <cc>_5core.txt (such as de_5core.txt); put some there.")
    impressions = pd.concat([_market(code, find(folder, path.name)) for code, path in files.items()])
    sold = impressions[["content_id", "market"]].drop_duplicates().sort_values(["content_id", "market"])
    contents = sold.groupby("content_id")["market"].agg(list).rename("markets").reset_index()
    return validate(
        Tables(
            name="xmarket",
            feedback="positives",
            split="leave_last",
            users=impressions[["user_id", "market"]].drop_duplicates(),
            contents=contents.assign(kind="product"),
            impressions=impressions,
        )
    )


def _market(code: str, path: Path) -> pd.DataFrame:
    market = _ISO_CODES.get(code, code.upper())
    if not is_market(market):
        raise ImportProblem(f"{path}: there is no market {market}; move the file away. Known are {KNOWN}.")
    frame = read_text(path, ["userId", "itemId", "rate", "date"], " ", header=True)
    expect_text(path, frame["userId"])
    return pd.DataFrame(
        {
            "user_id": market + ":" + frame["userId"],
            "content_id": frame["itemId"],
            "market": market,
            "time": dates(path, frame["date"]),
            "order": np.int8(1),
            "rating": numbers(path, frame["rate"]),
        }
    ).sort_values("time", kind="stable")
