"""People who ask to be forgotten are gone from what was collected of them, and nobody else is."""

import threading

import pytest

from feedback.forget import forget
from feedback.log import FeedbackLog
from market.dataset import Dataset
from market.tables import ContractError
from tests.feedback.test_log import HOUR, record
from tests.market.test_dataset import part, users, write


def of(user: str, number: int, hour: int = HOUR) -> dict:
    return record(number, hour) | {"user": user}


def test_a_data_set_without_them_has_all_others_and_links_what_they_are_not_in(tmp_path):
    parts = [
        part([10, 11, 12], user_id=["u0", "u1", "u2"]),
        part([13, 14], user_id=["u0", "u2"]),
        part([15], user_id=["u1"]),
    ]
    before = write(tmp_path / "before", impressions=parts)
    made, found = forget(before, ["u1", "u9"], tmp_path / "after")
    assert found == {"u1"}
    assert made.users()["user_id"].tolist() == ["u0", "u2"]
    expected = before.impressions().query("user_id != 'u1'").reset_index(drop=True)
    assert made.impressions().equals(expected)
    assert [file.stat().st_nlink for file in made.impression_files] == [1, 2]
    assert before.impressions()["user_id"].tolist().count("u1") == 2
    assert b"u1" not in b"".join(file.read_bytes() for file in made.path.rglob("*.parquet"))


def test_what_is_true_of_contents_stays(tmp_path, small_world_dataset):
    user = small_world_dataset.impressions(["user_id"])["user_id"].iloc[0]
    made, found = forget(small_world_dataset, {user}, tmp_path / "after")
    assert found == {user}
    assert made.moments().equals(small_world_dataset.moments())
    assert made.contents().equals(small_world_dataset.contents())
    kept = small_world_dataset.impressions().query("user_id != @user").reset_index(drop=True)
    assert made.impressions().equals(kept)


def test_a_data_set_of_nobody_else_is_not_written(tmp_path):
    before = write(tmp_path / "before", users=users(1), impressions=[part([10])])
    with pytest.raises(ContractError):
        forget(before, ["u0"], tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_a_log_keeps_the_lines_of_others_in_their_order(tmp_path):
    log = FeedbackLog(tmp_path)
    stock = {"event": "stock", "content": "c1", "time": HOUR * 3600, "stock": 3}
    log.append([of("u1", 1), of("u2", 2), stock, of("u1", 3), of("u3", 4)])
    log.append([of("u1", 5, HOUR + 1)])
    log.append([of("u2", 6, HOUR + 2)])
    untouched = (tmp_path / "2026-03-16T01.log").stat()
    seen = []
    found = log.forget({"u1", "u9"}, lambda done, hours: seen.append((done, hours)))
    assert found == {"u1"}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert log.hours() == [HOUR, HOUR + 2]
    assert log.read(HOUR) == ([of("u2", 2), stock, of("u3", 4)], 0)
    assert (tmp_path / "2026-03-16T01.log").stat() == untouched
    assert b"u1" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_damaged_lines_go_too_since_they_may_be_of_anybody(tmp_path):
    log = FeedbackLog(tmp_path)
    log.append([of("u2", 1), of("u1", 2)])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert log.forget({"u1"}, lambda done, hours: None) == set()
    assert log.read(HOUR) == ([of("u2", 1)], 0)
    assert b"u1" not in file.read_bytes()


def test_nothing_that_is_told_meanwhile_is_lost(tmp_path):
    def tell(writer: int) -> None:
        log = FeedbackLog(tmp_path)
        for turn in range(150):
            log.append([of(f"u{writer}", turn), of("gone", turn)])

    writers = [threading.Thread(target=tell, args=(writer,)) for writer in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        FeedbackLog(tmp_path).forget({"gone"}, lambda done, hours: None)
    FeedbackLog(tmp_path).forget({"gone"}, lambda done, hours: None)
    records, damaged = FeedbackLog(tmp_path).read(HOUR)
    assert damaged == 0
    assert sorted((r["user"], r["request"]) for r in records) == [
        (f"u{writer}", turn) for writer in range(3) for turn in range(150)
    ]


def test_what_a_killed_run_left_is_no_hour_and_goes_with_the_next(tmp_path):
    log = FeedbackLog(tmp_path)
    log.append([of("u1", 1), of("u2", 2)])
    left = [tmp_path / f".2026-03-15T{hour}.log.x_1" for hour in (22, 23)]
    for file in left:
        file.write_text("half")
    assert log.hours() == [HOUR]
    log.forget({"u1"}, lambda done, hours: None)
    assert not any(file.exists() for file in left)
    assert log.read(HOUR) == ([of("u2", 2)], 0)


def test_a_data_set_that_stands_there_is_not_replaced_unasked(tmp_path):
    before = write(tmp_path / "before", impressions=[part([10]), part([11], user_id="u1")])
    with pytest.raises(FileExistsError):
        forget(before, ["u1"], before.path)
    forget(before, ["u1"], before.path, overwrite=True)
    assert Dataset.open(before.path).impressions()["user_id"].tolist() == ["u0"]
