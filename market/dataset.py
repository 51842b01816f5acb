"""A data set on disk: one folder of Parquet files that keep the contract of `market.tables`.

    dataset.json                       name, feedback, split, markets, row counts, columns, format version
    users.parquet, contents.parquet    and sellers.parquet where sellers are known
    impressions/part-00000.parquet …   in the order of time where there is time
    moments.parquet                    what was true of contents when, where that was logged

A folder appears whole or not at all, and is never changed once it is there.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet
from pydantic import TypeAdapter, ValidationError

from market.folders import link, moved_aside, written_whole
from market.tables import (
    CONTRACT,
    ContractError,
    Feedback,
    Problem,
    Split,
    Tables,
    stored_schema,
    validate,
    validate_entities,
    validate_impressions,
    validate_moments,
    validate_references,
)

FORMAT_VERSION = 1
TABLES = ("users", "contents", "impressions")
"""Tables that every data set has."""
_DESCRIPTION = "dataset.json"
_ANEW = "write the data set anew"


class DatasetError(ValueError):
    """A folder that is no data set, or not one this version reads; the text says where and what to do."""


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says. `rows` and `columns` are keyed by table."""

    name: str
    feedback: Feedback
    split: Split
    markets: list[str]
    rows: dict[str, int]
    columns: dict[str, list[str]]
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Dataset:
    """A data set on disk. Make one with `Dataset.open` or `write_dataset`."""

    path: Path
    description: Description

    @classmethod
    def open(cls, path: Path | str) -> "Dataset":
        """The data set in the folder `path`; raises `DatasetError` where there is none or it is broken."""
        path = Path(path)
        try:
            content = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            if not path.exists() and (aside := moved_aside(path)):
                raise DatasetError(
                    f"{path} is being replaced, or its replacement was killed: it lies in {aside[0]}. "
                    "Move it back, or write the data set again, which moves it back first."
                ) from None
            raise DatasetError(
                f"{path} is no data set: it has no {_DESCRIPTION}. Import or generate one there first."
            ) from None
        except ValueError as error:
            raise DatasetError(f"{path / _DESCRIPTION} is not valid JSON ({error}); write it anew.") from None
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{path} has format version {version}; this version of Pasar reads {FORMAT_VERSION}. "
                "Write the data set anew."
            )
        try:
            dataset = cls(path, TypeAdapter(Description).validate_python(content))
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise DatasetError(f"{path / _DESCRIPTION} is wrong ({said}); write it anew.") from None
        for table, columns in CONTRACT.items():
            needed = {name for name, column in columns.items() if column.required}
            if table in dataset.description.rows or table in TABLES:
                dataset._expect_whole(table, needed)
        return dataset

    def _expect_whole(self, table: str, needed: set[str]) -> None:
        files = self._files(table)
        found, rows = sum(_rows(file) for file in files), self.description.rows.get(table)
        if found != rows:
            raise DatasetError(
                f"{self.path} is damaged: {table} has {found:,} rows instead of {rows or 0:,}. Write it anew."
            )
        if absent := sorted(needed - set(parquet.read_schema(files[0]).names)):
            raise DatasetError(
                f"{files[0]} has no column {', '.join(absent)}, which the contract asks for; make the "
                "data set with `pasar data make`, which checks it whole."
            )

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def feedback(self) -> Feedback:
        return self.description.feedback

    @property
    def split(self) -> Split:
        return self.description.split

    @property
    def markets(self) -> list[str]:
        """Codes of the markets of its users, contents and impressions, sorted."""
        return self.description.markets

    @property
    def empty_markets(self) -> list[str]:
        """Codes of those of its markets where no content may be shown, sorted."""
        sold = _read(self._files("contents"), ["markets"])["markets"].explode()
        return sorted({*self.markets} - {*sold})

    @property
    def impression_columns(self) -> list[str]:
        return self.description.columns["impressions"]

    @property
    def impression_files(self) -> list[Path]:
        """The parts of the impressions, in the order of time where there is time."""
        return sorted((self.path / "impressions").glob("part-*.parquet"))

    def users(self) -> pd.DataFrame:
        return _read(self._files("users"))

    def contents(self) -> pd.DataFrame:
        return _read(self._files("contents"))

    def sellers(self) -> pd.DataFrame | None:
        """The sellers, or None for a data set that knows none."""
        return _read(self._files("sellers")) if "sellers" in self.description.rows else None

    def moments(self) -> pd.DataFrame | None:
        """What was true of contents when, by time; None for a data set that does not know."""
        return _read(self._files("moments")) if "moments" in self.description.rows else None

    def impressions(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All impressions, or those `columns` of them; ValueError for a column the data set lacks."""
        unknown = [name for name in columns or () if name not in self.impression_columns]
        if unknown:
            raise ValueError(
                f"the impressions of {self.name} have no {', '.join(unknown)}; "
                f"they have {', '.join(self.impression_columns)}."
            )
        return _read(self.impression_files, columns)

    def impression_parts(self) -> Iterator[pd.DataFrame]:
        """The impressions a file at a time, in the order of time where there is time."""
        return map(read_part, self.impression_files)

    def _files(self, table: str) -> list[Path]:
        return self.impression_files if table == "impressions" else [self.path / f"{table}.parquet"]


def write_dataset(
    path: Path | str,
    *,
    name: str,
    feedback: Feedback,
    split: Split,
    users: pd.DataFrame,
    contents: pd.DataFrame,
    sellers: pd.DataFrame | None = None,
    impressions: Iterable[pd.DataFrame | Path],
    moments: Callable[[], pd.DataFrame] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Validate the tables and write them as the data set `path`.

    `impressions` come in parts, one file each, never all in memory. All parts have the same columns; where
    they have `time`, a part is sorted by it and starts no earlier than the part before ended. A path is a
    part of a data set of the same kind of feedback and split: of what it has only that is looked at which
    other tables and parts may contradict, and the file is linked. `moments` is
    asked for last: a simulation knows them when its log is done. Raises
    `ContractError` for tables that break the contract, FileExistsError where `path` exists and may not be
    replaced, `FolderInUse` where another process writes it; then whatever was at `path` before is still
    there.
    """
    path = Path(path)
    with written_whole(path, "wait for it or choose another folder") as folder:
        expect_free(path, overwrite)
        try:
            users, contents, sellers = validate_entities(users, contents, sellers)
        except ContractError:
            first = next(iter(impressions), None)
            if isinstance(first, pd.DataFrame):  # whoever mends tables wants to hear of all of them
                validate(Tables(name, feedback, split, users, contents, first, sellers))
            raise
        entities = {"users": users, "contents": contents} | ({} if sellers is None else {"sellers": sellers})
        for table, frame in entities.items():
            _write(folder / f"{table}.parquet", table, frame)
        rows = {table: len(frame) for table, frame in entities.items()}
        columns = {table: list(frame.columns) for table, frame in entities.items()}
        user_ids, content_ids = pd.Index(users["user_id"]), pd.Index(contents["content_id"])
        parts = _Parts(folder / "impressions", feedback, split, user_ids, content_ids)
        for part in impressions:
            if isinstance(part, Path):
                parts.take(part)
            elif not part.empty:
                parts.write(part)
        if not parts.rows:
            raise ContractError([Problem("impressions", "user_id", 0, None, "there are no impressions.")])
        rows["impressions"], columns["impressions"] = parts.rows, parts.columns
        markets = set(users["market"]) | set(contents["markets"].explode()) | parts.markets
        if moments is not None:
            said = validate_moments(moments(), content_ids).sort_values(
                "time", kind="stable", ignore_index=True
            )
            _write(folder / "moments.parquet", "moments", said)
            rows["moments"], columns["moments"] = len(said), list(said.columns)
        description = Description(name, feedback, split, sorted(markets), rows, columns)
        text = json.dumps(asdict(description), indent=2, ensure_ascii=False)
        (folder / _DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        Dataset.open(folder)
    return Dataset.open(path)


def write_tables(path: Path, tables: Tables, *, overwrite: bool = False) -> Dataset:
    """`write_dataset` of tables that are in memory, whose impressions may be in any order."""
    return write_dataset(
        path,
        name=tables.name,
        feedback=tables.feedback,
        split=tables.split,
        users=tables.users,
        contents=tables.contents,
        sellers=tables.sellers,
        impressions=[tables.impressions],
        overwrite=overwrite,
    )


def expect_free(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError where `path` exists and may not be replaced."""
    if path.exists() and not (overwrite and (path / _DESCRIPTION).is_file()):
        raise FileExistsError(
            f"{path} exists; choose another folder, or overwrite it (only a data set is ever overwritten)."
        )


def write_like(
    dataset: Dataset,
    path: Path,
    *,
    impressions: Iterable[pd.DataFrame | Path],
    moments: pd.DataFrame | None,
    users: pd.DataFrame | None = None,
    contents: pd.DataFrame | None = None,
    sellers: pd.DataFrame | None = None,
    overwrite: bool = False,
) -> Dataset:
    """`write_dataset` of what another data set is and has, but for its impressions, its moments and the
    tables that are given."""
    return write_dataset(
        path,
        name=dataset.name,
        feedback=dataset.feedback,
        split=dataset.split,
        users=dataset.users() if users is None else users,
        contents=dataset.contents() if contents is None else contents,
        sellers=dataset.sellers() if sellers is None else sellers,
        impressions=impressions,
        moments=None if moments is None else lambda: moments,
        overwrite=overwrite,
    )


def make_dataset(
    tables: Path,
    path: Path,
    *,
    name: str,
    feedback: Feedback,
    split: Split,
    overwrite: bool = False,
) -> Dataset:
    """Write the Parquet files of a folder as the data set `path`; see `write_dataset`.

    Args:
        tables: a folder with the tables as `table_files` finds them, sellers and moments where there are any.
            Files of impressions are read one at a time. Columns are those of `market.tables.CONTRACT`.

    Raises:
        DatasetError: a table is missing, cannot be read, is there twice, or lies in what is replaced.
    """
    expect_outside(tables, path)
    files = table_files(tables, CONTRACT)
    for table in TABLES:
        if table not in files:
            raise DatasetError(
                f"{tables / table}.parquet is missing; put users, contents and impressions there as Parquet."
            )
    reading = list[Path]()

    def parts() -> Iterator[pd.DataFrame]:
        for file in files["impressions"]:
            reading.append(file)
            yield read_table([file])

    try:
        return write_dataset(
            path,
            name=name,
            feedback=feedback,
            split=split,
            users=read_table(files["users"]),
            contents=read_table(files["contents"]),
            sellers=read_table(files["sellers"]) if "sellers" in files else None,
            impressions=parts(),
            moments=(lambda: read_table(files["moments"])) if "moments" in files else None,
            overwrite=overwrite,
        )
    except ContractError as error:
        several = len(files["impressions"]) > 1
        if several and {problem.table for problem in error.problems} == {"impressions"}:
            raise ContractError(error.problems, reading[-1]) from None
        raise


def expect_outside(tables: Path, path: Path) -> None:
    """Raise `DatasetError` where the folder `tables` lies in `path` and would go with what was there."""
    if path.resolve() in tables.resolve().parents:
        raise DatasetError(f"{tables} lies in {path}, which is to be replaced; move one of them.")


def table_files(folder: Path, tables: Iterable[str]) -> dict[str, list[Path]]:
    """The files of those of the `tables` that are in a folder: of users either users.parquet or, as Spark and
    others write a table, all *.parquet right in a folder users.parquet or users, by name.

    Raises:
        DatasetError: a table is there twice, or as a folder without such files.
    """
    found: dict[str, list[Path]] = {}
    for table in tables:
        places = {place: _parquet_files(place) for place in (folder / f"{table}.parquet", folder / table)}
        full = [place for place, files in places.items() if files]
        if len(full) > 1:
            raise DatasetError(f"{full[0]} and {full[1]} are both there; keep one of them.")
        if not full and (empty := [place for place in places if place.is_dir()]):
            raise DatasetError(
                f"{empty[0]} has no *.parquet; put the files of the table right into it, all columns in them."
            )
        if full:
            found[table] = places[full[0]]
    return found


def _parquet_files(place: Path) -> list[Path]:
    """A file, or the Parquet files of a folder by name, but for those whose names hide them from readers."""
    if place.is_dir():
        return sorted(file for file in place.glob("*.parquet") if file.name[0] not in "._")
    return [place] if place.suffix and place.exists() else []


def read_part(file: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """One of the `Dataset.impression_files`, or some of its columns; `DatasetError` where it is damaged."""
    return _read([file], columns)


def read_table(files: Sequence[Path]) -> pd.DataFrame:
    """A table as its owner wrote it into one file or several, not yet checked; raises `DatasetError` where it
    cannot be read."""
    frame = _read(files, remedy="write this table again from where it came")
    # pandas keeps an index apart; a column of the contract may have been made one.
    known = {name for columns in CONTRACT.values() for name in columns}
    kept = [name for name in frame.index.names if name in known and name not in frame]
    return frame.reset_index(level=kept) if kept else frame


class _Parts:
    """The parts of a data set's impressions, as they are written into `folder`, one after another."""

    def __init__(
        self, folder: Path, feedback: Feedback, split: Split, user_ids: pd.Index, content_ids: pd.Index
    ) -> None:
        folder.mkdir()
        self.folder, self.feedback, self.split = folder, feedback, split
        self.user_ids, self.content_ids = user_ids, content_ids
        self.rows, self.columns, self.markets = 0, list[str](), set[str]()
        self._files = 0
        self._ended: int | None = None

    def write(self, part: pd.DataFrame) -> None:
        """Check a part and write it, in the order of time."""
        part = validate_impressions(
            part,
            feedback=self.feedback,
            split=self.split,
            user_ids=self.user_ids,
            content_ids=self.content_ids,
        )
        if "time" in part:
            part = part.sort_values("time", kind="stable", ignore_index=True)
        _write(self._next(part, list(part.columns)), "impressions", part)

    def take(self, file: Path) -> None:
        """Link a part of another data set, which was checked when it was written."""
        with _whole(file, _ANEW):
            columns = parquet.read_schema(file).names
            said = [name for name in ("user_id", "content_id", "market", "time") if name in columns]
            part = parquet.read_table(file, columns=said, read_dictionary=said[:3]).to_pandas()
        validate_references(part, user_ids=self.user_ids, content_ids=self.content_ids)
        link(file, self._next(part, columns))

    def _next(self, part: pd.DataFrame, columns: list[str]) -> Path:
        """The file of a part that is sorted, once it goes with those before; `columns` are all it has."""
        self.columns = self.columns or columns
        problems = [
            Problem(
                "impressions", name, 0, None, "some parts have this column, others lack it; give it to all."
            )
            for name in sorted(set(self.columns) ^ set(columns))
        ]
        if problems:
            raise ContractError(problems)
        if "time" in part:
            self._expect_later(part["time"])
        self.rows += len(part)
        self.markets |= set(part["market"].unique())
        self._files += 1
        return self.folder / f"part-{self._files - 1:05d}.parquet"

    def _expect_later(self, time: pd.Series) -> None:
        early = int((time < self._ended).sum()) if self._ended is not None else 0
        if early:
            before = f"the end of the part before ({self._ended})"
            remedy = f"earlier than {before}; give the parts in the order of time."
            raise ContractError([Problem("impressions", "time", early, int(time.iloc[0]), remedy)])
        self._ended = int(time.iloc[-1])


def _write(file: Path, table: str, frame: pd.DataFrame) -> None:
    schema = stored_schema(table, frame)
    parquet.write_table(arrow.Table.from_pandas(frame, schema, preserve_index=False), file)


@contextmanager
def _whole(file: Path, remedy: str) -> Iterator[None]:
    """Turn what Arrow says of a file that is not there or broken into a `DatasetError` with a remedy."""
    try:
        yield
    except (OSError, arrow.ArrowException) as error:
        said = " ".join(str(error).split())
        raise DatasetError(f"{file} is missing or damaged ({said}); {remedy}.") from None


def _rows(file: Path) -> int:
    with _whole(file, _ANEW):
        return parquet.read_metadata(file).num_rows


def _read(files: Sequence[Path], columns: Sequence[str] | None = None, remedy: str = _ANEW) -> pd.DataFrame:
    parts = []
    for file in files:
        with _whole(file, remedy):
            parts.append(parquet.read_table(file, columns=None if columns is None else list(columns)))
    try:
        # A column that is null throughout a part has the type of the others'.
        alike = {frozenset(part.column_names) for part in parts}
        table = arrow.concat_tables(parts, promote_options="default" if len(alike) == 1 else "none")
    except arrow.ArrowInvalid as error:
        said = " ".join(str(error).split())
        raise DatasetError(f"the files {files[0]} to {files[-1].name} differ ({said}); {remedy}.") from None
    frame = table.to_pandas()
    for name in table.column_names:
        values = table[name]
        if name.startswith("x_") and values.null_count:
            # Plain pandas would make floats of whole numbers: another kind of attribute, and not exact.
            if arrow.types.is_integer(values.type):
                dtype = "UInt64" if arrow.types.is_uint64(values.type) else "Int64"
                frame[name] = pd.array(values.to_pylist(), dtype)
            elif arrow.types.is_boolean(values.type):
                frame[name] = pd.array(values.to_pylist(), "boolean")
    return frame
