"""A data set and what came back since: the next data set, with nothing lost and nothing invented."""

import json

import numpy as np
import pandas as pd
import pytest

from feedback.extend import KNOWN, UNSOLD, UNWANTED, WAITING, extend
from feedback.log import HOUR_S, FeedbackLog
from feedback.records import outcome, parse, shown
from market.dataset import Dataset, write_dataset
from market.outcomes import OUTCOMES
from market.tables import ContractError
from tests.market.test_dataset import contents, everything_in, part, users, write

T = 1_700_000_000
DAY = 86_400


@pytest.fixture
def base(tmp_path) -> Dataset:
    return write(tmp_path / "base", impressions=[part([T - 50, T], watch_s=1.5)])


def log_of(tmp_path, *records) -> FeedbackLog:
    log = FeedbackLog(tmp_path / "log")
    log.append(records)
    return log


def one(request: int, time: int, user: str = "u1", content: str = "c0", market: str = "ID") -> dict:
    return shown(request, user, market, time, [{"content": content, "position": 0, "propensity": 1}])


def grown(base, tmp_path, *records, **options):
    log = log_of(tmp_path, *records)
    return extend(base, log.folder, tmp_path / "next", **{"wait_s": 0, "until": T + 10 * DAY} | options)


def test_a_log_that_was_cut_off_and_told_again_is_the_same_data_set(small_world_dataset, tmp_path):
    """The last third of a simulated log, taken away and sent as clients send it."""
    whole = small_world_dataset
    rows = whole.impressions()
    cut = int(rows["time"].quantile(2 / 3))
    early, late = rows[rows["time"] <= cut], rows[rows["time"] > cut]
    entities = {"users": whole.users(), "contents": whole.contents(), "sellers": whole.sellers()}
    base = write_dataset(
        tmp_path / "base",
        name=whole.name,
        feedback="impressions",
        split="time",
        **entities,
        impressions=[early],
        moments=whole.moments,
    )
    named = [name for name in OUTCOMES if name in rows]
    records = []
    told = late.rename(columns={"content_id": "content"}).astype(object)
    for _, slate in told.groupby(["user_id", "time", "request_id"], sort=False):
        items = slate[["content", "position", "propensity"]].to_dict("records")
        request, user, market, time = slate.iloc[0][["request_id", "user_id", "market", "time"]]
        records.append(shown(request, user, market, time, items))
        for row in slate.to_dict("records"):
            came = {name: row[name] for name in named if row[name]}
            if came:
                records.append(outcome(request, user, time, row["content"], time + 60, **came))
    order = np.random.default_rng(0).permutation(len(records))
    log = FeedbackLog(tmp_path / "log")
    log.append([parse(json.dumps(records[k]), 1.8e9) for k in order])
    done = []
    made, taken = extend(
        base, log.folder, tmp_path / "next", until=2**31, progress=lambda now, of: done.append((now, of))
    )
    assert (taken.rows, taken.lost, taken.damaged, taken.why_left()) == (len(late), 0, 0, "")
    assert taken.remarks() == []
    assert done[-1] == (len(log.hours()), len(log.hours()))
    key = ["time", "user_id", "position"]
    found, expected = (
        frame.sort_values(key, ignore_index=True) for frame in (made.impressions(), whole.impressions())
    )
    number = ["request_id"]
    pd.testing.assert_frame_equal(found.drop(columns=number), expected.drop(columns=number))
    told = pd.DataFrame({"found": found["request_id"], "expected": expected["request_id"]}).drop_duplicates()
    assert told["found"].is_unique
    assert told["expected"].is_unique
    assert made.impressions()["request_id"].is_monotonic_increasing
    pd.testing.assert_frame_equal(made.users(), whole.users())
    pd.testing.assert_frame_equal(made.moments(), whole.moments())
    assert made.description == Dataset.open(made.path).description
    assert made.description.rows == whole.description.rows


def test_rows_have_the_columns_of_the_data_set_and_no_others(base, tmp_path):
    made, taken = grown(
        base, tmp_path, one(1, T + 5), one(2, T + 6), outcome(1, "u1", T + 5, "c0", T + 9, click=1, like=1)
    )
    assert made.impression_columns == base.impression_columns
    rows = made.impressions()
    assert rows["click"].tolist() == [1, 1, 1, 0]
    assert rows["watch_s"].tolist() == [1.5, 1.5, 0, 0]
    assert taken.unasked == {"like": 1}
    (said,) = taken.remarks()
    assert said == "1 outcomes 'like' are left out: a data set that has this column takes them"


def test_what_the_data_set_reaches_past_and_what_may_still_change_are_left_out(base, tmp_path):
    records = [one(1, T - 1), one(2, T), one(3, T + 1), one(4, T + DAY), one(5, T + DAY + 1)]
    made, taken = grown(base, tmp_path, *records, wait_s=DAY, until=T + 2 * DAY)
    assert made.impressions()["time"].tolist() == [T - 50, T, T + 1]
    assert (taken.left[KNOWN], taken.rows, taken.left[WAITING]) == (2, 1, 2)


def test_extended_again_it_has_what_waited_and_nothing_twice(base, tmp_path):
    first, _ = grown(base, tmp_path, one(1, T + 1), one(2, T + DAY), wait_s=DAY, until=T + DAY + 60)
    log_of(tmp_path, outcome(2, "u1", T + DAY, "c0", T + 2 * DAY, click=1), one(3, T + DAY + 7))
    second, taken = extend(first, tmp_path / "log", tmp_path / "second", until=T + 3 * DAY)
    assert second.impressions()["time"].tolist() == [T - 50, T, T + 1, T + DAY, T + DAY + 7]
    assert second.impressions()["click"].tolist() == [1, 1, 0, 1, 0]
    assert (taken.left[KNOWN], taken.rows) == (1, 2)


@pytest.mark.parametrize(("most", "first"), [(17, 18), (2**63 - 1, 4)], ids=["counted", "hashed"])
def test_requests_are_numbered_on_whatever_numbers_clients_gave(tmp_path, most, first):
    """A number names a request of a person, and a client that was started anew counts from 1 again."""
    base = write(tmp_path / "base", impressions=[part([T - 9, T], request_id=[3, most])])
    both = [{"content": c, "position": k, "propensity": 1} for k, c in enumerate(["c0", "c1"])]
    made, _ = grown(
        base,
        tmp_path,
        shown(most, "u0", "ID", T + 5, both),
        one(most, T + 5, "u1"),
        one(most, T + 7200, "u0"),
        one(1, T + 7200, "u0"),
    )
    assert made.impressions()["request_id"].tolist()[2:] == [first, first, first + 1, first + 2, first + 3]


def test_large_numbers_that_are_near_name_different_requests(tmp_path):
    base = write(tmp_path / "base", impressions=[part([T - 9, T], request_id=[3, 4])])
    made, _ = grown(base, tmp_path, *(one(2**60 + k, T + 5) for k in range(3)))
    assert made.impressions()["request_id"].tolist()[2:] == [5, 6, 7]


def test_requests_of_later_times_never_get_a_number_again(tmp_path):
    """Where the data set's own are hashes, those that were given here are counted on."""
    base = write(tmp_path / "base", impressions=[part([T - 9, T], request_id=[-5, 2**63 - 1])])
    first, _ = grown(base, tmp_path, one(7, T + 5), one(7, T + 6), until=T + 7)
    log_of(tmp_path, one(7, T + DAY))
    second, _ = extend(first, tmp_path / "log", tmp_path / "second", wait_s=0, until=T + 2 * DAY)
    assert second.impressions()["request_id"].tolist()[2:] == [0, 1, 2]


def test_of_hours_that_still_wait_nothing_is_called_lost(base, tmp_path):
    late = (T // HOUR_S + 3) * HOUR_S
    early = outcome(1, "u1", T + 5, "c1", T + 9, click=1)
    log_of(tmp_path, outcome(3, "u1", late, "c0", late, click=1))
    with (tmp_path / "log" / sorted(f.name for f in (tmp_path / "log").iterdir())[-1]).open("ab") as file:
        file.write(b"half a li")
    _, taken = grown(base, tmp_path, one(1, T + 5), early, until=late)
    assert (taken.rows, taken.lost, taken.damaged) == (1, 1, 0)


def test_what_was_called_lost_once_is_not_called_so_again(base, tmp_path):
    log_of(tmp_path, one(1, T + 5), outcome(1, "u1", T + 5, "c1", click=1))
    log_of(tmp_path, one(2, T + 10), outcome(2, "u1", T + 10, "c1", click=1))
    first, taken = extend(base, tmp_path / "log", tmp_path / "first", wait_s=0, until=T + 6)
    assert (taken.rows, taken.lost, taken.left[WAITING]) == (1, 1, 1)
    _, taken = extend(first, tmp_path / "log", tmp_path / "second", wait_s=0, until=T + DAY)
    assert (taken.rows, taken.lost, taken.left[KNOWN]) == (1, 1, 1)


def test_users_whom_only_the_log_knows_are_added_with_their_market(tmp_path):
    known = users().assign(x_level=[1, 2, 3], age_band=["18", None, "35"])
    base = write(tmp_path / "base", impressions=[part([T])], users=known)
    made, taken = grown(base, tmp_path, one(1, T + 5, "new", market="GB"), one(2, T + 6, "new", market="ID"))
    assert taken.people == 1
    found = made.users()
    assert found["user_id"].tolist() == ["u0", "u1", "u2", "new"]
    assert found["market"].tolist() == ["ID", "GB", "ID", "GB"]
    assert found["x_level"].tolist() == ["1", "2", "3", None], "whole numbers stay categories, digit by digit"
    assert found["age_band"].tolist() == ["18", None, "35", None]


def test_a_new_user_of_many_hours_joins_once_and_the_others_keep_what_they_are(tmp_path):
    known = users().assign(x_size=[0.5, 1.5, None], x_team=["a", None, "b"], x_vip=[True, False, True])
    base = write(tmp_path / "base", impressions=[part([T])], users=known)
    made, taken = grown(base, tmp_path, *(one(k, T + 5 + k * HOUR_S, "new") for k in range(3)))
    assert (taken.rows, taken.people) == (3, 1)
    found = made.users()
    assert found["user_id"].tolist() == ["u0", "u1", "u2", "new"]
    np.testing.assert_equal(found["x_size"].to_numpy(), np.float32([0.5, 1.5, np.nan, np.nan]))
    assert found["x_team"].tolist() == ["a", None, "b", None]
    assert found["x_vip"].tolist() == ["1", "0", "1", None]


def test_markets_in_which_nothing_is_sold_are_left_out_since_no_model_can_learn_of_them(base, tmp_path):
    made, taken = grown(base, tmp_path, one(1, T + 5), one(2, T + 6, market="BR"))
    assert taken.left[UNSOLD] == 1
    assert made.markets == base.markets


def test_contents_that_the_catalogue_does_not_have_are_left_out_and_told(base, tmp_path):
    made, taken = grown(base, tmp_path, one(1, T + 5), one(2, T + 6, content="c9"))
    assert taken.rows == 1
    assert taken.why_left() == "1 are of contents that the catalogue does not have (--tables)"
    assert "c9" not in made.impressions()["content_id"].tolist()


def test_a_newer_catalogue_takes_the_place_of_the_old(base, tmp_path):
    more = pd.concat([contents(), contents().head(1).assign(content_id="c9", x_level=3)], ignore_index=True)
    (tmp_path / "now").mkdir()
    more.to_parquet(tmp_path / "now" / "contents.parquet")
    made, taken = grown(base, tmp_path, one(2, T + 6, content="c9"), tables=tmp_path / "now")
    assert taken.why_left() == ""
    assert made.contents()["content_id"].tolist() == ["c0", "c1", "c9"]
    assert made.impressions()["content_id"].tolist() == ["c0", "c0", "c9"]


@pytest.mark.parametrize("file", ["users.parquet", "users.parquet/part-0.parquet"])
def test_users_as_they_are_now_take_the_place_of_the_old(base, tmp_path, file):
    (tmp_path / "now" / file).parent.mkdir(parents=True)
    now = users().assign(language="id", x_vip=[True, False, True])
    now.to_parquet(tmp_path / "now" / file)
    made, _ = grown(base, tmp_path, one(1, T + 5, "new"), tables=tmp_path / "now")
    assert made.users()["language"].tolist() == ["id", "id", "id", None]


def test_tables_within_what_is_replaced_stay(base, tmp_path):
    made, _ = grown(base, tmp_path, one(1, T + 5))
    (made.path / "now").mkdir()
    users().to_parquet(made.path / "now" / "users.parquet")
    with pytest.raises(ValueError, match=r"lies in .*, which is to be replaced"):
        extend(made, tmp_path / "log", made.path, tables=made.path / "now", wait_s=0, overwrite=True)


def test_tables_that_are_not_there_or_wrong_are_told(base, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere has none of users\.parquet, contents\.parquet"):
        grown(base, tmp_path, one(1, T + 5), tables=tmp_path / "nowhere")
    (tmp_path / "now").mkdir()
    contents().drop(columns="content_id").to_parquet(tmp_path / "now" / "contents.parquet")
    with pytest.raises(ContractError, match=r"contents\.content_id: the column is missing"):
        grown(base, tmp_path, tables=tmp_path / "now")


def test_a_log_and_a_data_set_that_lie_in_each_other_are_refused(base, tmp_path):
    log = log_of(tmp_path, one(1, T + 5)).folder
    for path in (log, log / "next", tmp_path):
        with pytest.raises(ValueError, match="lie in each other; choose another --out"):
            extend(base, log, path, overwrite=True, wait_s=0)
    assert len(list(log.iterdir())) == 1


def test_a_column_of_splits_that_nobody_reads_does_no_harm(tmp_path):
    base = write(tmp_path / "base", impressions=[part([T], split="test")])
    made, _ = grown(base, tmp_path, one(1, T + 5))
    assert made.impressions()["split"].tolist() == ["test", "train"]


def test_a_catalogue_that_lost_what_the_impressions_refer_to_is_refused(base, tmp_path):
    (tmp_path / "now").mkdir()
    contents().tail(1).to_parquet(tmp_path / "now" / "contents.parquet")
    with pytest.raises(ContractError, match="not in contents"):
        grown(base, tmp_path, one(1, T + 5, content="c1", market="GB"), tables=tmp_path / "now")
    assert not (tmp_path / "next").exists()


def test_what_happened_in_rooms_becomes_moments_after_those_that_are_known(tmp_path):
    said = pd.DataFrame({"content_id": ["c1"], "time": [T], "viewers": [5], "showing": [None]})
    base = write(tmp_path / "base", impressions=[part([T])], moments=lambda: said)
    made, taken = grown(
        base,
        tmp_path,
        one(1, T + 5),
        {"event": "viewers", "content": "c1", "time": T, "viewers": 7},
        {"event": "viewers", "content": "c1", "time": T + 9, "viewers": 8},
        {"event": "showing", "content": "c1", "time": T + 8, "product": "c0"},
        {"event": "showing", "content": "c1", "time": T + 8, "product": "nobody's"},
        {"event": "stock", "content": "c0", "time": T + 7, "stock": 2},
        {"event": "stock", "content": "c9", "time": T + 7, "stock": 2},
        {"event": "ended", "content": "c1", "time": T + 10},
    )
    assert taken.moments == 3
    rows = made.moments()
    assert rows["content_id"].tolist() == ["c1", "c0", "c1", "c1"]
    assert rows["time"].tolist() == [T, T + 7, T + 8, T + 9]
    assert rows["showing"].tolist() == [None, None, "c0", None]
    np.testing.assert_equal(rows["viewers"].to_numpy(), [5, np.nan, np.nan, 8])
    np.testing.assert_equal(rows["stock"].to_numpy(), [np.nan, 2, np.nan, np.nan])


def test_a_statement_that_lies_ahead_holds_from_when_it_was_taken_in_and_hides_none(base, tmp_path):
    """As the live state has it; and one of an hour before the last impression is not forgotten."""
    ahead = {"event": "viewers", "content": "c1", "time": T + DAY, "viewers": 7, "taken": T + 60}
    early = {"event": "stock", "content": "c0", "time": T - 3 * HOUR_S, "stock": 4}
    first, _ = grown(base, tmp_path, one(1, T + 5), ahead, early, until=T + HOUR_S)
    assert first.moments()["time"].tolist() == [T - 3 * HOUR_S, T + 60]
    log_of(
        tmp_path, one(2, T + HOUR_S), {"event": "viewers", "content": "c1", "time": T + 7300, "viewers": 9}
    )
    second, taken = extend(first, tmp_path / "log", tmp_path / "second", wait_s=0, until=T + DAY)
    assert taken.moments == 1
    assert second.moments()["time"].tolist() == [T - 3 * HOUR_S, T + 60, T + 7300]


def test_statements_wait_as_impressions_do(base, tmp_path):
    late = {"event": "viewers", "content": "c1", "time": T + 600, "viewers": 7}
    made, taken = grown(base, tmp_path, one(1, T + 5), late, until=T + 600)
    assert (taken.moments, made.moments()) == (0, None)


def test_a_data_set_without_moments_gets_those_of_the_log(base, tmp_path):
    made, _ = grown(
        base, tmp_path, one(1, T + 5), {"event": "viewers", "content": "c1", "time": T - 9, "viewers": 7}
    )
    assert made.moments()["viewers"].tolist() == [7]


def test_where_only_what_was_wanted_is_kept_the_rest_is_left_out(tmp_path):
    base = write(tmp_path / "base", impressions=[part([T])], feedback="positives")
    made, taken = grown(
        base, tmp_path, one(1, T + 5), one(2, T + 6), outcome(2, "u1", T + 6, "c0", T + 9, click=1)
    )
    assert (taken.rows, taken.left[UNWANTED]) == (1, 1)
    assert made.impressions()["time"].tolist() == [T, T + 6]


def test_where_wanting_has_no_flag_what_was_told_of_was_wanted(tmp_path):
    rated = part([T], rating=4.0).drop(columns="click")
    base = write(tmp_path / "base", impressions=[rated], feedback="positives")
    records = one(1, T + 5), one(2, T + 6), outcome(2, "u1", T + 6, "c0", T + 9, rating=0, like=1)
    made, taken = grown(base, tmp_path, *records)
    assert made.impressions()["rating"].tolist() == [4, 0]
    assert taken.left[UNWANTED] == 1
    assert taken.unasked == {"like": 1}


def test_large_logs_are_written_in_parts_in_the_order_of_time(base, tmp_path, monkeypatch):
    monkeypatch.setattr("feedback.extend.PART_ROWS", 3)
    records = [one(k, T + 1 + k * HOUR_S // 2) for k in range(12)]
    made, _ = grown(base, tmp_path, *reversed(records))
    assert made.impressions()["time"].tolist() == [T - 50, T, *(r["time"] for r in records)]
    assert len(made.impression_files) > 3


def test_nothing_to_add_is_an_error_that_says_why_and_writes_nothing(base, tmp_path):
    why = (
        r"has nothing to add to tiny: 1 are not after its last, 2 wait for what may still come of them "
        r"\(--wait-hours\), 1 are of contents"
    )
    records = one(1, T), one(2, T + DAY), one(3, T + DAY + 5), one(4, T + 3, content="c9")
    with pytest.raises(ValueError, match=why):
        grown(base, tmp_path, *records, wait_s=DAY, until=T + 2 * DAY)
    assert not (tmp_path / "next").exists()
    assert not list(tmp_path.glob(".next*")), "no half-read log is left"


def test_what_nothing_can_come_after_is_refused(base, tmp_path):
    given = write(tmp_path / "given", impressions=[part([T], split="train")], split="given")
    with pytest.raises(ValueError, match="a given split"):
        grown(given, tmp_path, one(1, T + 5))
    with pytest.raises(ValueError, match="nowhere is no folder"):
        extend(base, tmp_path / "nowhere", tmp_path / "next")


def test_the_data_set_before_stays_as_it_is_and_another_is_replaced_only_when_told(base, tmp_path):
    before = everything_in(base.path)
    made, _ = grown(base, tmp_path, one(1, T + 5))
    assert everything_in(base.path) == before
    with pytest.raises(FileExistsError):
        grown(base, tmp_path)
    again, _ = grown(base, tmp_path, overwrite=True)
    assert everything_in(again.path) == everything_in(made.path)
