"""The training benchmark gives every side the same passes, and says how many."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import training
from benchmarks.harness import Cost, Side


class Other:
    """A peer that counts its passes."""

    def __init__(self, folder: Path, trained: list[str]) -> None:
        self.file = folder / "answer.npz"
        self.trained = trained
        np.savez(self.file)

    def ask(self, work: str, **arguments: Any) -> dict[str, Any]:
        return {"versions": {}, "file": str(self.file)}

    def side(self, work: str) -> Side:
        return lambda: self.trained.append("peer") or Cost(1, 1)


def test_ours_and_a_peer_learn_as_many_passes_and_the_report_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def case(*_: Any) -> training.Case:
        rows = {"pair_query": np.zeros(3)}
        return training.Case(
            {"model": "dlrm"}, rows, rows, lambda: trained.append("ours"), lambda answer: 0.5, "AUC"
        )

    @contextmanager
    def peers():
        yield {"peer": Other(tmp_path, trained)}

    for name, stub in {"world_data": lambda *_: None, "ranker": case, "two_tower": case}.items():
        monkeypatch.setattr(training, name, stub)
    monkeypatch.setattr(training, "running_peers", peers)
    monkeypatch.setattr(training, "versions", lambda *_: {})
    told: list[str] = []
    training.run(repeats=2, report=told.append)
    assert trained == ["ours", "peer"] * 3 * 2
    assert sum("after 3 passes" in line for line in told) == 4
