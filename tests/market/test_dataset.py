"""Data sets on disk: what is written is what is read, whole or not at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.dataset import Dataset, DatasetError, make_dataset, write_dataset
from market.folders import FolderInUse
from market.tables import ContractError


def users(count: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"user_id": [f"u{k}" for k in range(count)], "market": ["ID", "GB", "ID"][:count]})


def contents() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "content_id": ["c0", "c1"],
            "kind": ["video", "live"],
            "markets": [["ID", "GB"], ["GB"]],
            "category": ["bags", None],
            "ended_at": [None, 1_700_000_000],
            "stock": [None, 3],
            "x_level": [1, 2],
            "v_image": [[0.5, 1.0], [2.0, 3.0]],
        }
    )


def part(times: list[int], **columns) -> pd.DataFrame:
    return pd.DataFrame(
        {"user_id": "u0", "content_id": "c0", "market": "ID", "time": times, "click": 1} | columns,
        index=range(len(times)),
    )


def write(path, *, impressions, **changes) -> Dataset:
    given_ = {
        "name": "tiny",
        "feedback": "impressions",
        "split": "time",
        "users": users(),
        "contents": contents(),
    }
    return write_dataset(path, impressions=impressions, **(given_ | changes))


def everything_in(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_data_set_is_read_as_it_was_written(tmp_path):
    sellers = pd.DataFrame({"seller_id": ["s"], "market": ["MX"], "rating": [4.5]})
    write(tmp_path / "d", impressions=[part([5, 6]), part([7])], sellers=sellers)
    read = Dataset.open(tmp_path / "d")

    assert (read.name, read.feedback, read.split, read.markets) == (
        "tiny",
        "impressions",
        "time",
        ["GB", "ID"],
    )
    assert [file.name for file in read.impression_files] == ["part-00000.parquet", "part-00001.parquet"]
    assert read.impression_columns == ["user_id", "content_id", "market", "time", "click"]
    assert read.impressions()["time"].tolist() == [5, 6, 7]
    assert list(read.impressions(["time", "click"])) == ["time", "click"]
    assert read.impressions()["click"].dtype == np.int8
    assert read.users()["user_id"].tolist() == ["u0", "u1", "u2"]
    assert read.sellers()["rating"].tolist() == [4.5]

    stored = read.contents()
    assert [list(markets) for markets in stored["markets"]] == [["ID", "GB"], ["GB"]]
    assert stored["category"].tolist() == ["bags", None]
    assert np.isnan(stored["ended_at"][0])
    assert stored["ended_at"][1] == 1_700_000_000
    assert stored["x_level"].dtype == np.int64
    assert stored["v_image"][1].dtype == np.float32
    assert stored["v_image"][1].tolist() == [2.0, 3.0]


def test_a_data_set_without_sellers_has_none(tmp_path):
    assert write(tmp_path / "d", impressions=[part([1])]).sellers() is None


def test_moments_are_asked_for_last_and_read_in_the_order_of_time(tmp_path):
    order = []

    def parts():
        yield part([1])
        order.append("impressions")

    def moments():
        order.append("moments")
        return pd.DataFrame({"content_id": ["c1", "c0", "c1"], "time": [9, 4, 5], "viewers": [3, None, 7]})

    made = write(tmp_path / "d", impressions=parts(), moments=moments)
    assert order == ["impressions", "moments"]
    assert made.moments()["time"].tolist() == [4, 5, 9]
    assert made.moments()["viewers"].fillna(-1).tolist() == [-1, 7, 3]
    assert write(tmp_path / "e", impressions=[part([1])]).moments() is None


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("content_id", "c9", "moments.content_id"),
        ("showing", "c9", "moments.showing"),
        ("viewers", -1, "moments.viewers"),
        ("time", None, "moments.time"),
    ],
)
def test_moments_that_break_the_contract_are_refused_by_column(tmp_path, column, value, text):
    row = {"content_id": "c1", "time": 5, "viewers": 1, "showing": "c0"} | {column: value}
    with pytest.raises(ContractError, match=text):
        write(tmp_path / "d", impressions=[part([1])], moments=lambda: pd.DataFrame([row]))
    assert not (tmp_path / "d").exists()


@settings(max_examples=25)
@given(st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=20), st.integers(1, 5))
def test_impressions_are_on_disk_in_the_order_of_time(tmp_path_factory, times, size):
    # Parts come in the order of time, the rows of each in any order.
    times.sort()
    parts = [times[k : k + size][::-1] for k in range(0, len(times), size)]
    written = write(tmp_path_factory.mktemp("d") / "d", impressions=[part(each) for each in parts])
    assert written.impressions()["time"].tolist() == times


def test_parts_out_of_the_order_of_time_are_refused(tmp_path):
    with pytest.raises(ContractError, match="in the order of time"):
        write(tmp_path / "d", impressions=[part([5, 9]), part([8])])


def test_rows_of_one_time_keep_their_order(tmp_path):
    written = write(tmp_path / "d", impressions=[part([3, 3, 1], position=[0, 1, 2])])
    assert written.impressions()["position"].tolist() == [2, 0, 1]


def test_parts_are_taken_one_at_a_time(tmp_path):
    on_disk = []

    def stream():
        for k in range(3):
            on_disk.append(len(list(tmp_path.rglob("part-*.parquet"))))
            yield part([k])

    write(tmp_path / "d", impressions=stream())
    assert on_disk == [0, 1, 2]


def test_empty_parts_leave_no_file(tmp_path):
    written = write(tmp_path / "d", impressions=[part([]), part([1]), part([])])
    assert len(written.impression_files) == 1


def test_a_part_of_another_data_set_is_its_file(tmp_path):
    first = write(tmp_path / "d", impressions=[part([1]), part([5], market="MX")])
    made = write(tmp_path / "e", impressions=[part([0]), *first.impression_files, part([5])])
    assert made.impressions()["time"].tolist() == [0, 1, 5, 5]
    assert made.impression_files[2].samefile(first.impression_files[1])
    assert made.markets == ["GB", "ID", "MX"]
    assert made.description.rows["impressions"] == 4
    remade = write(tmp_path / "f", impressions=made.impression_parts())
    assert everything_in(remade.path) == everything_in(made.path)


@pytest.mark.parametrize(
    ("before", "changes", "said"),
    [
        ([], {"users": users(1)}, r"impressions.user_id in 1 row \(such as 'u1'\): not in users"),
        (
            [],
            {"contents": contents()[:1]},
            r"impressions.content_id in 1 row \(such as 'c1'\): not in contents",
        ),
        (
            [part([9])],
            {},
            r"impressions.time in 2 rows \(such as 1\): earlier than the end of the part before",
        ),
        ([part([0], like=1)], {}, "impressions.like: some parts have this column"),
    ],
    ids=["users", "contents", "order", "columns"],
)
def test_a_part_of_another_data_set_has_to_go_with_the_rest(tmp_path, before, changes, said):
    other = write(tmp_path / "d", impressions=[part([1, 2], user_id=["u0", "u1"], content_id=["c1", "c0"])])
    with pytest.raises(ContractError, match=said):
        write(tmp_path / "e", impressions=[*before, *other.impression_files], **changes)
    assert not (tmp_path / "e").exists()


def test_a_damaged_part_of_another_data_set_is_named(tmp_path):
    (file,) = write(tmp_path / "d", impressions=[part([1])]).impression_files
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"part-00000.parquet is missing or damaged"):
        write(tmp_path / "e", impressions=[file])


def test_parts_with_different_columns_are_refused_by_name(tmp_path):
    with pytest.raises(ContractError, match=r"impressions\.like"):
        write(tmp_path / "d", impressions=[part([1]), part([2], like=1)])


@pytest.mark.parametrize(
    "parts", [[part([1]), part([2], click=5)], [part([1]), part([2], user_id="ghost")], []]
)
def test_what_breaks_the_contract_leaves_nothing_behind(tmp_path, parts):
    with pytest.raises(ContractError):
        write(tmp_path / "d", impressions=parts)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_leaves_the_old_data_set_as_it_was(tmp_path):
    write(tmp_path / "d", impressions=[part([1])])
    before = everything_in(tmp_path)

    def stream():
        yield part([1])
        raise OSError("the disk of the source is gone")

    with pytest.raises(OSError, match="gone"):
        write(tmp_path / "d", impressions=stream(), overwrite=True)
    assert everything_in(tmp_path) == before


def test_a_replacement_that_cannot_take_its_place_puts_the_old_one_back(tmp_path, monkeypatch):
    write(tmp_path / "d", impressions=[part([1])])
    before, rename = everything_in(tmp_path), Path.rename

    def fail_for_the_new(self, target):
        if self.suffix == ".new":
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "d", impressions=[part([1, 2])], overwrite=True)
    assert everything_in(tmp_path) == before


def test_a_data_set_that_a_killed_overwrite_moved_aside_is_told_and_comes_back(tmp_path):
    write(tmp_path / "d", impressions=[part([1])])
    before = everything_in(tmp_path)
    (tmp_path / "d").rename(tmp_path / ".d.17.old")
    with pytest.raises(DatasetError, match=r"its replacement was killed: it lies in .*/\.d\.17\.old"):
        Dataset.open(tmp_path / "d")
    with pytest.raises(FileExistsError):
        write(tmp_path / "d", impressions=[part([1, 2])])
    assert everything_in(tmp_path) == before


def test_of_two_who_write_the_same_data_set_the_second_is_refused(tmp_path):
    def stream():
        with pytest.raises(FolderInUse, match=r"another process writes .*/d; wait for it or choose another"):
            write(tmp_path / "d", impressions=[part([1, 2])])
        yield part([1])

    write(tmp_path / "d", impressions=stream())
    assert len(Dataset.open(tmp_path / "d").impressions()) == 1


def test_a_data_set_is_replaced_only_when_asked(tmp_path):
    write(tmp_path / "d", impressions=[part([1])])
    with pytest.raises(FileExistsError, match="overwrite"):
        write(tmp_path / "d", impressions=[part([1, 2])])
    assert len(Dataset.open(tmp_path / "d").impressions()) == 1
    write(tmp_path / "d", impressions=[part([1, 2])], overwrite=True)
    assert len(Dataset.open(tmp_path / "d").impressions()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_folder_that_is_no_data_set_is_never_replaced(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="only a data set"):
        write(tmp_path / "d", impressions=[part([1])], overwrite=True)
    assert (tmp_path / "d" / "thesis.txt").read_text() == "years of work"


def test_the_same_tables_make_the_same_bytes(tmp_path):
    write(tmp_path / "a", impressions=[part([1, 2])])
    write(tmp_path / "b", impressions=[part([1, 2])])
    assert everything_in(tmp_path / "a") == everything_in(tmp_path / "b")


def test_a_folder_without_a_data_set_says_so(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(DatasetError, match="is no data set"):
            Dataset.open(path)


def test_another_format_version_is_refused(tmp_path):
    path = write(tmp_path / "d", impressions=[part([1])]).path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(DatasetError, match="format version 99"):
        Dataset.open(tmp_path / "d")


def test_an_incomplete_description_is_refused(tmp_path):
    path = write(tmp_path / "d", impressions=[part([1])]).path / "dataset.json"
    content = json.loads(path.read_text())
    del content["rows"]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"dataset.json is wrong \(rows: "):
        Dataset.open(tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": [1]}, r"wrong \(rows: "),
        ({"feedback": "positiv"}, r"wrong \(feedback: "),
        ({"split": "timed"}, r"wrong \(split: "),
        ({"rows": {"users": 3, "contents": 2}}, "impressions has 1 rows instead of 0"),
    ],
)
def test_a_description_that_is_not_one_is_refused(tmp_path, change, said):
    path = write(tmp_path / "d", impressions=[part([1])]).path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DatasetError, match=said):
        Dataset.open(tmp_path / "d")


@pytest.mark.parametrize(
    ("file", "column"), [("users", "market"), ("contents", "kind"), ("impressions/part-00000", "content_id")]
)
def test_a_file_without_a_column_that_the_contract_asks_for_is_named(tmp_path, file, column):
    place = write(tmp_path / "d", impressions=[part([1])]).path / f"{file}.parquet"
    pd.read_parquet(place).drop(columns=column).to_parquet(place)
    with pytest.raises(DatasetError, match=f"{file}.parquet has no column {column}.*`pasar data make`"):
        Dataset.open(tmp_path / "d")


@pytest.mark.parametrize("parted", [True, False])
def test_a_data_set_is_made_of_a_folder_of_tables(tmp_path, parted):
    source = tmp_path / "mine"
    source.mkdir()
    users().to_parquet(source / "users.parquet")
    contents().to_parquet(source / "contents.parquet")
    moments = pd.DataFrame({"content_id": ["c1", "c1"], "time": [6, 5], "viewers": [9, 4]})
    moments.to_parquet(source / "moments.parquet")
    if parted:
        (source / "impressions").mkdir()
        part([5, 6]).to_parquet(source / "impressions" / "a.parquet")
        part([7]).to_parquet(source / "impressions" / "b.parquet")
    else:
        part([7, 5, 6]).to_parquet(source / "impressions.parquet")
    made = make_dataset(source, tmp_path / "d", name="mine", feedback="impressions", split="time")
    assert (made.name, made.feedback, made.split) == ("mine", "impressions", "time")
    assert made.impressions()["time"].tolist() == [5, 6, 7]
    assert made.moments()["viewers"].tolist() == [4, 9]
    assert made.sellers() is None
    assert len(made.impression_files) == 1 + parted


@pytest.mark.parametrize("dtype", ["int64", "uint64", "Int64"])
def test_whole_numbers_of_which_some_are_missing_stay_an_exact_category(tmp_path, dtype):
    codes = [123_456_789, 123_456_790, None]
    if dtype == "Int64":
        table = arrow.Table.from_pandas(users().assign(x_city=pd.array(codes, "Int64")))
    else:
        table = arrow.Table.from_pandas(users()).append_column("x_city", arrow.array(codes, dtype))
    parquet.write_table(table, tmp_path / "users.parquet")
    contents().to_parquet(tmp_path / "contents.parquet")
    part([5]).to_parquet(tmp_path / "impressions.parquet")
    made = make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")
    assert made.users()["x_city"].tolist() == ["123456789", "123456790", None]


@pytest.mark.parametrize("pandas", [False, True])
def test_truths_of_which_some_are_missing_are_a_category(tmp_path, pandas):
    vip = pd.array([True, None, False], "boolean")
    table = arrow.Table.from_pandas(users().assign(x_vip=vip))
    parquet.write_table(table if pandas else table.replace_schema_metadata(), tmp_path / "users.parquet")
    contents().to_parquet(tmp_path / "contents.parquet")
    part([5]).to_parquet(tmp_path / "impressions.parquet")
    made = make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")
    assert made.users()["x_vip"].tolist() == ["1", None, "0"]


def test_what_is_wrong_with_things_and_with_impressions_is_told_at_once(tmp_path):
    users().assign(market="Polska").to_parquet(tmp_path / "users.parquet")
    contents().assign(title="a").to_parquet(tmp_path / "contents.parquet")
    part([5]).assign(click="yes").to_parquet(tmp_path / "impressions.parquet")
    with pytest.raises(ContractError) as caught:
        make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")
    named = [(problem.table, problem.column) for problem in caught.value.problems]
    assert named == [("users", "market"), ("contents", "title"), ("impressions", "click")]
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(("second", "why"), [(part([7]).assign(click=3), "click"), (part([4]), "time")])
def test_the_file_of_several_in_which_impressions_are_wrong_is_named(tmp_path, second, why):
    users().to_parquet(tmp_path / "users.parquet")
    contents().to_parquet(tmp_path / "contents.parquet")
    write_parts(tmp_path / "impressions", part([5, 6]), second)
    with pytest.raises(ContractError, match=rf"in \S+/part-1.snappy.parquet:\n- impressions.{why} in"):
        make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")


def test_a_column_that_pandas_kept_as_the_index_is_a_column(tmp_path):
    users().set_index("user_id").to_parquet(tmp_path / "users.parquet")
    contents().set_index("content_id", drop=False)[::-1].to_parquet(tmp_path / "contents.parquet")
    part([5, 6]).set_index(["time", "user_id"]).to_parquet(tmp_path / "impressions.parquet")
    made = make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")
    assert made.users()["user_id"].tolist() == ["u0", "u1", "u2"]
    assert made.contents()["content_id"].tolist() == ["c1", "c0"]
    assert made.impressions()["time"].tolist() == [5, 6]


def test_tables_within_the_data_set_that_they_would_replace_stay(tmp_path):
    options = {"name": "mine", "feedback": "impressions", "split": "time", "overwrite": True}
    users().to_parquet(tmp_path / "users.parquet")
    contents().to_parquet(tmp_path / "contents.parquet")
    part([5]).to_parquet(tmp_path / "impressions.parquet")
    made = make_dataset(tmp_path, tmp_path / "d", **options)
    own = tmp_path / "d" / "mine"
    shutil.copytree(made.path, own)
    with pytest.raises(DatasetError, match=r"d/mine lies in \S+/d, which is to be replaced"):
        make_dataset(own, tmp_path / "d", **options)
    assert (own / "users.parquet").is_file()
    make_dataset(made.path, made.path, **options)


def test_tables_that_are_not_there_or_unreadable_are_named(tmp_path):
    options = {"name": "mine", "feedback": "impressions", "split": "time"}
    with pytest.raises(DatasetError, match=r"users\.parquet is missing; put users, contents and impressions"):
        make_dataset(tmp_path, tmp_path / "d", **options)
    for table in ("users", "contents", "impressions"):
        (tmp_path / f"{table}.parquet").write_bytes(b"no Parquet")
    with pytest.raises(DatasetError, match=r"users\.parquet is missing or damaged"):
        make_dataset(tmp_path, tmp_path / "d", **options)
    assert not (tmp_path / "d").exists()


def write_parts(folder, *frames):
    """A table as Spark writes it: files of a folder, beside what it keeps for itself."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        frame.to_parquet(folder / f"part-{number}.snappy.parquet")
    for own in ("_SUCCESS", "._part-0.snappy.parquet", "_metadata.parquet"):
        (folder / own).write_bytes(b"no table")


@pytest.mark.parametrize("end", [".parquet", ""])
def test_any_table_may_be_a_folder_of_files(tmp_path, end):
    sellers = pd.DataFrame({"seller_id": ["s0", "s1"], "market": "ID"})
    moments = pd.DataFrame({"content_id": ["c1", "c1"], "time": [5, 6], "viewers": [9, 4]})
    write_parts(tmp_path / f"users{end}", users().iloc[:1], users().iloc[1:])
    write_parts(tmp_path / f"contents{end}", contents().iloc[1:], contents().iloc[:1])
    write_parts(tmp_path / f"sellers{end}", sellers.iloc[:1], sellers.iloc[1:])
    write_parts(tmp_path / f"moments{end}", moments.iloc[:1], moments.iloc[1:])
    write_parts(tmp_path / f"impressions{end}", part([5, 6]), part([7]))
    made = make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")
    assert made.users()["user_id"].tolist() == ["u0", "u1", "u2"]
    assert made.contents()["content_id"].tolist() == ["c1", "c0"]
    assert len(made.sellers()) == len(made.moments()) == len(made.impression_files) == 2
    assert made.impressions()["time"].tolist() == [5, 6, 7]


def test_files_of_one_table_that_differ_in_their_columns_are_named(tmp_path):
    write_parts(tmp_path / "users", users(), users().assign(language="id"))
    contents().to_parquet(tmp_path / "contents.parquet")
    part([5]).to_parquet(tmp_path / "impressions.parquet")
    with pytest.raises(DatasetError, match=r"part-0\S+ to part-1\S+ differ \(.*language.*; write this"):
        make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")


@pytest.mark.parametrize("table", ["impressions", "sellers"])
def test_a_table_as_a_file_and_as_a_folder_is_one_too_many_and_an_empty_folder_none(tmp_path, table):
    users().to_parquet(tmp_path / "users.parquet")
    contents().to_parquet(tmp_path / "contents.parquet")
    part([5]).to_parquet(tmp_path / "impressions.parquet")
    write_parts(tmp_path / table)
    if table == "sellers":
        with pytest.raises(DatasetError, match=r"sellers has no \*\.parquet; put the files of the table"):
            make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")
    part([6]).to_parquet(tmp_path / table / "a.parquet")
    part([5]).to_parquet(tmp_path / f"{table}.parquet")
    with pytest.raises(DatasetError, match=rf"{table}.parquet and \S+{table} are both there; keep one"):
        make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")


@pytest.mark.parametrize("cut", [slice(-10), slice(4, None)])
@pytest.mark.parametrize("table", ["users", "impressions"])
def test_a_damaged_table_of_ones_own_is_to_be_written_again_where_it_came_from(tmp_path, table, cut):
    users().to_parquet(tmp_path / "users.parquet")
    contents().to_parquet(tmp_path / "contents.parquet")
    part([1]).to_parquet(tmp_path / "impressions.parquet")
    file = tmp_path / f"{table}.parquet"
    file.write_bytes(file.read_bytes()[cut])
    with pytest.raises(
        DatasetError, match=rf"{table}\.parquet is .*; write this table again from where it came"
    ):
        make_dataset(tmp_path, tmp_path / "d", name="mine", feedback="impressions", split="time")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("change", [{"feedback": "positive"}, {"split": "times"}])
def test_a_kind_of_feedback_or_split_that_is_none_is_refused(tmp_path, change):
    [(name, value)] = change.items()
    with pytest.raises(ContractError, match=f"impressions.{name}: '{value}' is none; use one of "):
        write(tmp_path / "d", impressions=[part([1])], **change)


@pytest.mark.parametrize("file", ["users.parquet", "impressions/part-00001.parquet"])
def test_a_lost_file_is_noticed_on_opening(tmp_path, file):
    write(tmp_path / "d", impressions=[part([1]), part([2])])
    (tmp_path / "d" / file).unlink()
    with pytest.raises(DatasetError, match="damaged"):
        Dataset.open(tmp_path / "d")


def test_a_cut_file_is_noticed_on_opening(tmp_path):
    path = write(tmp_path / "d", impressions=[part([1])]).impression_files[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DatasetError, match=r"part-00000\.parquet .*; write the data set anew"):
        Dataset.open(tmp_path / "d")


def test_a_file_whose_middle_is_damaged_is_named_when_it_is_read(tmp_path):
    made = write(tmp_path / "d", impressions=[part([1])])
    file = made.impression_files[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with pytest.raises(DatasetError, match=r"part-00000\.parquet .*; write the data set anew"):
        made.impressions()


def test_asking_for_a_column_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(ValueError, match="no like; they have user_id"):
        write(tmp_path / "d", impressions=[part([1])]).impressions(["like"])
