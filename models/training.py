"""The training loop of both models: one epoch at a time, validated, resumable, repeatable under a seed."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from market.files import written

AHEAD = 2
"""Batches that are gathered before they are asked for."""

Losses = Callable[[tf.keras.Model, dict[str, tf.Tensor], tf.Tensor], tf.Tensor]
"""The loss of each row, float32[B], of a model that trains: called as (model, columns, labels)."""

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called as (model name, batches done, batches in all, metrics so far)."""


def quiet(name: str, done: int, total: int, metrics: dict[str, float]) -> None:
    """A `Progress` that shows nothing."""


def traced(
    function: Callable[..., Any], *, input_signature: Sequence[tf.TensorSpec] | None = None
) -> Callable[..., Any]:
    """A function of tensors as a graph.

    Without AutoGraph, which would read and rewrite the source of every layer at each trace, to find control
    flow that tensors decide: no model has any.
    """
    return tf.function(
        function,
        input_signature=input_signature,
        reduce_retracing=input_signature is None,
        autograph=False,
    )


class Batches(Protocol):
    """What a pass is made of: columns by name, [B, 1] or [B, L], with labels float32[B, T] or None."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> tuple[dict[str, np.ndarray], np.ndarray | None]: ...


@dataclass
class TrainingState:
    """Where a training run stands; kept beside its checkpoints.

    Attributes:
        epoch: epochs finished.
        best_epoch, best: the epoch with the best validation metric, and that metric; -1 before the first.
        history: validation metrics, one dictionary an epoch.
        start: those of the weights that training was given to start from.
    """

    epoch: int = 0
    best_epoch: int = -1
    best: float = -np.inf
    history: list[dict[str, float]] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)


def set_seed(seed: int) -> None:
    """Make TensorFlow, numpy and Python repeatable on this machine, kernels included.

    All but one kind: on a GPU, deterministic scatter ops copy the whole table to the CPU and back for each
    batch. Optimisers scatter only to rows that are all different, where the GPU's own are deterministic.
    """
    os.environ.setdefault("TF_DISABLE_SCATTER_OP_DETERMINISM", "1")  # read when the first one runs
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def train(
    name: str,
    model: tf.keras.Model,
    losses: Losses,
    batches: Callable[[int], Batches],
    validate: Callable[[tf.keras.Model], dict[str, float]],
    *,
    monitor: str,
    epochs: int,
    patience: int,
    folder: Path,
    parts: int = 1,
    begin: Callable[[tf.keras.Model], None] | None = None,
    progress: Progress = quiet,
) -> TrainingState:
    """Fit `model` and leave it with the weights of its best epoch.

    After every epoch the weights, the optimizer and the state are written under `folder`; a run that was
    killed goes on after the last finished epoch and ends with the same weights as one that was not.

    Args:
        losses: what to minimise the mean of, by row.
        batches: makes the batches of an epoch from its number; the same number gives the same batches.
        validate: metrics of the model on validation data, none where there is no such data; `monitor` names
            the one that decides (higher wins).
        epochs: at most this many.
        patience: stop after this many epochs without a better metric.
        parts: see `TrainingLoop`.
        begin: gives the model weights to start from, which count as the epoch 0: with validation data none
            that is worse is kept.

    Raises:
        ValueError: `epochs` or `patience` is below 1, or the training diverged.
    """
    if epochs < 1 or patience < 1:
        raise ValueError(f"epochs={epochs} and patience={patience} of the {name} must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    state, checkpoint = TrainingState(), tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    stored = folder / "state.json"
    if stored.exists():
        state = TrainingState(**json.loads(stored.read_text()))
    first = batches(state.epoch)
    loop, total = TrainingLoop(model, losses, first[0], parts), len(first)
    if state.epoch:
        checkpoint.read(str(folder / f"epoch-{state.epoch}")).expect_partial()
    elif begin is not None:
        begin(model)
        state.start = validate(model)
        if state.start:
            state.best, state.best_epoch = state.start[monitor], 0
        checkpoint.write(str(folder / "epoch-0"))
    while state.epoch < epochs and state.epoch - max(state.best_epoch, 0) < patience:
        before = state.epoch * total
        for done, loss in enumerate(loop.run(batches(state.epoch)), 1):
            if not np.isfinite(loss):
                # No score of NaN is above another, so that validation might take the model for the best.
                raise ValueError(
                    f"the {name} diverged: the loss of batch {before + done} is {loss}; "
                    "lower its learning_rate"
                )
            progress(name, before + done, epochs * total, {"loss": loss})
        metrics = validate(model)
        state.epoch += 1
        state.history.append(metrics)
        # Without validation data there is nothing to stop on, and the last epoch is the one to keep.
        if not metrics or metrics[monitor] > state.best:
            state.best, state.best_epoch = metrics.get(monitor, state.best), state.epoch
        checkpoint.write(str(folder / f"epoch-{state.epoch}"))
        with written(stored) as place:
            place.write_text(json.dumps(asdict(state), indent=1))
        for file in folder.glob("epoch-*"):
            if file.name.split(".")[0] not in (f"epoch-{state.epoch}", f"epoch-{state.best_epoch}"):
                file.unlink()
        progress(name, state.epoch * total, epochs * total, metrics)
    checkpoint.read(str(folder / f"epoch-{state.best_epoch}")).expect_partial()
    kept = state.history[state.best_epoch - 1] if state.best_epoch else state.start
    progress(name, epochs * total, epochs * total, kept)
    return state


class TrainingLoop:
    """Passes over batches: a thread gathers the next ones while TensorFlow takes a step.

    Keras' `fit` converts every column of a batch on its own and keeps metrics of every step; here the columns
    cross into TensorFlow packed, as one tensor of integers and one of numbers.

    Args:
        losses: see `Losses`.
        sample: a batch; the model's variables and its optimizer's are made from it.
        parts: a step computes its batch in this many parts, whose gradients it adds. TensorFlow runs them
            side by side, and a part stays in a core's cache. A row's loss must not depend on other rows then.
    """

    def __init__(
        self, model: tf.keras.Model, losses: Losses, sample: tuple[dict, np.ndarray | None], parts: int = 1
    ) -> None:
        self.model, self.losses, self.parts = model, losses, parts
        self.columns = _Columns.of(sample[0])
        packed = self._pack(sample)
        losses(model, self.columns.unpack(*map(tf.constant, packed[:2])), tf.constant(packed[2]))
        model.optimizer._create_all_weights(model.trainable_variables)
        signature = [tf.TensorSpec([None, array.shape[1]], array.dtype) for array in packed]
        self.step = traced(self._step, input_signature=signature)

    def run(self, batches: Batches) -> Iterator[float]:
        """Take a step for each batch, in order; yields its mean loss."""
        with ThreadPoolExecutor(1) as ahead:
            waiting: deque[Future] = deque()
            for place in range(len(batches) + AHEAD):
                if place < len(batches):
                    waiting.append(ahead.submit(lambda place: self._pack(batches[place]), place))
                if place >= AHEAD:
                    yield float(self.step(*waiting.popleft().result()))

    def _pack(self, batch: tuple[dict[str, np.ndarray], np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, y = batch
        integers, numbers = self.columns.pack(x)
        return integers, numbers, np.zeros((len(integers), 0), np.float32) if y is None else y

    def _step(self, integers: tf.Tensor, numbers: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        rows = tf.shape(y)[0]
        variables = self.model.trainable_variables
        found = []
        for part in range(self.parts):
            here = slice(rows * part // self.parts, rows * (part + 1) // self.parts)
            x = self.columns.unpack(integers[here], numbers[here])
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self.losses(self.model, x, y[here])) / tf.cast(rows, tf.float32)
            found.append((loss, tape.gradient(loss, variables)))
        losses, gradients = zip(*found)
        total = [_add(of_variable) for of_variable in zip(*gradients)]
        self.model.optimizer.apply_gradients(zip(total, variables))
        return tf.add_n(losses)


def _add(gradients: Sequence[tf.Tensor | tf.IndexedSlices]) -> tf.Tensor | tf.IndexedSlices:
    """The sum of gradients of one variable; rows of sparse ones may repeat."""
    if isinstance(gradients[0], tf.IndexedSlices):
        values, rows = (tf.concat([getattr(g, name) for g in gradients], 0) for name in ("values", "indices"))
        return tf.IndexedSlices(values, rows, gradients[0].dense_shape)
    return tf.add_n(gradients)


@dataclass(frozen=True)
class _Columns:
    """Names and widths of a batch's columns, in the order in which they are packed."""

    integers: dict[str, int]
    numbers: dict[str, int]

    @classmethod
    def of(cls, x: Mapping[str, np.ndarray]) -> _Columns:
        whole = {name: np.issubdtype(array.dtype, np.integer) for name, array in x.items()}
        return cls(
            {name: array.shape[1] for name, array in x.items() if whole[name]},
            {name: array.shape[1] for name, array in x.items() if not whole[name]},
        )

    def pack(self, x: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """int32[B, widths of the integers], float32[B, widths of the numbers]."""
        rows = len(next(iter(x.values())))
        packed = []
        for widths, dtype in ((self.integers, np.int32), (self.numbers, np.float32)):
            together = np.empty((rows, sum(widths.values())), dtype)
            if widths:
                np.concatenate([x[name] for name in widths], axis=1, out=together, casting="same_kind")
            packed.append(together)
        return packed[0], packed[1]

    def unpack(self, integers: tf.Tensor, numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        x: dict[str, tf.Tensor] = {}
        for widths, together in ((self.integers, integers), (self.numbers, numbers)):
            if widths:
                x |= dict(zip(widths, tf.split(together, list(widths.values()), axis=1)))
        return x
