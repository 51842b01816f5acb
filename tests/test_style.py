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


def tracked() -> list[Path]:
    """Files of the project; of an unpacked archive, which has no git, all of them."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    return [REPOSITORY / name for name in listed if name and (REPOSITORY / name).is_file()]


@pytest.mark.parametrize(
    "command", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)], ids=" ".join
)
def test_the_code_passes(command):
    done = tool(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_locks_carry_hashes_and_no_index_address():
    for lock in sorted((REPOSITORY / "locks").glob("*.txt")):
        text = lock.read_text()
        assert "--hash=sha256:" in text, lock.name
        assert "://" not in text, lock.name
        assert "--index-url" not in text, lock.name


def test_nothing_pickled_is_in_the_tree():
    assert [f for f in tracked() if f.suffix in {".pkl", ".pickle", ".joblib"}] == []
