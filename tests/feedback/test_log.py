"""The feedback log: every record in the file of its request's hour, whole, whoever writes beside."""

import threading

import pytest

from feedback.log import HOUR_S, FeedbackLog

HOUR = 492_671


def record(number: int, hour: int = HOUR) -> dict:
    return {"event": "outcome", "request": number, "time": hour * HOUR_S + number % HOUR_S, "click": 1}


def test_records_lie_by_the_hour_of_their_request_in_the_order_in_which_they_came(tmp_path):
    log = FeedbackLog(tmp_path / "log")
    log.append([record(5), record(1, HOUR + 1), record(3)])
    log.append([record(4, HOUR + 1), record(2)])
    log.append([])
    assert log.hours() == [HOUR, HOUR + 1]
    assert log.read(HOUR) == ([record(5), record(3), record(2)], 0)
    assert log.read(HOUR + 1) == ([record(1, HOUR + 1), record(4, HOUR + 1)], 0)
    assert sorted(file.name for file in log.folder.iterdir()) == ["2026-03-15T23.log", "2026-03-16T00.log"]


def test_another_process_reads_what_was_written(tmp_path):
    FeedbackLog(tmp_path).append([record(1)])
    assert FeedbackLog(tmp_path).read(HOUR) == ([record(1)], 0)


def test_writers_do_not_tear_each_others_lines(tmp_path):
    def write(writer: int) -> None:
        log = FeedbackLog(tmp_path)
        for turn in range(50):
            log.append([record(1000 * writer + 10 * turn + k) for k in range(10)])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records, damaged = FeedbackLog(tmp_path).read(HOUR)
    assert damaged == 0
    assert sorted(r["request"] for r in records) == sorted(
        1000 * writer + 10 * turn + k for writer in range(4) for turn in range(50) for k in range(10)
    )


def test_a_torn_line_costs_itself_alone(tmp_path):
    log = FeedbackLog(tmp_path)
    log.append([record(1), record(2)])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    log.append([record(3)])
    assert log.read(HOUR) == ([record(1), record(3)], 1)


def test_a_folder_of_something_else_is_refused(tmp_path):
    log = FeedbackLog(tmp_path)
    log.append([record(1)])
    (tmp_path / "journal").touch()
    with pytest.raises(ValueError, match="journal is no hour of a feedback log; move it elsewhere"):
        log.hours()


@pytest.mark.parametrize("name", ["2026-03-15T2.log", "2026-03-15T23.log.gz", "lock"])
def test_a_file_whose_name_is_nearly_an_hour_is_none(tmp_path, name):
    log = FeedbackLog(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="is no hour of a feedback log"):
        log.hours()


def test_a_file_is_no_log(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; give a folder"):
        FeedbackLog(tmp_path / "file")


def test_a_log_says_whether_it_can_be_written(tmp_path):
    log = FeedbackLog(tmp_path / "log")
    log.expect_writable()
    assert list(log.folder.iterdir()) == []
    log.folder.rmdir()
    with pytest.raises(OSError, match="log"):
        log.expect_writable()


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("supply.journal.os.write", lambda handle, block: len(block) - 1)
    with pytest.raises(OSError, match="make room and send again"):
        FeedbackLog(tmp_path).append([record(1)])
