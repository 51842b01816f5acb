"""Folders appear and go whole, whoever is killed when."""

import subprocess
import sys
from pathlib import Path

import pytest

from market.folders import FolderInUse, expect_own, only_user, remove, replace, tidy


def folder_of(path, text):
    path.mkdir()
    (path / "mark").write_text(text)
    return path


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
        return subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False
        )

    with only_user(tmp_path / "a", "wait"):
        refused = another()
    assert refused.returncode
    assert "another process works in" in refused.stderr
    assert "go away" in refused.stderr
    assert another().stdout == "held\n"
