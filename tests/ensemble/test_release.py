import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble.release import FORMAT, MANIFEST, Release, ReleaseError, ReleaseWriter, _render
from tests.ensemble import toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.write_release(tmp_path_factory.mktemp("release") / "one", 7)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_what_is_written_is_read_back(folder):
    release = Release.open(folder)
    assert release.name == "release-7"
    assert release.info == {"number": 7, "feed": {"tasks": ""}}
    assert release.files == ("items.json", "items.npy", "query.onnx")
    assert release.json("items.json") == toy.ITEMS
    assert release.onnx_path("query.onnx").stat().st_size > 0
    mapped, read = release.array("items.npy"), release.array("items.npy", mmap=False)
    assert isinstance(mapped.base, np.memmap)
    assert not isinstance(read.base, np.memmap)
    np.testing.assert_array_equal(mapped, read)
    assert not mapped.flags.writeable


def test_an_empty_array_is_read_back(tmp_path):
    with ReleaseWriter(tmp_path / "r", name="empty") as release:
        release.array("none.npy", np.empty((0, 3), np.float32))
    assert Release.open(tmp_path / "r").array("none.npy").shape == (0, 3)


def test_an_array_of_text_needs_no_pickle(tmp_path):
    with ReleaseWriter(tmp_path / "r", name="text") as release:
        release.array("ids.npy", np.array(["ana", "björn"]))
    assert Release.open(tmp_path / "r").array("ids.npy").tolist() == ["ana", "björn"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_any_changed_byte_of_any_file_is_refused_by_the_file_s_name(folder, data):
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    sound = file.read_bytes()
    at = data.draw(st.integers(0, len(sound) - 1))
    damaged = bytearray(sound)
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        file.write_bytes(damaged)
        with pytest.raises(ReleaseError, match=file.name):
            Release.open(folder)
    finally:
        file.write_bytes(sound)
    Release.open(folder)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_truncated_file_is_refused_by_name_even_unverified(folder, data):
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    sound = file.read_bytes()
    try:
        file.write_bytes(sound[: data.draw(st.integers(0, len(sound) - 1))])
        with pytest.raises(ReleaseError, match=file.name):
            Release.open(folder, verify=False)
    finally:
        file.write_bytes(sound)


@pytest.mark.parametrize("file", ["items.npy", "query.onnx", "items.json", MANIFEST])
def test_a_missing_file_is_refused_by_name(copy, file):
    (copy / file).unlink()
    with pytest.raises(ReleaseError, match=file):
        Release.open(copy)


def test_an_extra_file_is_refused_by_name(copy):
    (copy / "run.py").write_text("print('hello')")
    with pytest.raises(ReleaseError, match=r"run\.py is not in the manifest; remove it"):
        Release.open(copy)


def test_a_link_in_place_of_a_file_is_refused(copy, folder):
    (copy / "items.json").unlink()
    (copy / "items.json").symlink_to(folder / "items.json")
    with pytest.raises(ReleaseError, match=r"items\.json"):
        Release.open(copy)


def test_a_format_of_the_future_is_refused_with_what_to_do(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ReleaseError, match=f"has format 99; this version reads format {FORMAT}, export"):
        Release.open(copy)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "null",
        f'{{"format": {FORMAT}}}',
        f'{{"format": {FORMAT}, "files": []}}',
        json.dumps(
            {"format": FORMAT, "name": "", "created": "", "files": {}, "info": {"loss": float("nan")}}
        ),
        "[" * 100_000,
        "\xff",
        "",
    ],
)
def test_a_manifest_that_is_none_is_refused(copy, text):
    (copy / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ReleaseError, match=r"manifest\.json is damaged"):
        Release.open(copy)


def test_a_folder_that_is_no_release_is_refused(tmp_path):
    with pytest.raises(ReleaseError, match=r"is .* a complete release"):
        Release.open(tmp_path / "nowhere")


def test_a_file_that_needs_pickle_is_refused_by_writer_and_reader(tmp_path, monkeypatch):
    objects = np.array([{"code": 1}], object)
    with (
        pytest.raises(ReleaseError, match="needs pickle"),
        ReleaseWriter(tmp_path / "r", name="x") as release,
    ):
        release.array("a.npy", objects)
    with (
        pytest.raises(ReleaseError, match="needs pickle"),
        ReleaseWriter(tmp_path / "r", name="x") as release,
    ):
        np.save(release.path("a.npy"), objects, allow_pickle=True)
    monkeypatch.setattr("ensemble.release._check_content", lambda path: None)  # somebody else's writer
    with ReleaseWriter(tmp_path / "r", name="x") as release:
        np.save(release.path("a.npy"), objects, allow_pickle=True)
    monkeypatch.undo()
    with pytest.raises(ReleaseError, match=r"a\.npy has dtype object, which needs pickle"):
        Release.open(tmp_path / "r")


@pytest.mark.parametrize("file", ["model.pkl", "code.py", "../up.json", ".hidden.json", "a/b.npy", MANIFEST])
def test_only_plain_names_of_data_can_be_written(tmp_path, file):
    with (
        pytest.raises(ReleaseError, match="cannot be in a release"),
        ReleaseWriter(tmp_path / "r", name="x") as r,
    ):
        r.path(file)
    assert list(tmp_path.iterdir()) == []


def test_a_file_put_there_by_hand_is_refused_unless_it_is_data(tmp_path):
    with (
        pytest.raises(ReleaseError, match=r"weights\.pt"),
        ReleaseWriter(tmp_path / "r", name="x") as release,
    ):
        (release.path("a.npy").parent / "weights.pt").write_bytes(b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_refused_when_written(tmp_path):
    for file in ("a.npy", "a.json", "a.onnx"):
        with pytest.raises(ReleaseError, match=file), ReleaseWriter(tmp_path / "r", name="x") as release:
            release.path(file).write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


def test_an_array_with_more_or_less_behind_its_header_is_refused_when_written(tmp_path):
    for change in (lambda raw: raw[:-1], lambda raw: raw + b"0"):
        with (  # noqa: PT012
            pytest.raises(ReleaseError, match=r"a\.npy is not a readable \.npy file"),
            ReleaseWriter(tmp_path / "r", name="x") as release,
        ):
            release.array("a.npy", np.arange(3))
            release.path("a.npy").write_bytes(change(release.path("a.npy").read_bytes()))
    assert list(tmp_path.iterdir()) == []


def test_an_array_whose_columns_lie_together_is_read_back(tmp_path):
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    with ReleaseWriter(tmp_path / "r", name="x") as release:
        release.array("a.npy", array)
    np.testing.assert_array_equal(Release.open(tmp_path / "r").array("a.npy"), array)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"../outside.npy": {"bytes": 1, "sha256": ""}}, "'../outside.npy' cannot be in a release"),
        ({"code.py": {"bytes": 1, "sha256": ""}}, "'code.py' cannot be in a release"),
        ({"a.npy": {"bytes": "1", "sha256": ""}}, "manifest.json is damaged"),
        ({"a.npy": {"bytes": 1}}, "manifest.json is damaged"),
        ({"a.npy": 1}, "manifest.json is damaged"),
    ],
)
def test_a_manifest_of_another_make_with_its_own_sum_is_refused(tmp_path, files, why):
    body = {"format": FORMAT, "name": "", "created": "", "files": files, "info": {}}
    (tmp_path / MANIFEST).write_bytes(_render(body))
    with pytest.raises(ReleaseError, match=re.escape(why)):
        Release.open(tmp_path)


def test_others_than_the_owner_may_read_a_release(tmp_path):
    with ReleaseWriter(tmp_path / "r", name="x") as release:
        release.json("a.json", 1)
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o755


def test_a_release_that_another_made_meanwhile_stays(copy, folder, tmp_path):
    with (  # noqa: PT012
        pytest.raises(ReleaseError, match="was made meanwhile"),
        ReleaseWriter(tmp_path / "r", name="x") as release,
    ):
        release.json("a.json", 1)
        shutil.copytree(copy, tmp_path / "r")
    assert Release.open(tmp_path / "r").sums == Release.open(folder).sums
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "r"]


def test_a_place_in_a_release_is_known_by_whatever_way_it_is_named(copy, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(copy)
    monkeypatch.chdir(copy)
    for release, place in ((copy, tmp_path / "link"), (tmp_path / "link", copy), (copy, Path("."))):
        with pytest.raises(ReleaseError, match="lies in the release"):
            Release.open(release).expect_outside(place / "made", "choose another folder")
    Release.open(copy).expect_outside(tmp_path / "copy2", "choose another folder")


def test_numbers_that_json_cannot_hold_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="JSON compliant"),
        ReleaseWriter(tmp_path / "r", name="x") as release,
    ):
        release.json("a.json", [float("nan")])
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), ReleaseWriter(tmp_path / "r", name="x") as release:  # noqa: PT012
        release.json("a.json", 1)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    program = (
        "import os, signal, sys; from ensemble.release import ReleaseWriter\n"
        "with ReleaseWriter(sys.argv[1], name='x') as release:\n"
        "    release.json('a.json', 1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "r")], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with ReleaseWriter(tmp_path / "r", name="x") as release:
        release.json("a.json", 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "r"]


def test_a_link_that_leads_nowhere_is_no_free_place(tmp_path):
    (tmp_path / "r").symlink_to(tmp_path / "gone")
    with pytest.raises(ReleaseError, match="r exists already"), ReleaseWriter(tmp_path / "r", name="x"):
        pass


def test_a_disk_that_takes_no_release_is_not_taken_for_another_writer(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ensemble.release.Path.rename", full)
    with pytest.raises(OSError, match="No space left"), ReleaseWriter(tmp_path / "r", name="x") as release:
        release.json("a.json", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_release_is_never_overwritten(copy):
    with pytest.raises(ReleaseError, match="a release never changes"), ReleaseWriter(copy, name="x"):
        pass
    Release.open(copy)


def test_asking_for_an_absent_file_names_those_that_are_there(folder):
    release = Release.open(folder)
    with pytest.raises(ReleaseError, match=r"has no 'users\.npy'; its \.npy files: items\.npy"):
        release.array("users.npy")
    with pytest.raises(ReleaseError, match=r"has no 'items\.npy'; its \.json files: items\.json"):
        release.json("items.npy")
