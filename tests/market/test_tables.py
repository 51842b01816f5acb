"""The contract: what it accepts, what it refuses, and what it says then."""

import time
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.calendar import END_S
from market.outcomes import FLAGS, OUTCOMES
from market.tables import CONTRACT, ContractError, Problem, Tables, stored_schema, validate


def users() -> pd.DataFrame:
    return pd.DataFrame({"user_id": ["u1", "u2"], "market": ["ID", "GB"], "language": ["id", None]})


def contents() -> pd.DataFrame:
    return pd.DataFrame(
        {"content_id": ["c1", "c2"], "kind": ["video", "live"], "markets": [["ID"], ["ID", "GB"]]}
    )


def impressions() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": ["u1", "u1", "u2"],
            "content_id": ["c1", "c2", "c2"],
            "market": ["ID", "ID", "GB"],
            "time": [1_700_000_000, 1_700_000_001, 1_700_000_002],
            "click": [0, 1, 1],
        }
    )


def tables(**changes) -> Tables:
    whole = {
        "name": "tiny",
        "feedback": "impressions",
        "split": "time",
        "users": users(),
        "contents": contents(),
        "impressions": impressions(),
    }
    return Tables(**(whole | changes))


def problems_of(**changes) -> list[Problem]:
    with pytest.raises(ContractError) as caught:
        validate(tables(**changes))
    return caught.value.problems


def only_problem_of(**changes) -> Problem:
    (problem,) = problems_of(**changes)
    return problem


def test_valid_tables_come_back_in_the_declared_types():
    valid = validate(
        tables(
            users=users().assign(x_city="a", x_age=[30.5, None], x_level=np.array([1, 2], np.int8)),
            impressions=impressions().assign(position=[0, 1, 0], propensity=0.5, order=[True, False, True]),
        )
    )
    assert valid.impressions.dtypes.astype(str).to_dict() == {
        "user_id": "object",
        "content_id": "object",
        "market": "object",
        "time": "int64",
        "position": "int16",
        "propensity": "float32",
        "click": "int8",
        "order": "int8",
    }
    assert valid.users["language"].tolist() == ["id", None]
    assert valid.users["x_age"].dtype == np.float32
    assert valid.users["x_level"].dtype == np.int64


def test_the_given_frames_are_left_as_they_were():
    given_users, given_impressions = users(), impressions()
    validate(tables(users=given_users, impressions=given_impressions))
    pd.testing.assert_frame_equal(given_users, users())
    pd.testing.assert_frame_equal(given_impressions, impressions())


def test_text_may_come_as_categories_or_pandas_strings():
    valid = validate(tables(users=users().astype({"user_id": "string", "market": "category"})))
    assert valid.users["user_id"].tolist() == ["u1", "u2"]
    assert valid.users["market"].dtype == object


@pytest.mark.parametrize("missing", [[1_600_000_000, None], pd.array([1_600_000_000, None], "Int64")])
def test_a_whole_number_may_be_missing_where_the_contract_allows_it(missing):
    ended = validate(tables(contents=contents().assign(ended_at=missing))).contents["ended_at"]
    assert ended.dtype == np.float64
    assert ended.tolist()[0] == 1_600_000_000
    assert np.isnan(ended[1])


@pytest.mark.parametrize("null", [None, np.nan, pd.NA, pd.NaT])
def test_a_column_of_nulls_alone_may_hold_any_kind_of_them(null):
    made = validate(tables(contents=contents().assign(price=null, stock=null, category=null))).contents
    assert made[["price", "stock", "category"]].isna().all(axis=None)
    assert (made["price"].dtype, made["stock"].dtype) == (np.float32, np.float64)


def test_an_unknown_column_is_refused_by_name():
    problem = only_problem_of(users=users().assign(shoe_size=42))
    assert (problem.table, problem.column) == ("users", "shoe_size")
    assert "x_<name>" in problem.remedy


def test_attributes_are_not_taken_on_impressions():
    assert only_problem_of(impressions=impressions().assign(x_page=1)).column == "x_page"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("x_colour/size", ["red", "blue"]),
        ("x_colour size", ["red", "blue"]),
        ("x_größe", ["S", "M"]),
        ("x_" + "n" * 199, ["a", "b"]),
        ("v_a/b", [[1.0], [2.0]]),
    ],
)
def test_a_column_that_no_file_can_be_named_after_is_refused(column, values):
    problem = only_problem_of(contents=contents().assign(**{column: values}))
    assert (problem.table, problem.column, problem.rows) == ("contents", column, 0)
    assert "rename it, with at most 200 of A to Z" in problem.remedy


@pytest.mark.parametrize("value", [Decimal("1.5"), pd.Timestamp("2026-01-01"), ["a", "b"]])
def test_an_attribute_of_another_kind_is_told_what_to_become(value):
    problem = only_problem_of(contents=contents().assign(x_weight=[value, value]))
    assert (problem.column, problem.rows) == ("x_weight", 2)
    assert "make it text or whole numbers (a category) or floats (an amount)" in problem.remedy


def test_a_missing_column_is_named():
    problem = only_problem_of(contents=contents().drop(columns="kind"))
    assert (problem.table, problem.column) == ("contents", "kind")
    assert "missing" in problem.remedy


@pytest.mark.parametrize("table", ["users", "contents"])
def test_a_repeated_key_is_refused(table):
    frame = {"users": users(), "contents": contents()}[table]
    problem = only_problem_of(**{table: pd.concat([frame, frame.head(1)])})
    assert (problem.table, problem.column, problem.rows) == (table, f"{table[:-1]}_id", 2)


@pytest.mark.parametrize(
    ("column", "values", "rows"),
    [
        ("market", ["ID", "QQ", "id"], 2),
        ("market", ["ID", None, "GB"], 1),
        ("user_id", ["u1", 7, "u2"], 1),
        ("user_id", ["u1", "", "u2"], 1),
        ("user_id", ["u1", "u\0", "u2"], 1),
        ("user_id", ["u1", "u" * 257, "u2"], 1),
        ("time", [1_700_000_000_000, 1, 2], 1),
        ("time", [1.5, 2, 3], 1),
        ("time", pd.to_datetime(["2024-01-01"] * 3), 3),
        ("click", [0, 2, -1], 2),
        ("click", [0.5, 1, 0], 1),
        ("click", [0, 1, None], 1),
        ("propensity", [0.0, 1.0, 1.1], 2),
        ("propensity", [1e-60, 1.0, 0.5], 1),
        ("request_id", [2.0**63, 1.0, -(2.0**63)], 1),
        ("request_id", np.array([2**63, 1, 2], np.uint64), 1),
        ("position", [0, -1, 40_000], 2),
        ("watch_s", [-1.0, np.inf, np.nan], 2),
        ("watch_s", ["1", "2", "3"], 3),
        ("rating", [np.inf, 1.0, np.nan], 1),
        ("split", ["train", "dev", "test"], 1),
    ],
)
def test_a_wrong_value_is_counted_shown_and_explained(column, values, rows):
    problem = only_problem_of(impressions=impressions().assign(**{column: values}))
    assert (problem.table, problem.column, problem.rows) == ("impressions", column, rows)
    assert str(problem).startswith(f"impressions.{column} in {rows} row")
    assert problem.remedy


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("markets", ["ID", ["GB"]]),
        ("markets", [[], ["GB"]]),
        ("markets", [None, ["GB"]]),
        ("markets", [["ID"], ["GB", "Atlantis"]]),
        ("kind", ["video", "podcast"]),
        ("language", ["Indonesian", "id"]),
        ("currency", ["IDR", "rupiah"]),
        ("currency", ["IDR", "KRW"]),
        ("duration_s", [-3.0, 2.0]),
        ("stock", [1, 2**31]),
        ("v_image", [[1.0, 2.0], [1.0]]),
        ("v_image", [[1.0, 2.0], [1.0, np.nan]]),
        ("v_image", [[1.0], "no vector"]),
        ("v_image", [np.zeros(2), np.zeros((2, 2))]),
        ("v_image", [[1.0, 2.0], [1.0, [2.0]]]),
        ("v_image", [[1.0, 2.0], ["a", "b"]]),
        ("v_image", [["1", "2"], [1.0, 2.0]]),
        ("v_image", [[True, False], [1.0, 2.0]]),
        ("v_image", [[Decimal(1), Decimal(2)], [1.0, 2.0]]),
        ("v_image", [3.0, [1.0, 2.0]]),
        ("x_topic", [["a"], "b"]),
    ],
)
def test_a_wrong_attribute_of_a_content_is_one_row_to_mend(column, values):
    problem = only_problem_of(contents=contents().assign(**{column: values}))
    assert (problem.table, problem.column, problem.rows) == ("contents", column, 1)


@pytest.mark.parametrize("dtype", ["int64", "Int64"])
def test_request_ids_are_any_64_bits(dtype):
    ends = pd.array([-(2**63), 2**63 - 1, 0], dtype)
    valid = validate(tables(impressions=impressions().assign(request_id=ends)))
    assert valid.impressions["request_id"].tolist() == [-(2**63), 2**63 - 1, 0]


def test_vectors_of_one_length_are_kept():
    valid = validate(tables(contents=contents().assign(v_image=[[1.0, 2.0], np.zeros(2)])))
    assert [len(vector) for vector in valid.contents["v_image"]] == [2, 2]


def test_vectors_of_any_numbers_are_those_that_fit_the_disk():
    """Arrow refuses to make a float32 of a whole number that it cannot tell from others."""
    valid = validate(tables(contents=contents().assign(v_code=[[1, 2**24 + 1], np.array([0.1, 2])])))
    assert {vector.dtype for vector in valid.contents["v_code"]} == {np.dtype(np.float32)}
    stored = arrow.Table.from_pandas(valid.contents, stored_schema("contents", valid.contents))
    assert stored["v_code"].to_pylist() == [[1, 2**24], [np.float32(0.1), 2]]


def test_a_moment_that_is_no_number_is_to_be_made_one():
    when = pd.to_datetime(["2026-03-02"] * 3)
    assert "seconds since 1970 in UTC" in only_problem_of(impressions=impressions().assign(time=when)).remedy


@pytest.mark.parametrize(("column", "target"), [("user_id", "users"), ("content_id", "contents")])
def test_an_impression_of_the_unknown_is_refused(column, target):
    problem = only_problem_of(impressions=impressions().assign(**{column: ["ghost"] * 3}))
    assert (problem.column, problem.rows, problem.example) == (column, 3, "ghost")
    assert target in problem.remedy


def test_a_content_of_an_unknown_seller_is_refused_where_sellers_are_known():
    sold = contents().assign(seller_id=["s1", "s9"])
    validate(tables(contents=sold))
    sellers = pd.DataFrame({"seller_id": ["s1"], "market": ["ID"]})
    problem = only_problem_of(contents=sold, sellers=sellers)
    assert (problem.column, problem.rows, problem.example) == ("seller_id", 1, "s9")
    validate(tables(contents=contents().assign(seller_id=["s1", None]), sellers=sellers))


@pytest.mark.parametrize("table", ["users", "contents", "sellers"])
def test_keys_that_are_lists_or_occur_twice_are_told_of(table):
    key = {"users": "user_id", "contents": "content_id", "sellers": "seller_id"}[table]
    sellers = pd.DataFrame({"seller_id": ["s1", "s2"], "market": ["ID", "GB"]})
    frame = {"users": users(), "contents": contents(), "sellers": sellers}[table]
    with_sellers = {"sellers": sellers, "contents": contents().assign(seller_id="s1")}
    for broken in (frame.assign(**{key: [["a"], ["b"]]}), pd.concat([frame, frame[[key]]], axis=1)):
        problems = problems_of(**(with_sellers | {table: broken}))
        assert (table, key) in {(problem.table, problem.column) for problem in problems}


def test_a_price_needs_a_currency():
    priced = contents().assign(price=[10.0, None])
    assert only_problem_of(contents=priced).rows == 1
    assert only_problem_of(contents=priced.assign(currency=[None, "IDR"])).column == "price"
    validate(tables(contents=priced.assign(currency=["IDR", None])))


@pytest.mark.parametrize("dtype", ["int64", "float64", "Int64"])
def test_what_ended_before_it_was_created_is_refused(dtype):
    created, ended = pd.array([200, 300], dtype), pd.array([199, 300], dtype)
    problem = only_problem_of(contents=contents().assign(created_at=created, ended_at=ended))
    assert (problem.column, problem.rows, problem.example) == ("ended_at", 1, 199)
    assert problem.remedy.startswith("before its `created_at`, 200; ")
    for missing in ("created_at", "ended_at"):
        known = contents().assign(created_at=created, ended_at=ended)
        known[missing] = pd.array([None, 300], "Int64")
        validate(tables(contents=known))
    problem = only_problem_of(contents=contents().assign(created_at=["200", "300"], ended_at=ended))
    assert problem.column == "created_at"
    problem = only_problem_of(contents=contents().assign(created_at=[np.inf, 300], ended_at=ended))
    assert (problem.column, problem.rows) == ("created_at", 1)


def test_impressions_without_any_outcome_are_refused():
    assert only_problem_of(impressions=impressions().drop(columns="click")).column == "outcomes"


def test_each_split_needs_its_column():
    untimed = impressions().drop(columns="time")
    assert only_problem_of(impressions=untimed).column == "time"
    assert only_problem_of(impressions=untimed, split="leave_last").column == "time"
    assert only_problem_of(impressions=untimed, split="given").column == "split"
    validate(tables(impressions=untimed.assign(split="train"), split="given"))


def test_positive_feedback_has_an_outcome_in_each_row():
    assert only_problem_of(feedback="positives").rows == 1
    validate(tables(feedback="positives", impressions=impressions().assign(like=[1, 0, 0])))
    assert (
        only_problem_of(feedback="positives", impressions=impressions().assign(negative=[1, 0, 0])).rows == 1
    )  # disliking is no positive interaction
    [problem] = problems_of(feedback="positives", impressions=impressions().assign(refund=[1, 0, 0]))
    assert (problem.column, problem.rows) == ("click", 1)
    assert problem.remedy.startswith("none of click is 1, yet the feedback is 'positives'")


def test_languages_that_mean_the_same_come_back_in_one_form():
    said = tables(
        users=users().assign(language=["TL", None]), contents=contents().assign(language=["in", "pt-br"])
    )
    valid = validate(said)
    assert valid.users["language"].tolist() == ["fil", None]
    assert valid.contents["language"].tolist() == ["id", "pt-BR"]
    assert said.users["language"].tolist() == ["TL", None]


def test_times_end_with_the_last_second_that_a_calendar_knows():
    validate(tables(impressions=impressions().assign(time=END_S - 1)))
    assert only_problem_of(impressions=impressions().assign(time=END_S)).column == "time"


def test_all_problems_are_listed_at_once_a_line_apiece():
    with pytest.raises(ContractError) as caught:
        validate(
            tables(
                users=users().assign(market="QQ"), impressions=impressions().assign(click=7, content_id="x")
            )
        )
    named = [(p.table, p.column) for p in caught.value.problems]
    assert named == [("users", "market"), ("impressions", "click"), ("impressions", "content_id")]
    assert len(str(caught.value).splitlines()) == 4


def test_a_wrong_vector_is_shown_in_one_short_line_however_long_it_is():
    wrong = np.full(128, np.nan, np.float32)
    problem = only_problem_of(contents=contents().assign(v_image=[np.zeros(128), wrong]))
    assert str(problem).startswith("contents.v_image in 1 row (such as array([nan, nan, ")
    assert "\n" not in str(problem)
    assert len(str(problem)) < 250


@settings(max_examples=60)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.sampled_from(FLAGS))
def test_a_flag_is_0_or_1_and_every_other_row_is_counted(values, flag):
    frame = impressions().iloc[[0] * len(values)].drop(columns="click").assign(**{flag: values})
    wrong = sum(value not in (0, 1) for value in values)
    if wrong:
        assert only_problem_of(impressions=frame).rows == wrong
    else:
        assert validate(tables(impressions=frame)).impressions[flag].tolist() == values


def test_every_outcome_is_a_column_of_the_impressions():
    assert set(OUTCOMES) <= set(CONTRACT["impressions"])
    assert all(CONTRACT["impressions"][flag].dtype == "int8" for flag in FLAGS)


def test_a_hundred_thousand_impressions_take_a_fraction_of_a_second_of_cpu():
    many = impressions().iloc[np.arange(100_000) % 3]
    started = time.process_time()
    validate(tables(impressions=many))
    assert time.process_time() - started < 3  # about 0.1 s; a check per value takes more
