"""Reading the text files that public data sets come in, with errors that name file, line and remedy."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_EXACT = 2.0**53
"""Below this every whole number is exact in a float64."""


class ImportProblem(ValueError):
    """A public data set that is not as its publisher ships it; the text says where, what, and what to do."""


def find(folder: Path, name: str) -> Path:
    """The file `name` in `folder`; raises `ImportProblem` where there is none."""
    path = folder / name
    if not path.is_file():
        raise ImportProblem(f"{path} is missing; put the files into {folder} as the publisher ships them.")
    return path


def read_text(path: Path, columns: Sequence[str], separator: str, *, header: bool) -> pd.DataFrame:
    """The `columns` of a file of separated fields as text, its index the line of the file each row stands on.

    With a `header` the columns are found by their names and others left out; without, they are all the
    columns, in this order. Fields that are empty are empty text; a byte order mark, which editors of Windows
    write, is none of the first. Raises `ImportProblem`.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            quoting: Any = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
            reader = csv.reader(lines, delimiter=separator, quoting=quoting)
            # A quoted field may hold line breaks, so that a row ends on a later line than it stands on.
            rows, ends = [], [0]
            for row in reader:
                rows.append(row)
                ends.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImportProblem(f"{path} is not UTF-8 text ({error}); download it again.") from None
    names = rows[0] if header and rows else list(columns)
    missing = [name for name in columns if name not in names]
    if missing:
        raise ImportProblem(
            f"{path}: line 1 names no column {', '.join(missing)}; it names {', '.join(names)}. "
            "Use the file as published."
        )
    body, stands_on = rows[header:], [end + 1 for end in ends[header:-1]]
    if not body:
        raise ImportProblem(f"{path} has no rows; download it again.")
    for line, row in zip(stands_on, body):
        if len(row) != len(names):
            raise ImportProblem(
                f"{path}: line {line} has {len(row)} fields, expected {len(names)} ({', '.join(names)}). "
                "The file may be cut short or of another version: download it again."
            )
    return pd.DataFrame(body, index=stands_on, columns=names)[list(columns)]


def expect_text(path: Path, text: pd.Series) -> None:
    """Refuse an empty field in the column `text` of `read_text`; raises `ImportProblem`."""
    _refuse(path, text, text == "", "a text")


def integers(path: Path, text: pd.Series) -> NDArray[np.int64]:
    """The column `text` of `read_text` as whole numbers from 0 to 2^53; raises `ImportProblem`."""
    return numbers(path, text, whole=True).astype(np.int64)


def numbers(path: Path, text: pd.Series, *, whole: bool = False, optional: bool = False) -> NDArray:
    """The column `text` of `read_text` as numbers, 0 or more; an empty field is NaN if `optional`."""
    values = pd.to_numeric(text, errors="coerce")
    wrong = ~((values >= 0) & (values < _EXACT))
    if whole:
        wrong |= values % 1 != 0
    if optional:
        wrong &= text != ""
    kind = "a whole number" if whole else "a number"
    _refuse(path, text, wrong, f"{kind}, 0 or more")
    return values.to_numpy()


def dates(path: Path, text: pd.Series, *, optional: bool = False) -> NDArray[np.float64]:
    """The column `text` of `read_text`, days, as seconds since 1970; an empty one is NaN if `optional`."""
    days = pd.to_datetime(text, format="%Y-%m-%d", errors="coerce")
    wrong = days.isna()
    if optional:
        wrong &= text != ""
    _refuse(path, text, wrong, "a day as YYYY-MM-DD")
    return (days - pd.Timestamp(0)).dt.total_seconds().to_numpy(np.float64)


def _refuse(path: Path, text: pd.Series, wrong: pd.Series, expected: str) -> None:
    if wrong.any():
        first = text[wrong].index[0]
        more = f" (and {int(wrong.sum()) - 1:,} more)" if wrong.sum() > 1 else ""
        raise ImportProblem(
            f"{path}: line {first}{more}, column {text.name}: {text[wrong].iloc[0]!r} is not {expected}. "
            "Use the file as published."
        )


def read_pairs(path: Path) -> NDArray[np.int64]:
    """The interactions [N, 2] of a file of lines `user item`; raises `ImportProblem`."""
    frame = read_text(path, ["user", "item"], " ", header=False)
    return np.stack([integers(path, frame["user"]), integers(path, frame["item"])], axis=1)


def users_of_one_market(users: NDArray[np.int64]) -> pd.DataFrame:
    """A table of the distinct `users` in the unknown market."""
    return pd.DataFrame({"user_id": np.unique(users).astype(str), "market": "XX"})


def contents_of_one_market(contents: NDArray[np.int64], kind: str) -> pd.DataFrame:
    """A table of the distinct `contents`, all of one kind, in the unknown market."""
    ids = np.unique(contents).astype(str)
    return pd.DataFrame({"content_id": ids, "kind": kind, "markets": [["XX"]] * len(ids)})


def given_split(splits: dict[str, NDArray[np.int64]], **outcomes: int) -> pd.DataFrame:
    """Impressions from the interactions [N, 2] of each split, every one with the same outcomes."""
    pairs = np.concatenate(list(splits.values()))
    return pd.DataFrame(
        {
            "user_id": pairs[:, 0].astype(str),
            "content_id": pairs[:, 1].astype(str),
            "market": "XX",
            "split": np.repeat(list(splits), [len(part) for part in splits.values()]),
            **outcomes,
        }
    )
