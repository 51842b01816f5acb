"""The steps of a served cascade as data: what each one is called, reads and makes.

Tensors are wired by name: an input of a step is a tensor of the request or the output of an earlier step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble.errors import invalid

Arrays = Mapping[str, np.ndarray]

STRING = np.dtype(object)
FEED = "feed"
"""The ensemble that chains the steps; no step has this name."""

_TRITON = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
_NUMPY = {triton: np.dtype(name) for name, triton in _TRITON.items()} | {"STRING": STRING}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TENSOR = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
"""A tensor of raw features has the name of its column, which `market.tables` allows as much."""


class WiringError(ValueError):
    """The steps of a cascade do not fit together; the text lists every misfit."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a step's border.

    Attributes:
        name: letters, digits, _, . and -; what a stage reads is a Python identifier, since it takes its
            inputs as keyword arguments.
        dtype: a numeric or boolean numpy dtype; `object`, `str` or `bytes` for text. Text is an object array
            of `str` inside a stage and UTF-8 on the wire.
        shape: dimensions after the batch's, -1 for one that varies; () for a tensor of shape [B].
        pad: what fills a varying dimension where requests of different lengths share a batch; by default
            "", 0 or False.
        optional: whether a request may leave it out, which says the same as one without columns.
    """

    name: str
    dtype: Any
    shape: tuple[int, ...] = ()
    pad: Any = None
    optional: bool = False

    def __post_init__(self) -> None:
        if not _TENSOR.fullmatch(self.name):
            raise ValueError(f"tensor name {self.name!r} is none; use letters, digits, _, . and -")
        dtype = np.dtype(self.dtype)
        dtype = STRING if dtype.kind in "OSU" else dtype
        if dtype.name not in _TRITON:
            raise ValueError(
                f"tensor '{self.name}' has dtype {dtype}, not one of {sorted(_TRITON)}; convert it"
            )
        shape = tuple(int(n) for n in self.shape)
        if self.optional and shape != (-1,):
            raise ValueError(f"tensor '{self.name}' has shape {shape}; only one of shape (-1,) is optional")
        if any(n < 1 and n != -1 for n in shape):
            raise ValueError(
                f"tensor '{self.name}' has shape {shape}; a dimension is positive, or -1 where it varies"
            )
        pad = self.pad
        if pad is None:
            pad = "" if dtype == STRING else dtype.type(0).item()
        elif isinstance(pad, str) != (dtype == STRING):
            raise ValueError(
                f"tensor '{self.name}' has dtype {dtype} and pad {pad!r}; give a pad of that dtype"
            )
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "pad", pad)

    @property
    def varies(self) -> bool:
        """Whether a dimension after the batch's is free."""
        return -1 in self.shape

    @property
    def triton_type(self) -> str:
        """Name of the dtype on the wire, such as "FP32" or "BYTES"."""
        return _TRITON[self.dtype.name]

    @staticmethod
    def dtype_of(triton_type: str) -> np.dtype:
        """The numpy dtype of a Triton type, such as "FP32" or "TYPE_FP32"."""
        return _NUMPY[triton_type.removeprefix("TYPE_")]

    def __str__(self) -> str:
        shape = ", ".join(["B", *("*" if n == -1 else str(n) for n in self.shape)])
        return f"{'string' if self.dtype == STRING else self.dtype.name}[{shape}]"


@dataclass(frozen=True)
class StageStep:
    """A step that runs a Python stage, a function of batched arrays."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class OnnxStep:
    """A step that runs an ONNX graph of the release, `file`, whose first dimension is the batch."""

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


Step = StageStep | OnnxStep


def check_wiring(steps: Sequence[Step], request: Sequence[TensorSpec], reply: Sequence[TensorSpec]) -> None:
    """Check that every tensor read is made before, once, with a fitting dtype and shape.

    Raises:
        WiringError: listing every misfit by step and tensor.
    """
    faults: list[str] = []
    made: dict[str, tuple[TensorSpec, str]] = {}
    read: set[str] = set()

    def make(spec: TensorSpec, maker: str) -> None:
        if spec.name in made:
            faults.append(
                f"{maker} makes '{spec.name}', which {made[spec.name][1]} makes already; rename one"
            )
        else:
            made[spec.name] = spec, maker

    def take(spec: TensorSpec, reader: str, makers: Mapping[str, tuple[TensorSpec, str]]) -> None:
        read.add(spec.name)
        if spec.name not in makers:
            known = ", ".join(sorted(makers)) or "nothing"
            faults.append(
                f"{reader} reads '{spec.name}', which nothing before it makes; made so far: {known}"
            )
            return
        source, maker = makers[spec.name]
        if source.dtype != spec.dtype or not _fits(source.shape, spec.shape):
            faults.append(
                f"{reader} reads '{spec.name}' as {spec}, but {maker} makes it as {source}; align them"
            )

    for spec in request:
        make(spec, "the request")
    names = {FEED}
    for step in steps:
        label = f"step '{step.name}'"
        if not _NAME.fullmatch(step.name) or step.name in names:
            faults.append(f"{label} needs a name of its own, of letters, digits and _")
        names.add(step.name)
        if not step.inputs or not step.outputs:
            faults.append(f"{label} needs at least one input and one output")
        if len({spec.name for spec in step.inputs}) < len(step.inputs):
            faults.append(f"{label} names an input twice")
        for spec in step.inputs:
            take(spec, label, made)
        for spec in step.outputs:
            make(spec, label)
    from_steps = {name: source for name, source in made.items() if source[1] != "the request"}
    for spec in reply:
        take(spec, "the reply", from_steps)
    for step in steps:
        if step.outputs and not any(spec.name in read for spec in step.outputs):
            faults.append(f"step '{step.name}' makes nothing that is read; remove it or read it")
    if faults:
        raise WiringError("the steps do not fit together:\n  " + "\n  ".join(faults))


def _fits(made: tuple[int, ...], read: tuple[int, ...]) -> bool:
    return len(made) == len(read) and all(-1 in (a, b) or a == b for a, b in zip(made, read))


def check_inputs(specs: Sequence[TensorSpec], arrays: Arrays) -> dict[str, np.ndarray]:
    """Check one request's tensors against their specs, as every border of the cascade does.

    Args:
        specs: the tensors wanted.
        arrays: tensors by name, each [B, ...]; text may be `bytes` (UTF-8) or `str`.

    Returns:
        The tensors by name, text as object arrays of `str`; an optional one that is missing as [B, 0].

    Raises:
        RequestError: INVALID_ARGUMENT; a tensor is missing, or has a wrong dtype or shape, or holds for text
            what is none or not UTF-8, or a number that is not finite.
    """
    checked: dict[str, np.ndarray] = {}
    rows = None
    for spec in specs:
        array = arrays.get(spec.name)
        if array is None and spec.optional and rows is not None:
            checked[spec.name] = np.empty((rows, 0), spec.dtype)
            continue
        if array is None:
            raise invalid(f"tensor '{spec.name}' is missing; send it as {spec}")
        if spec.dtype == STRING and array.dtype.kind in "OSU":
            array = _decode(spec.name, array)
        if array.dtype != spec.dtype:
            raise invalid(f"tensor '{spec.name}' has dtype {array.dtype}; send {spec}")
        if array.ndim == 0 or (array.shape[1:] != spec.shape and not _fits(array.shape[1:], spec.shape)):
            raise invalid(f"tensor '{spec.name}' has shape {list(array.shape)}; send {spec}")
        rows = len(array) if rows is None else rows
        if len(array) != rows:
            raise invalid(
                f"tensor '{spec.name}' has {len(array)} rows, '{specs[0].name}' {rows}; send equal batches"
            )
        if spec.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            row = int(np.argwhere(~finite)[0][0])
            raise invalid(f"tensor '{spec.name}' holds a non-finite number at row {row}; send a finite float")
        checked[spec.name] = array
    return checked


def _decode(name: str, array: np.ndarray) -> np.ndarray:
    items = array.ravel().tolist()
    if array.dtype == STRING and all(isinstance(item, str) for item in items):
        return array
    text = np.empty(array.size, STRING)
    for i, item in enumerate(items):
        row = i // max(1, array.size // len(array))
        try:
            text[i] = item.decode() if isinstance(item, bytes) else item
        except UnicodeDecodeError:
            raise invalid(
                f"tensor '{name}' holds text that is not UTF-8 at row {row}; encode it as UTF-8"
            ) from None
        if not isinstance(text[i], str):
            raise invalid(f"tensor '{name}' holds {item!r:.60} at row {row}; send text")
    return text.reshape(array.shape)
