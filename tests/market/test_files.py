"""A file has its name once it is whole, whatever happens while it is written."""

from dataclasses import dataclass

import pytest

from market.files import as_json, write_json, written


@dataclass(frozen=True)
class Found:
    name: str
    value: float


def test_a_file_takes_its_name_once_it_is_whole_and_its_folder_is_made(tmp_path):
    file = tmp_path / "new" / "file.txt"
    with written(file) as place:
        place.write_text("half")
        assert not file.exists()
        place.write_text("whole")
    assert file.read_text() == "whole"
    assert list(file.parent.iterdir()) == [file]


def test_what_could_not_be_written_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "found.json"
    write_json(file, [as_json(Found("one", float("nan")))])
    before = file.read_text()
    assert '"value": null' in before
    with pytest.raises(TypeError):
        write_json(file, object())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, float("inf"))
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]
