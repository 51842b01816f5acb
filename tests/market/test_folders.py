"""Folders appear and go whole, whoever is killed when."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from market import folders
from market.folders import (
    FolderInUse,
    drafted,
    expect_own,
    moved_aside,
    only_user,
    remove,
    replace,
    tidy,
    written_whole,
)

ROOT = Path(__file__).parents[2]


def folder_of(path, text):
    path.mkdir()
    (path / "mark").write_text(text)
    return path


def killed(program, folder):
    """Run a program that kills itself when `die()` is asked."""
    start = (
        "import os, shutil, signal, sys; from pathlib import Path; from market import folders\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "a = Path(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", start + program, str(folder)], cwd=ROOT, check=False)
    assert done.returncode == -9


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_the_place_of_another(tmp_path):
    folder_of(tmp_path / "a", "old")
    replace(folder_of(tmp_path / "b", "new"), tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "mark").read_text() == "new"


def test_what_cannot_be_replaced_stays(tmp_path):
    folder_of(tmp_path / "a", "old")
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "none", tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "mark").read_text() == "old"


def test_a_folder_goes_and_one_that_is_not_there_is_no_error(tmp_path):
    remove(folder_of(tmp_path / "a", "old"))
    remove(tmp_path / "a")
    assert names(tmp_path) == []


def test_what_a_killed_replacement_moved_aside_is_back(tmp_path):
    folder_of(tmp_path / ".a.17.old", "old")
    tidy(tmp_path / "a")
    assert (tmp_path / "a" / "mark").read_text() == "old"
    folder_of(tmp_path / ".a.18.old", "older")
    tidy(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "mark").read_text() == "old"


def test_a_replacement_killed_between_its_renames_loses_nothing(tmp_path):
    folder_of(tmp_path / "a", "old")
    folder_of(tmp_path / "b", "new")
    killed("rename = Path.rename\n"
           "Path.rename = lambda one, to: die() if one.name == 'b' else rename(one, to)\n"
           "folders.replace(a.parent / 'b', a)", tmp_path / "a")  # fmt: skip
    [aside] = moved_aside(tmp_path / "a")
    assert (aside / "mark").read_text() == "old"
    tidy(tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a" / "mark").read_text() == "old"
    replace(tmp_path / "b", tmp_path / "a")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("act", ["folders.remove(a)", "folders.replace(a.parent / 'b', a)"])
def test_what_was_being_deleted_when_its_process_was_killed_never_comes_back(tmp_path, act):
    folder_of(tmp_path / "a", "old")
    folder_of(tmp_path / "b", "new")
    killed(f"shutil.rmtree = die\n{act}", tmp_path / "a")
    if "remove" not in act:
        (tmp_path / "a").rename(tmp_path / "b")
    tidy(tmp_path / "a")
    assert names(tmp_path) == ["b"]


def test_tidying_leaves_what_belongs_to_a_folder_of_a_longer_name(tmp_path):
    folder_of(tmp_path / ".a.b.17.old", "of a.b")
    folder_of(tmp_path / "a", "own")
    tidy(tmp_path / "a")
    assert moved_aside(tmp_path / "a.b") == [tmp_path / ".a.b.17.old"]


@pytest.mark.parametrize("killed_before", [False, True])
def test_of_a_link_to_a_folder_the_link_is_replaced_and_nothing_else(tmp_path, killed_before):
    folder_of(tmp_path / "theirs", "old")
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    if killed_before:
        (tmp_path / ".a.17.gone").symlink_to(tmp_path / "theirs")
    with written_whole(tmp_path / "a", "wait") as fresh:
        (fresh / "mark").write_text("new")
    assert names(tmp_path) == ["a", "theirs"]
    assert [(tmp_path / name / "mark").read_text() for name in ("a", "theirs")] == ["new", "old"]


@pytest.mark.parametrize("make", [written_whole, only_user])
def test_a_link_that_leads_nowhere_is_refused_before_anything_is_done(tmp_path, make):
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    with (
        pytest.raises(FolderInUse, match="a is a link that leads nowhere; delete it"),
        make(tmp_path / "a", ""),
    ):
        raise AssertionError("it was held")
    assert names(tmp_path) == ["a"]


def test_a_name_may_hold_what_patterns_are_made_of(tmp_path):
    folder_of(tmp_path / ".a[b]*.17.old", "old")
    tidy(tmp_path / "a[b]*")
    assert names(tmp_path) == ["a[b]*"]


def test_a_folder_is_written_whole_by_one_at_a_time(tmp_path):
    with written_whole(tmp_path / "a", "wait") as fresh:
        (fresh / "mark").touch()
        assert not (tmp_path / "a").exists()
        second = written_whole(tmp_path / "a", "go away")
        with pytest.raises(FolderInUse, match=r"another process writes .*/a; go away"):
            second.__enter__()
        with written_whole(tmp_path / "b", "wait"):
            pass
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "a") == ["mark"]


def test_a_folder_whose_writing_fails_is_as_it_was(tmp_path):
    folder_of(tmp_path / "a", "old")

    def fail():
        with written_whole(tmp_path / "a", "wait") as fresh:
            (fresh / "mark").write_text("new")
            raise EOFError

    with pytest.raises(EOFError):
        fail()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "mark").read_text() == "old"


def test_who_writes_next_clears_up_what_a_killed_writer_left(tmp_path):
    killed("with folders.written_whole(a, '') as fresh:\n    (fresh / 'part').touch(); die()", tmp_path / "a")
    assert names(tmp_path) == [".a.writing"]
    folder_of(tmp_path / ".a.17.old", "older")
    with written_whole(tmp_path / "a", "wait") as fresh:
        assert names(fresh) == []
        assert (tmp_path / "a" / "mark").read_text() == "older"
    assert names(tmp_path) == ["a"]


def test_a_draft_becomes_the_folder_or_vanishes(tmp_path):
    with drafted(tmp_path / "a") as draft:
        (draft / "mark").write_text("new")
        draft.rename(tmp_path / "a")
    with drafted(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "mark").read_text() == "new"


def test_a_draft_that_a_killed_process_left_is_deleted_and_one_that_is_at_work_stays(tmp_path):
    (tmp_path / ".a.previous").mkdir()  # somebody's own
    killed("with folders.drafted(a) as draft: (draft / 'part').touch(); die()", tmp_path / "a")
    assert len(names(tmp_path)) == 2
    with drafted(tmp_path / "a") as first:
        assert names(tmp_path) == sorted([first.name, ".a.previous"])
        with drafted(tmp_path / "a") as second, drafted(tmp_path / "b"):
            assert first.is_dir()
            assert second != first
        assert first.is_dir()
    assert names(tmp_path) == [".a.previous"]


def test_a_draft_that_was_taken_for_one_that_is_left_is_made_again(tmp_path, monkeypatch):
    flock, made = folders.fcntl.flock, []

    def late(lock, how):
        if not made:
            made.extend(tmp_path.iterdir())
            shutil.rmtree(made[0])
        flock(lock, how)

    monkeypatch.setattr(folders.fcntl, "flock", late)
    with drafted(tmp_path / "a") as draft:
        assert [draft] == list(tmp_path.iterdir()) != made
    assert names(tmp_path) == []


def test_a_draft_is_made_on_a_disk_without_locks_too_and_nothing_is_deleted_there(tmp_path, monkeypatch):
    left = folder_of(tmp_path / ".a.17.draft", "")

    def none(lock, how):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(folders.fcntl, "flock", none)
    with drafted(tmp_path / "a") as draft:
        assert draft.is_dir()
    assert names(tmp_path) == [left.name]


def test_a_lock_that_was_just_taken_away_holds_nothing(tmp_path, monkeypatch):
    flock = folders.fcntl.flock

    def late(lock, how):
        shutil.rmtree(tmp_path / ".a.writing")
        flock(lock, how)

    monkeypatch.setattr(folders.fcntl, "flock", late)
    with pytest.raises(FolderInUse), written_whole(tmp_path / "a", "wait"):
        pass
    assert names(tmp_path) == []


def test_only_folders_of_ones_own_pass(tmp_path):
    expect_own(tmp_path / "none", "mark", "go on")
    (tmp_path / "empty").mkdir()
    expect_own(tmp_path / "empty", "mark", "go on")
    expect_own(folder_of(tmp_path / "own", ""), "mark", "go on")
    with pytest.raises(FolderInUse, match=r"own exists and has no \*/mark, so it is not replaced; go away"):
        expect_own(tmp_path / "own", "*/mark", "go away")
    with pytest.raises(FolderInUse):
        expect_own(tmp_path / "own" / "mark", "mark", "go away")


def test_a_folder_is_held_against_another_process_while_the_context_lasts(tmp_path):
    program = (
        "import sys; from pathlib import Path; from market.folders import only_user\n"
        "with only_user(Path(sys.argv[1]), 'go away'): print('held')"
    )

    def another():
        command = [sys.executable, "-c", program, str(tmp_path / "a")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    with only_user(tmp_path / "a", "wait"):
        refused = another()
    assert refused.returncode
    assert "another process works in" in refused.stderr
    assert "go away" in refused.stderr
    assert another().stdout == "held\n"
