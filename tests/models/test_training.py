"""Training: repeatable, resumable after a kill, and left with the best epoch's weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from models import two_tower
from models.batches import RankingBatches, RetrievalBatches
from models.ranker import RankerConfig, build_ranker, losses, task_labels, train_ranker
from models.training import TrainingLoop, set_seed, train
from models.two_tower import train_two_tower
from tests.conftest import REPOSITORY
from tests.models import resumable
from tests.models.conftest import SEED, Trained


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return resumable.run(tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(uninterrupted, tmp_path):
    command = [sys.executable, "-m", "tests.models.resumable", str(tmp_path)]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert json.loads((tmp_path / "state.json").read_text())["epoch"] == 1

    done: list[int] = []
    weights, state = resumable.run(tmp_path, lambda name, at, total, metrics: done.append(at))
    assert done[0] == resumable.BATCHES + 1
    assert state.epoch == resumable.EPOCHS
    assert same(weights, uninterrupted)


def test_a_finished_run_is_not_trained_again(uninterrupted, tmp_path):
    resumable.run(tmp_path)
    before = (tmp_path / "state.json").read_bytes()
    done: list[int] = []
    weights, _ = resumable.run(tmp_path, lambda name, at, total, metrics: done.append(at))
    assert done == [resumable.BATCHES * resumable.EPOCHS]
    assert same(weights, uninterrupted)
    assert (tmp_path / "state.json").read_bytes() == before


def scripted(metrics: list[float]):
    """A validation that says `metrics` one after another, and the weights it was shown."""
    shown: list[list[np.ndarray]] = []

    def validate(model) -> dict[str, float]:
        shown.append(model.get_weights())
        return {"recall": metrics[len(shown) - 1]}

    return validate, shown


def test_training_that_diverges_ends_with_the_knob_to_turn_and_not_with_a_model(tmp_path):
    model = resumable.model()
    model.optimizer.learning_rate = 1e30
    with pytest.raises(ValueError, match=r"the toy diverged: .*lower its learning_rate"):
        train(
            "toy",
            model,
            two_tower.losses,
            resumable.RandomBatches,
            lambda model: {"recall": 1.0},
            monitor="recall",
            epochs=2,
            patience=1,
            folder=tmp_path,
        )


def test_the_best_epochs_weights_are_kept_and_patience_ends_the_run(tmp_path):
    validate, shown = scripted([0.1, 0.5, 0.3, 0.5, 0.9])
    weights, state = resumable.run(tmp_path, validate=validate, epochs=5, patience=2)
    assert len(shown) == state.epoch == 4
    assert (state.best_epoch, state.best) == (2, 0.5)
    assert [metrics["recall"] for metrics in state.history] == [0.1, 0.5, 0.3, 0.5]
    assert same(weights, shown[1])
    assert not same(weights, shown[3])
    kept = {file.name.split(".")[0] for file in tmp_path.glob("epoch-*")}
    assert kept == {"epoch-2", "epoch-4"}


def test_a_better_epoch_renews_patience(tmp_path):
    validate, shown = scripted([0.1, 0.0, 0.2, 0.1, 0.3])
    weights, state = resumable.run(tmp_path, validate=validate, epochs=5, patience=2)
    assert (state.epoch, state.best_epoch) == (5, 5)
    assert same(weights, shown[4])


def test_without_validation_data_the_last_epoch_is_kept(uninterrupted, tmp_path):
    shown: list[list[np.ndarray]] = []

    def validate(model) -> dict[str, float]:
        shown.append(model.get_weights())
        return {}

    weights, state = resumable.run(tmp_path, validate=validate)
    assert (state.epoch, state.best_epoch) == (resumable.EPOCHS, resumable.EPOCHS)
    assert same(weights, shown[-1])
    assert same(weights, uninterrupted)
    assert not same(shown[0], shown[1])


@pytest.mark.parametrize("knob", ["epochs", "patience"])
def test_a_run_of_no_epoch_is_refused(knob, tmp_path):
    with pytest.raises(ValueError, match=f"{knob}=0.*toy must be at least 1"):
        resumable.run(tmp_path, **{knob: 0})


def test_a_seed_gives_bitwise_equal_towers(small_two_tower: Trained, small_training_set, tmp_path):
    model, [state] = train_two_tower(small_training_set, small_two_tower.config, tmp_path, SEED)
    assert same(model.get_weights(), small_two_tower.model.get_weights())
    assert state == small_two_tower.state


def test_a_seed_gives_a_bitwise_equal_ranker(small_ranker: Trained, small_training_set, tmp_path):
    model, tasks, [state] = train_ranker(small_training_set, small_ranker.config, tmp_path, SEED)
    assert tasks == small_ranker.tasks
    assert same(model.get_weights(), small_ranker.model.get_weights())
    assert state == small_ranker.state


@pytest.mark.parametrize("side", ["small_two_tower", "small_ranker"])
def test_a_step_scatters_to_rows_that_differ_alone(side, small_training_set, request):
    """On a GPU no other scatter is deterministic as `set_seed` leaves them."""
    model = request.getfixturevalue(side).model
    sizes = {"batch_size": 64, "seed": SEED}
    if side == "small_ranker":
        labels = task_labels(small_training_set.examples, 60)
        batches, of = RankingBatches(small_training_set, np.arange(64), labels, **sizes), losses
    else:
        batches, of = RetrievalBatches(small_training_set, np.arange(64), **sizes), two_tower.losses
    loop = TrainingLoop(model, of, batches[0], 2)
    operations = loop.step.get_concrete_function().graph.get_operations()
    assert not {op.type for op in operations if "Scatter" in op.type and "Resource" not in op.type}
    scatters = [op for op in operations if "Scatter" in op.type]
    assert scatters
    assert {op.inputs[1].op.type for op in scatters} == {"Unique"}
    assert os.environ["TF_DISABLE_SCATTER_OP_DETERMINISM"] == "1"


def test_a_step_in_parts_is_a_step(small_training_set):
    """Whatever the parts, and where a batch has fewer rows than there are parts."""
    features = small_training_set.features
    labels = task_labels(small_training_set.examples, 60)
    batches = RankingBatches(small_training_set, np.arange(203), labels, batch_size=100)

    def weights(parts: int) -> list[np.ndarray]:
        set_seed(3)
        config = RankerConfig(embedding_dim=4, bottom=(8,), top=(8, 6))
        model = build_ranker(features, tuple(labels), config, seed=3)
        loop = TrainingLoop(model, losses, batches[0], parts)
        before = model.get_weights()
        found = list(loop.run(batches))
        assert len(found) == len(batches) == 3
        assert found == sorted(found, reverse=True)
        assert not same(before, model.get_weights())
        return model.get_weights()

    whole = weights(1)
    for parts in (2, 5):
        for expected, found in zip(whole, weights(parts), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-4)


def test_batches_gathered_ahead_that_fail_end_the_pass(small_training_set):
    class Broken(resumable.RandomBatches):
        def __getitem__(self, place):
            if place == 2:
                raise OSError("the disk is gone")
            return super().__getitem__(place)

    loop = TrainingLoop(resumable.model(), resumable.losses, resumable.RandomBatches(0)[0])
    done = loop.run(Broken(0))
    assert all(np.isfinite([next(done), next(done)]))
    with pytest.raises(OSError, match="the disk is gone"):
        next(done)
