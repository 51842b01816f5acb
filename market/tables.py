"""The contract of the tables that every data set is made of: users, contents, sellers, impressions.

What a data set lacks is absent or null, never invented. `validate` runs once, at the border: what it returns
has the declared types, and everything behind it relies on them. A column of whole numbers that misses some
values is float64 with NaN in memory (pandas has no other plain way) and integers with nulls on disk.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pandera
import pyarrow as arrow
from pandas.api.types import infer_dtype, is_bool_dtype, is_float_dtype, is_integer_dtype, is_numeric_dtype

from market.calendar import END_S
from market.ids import LONGEST_ID, is_id
from market.kinds import KINDS
from market.languages import canonical, is_code
from market.outcomes import FLAGS, OUTCOMES, POSITIVE_OUTCOMES
from market.profiles import KNOWN, MARKETS, is_market

Feedback = Literal["impressions", "positives"]
Split = Literal["time", "leave_last", "given"]
DType = Literal["str", "int64", "int32", "int16", "int8", "float32", "list<str>", "list<float32>"]

SPLITS = ("train", "valid", "test")
_ARROW: dict[DType, arrow.DataType] = {
    "str": arrow.string(),
    "int64": arrow.int64(),
    "int32": arrow.int32(),
    "int16": arrow.int16(),
    "int8": arrow.int8(),
    "float32": arrow.float32(),
    "list<str>": arrow.list_(arrow.string()),
    "list<float32>": arrow.list_(arrow.float32()),
}

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
"""What a column may be called: files of a build and of a release are named after it."""

_EXAMPLE = 80
"""Characters of a wrong value that a message shows."""

Mask = Callable[[pd.Series], Any]
"""Says of each value of a column whether it is right; what it says of null values is not looked at."""


@dataclass(frozen=True)
class Rule:
    """What the values of a column must satisfy, and what to do where they do not."""

    holds: Mask
    remedy: str


@dataclass(frozen=True)
class Column:
    """One column of a contract. A column that is not `required` may be absent; of values that mean the same
    `form` makes one, where there is such a thing. `retype` says what to do where the type is wrong, if not
    what is said of all columns of this `dtype`."""

    dtype: DType
    rule: Rule
    required: bool = False
    nullable: bool = True
    unique: bool = False
    form: Callable[[Any], Any] | None = None
    retype: str | None = None


@dataclass(frozen=True)
class Problem:
    """One way in which a table breaks its contract; `rows` is 0 where the column itself is at fault."""

    table: str
    column: str
    rows: int
    example: Any
    remedy: str

    def __str__(self) -> str:
        example = " ".join(repr(self.example).split())  # of a vector, too, one line that can be read
        if len(example) > _EXAMPLE:
            example = example[:_EXAMPLE] + "…"
        where = f" in {self.rows:,} row{'s' * (self.rows != 1)} (such as {example})" if self.rows else ""
        return f"{self.table}.{self.column}{where}: {self.remedy}"


class ContractError(ValueError):
    """Tables that break their contract; `problems` holds each one, and so does the text, a line apiece.

    Args:
        where: the file of a table of several, of which this is told.
    """

    def __init__(self, problems: Iterable[Problem], where: object = None) -> None:
        self.problems = list(problems)
        of = f"the tables break their contract{f' in {where}' if where else ''}:"
        super().__init__("\n".join([of, *(f"- {p}" for p in self.problems)]))


@dataclass(frozen=True)
class Tables:
    """A whole data set in memory.

    `feedback` is "positives" where every row of `impressions` is a positive interaction, "impressions" where
    rows with and without outcomes were logged. `split` says how rows fall into train, validation and test:
    "time" cuts all at the same times; "leave_last" takes of each user with three rows or more, in whichever
    markets, the last by time as test and the one before as validation; "given" reads the column `split`.
    """

    name: str
    feedback: Feedback
    split: Split
    users: pd.DataFrame
    contents: pd.DataFrame
    impressions: pd.DataFrame
    sellers: pd.DataFrame | None = None


def _of_distinct(holds: Callable[[Any], bool]) -> Mask:
    """A mask from a predicate of one value, asked once per distinct value."""

    def mask(values: pd.Series) -> pd.Series:
        codes, distinct = pd.factorize(values)
        answers = np.array([holds(value) for value in distinct] + [True])  # the last for null, code -1
        return pd.Series(answers[codes], index=values.index)

    return mask


def _between(low: float, high: float, remedy: str) -> Rule:
    return Rule(lambda values: (values >= low) & (values <= high), remedy)


def _one_of(allowed: Iterable[str]) -> Rule:
    known = tuple(allowed)
    return Rule(lambda values: values.isin(known), f"use one of {', '.join(known)}.")


def _vectors(values: pd.Series) -> pd.Series:
    """Vectors as long as the first one, all numbers finite."""
    lists = (value for value in values if isinstance(value, list | tuple | np.ndarray))
    length = len(next(lists, ()))

    def sound(vector: object) -> bool:
        if not isinstance(vector, list | tuple | np.ndarray) or not length:
            return False
        try:
            numbers = np.asarray(vector, np.float32)
        except (TypeError, ValueError):
            return False
        # numpy also reads the numbers in texts, and truths as numbers; on disk neither is one.
        return (
            np.asarray(vector).dtype.kind in "iuf"
            and numbers.shape == (length,)
            and bool(np.isfinite(numbers).all())
        )

    return values.map(sound)


_TEXT = Rule(_of_distinct(lambda text: text != ""), "empty text; leave the value null where it is not known.")
_ID = Rule(
    # Other types than text are told of by the column's.
    _of_distinct(lambda id: not isinstance(id, str) or is_id(id)),
    f"an id must have 1 to {LONGEST_ID} characters, none of them NUL; make ids of longer ones their hashes, "
    "and leave a value null where it is not known.",
)
_MARKET = Rule(_of_distinct(is_market), f"not a known market; use one of {KNOWN}.")
_MARKETS = Rule(
    lambda lists: lists.map(lambda codes: len(codes) > 0 and all(map(is_market, codes))),
    f"name at least one market, each one of {KNOWN}.",
)
_LANGUAGE = Rule(
    _of_distinct(is_code),
    "not a BCP 47 language code; write 'id', 'pt-BR', 'zh-Hant'.",
)
_RATES = sorted({market.currency for market in MARKETS.values() if market.currency})
_CURRENCY = Rule(
    _one_of(_RATES).holds,
    f"not an ISO 4217 code of a currency with a known rate; convert the price to one of {', '.join(_RATES)}, "
    "or add a market with that currency to market/profiles.py.",
)
_TIME = _between(
    0, END_S - 1, "not seconds since 1970 in UTC (and before 2100); divide milliseconds by 1,000."
)
_FINITE = Rule(lambda values: np.isfinite(values.astype(np.float32)), "not a finite number; use null.")
_AMOUNT = _between(0, float(np.finfo(np.float32).max), "must be a finite number, 0 or more.")
_COUNT = _between(0, np.iinfo(np.int32).max, "must be from 0 to 2,147,483,647.")
_POSITION = _between(0, np.iinfo(np.int16).max, "must be from 0 (the first of the slate) to 32,767.")
_INTEGER = Rule(
    # Beside floats 2^63 - 1 would be one, too, and that is 2^63.
    lambda values: (
        (values >= -(2**63)) & (values < 2.0**63 if is_float_dtype(values) else values <= 2**63 - 1)
    ),
    "does not fit 64 bits.",
)
_FLAG = _between(0, 1, "must be 1 (it happened) or 0 (it did not).")
_PROPENSITY = Rule(
    lambda values: (values.astype(np.float32) > 0) & (values <= 1),
    "must be a probability up to 1, and above 0 as a float32; weights are one over it.",
)
_VECTOR = Rule(_vectors, "must be as long as the first vector of the column and hold finite numbers alone.")

_KEY = Column("str", _ID, required=True, nullable=False, unique=True)
_REFERENCE = replace(_KEY, unique=False)
_SPOKEN = Column("str", _LANGUAGE, form=canonical)
_HOME = Column("str", _MARKET, required=True, nullable=False)

CONTRACT: dict[str, dict[str, Column]] = {
    "users": {
        "user_id": _KEY,
        "market": _HOME,
        "language": _SPOKEN,
        "age_band": Column("str", _TEXT),
        "gender": Column("str", _TEXT),
        "registered_at": Column("int64", _TIME),
    },
    "contents": {
        "content_id": _KEY,
        "kind": Column("str", _one_of(KINDS), required=True, nullable=False),
        "markets": Column("list<str>", _MARKETS, required=True, nullable=False),
        "seller_id": Column("str", _ID),
        "category": Column("str", _TEXT),
        "language": _SPOKEN,
        "price": Column("float32", _AMOUNT),
        "currency": Column("str", _CURRENCY),
        "duration_s": Column("float32", _AMOUNT),
        "created_at": Column("int64", _TIME),
        "ended_at": Column("int64", _TIME),
        "stock": Column("int32", _COUNT),
    },
    "sellers": {
        "seller_id": _KEY,
        "market": _HOME,
        "category": Column("str", _TEXT),
        "rating": Column("float32", _AMOUNT),
        "followers": Column("int32", _COUNT),
        "registered_at": Column("int64", _TIME),
    },
    "impressions": {
        "user_id": _REFERENCE,
        "content_id": _REFERENCE,
        "market": _HOME,
        "time": Column("int64", _TIME, nullable=False),
        "request_id": Column("int64", _INTEGER, nullable=False),
        "position": Column("int16", _POSITION, nullable=False),
        "propensity": Column("float32", _PROPENSITY, nullable=False),
        "split": Column("str", _one_of(SPLITS), nullable=False),
        "watch_s": Column("float32", _AMOUNT),
        **{flag: Column("int8", _FLAG, nullable=False) for flag in FLAGS},
        "value": Column("float32", _AMOUNT),
        "rating": Column("float32", _FINITE),
    },
    "moments": {
        "content_id": _REFERENCE,
        "time": Column("int64", _TIME, required=True, nullable=False),
        "viewers": Column("int32", _COUNT),
        "showing": Column("str", _ID),
        "stock": Column("int32", _COUNT),
    },
}
"""Each table's columns in their order. Users and contents may have more, see `columns_of`. A `request_id`
names a request of one user in one market; others may have the same number. Languages come back in one form,
see `market.languages.canonical`. A row of `moments` says what was
true of a content from a second on: people in a room, the product it shows, pieces left."""


def columns_of(table: str, frame: pd.DataFrame) -> dict[str, Column]:
    """The contract of the columns that `frame` has, declared ones first, in the order of the contract.

    Extras are `x_<name>` on users and contents (text or whole numbers: a categorical attribute; float: a
    continuous one) and `v_<name>` on contents (vectors of one length); for the names see `_NAME`. Whole
    numbers and truths of which some are missing become text, digit by digit. Other columns are left out.
    """
    declared = {name: column for name, column in CONTRACT[table].items() if name in frame}
    extras = {}
    for name in frame.columns:
        if str(name).startswith("x_") and table in ("users", "contents"):
            extras[name] = _attribute(frame[name])
        elif str(name).startswith("v_") and table == "contents":
            extras[name] = Column("list<float32>", _VECTOR, nullable=False)
    return declared | extras


def stored_schema(table: str, frame: pd.DataFrame) -> arrow.Schema:
    """The types on disk of a validated `frame`."""
    return arrow.schema([(name, _ARROW[column.dtype]) for name, column in columns_of(table, frame).items()])


def validate(tables: Tables) -> Tables:
    """The same tables in the contract's types, or `ContractError` with every problem found.

    Checks each column, that keys are unique, that users, contents and sellers referred to exist, and that the
    columns which `feedback` and `split` rely on are there.
    """
    with _expect_none() as problems:
        users, contents, sellers = _entities(tables.users, tables.contents, tables.sellers, problems)
        impressions = _impressions(
            tables.impressions,
            tables.feedback,
            tables.split,
            _ids(users, "user_id"),
            _ids(contents, "content_id"),
            problems,
        )
    return replace(tables, users=users, contents=contents, sellers=sellers, impressions=impressions)


def validate_entities(
    users: pd.DataFrame, contents: pd.DataFrame, sellers: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None]:
    """`validate` for the tables of things, where the impressions come in parts; raises `ContractError`."""
    with _expect_none() as problems:
        return _entities(users, contents, sellers, problems)


def validate_impressions(
    part: pd.DataFrame, *, feedback: Feedback, split: Split, user_ids: pd.Index, content_ids: pd.Index
) -> pd.DataFrame:
    """`validate` for one part of the impressions, against the known ids; raises `ContractError`."""
    with _expect_none() as problems:
        return _impressions(part, feedback, split, user_ids, content_ids, problems)


def validate_references(part: pd.DataFrame, *, user_ids: pd.Index, content_ids: pd.Index) -> None:
    """Raise `ContractError` where a part of the impressions, valid once, refers to other ids than these."""
    with _expect_none() as problems:
        _resolve_ids(part, user_ids, content_ids, problems)


def validate_moments(moments: pd.DataFrame, content_ids: pd.Index) -> pd.DataFrame:
    """`validate` for what was true of contents when, against the known ids; raises `ContractError`."""
    with _expect_none() as problems:
        moments = _check("moments", moments, problems)
        for column in ("content_id", "showing"):
            _resolve("moments", moments, column, content_ids, "contents", problems)
    return moments


@contextmanager
def _expect_none() -> Iterator[list[Problem]]:
    """A list for what is wrong; raises `ContractError` at the end of the block where there is something."""
    problems: list[Problem] = []
    yield problems
    if problems:
        raise ContractError(problems)


def _entities(
    users: pd.DataFrame, contents: pd.DataFrame, sellers: pd.DataFrame | None, problems: list[Problem]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None]:
    users = _check("users", users, problems)
    contents = _check("contents", contents, problems)
    if sellers is not None:
        sellers = _check("sellers", sellers, problems)
        _resolve("contents", contents, "seller_id", _ids(sellers, "seller_id"), "sellers", problems)
    if "price" in contents:
        priced = contents["price"].notna()
        bare = priced & contents["currency"].isna() if "currency" in contents else priced
        if bare.any():
            example = contents.loc[bare, "price"].iloc[0]
            problems.append(
                Problem("contents", "price", int(bare.sum()), example, "a price needs its `currency`.")
            )
    times = contents.filter(["created_at", "ended_at"])
    if len(times.columns) == 2 and all(map(is_numeric_dtype, times.dtypes)):
        early = (times["ended_at"] < times["created_at"]).fillna(False)
        early &= np.isfinite(times.astype(np.float64)).all(axis=1)  # what is not is no time, which is told of
        if early.any():
            ended, created = (int(times.loc[early, name].iloc[0]) for name in ("ended_at", "created_at"))
            remedy = f"before its `created_at`, {created}; correct one of them, or leave the end null."
            problems.append(Problem("contents", "ended_at", int(early.sum()), ended, remedy))
    return users, contents, sellers


def _impressions(
    frame: pd.DataFrame,
    feedback: Feedback,
    split: Split,
    user_ids: pd.Index,
    content_ids: pd.Index,
    problems: list[Problem],
) -> pd.DataFrame:
    for name, value, allowed in (("feedback", feedback, Feedback), ("split", split, Split)):
        if value not in get_args(allowed):
            remedy = f"{value!r} is none; use one of {', '.join(get_args(allowed))}."
            problems.append(Problem("impressions", name, 0, None, remedy))
    frame = _check("impressions", frame, problems)
    _resolve_ids(frame, user_ids, content_ids, problems)

    def missing(column: str, remedy: str) -> None:
        problems.append(Problem("impressions", column, 0, None, remedy))

    if not any(name in frame for name in OUTCOMES):
        missing("outcomes", f"the table has none; add at least one of {', '.join(OUTCOMES)}.")
    if split == "given" and "split" not in frame:
        missing("split", f"missing, and the split is 'given'; add it ({', '.join(SPLITS)}) or split by time.")
    if split != "given" and "time" not in frame:
        missing(
            "time", f"missing, and the split is {split!r}; add it, or a column `split` and split 'given'."
        )
    positive = [flag for flag in POSITIVE_OUTCOMES if flag in frame and is_numeric_dtype(frame[flag])]
    if feedback == "positives" and positive:
        none = ~(frame[positive] == 1).any(axis=1)
        if none.any():
            remedy = (
                f"none of {', '.join(positive)} is 1, yet the feedback is 'positives'; drop these rows or "
                "call it 'impressions'."
            )
            example = {flag: 0 for flag in positive}
            problems.append(Problem("impressions", positive[0], int(none.sum()), example, remedy))
    return frame


def _check(table: str, frame: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """`frame` in the contract's types and order if all of it is right; else as it is, with new `problems`."""
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        problems += [Problem(table, name, 0, None, "the column occurs more than once.") for name in twice]
        return frame
    frame = frame.reset_index(drop=True)
    for name in frame.columns:
        if isinstance(frame[name].dtype, pd.CategoricalDtype | pd.StringDtype):
            frame[name] = frame[name].astype(object)
        elif str(name).startswith("x_") and _counts(frame[name]) and frame[name].isna().any():
            # As a float it would be continuous, and numbers above 2^24 would be one; text may be null.
            frame[name] = frame[name].astype("string").replace({"True": "1", "False": "0"}).astype(object)
    columns = columns_of(table, frame)
    if wrong := [name for name in columns if not _NAME.fullmatch(name)]:
        problems += [Problem(table, name, 0, None, _RENAME) for name in wrong]
        return frame
    absent = {name: c for name, c in CONTRACT[table].items() if c.required and name not in frame}
    schema = pandera.DataFrameSchema(
        {name: _pandera_column(column) for name, column in (columns | absent).items()}, strict=True
    )
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        problems += _problems(table, error.failure_cases)
        return frame
    return pd.DataFrame({name: _cast(frame[name], column) for name, column in columns.items()})


def _pandera_column(column: Column) -> pandera.Column:
    typed = _TYPED[column.dtype]

    def rule(values: pd.Series) -> pd.Series:
        # Values of a wrong type are one problem, not two, and no rule is asked about them, nor about nulls.
        known = values.dropna()
        right = pd.Series(True, index=values.index)
        if len(known) and typed.holds(known).all():
            right[known.index] = column.rule.holds(known)
        return right

    checks = [
        pandera.Check(typed.holds, error=column.retype or typed.remedy, name="type"),
        pandera.Check(rule, error=column.rule.remedy, name="rule"),
    ]
    return pandera.Column(
        checks=checks, required=column.required, nullable=column.nullable, unique=column.unique
    )


def _integers(values: pd.Series) -> pd.Series:
    if _counts(values):
        return pd.Series(True, index=values.index)
    if is_float_dtype(values):
        return values % 1 == 0
    return pd.Series(False, index=values.index)


def _strings(values: pd.Series) -> pd.Series:
    if infer_dtype(values, skipna=True) in ("string", "empty"):
        return pd.Series(True, index=values.index)
    return values.map(lambda value: isinstance(value, str)).astype(bool)


def _string_lists(values: pd.Series) -> pd.Series:
    return values.map(
        lambda value: (
            isinstance(value, list | tuple | np.ndarray) and all(isinstance(text, str) for text in value)
        )
    ).astype(bool)


_WHOLE = Rule(
    _integers, "not whole numbers; convert the column to integers, moments to seconds since 1970 in UTC."
)
_TYPED: dict[DType, Rule] = {
    "str": Rule(_strings, "not text; convert the column to str (identifiers too)."),
    **dict.fromkeys(("int64", "int32", "int16", "int8"), _WHOLE),
    "float32": Rule(
        lambda values: pd.Series(is_numeric_dtype(values), index=values.index),
        "not numbers; convert the column to float32.",
    ),
    "list<str>": Rule(_string_lists, "not a list of texts; write ['ID', 'MY'] also for one value."),
    "list<float32>": Rule(
        lambda values: values.map(lambda value: isinstance(value, list | tuple | np.ndarray)).astype(bool),
        "not a vector; write a list of float32.",
    ),
}


def _attribute(values: pd.Series) -> Column:
    if _counts(values):
        return Column("int64", _INTEGER, nullable=False)
    if is_float_dtype(values):
        return Column("float32", _FINITE)
    return Column("str", _TEXT, retype=_NO_ATTRIBUTE)


def _counts(values: pd.Series) -> bool:
    return is_integer_dtype(values) or is_bool_dtype(values)


_NO_ATTRIBUTE = (
    "of no kind that models read; make it text or whole numbers (a category) or floats (an amount)."
)


def _cast(values: pd.Series, column: Column) -> pd.Series:
    if column.form is not None:
        values = values.map(column.form, na_action="ignore")
    if column.dtype == "list<float32>":
        values = pd.Series([np.asarray(vector, np.float32) for vector in values], values.index, object)
    if column.dtype in ("str", "list<str>", "list<float32>"):
        values = values.astype(object)
        return values.where(values.notna(), None)
    if values.isna().all():  # of whichever kind: None, pd.NA, pd.NaT
        values = pd.Series(np.nan, index=values.index)
    if column.dtype == "float32":
        return values.astype(np.float32)
    dtype: Any = "float64" if values.isna().any() else column.dtype
    return values.astype(dtype)


_STRUCTURAL = {
    "column_in_dataframe": "the column is missing and required.",
    "column_in_schema": "no such column in the contract; rename or drop it. Further attributes are named "
    "x_<name> (on users and contents), vectors v_<name> (on contents).",
    "not_nullable": "the value is missing and required; drop these rows or fill it at its source.",
    "field_uniqueness": "occurs more than once; keep one row per key.",
}


_RENAME = "files are named after the column; rename it, with at most 200 of A to Z, a to z, 0 to 9, _, ., -."


def _problems(table: str, failures: pd.DataFrame) -> list[Problem]:
    problems = []
    for (column, check), cases in failures.groupby(["column", "check"], sort=False, dropna=False):
        example = cases["failure_case"].iloc[0]
        if check in ("column_in_dataframe", "column_in_schema"):
            problems += [Problem(table, name, 0, None, _STRUCTURAL[check]) for name in cases["failure_case"]]
        else:
            problems.append(Problem(table, column, len(cases), example, _STRUCTURAL.get(check, check)))
    return problems


def _ids(frame: pd.DataFrame, column: str) -> pd.Index:
    """The texts of a column; a table that breaks its contract may hold anything there, or have it twice."""
    values = np.ravel(frame[column].to_numpy(object)) if column in frame else ()
    return pd.Index([value for value in values if isinstance(value, str)], dtype=object).unique()


def _resolve_ids(
    part: pd.DataFrame, user_ids: pd.Index, content_ids: pd.Index, problems: list[Problem]
) -> None:
    _resolve("impressions", part, "user_id", user_ids, "users", problems)
    _resolve("impressions", part, "content_id", content_ids, "contents", problems)


def _resolve(
    table: str, frame: pd.DataFrame, column: str, ids: pd.Index, target: str, problems: list[Problem]
) -> None:
    if column not in frame or any((p.table, p.column) == (table, column) for p in problems):
        return
    codes, distinct = pd.factorize(frame[column])
    lost = np.append(ids.get_indexer(pd.Index(distinct, dtype=object)) < 0, False)[codes]
    if lost.any():
        example = frame[column].to_numpy()[lost][0]
        remedy = f"not in {target}; add it there (unknown attributes stay null) or drop the rows."
        problems.append(Problem(table, column, int(lost.sum()), example, remedy))
