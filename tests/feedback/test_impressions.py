"""What was shown, joined with what came of it, however often and in whatever order it was told."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.impressions import join
from feedback.records import outcome, shown

T = 1_773_619_073


def slate(request: int, user: str, time: int, *contents: str, first: int = 0) -> dict:
    items = [{"content": c, "position": k, "propensity": 1 / (k + 1)} for k, c in enumerate(contents, first)]
    return shown(request, user, "ID", time, items)


def table(rows: pd.DataFrame, *columns: str) -> list[tuple]:
    return list(rows[list(columns)].itertuples(index=False, name=None))


def test_each_place_is_a_row_with_what_came_of_it():
    records = [
        slate(8, "u2", T + 5, "v3"),
        slate(7, "u1", T, "v1", "v2"),
        outcome(7, "u1", T, "v2", T + 9, click=1, watch_s=12.5),
    ]
    rows = join(records).rows
    assert table(rows, "user_id", "time", "request_id", "content_id", "market", "position") == [
        ("u1", T, 7, "v1", "ID", 0),
        ("u1", T, 7, "v2", "ID", 1),
        ("u2", T + 5, 8, "v3", "ID", 0),
    ]
    assert rows["propensity"].tolist() == [1, 0.5, 1]
    assert rows["click"].tolist() == [0, 1, 0]
    assert rows["click"].dtype == np.int8
    assert rows["watch_s"].tolist() == [0, 12.5, 0]
    assert "order" not in rows, "nobody told of orders"


def test_of_an_outcome_the_latest_holds_by_when_it_happened():
    records = [
        slate(7, "u1", T, "v1"),
        outcome(7, "u1", T, "v1", T + 90, watch_s=30),
        outcome(7, "u1", T, "v1", T + 60, watch_s=20, click=1),
        outcome(7, "u1", T, "v1", T + 95, order=1, value=9.5),
        outcome(7, "u1", T, "v1", T + 99, order=0),
        outcome(7, "u1", T, "v1", T + 99, refund=1),
    ]
    (row,) = join(records).rows.to_dict("records")
    told = {name: row[name] for name in ("watch_s", "click", "order", "value", "refund")}
    assert told == {"watch_s": 30, "click": 1, "order": 0, "value": 9.5, "refund": 1}


def test_a_rating_that_nobody_gave_is_unknown_and_no_zero():
    rows = join([slate(7, "u1", T, "v1", "v2"), outcome(7, "u1", T, "v1", T, rating=-2)]).rows
    assert rows["rating"].iloc[0] == -2
    assert np.isnan(rows["rating"].iloc[1])


def test_a_request_is_named_by_user_time_and_number_together():
    records = [slate(7, "u1", T, "v1"), slate(7, "u1", T + 1, "v1"), slate(7, "u2", T, "v1")]
    made = join([*records, outcome(7, "u1", T + 1, "v1", T + 9, click=1)])
    assert table(made.rows, "user_id", "time", "click") == [("u1", T, 0), ("u2", T, 0), ("u1", T + 1, 1)]


def test_a_slate_told_of_part_by_part_is_whole():
    parts = [
        slate(7, "u1", T, "v3", first=2),
        slate(7, "u1", T, "v1", "v2"),
        slate(7, "u1", T, "v2", first=1),
    ]
    assert table(join(parts).rows, "content_id", "position") == [("v1", 0), ("v2", 1), ("v3", 2)]


def test_outcomes_of_what_was_not_shown_are_counted():
    made = join(
        [
            slate(7, "u1", T, "v1"),
            outcome(7, "u1", T, "v9", T, click=1),
            outcome(7, "u1", T, "v9", T + 1, click=1),
            outcome(6, "u1", T, "v1", T, click=1),
        ]
    )
    assert made.lost == 2
    assert made.rows["click"].tolist() == [0]


def test_nothing_makes_no_rows():
    assert len(join([]).rows) == 0
    alone = join([outcome(7, "u1", T, "v1", T, click=1)])
    assert (len(alone.rows), alone.lost) == (0, 1)
    assert join([{"event": "viewers", "content": "l1", "time": T, "viewers": 3}]).lost == 0


RECORDS = st.lists(
    st.one_of(
        st.builds(
            lambda request, user, contents: slate(request, user, T, *contents),
            st.integers(0, 1),
            st.sampled_from(["u1", "u2"]),
            st.permutations(["v1", "v2", "v3"]),
        ),
        st.builds(
            lambda request, user, content, at, name, flag: outcome(
                request, user, T, content, T + at, **{name: flag}
            ),
            st.integers(0, 1),
            st.sampled_from(["u1", "u2"]),
            st.sampled_from(["v1", "v2", "v3", "v4"]),
            st.integers(0, 3),
            st.sampled_from(["click", "order", "watch_s", "rating"]),
            st.integers(0, 1),
        ),
    ),
    max_size=12,
)


@settings(max_examples=200)
@given(RECORDS)
def test_the_join_is_what_a_loop_over_the_records_says(records):
    places: dict[tuple, dict] = {}
    came: dict[tuple, dict] = {}
    for record in records:
        request = record["user"], record["time"], record["request"]
        if record["event"] == "shown":
            for item in record["items"]:
                places.setdefault((*request, item["content"]), item)
        else:
            own = came.setdefault((*request, record["content"]), {})
            for name in {"click", "order", "watch_s", "rating"} & set(record):
                if name not in own or record["at"] >= own[name][0]:
                    own[name] = record["at"], record[name]
    made = join(records)
    assert made.lost == len(set(came) - set(places))
    assert len(made.rows) == len(places)
    for row in made.rows.to_dict("records"):
        key = row["user_id"], row["time"], row["request_id"], row["content_id"]
        assert (row["position"], row["propensity"]) == (places[key]["position"], places[key]["propensity"])
        for name in {"click", "order", "watch_s"} & set(row):
            assert row[name] == came.get(key, {}).get(name, (0, 0))[1]
        if "rating" in row:
            np.testing.assert_equal(row["rating"], float(came.get(key, {}).get("rating", (0, np.nan))[1]))
    pd.testing.assert_frame_equal(join([*records, *records]).rows, made.rows)
