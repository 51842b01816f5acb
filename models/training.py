"""The training loop of both models: one epoch at a time, validated, resumable, repeatable under a seed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called as (model name, batches done, batches in all, metrics so far)."""


def quiet(name: str, done: int, total: int, metrics: dict[str, float]) -> None:
    """A `Progress` that shows nothing."""


@dataclass
class TrainingState:
    """Where a training run stands; kept beside its checkpoints.

    Attributes:
        epoch: epochs finished.
        best_epoch, best: the epoch with the best validation metric, and that metric; -1 before the first.
        history: validation metrics, one dictionary an epoch.
    """

    epoch: int = 0
    best_epoch: int = -1
    best: float = -np.inf
    history: list[dict[str, float]] = field(default_factory=list)


class _Report(tf.keras.callbacks.Callback):
    def __init__(self, name: str, first: int, total: int, progress: Progress) -> None:
        super().__init__()
        self.name, self.first, self.total, self.progress = name, first, total, progress

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        loss = (logs or {}).get("loss")
        self.progress(self.name, self.first + batch + 1, self.total, {} if loss is None else {"loss": loss})


def set_seed(seed: int) -> None:
    """Make TensorFlow, numpy and Python repeatable on this machine, kernels included."""
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def train(
    name: str,
    model: tf.keras.Model,
    batches: Callable[[int], tf.keras.utils.Sequence],
    validate: Callable[[tf.keras.Model], dict[str, float]],
    *,
    monitor: str,
    epochs: int,
    patience: int,
    folder: Path,
    progress: Progress = quiet,
) -> TrainingState:
    """Fit `model` and leave it with the weights of its best epoch.

    After every epoch the weights, the optimizer and the state are written under `folder`; a run that was
    killed goes on after the last finished epoch and ends with the same weights as one that was not.

    Args:
        batches: makes the batches of an epoch from its number; the same number gives the same batches.
        validate: metrics of the model on validation data, none where there is no such data; `monitor` names
            the one that decides (higher wins).
        epochs: at most this many.
        patience: stop after this many epochs without a better metric.

    Raises:
        ValueError: `epochs` or `patience` is below 1.
    """
    if epochs < 1 or patience < 1:
        raise ValueError(f"epochs={epochs} and patience={patience} of the {name} must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    state, checkpoint = TrainingState(), tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    stored = folder / "state.json"
    total = None
    if stored.exists():
        state = TrainingState(**json.loads(stored.read_text()))
        data = batches(state.epoch)
        total = len(data)
        model.fit(_First(data), epochs=1, verbose=0, train_metrics_steps=_NEVER)  # creates every variable
        checkpoint.read(str(folder / f"epoch-{state.epoch}")).expect_partial()
    while state.epoch < epochs and state.epoch - max(state.best_epoch, 0) < patience:
        data = batches(state.epoch)
        total = total or len(data)
        report = _Report(name, state.epoch * total, epochs * total, progress)
        # Metrics over in-batch logits cost more than the step itself; validation tells what they would.
        model.fit(data, epochs=1, verbose=0, callbacks=[report], shuffle=False, train_metrics_steps=_NEVER)
        metrics = validate(model)
        state.epoch += 1
        state.history.append(metrics)
        # Without validation data there is nothing to stop on, and the last epoch is the one to keep.
        if not metrics or metrics[monitor] > state.best:
            state.best, state.best_epoch = metrics.get(monitor, state.best), state.epoch
        checkpoint.write(str(folder / f"epoch-{state.epoch}"))
        temporary = stored.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(state), indent=1))
        os.replace(temporary, stored)
        for file in folder.glob("epoch-*"):
            if file.name.split(".")[0] not in (f"epoch-{state.epoch}", f"epoch-{state.best_epoch}"):
                file.unlink()
        progress(name, state.epoch * total, epochs * total, metrics)
    checkpoint.read(str(folder / f"epoch-{state.best_epoch}")).expect_partial()
    progress(name, epochs * (total or 1), epochs * (total or 1), state.history[state.best_epoch - 1])
    return state


_NEVER = 10**9


class _First(tf.keras.utils.Sequence):
    """The first batch of other batches."""

    def __init__(self, data: tf.keras.utils.Sequence) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: int):
        return self.data[0]
