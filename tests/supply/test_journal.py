"""The journal keeps whole events of many writers, survives what tears it, and shrinks."""

import errno
import json
import multiprocessing
import os
import stat
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supply.events import EVENT_KINDS, TAKEN, turn
from supply.journal import Journal, Tail, decode


def viewers(content, number, time=5):
    return {"event": "viewers", "content": content, "time": time, "viewers": number}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "state")


def test_a_reader_gets_each_event_once_in_order(journal):
    tail = Tail(journal.path)
    first, second = [viewers("a", 1), viewers("ü", 2)], [viewers("b", 3)]
    journal.append(first)
    assert tail.read() == (first, True)
    assert tail.read() == ([], False)
    journal.append(second)
    journal.append([])
    assert tail.read() == (second, False)


def test_where_nothing_is_new_the_file_is_not_read(journal, monkeypatch):
    tail = Tail(journal.path)
    journal.append([viewers("a", 1)])
    tail.read()
    monkeypatch.setattr(os, "pread", None)
    monkeypatch.setattr(os, "open", None)
    assert tail.read() == ([], False)


def test_a_journal_that_does_not_exist_yet_is_awaited(tmp_path):
    tail = Tail(tmp_path / "state" / "journal")
    assert tail.read() == ([], False)
    Journal(tmp_path / "state").append([viewers("a", 1)])
    assert tail.read() == ([viewers("a", 1)], True)


@pytest.mark.parametrize("kept", range(1, 40, 7))
def test_a_torn_last_line_is_ignored_and_spoils_no_other(journal, kept):
    journal.append([viewers("a", 1)])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + whole[: kept + 1])
    tail = Tail(journal.path)
    assert tail.read()[0] == [viewers("a", 1)]
    assert tail.read() == ([], False)
    journal.append([viewers("b", 2)])
    assert tail.read()[0] == [viewers("b", 2)]
    assert tail.damaged == 1
    assert Tail(journal.path).read()[0] == [viewers("a", 1), viewers("b", 2)]


def test_a_line_still_being_written_is_read_once_it_is_whole(journal):
    journal.append([viewers("a", 1)])
    line = journal.path.read_bytes()
    tail = Tail(journal.path)
    tail.read()
    with journal.path.open("ab", buffering=0) as half:
        half.write(line[:20])
        assert tail.read() == ([], False)
        half.write(line[20:])
    assert tail.read() == ([viewers("a", 1)], False)


def test_a_changed_byte_costs_its_line_alone(journal):
    journal.append([viewers("a", 1), viewers("b", 2), viewers("c", 3)])
    text = journal.path.read_bytes()
    journal.path.write_bytes(text.replace(b'"viewers":2', b'"viewers":9'))
    tail = Tail(journal.path)
    assert tail.read()[0] == [viewers("a", 1), viewers("c", 3)]
    assert tail.damaged == 1


def test_no_call_parses_more_than_a_portion_of_a_long_journal(journal, monkeypatch):
    """While one does, no other thread runs, and a serving process that stands still so long is ended."""
    told = [viewers(f"room-{number}", number) for number in range(20_000)]
    journal.append(told)
    parse, sizes = json.loads, []
    monkeypatch.setattr(json, "loads", lambda text: sizes.append(len(text)) or parse(text))
    assert Tail(journal.path).read() == (told, True)
    journal.compact()
    assert Tail(journal.path).read() == (told, True)
    assert max(sizes) < journal.path.stat().st_size / 4


def test_events_of_a_kind_that_a_newer_version_wrote_are_ignored_and_kept_for_it(journal, caplog):
    newer = [{"event": "pinned", "content": "a", "time": time} for time in (3, 4)]
    journal.append([viewers("a", 1), newer[0], viewers("a", 2), newer[1]])
    tail = Tail(journal.path)
    assert tail.read() == ([viewers("a", 1), viewers("a", 2)], True)
    assert tail.foreign == 2
    assert caplog.text.count("does not know") == 1
    journal.compact()
    assert tail.read() == ([viewers("a", 2)], True)
    with journal.path.open("rb") as lines:
        assert decode(lines)[0][1:] == [viewers("a", 2), *newer]


def test_compaction_keeps_what_holds_and_tells_readers_to_start_anew(journal, caplog):
    tail = Tail(journal.path)
    journal.append([viewers("a", number, time=number) for number in range(50)])
    journal.append([viewers("a", 7, time=3), {"event": "ended", "content": "a", "time": 9}])
    tail.read()
    before = journal.path.stat().st_size
    journal.compact()
    held = [viewers("a", 49, time=49), {"event": "ended", "content": "a", "time": 9}]
    assert tail.read() == (held, True)
    assert journal.path.stat().st_size < before / 5
    assert journal.path.stat().st_mode & 0o044 == 0o044, "a server of another user reads it too"
    journal.append([viewers("b", 1)])
    assert tail.read() == ([viewers("b", 1)], False)
    assert sorted(path.name for path in journal.folder.iterdir()) == ["journal", "lock"]
    assert not caplog.text, "its own line is no event of a newer version"


def test_a_journal_that_cannot_be_opened_for_once_is_read_the_next_time(journal, monkeypatch):
    tail = Tail(journal.path)
    journal.append([viewers("a", 1)])
    tail.read()
    journal.compact()
    with monkeypatch.context() as patch:

        def too_many(*_):
            raise OSError(errno.EMFILE, "too many open files")

        patch.setattr(os, "open", too_many)
        with pytest.raises(OSError, match="too many"):
            tail.read()
    with (journal.folder / "other").open("w") as other:  # it may get the number of a file that was closed
        assert tail.read() == ([viewers("a", 1)], True)
        assert os.fstat(other.fileno()).st_ino == (journal.folder / "other").stat().st_ino


def test_appending_compacts_a_journal_that_has_doubled(tmp_path):
    journal = Journal(tmp_path, compact_bytes=4000)
    sizes = []
    for number in range(400):
        journal.append([viewers(f"room-{number % 30}", number, time=number)])
        sizes.append(journal.path.stat().st_size)
    assert max(sizes) < 3 * 4000
    held = {event["content"]: event["viewers"] for event in Tail(journal.path).read()[0]}
    assert held == {f"room-{number % 30}": number for number in range(370, 400)}


def test_what_holds_is_no_reason_to_compact_before_the_journal_has_doubled(tmp_path):
    journal, sizes = Journal(tmp_path, compact_bytes=1000), []
    journal.append([viewers(f"room-{number}", number) for number in range(10, 60)])
    held = journal.path.stat().st_size
    for number in range(120):
        journal.append([viewers(f"room-{10 + number % 50}", 10)])
        sizes.append(journal.path.stat().st_size)
    assert held > 2 * 1000
    assert 1.9 * held < max(sizes) < 2 * held
    assert sum(after < before for before, after in pairwise(sizes)) == 2


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_told_with_the_file_that_it_has_no_room_for(journal, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=f"No space left on device: '{journal.path}'"):
        journal.append([viewers("a", 1)]) if call == "write" else journal.compact()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; give a folder for the live state"):
        Journal(tmp_path / "file")


def test_what_a_full_disk_cut_off_is_an_error(journal, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, block: write(handle, block[:10]))
    with pytest.raises(OSError, match="make room and send again"):
        journal.append([viewers("a", 1)])
    monkeypatch.undo()
    journal.append([viewers("b", 2)])
    assert Tail(journal.path).read()[0] == [viewers("b", 2)]


def _write(folder, name):
    journal = Journal(folder, compact_bytes=20_000)
    for number in range(200):
        journal.append([viewers(f"{name}-{number}", number), viewers(name, number, time=number)])


def test_writers_side_by_side_lose_nothing_even_while_the_journal_is_compacted(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    tail, held = Tail(tmp_path / "journal"), {}
    while any(writer.is_alive() for writer in writers):
        for event in tail.read()[0]:
            held[event["content"]] = event["viewers"]
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    held |= {event["content"]: event["viewers"] for event in tail.read()[0]}
    expected = {f"{name}-{number}": number for name in "abc" for number in range(200)}
    assert held == expected | dict.fromkeys("abc", 199)
    assert tail.damaged == 0
    assert {e["content"]: e["viewers"] for e in Tail(tmp_path / "journal").read()[0]} == held


EVENTS = st.builds(
    lambda name, who, time, taken, value: {
        "event": name,
        EVENT_KINDS[name].subject: who,
        "time": time,
        **({TAKEN: taken} if taken < time else {}),
        **({EVENT_KINDS[name].value: value} if isinstance(EVENT_KINDS[name].value, str) else {}),
    },
    st.sampled_from(["started", "ended", "viewers", "stock", "seller_suspended", "seller_restored"]),
    st.sampled_from("ab"),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 3),
)


def holding(events):
    """The last written of the latest events of each field and subject."""
    held = {}
    for event in events:
        key = EVENT_KINDS[event["event"]].field, event[EVENT_KINDS[event["event"]].subject]
        if key not in held or turn(event) >= turn(held[key]):
            held[key] = event
    return held


@given(st.lists(EVENTS, max_size=30), st.lists(EVENTS, max_size=10))
@settings(max_examples=40)
def test_compaction_at_any_moment_changes_nothing_that_holds(tmp_path_factory, before, after):
    journal = Journal(tmp_path_factory.mktemp("state"))
    journal.append(before)
    journal.compact()
    journal.append(after)
    assert holding(Tail(journal.path).read()[0]) == holding([*before, *after])


@pytest.mark.parametrize("mode", [0o640, 0o664])
def test_a_compaction_leaves_the_journal_to_whom_it_was_open(journal, mode):
    journal.append([viewers("a", 1)])
    journal.path.chmod(mode)
    journal.compact()
    assert stat.S_IMODE(journal.path.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files to others")
def test_a_journal_that_root_compacts_stays_its_owners(journal):
    journal.append([viewers("a", 1)])
    os.chown(journal.path, 4321, 1234)
    journal.compact()
    status = journal.path.stat()
    assert (status.st_uid, status.st_gid) == (4321, 1234)


def test_a_compaction_that_fails_takes_nothing_back(tmp_path, monkeypatch, caplog):
    journal = Journal(tmp_path, compact_bytes=1)

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("supply.journal.tempfile.mkstemp", full)
    journal.append([{"event": "stock", "content": "c1", "stock": 3, "time": 5}])
    assert [event["stock"] for event in Tail(journal.path).read()[0]] == [3]
    assert "could not be compacted" in caplog.text


def test_what_a_killed_compaction_left_is_removed_by_the_next(tmp_path):
    journal = Journal(tmp_path)
    (tmp_path / ".journal.killed").write_bytes(b"half")
    journal.compact()
    assert not list(tmp_path.glob(".journal.*"))
