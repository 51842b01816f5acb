"""The code's own form: lint, layout, types, and what may stand in no file."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


BUILT = {"runs", "build", "dist"}
"""Folders that are made in the tree, besides those whose name begins with a dot."""


def of_the_project(root: Path) -> list[Path]:
    """Files of the project; of an unpacked archive, which has no git, all that nothing built."""
    # Whose top folder is another one lies unpacked in somebody else's repository.
    top = listed_by(root, "rev-parse", "--show-toplevel")
    if top and Path(top[0]).samefile(root):
        files = [root / name for name in listed_by(root, "ls-files")]
    else:
        own = [path for path in root.iterdir() if path.name not in BUILT and not path.name.startswith(".")]
        files = [path for place in own for path in (place.rglob("*") if place.is_dir() else [place])]
    return [file for file in files if file.is_file() and "__pycache__" not in file.parts]


def listed_by(root: Path, *command: str) -> list[str]:
    """Lines that git answers; none where there is no git."""
    try:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "command", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)], ids=" ".join
)
def test_the_code_passes(command):
    done = tool(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_locks_carry_hashes_and_no_index_address():
    locks = sorted((REPOSITORY / "locks").glob("*.txt"))
    assert locks, "no lock was looked at"
    for lock in locks:
        text = lock.read_text()
        assert "--hash=sha256:" in text, lock.name
        assert "://" not in text, lock.name
        assert "--index-url" not in text, lock.name


def pickled(files: list[Path]) -> list[Path]:
    return [file for file in files if file.suffix in {".pkl", ".pickle", ".joblib"}]


def test_nothing_pickled_is_in_the_tree():
    files = of_the_project(REPOSITORY)
    assert Path(__file__).resolve() in files
    assert pickled(files) == []


def test_a_pickle_is_found_where_there_is_no_git_too(tmp_path):
    for name in ("models/weights.pkl", "runs/cache.pkl", ".venv/lib/some.pkl", "models/__pycache__/a.pkl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert pickled(of_the_project(tmp_path)) == [tmp_path / "models" / "weights.pkl"]
