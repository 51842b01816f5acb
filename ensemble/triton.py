"""The code between Triton and a stage: the requests of one dynamic batch in, one run, their replies out.

`StageModel` is the whole of a step's `model.py`. Triton checks little of what a Python model is given and
nothing of what it returns, so both are checked here, and a caller never sees more than a typed message.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import json
import math
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.counters import MADE, Counter, Tally, refusal_tally
from ensemble.errors import Code, RequestError
from ensemble.release import Release
from ensemble.steps import STRING, Arrays, TensorSpec, check_inputs

CANARY = "pasar_canary"
"""Request parameter of a sign of life: answered with zeros, without running the stage."""

RELEASE = "release"
"""Folder in a stage's version folder that holds the release it serves."""

OPTION = "option."
"""Before the name of each parameter that is given to the stage."""

Stage = Callable[..., Any]
"""A stage: arrays by keyword in, a mapping or a dataclass of arrays out, the batch first in each."""


class BatchedStage:
    """Runs one stage over the requests of one dynamic batch."""

    def __init__(
        self,
        name: str,
        stage: Stage,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        log: Callable[[str], None],
    ) -> None:
        self._name, self._stage, self._log = name, stage, log
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    def run(self, requests: Sequence[Arrays]) -> list[dict[str, np.ndarray] | RequestError]:
        """Answer each request, in order.

        A request that breaks the contract of the inputs gets its error alone. The rest run at once; where
        that run fails they run one by one, so only the culprit is refused.
        """
        replies: list[dict[str, np.ndarray] | RequestError] = []
        sound: list[int] = []
        checked: list[dict[str, np.ndarray]] = []
        for i, request in enumerate(requests):
            try:
                checked.append(check_inputs(self._inputs, request))
                sound.append(i)
                replies.append({})
            except RequestError as error:
                replies.append(error)
        for i, reply in zip(sound, self._answer(checked)):
            replies[i] = reply
        return replies

    def _answer(
        self, requests: list[dict[str, np.ndarray]]
    ) -> Sequence[dict[str, np.ndarray] | RequestError]:
        if not requests:
            return []
        try:
            first = self._inputs[0].name
            ends = np.cumsum([len(request[first]) for request in requests]).tolist()
            joint = requests[0] if len(requests) == 1 else _join(self._inputs, requests)
            outputs = self._run(joint, ends[-1])
        except RequestError as error:
            if len(requests) == 1:
                return [error]
            return [reply for request in requests for reply in self._answer([request])]
        starts = [0, *ends[:-1]]
        return [{name: array[a:b] for name, array in outputs.items()} for a, b in zip(starts, ends)]

    def _run(self, arrays: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        try:
            return self._check(self._stage(**arrays), rows)
        except RequestError:
            raise
        except Exception as error:
            self._log(f"stage '{self._name}' failed on {rows} rows\n{traceback.format_exc()}")
            message = f"stage '{self._name}' failed; see the server log"
            raise RequestError(Code.INTERNAL, message) from error

    def _check(self, result: Any, rows: int) -> dict[str, np.ndarray]:
        if dataclasses.is_dataclass(result):
            result = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        if not isinstance(result, Mapping):
            raise TypeError(f"it returned {type(result).__name__}; return a mapping or a dataclass of arrays")
        if set(result) != {spec.name for spec in self._outputs}:
            raise ValueError(f"it returned {sorted(result)}, not {sorted(s.name for s in self._outputs)}")
        outputs = {}
        for spec in self._outputs:
            array = np.asarray(result[spec.name])
            if spec.dtype == STRING and array.dtype.kind in "SU":
                array = array.astype(object)
            fits = array.ndim == len(spec.shape) + 1 and array.shape[0] == rows
            fits = fits and all(want in (-1, got) for want, got in zip(spec.shape, array.shape[1:]))
            if array.dtype != spec.dtype or not fits:
                raise ValueError(
                    f"'{spec.name}' is {array.dtype}{list(array.shape)}, not {spec} with B = {rows}"
                )
            if spec.dtype == STRING and not all(isinstance(text, str | bytes) for text in array.flat):
                raise ValueError(f"'{spec.name}' holds something that is no text")
            outputs[spec.name] = np.ascontiguousarray(array)
        return outputs


def _join(specs: Sequence[TensorSpec], requests: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Concatenate requests along the batch, padding varying dimensions to the longest."""
    joint = {}
    for spec in specs:
        arrays = [request[spec.name] for request in requests]
        shape = (
            np.max([array.shape[1:] for array in arrays], axis=0).astype(int).tolist() if spec.shape else []
        )
        if all(list(array.shape[1:]) == shape for array in arrays):
            joint[spec.name] = np.concatenate(arrays)
            continue
        joint[spec.name] = np.full([sum(map(len, arrays)), *shape], spec.pad, spec.dtype)
        start = 0
        for array in arrays:
            place = (slice(start, start + len(array)), *(slice(n) for n in array.shape[1:]))
            joint[spec.name][place] = array
            start += len(array)
    return joint


class DeadMansSwitch:
    """Has the kernel end this process when it stands still for so long that Triton may take it for dead.

    Triton gives up a process that shows no sign of life for a second, such as a starved or swapped one: it
    fails the requests, frees their memory and yet goes on with the process. Once that runs again its answer
    is taken for the next request's: people get each other's slates, a reply lacks a tensor or the server
    falls.
    A process that has ended answers nothing; `TritonServer.watch` loads it anew. Only the kernel is in time:
    a thread of the process that looks at a clock runs when the others do.

    Args:
        limit_s: before the process ends with SIGALRM. Its own sign of life comes every 0.3 s, so a halt that
            Triton notices lasts 0.7 s or more.
        every_s: seconds between two turns of the thread that keeps the switch from going off.
    """

    def __init__(self, limit_s: float = 0.7, every_s: float = 0.1) -> None:
        self._ended = threading.Event()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, limit_s)

        def hold() -> None:
            while not self._ended.wait(every_s):
                signal.setitimer(signal.ITIMER_REAL, limit_s)
            signal.setitimer(signal.ITIMER_REAL, 0)

        self._thread = threading.Thread(target=hold, name="dead-mans-switch", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let the process stand still as it likes."""
        self._ended.set()
        self._thread.join()


class Meter:
    """Tells Triton what a stage has done, from a thread of its own; its processes add to the same series.

    What a process did within the last turn is lost where it is killed.

    Args:
        family: `MetricFamily` of Triton's Python backend.
        tallies: of the stage.
        release, version: what the stage serves, where it is of a release, and as which version of its step.
        every_s: seconds between two turns. To tell a series something takes some 40 µs.
    """

    def __init__(
        self,
        family: Any,
        tallies: Sequence[Tally],
        release: Release | None = None,
        version: str = "",
        every_s: float = 5.0,
    ) -> None:
        self._family, self._tallies = family, tallies
        self._families, self._series = dict[str, Any](), dict[tuple[str, tuple[str, ...]], Any]()
        self._made, self._created = None, math.nan
        if release is not None:
            self._made = self._one(MADE, (release.name, version), family.GAUGE)
            self._created = datetime.fromisoformat(release.created).timestamp()
        self._ended = threading.Event()
        for tally in tallies:
            tally.open()
        self._tell()

        def turns() -> None:
            while not self._ended.wait(every_s):
                self._tell()

        self._thread = threading.Thread(target=turns, name="meter", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Tell the last, and that the release is served no more."""
        self._ended.set()
        self._thread.join()
        self._created = math.nan
        self._tell()

    def _tell(self) -> None:
        # Each time: where Triton drops one version of a step it loads the others anew, and the process that a
        # new one took over from ends last.
        if self._made is not None:
            self._made.set(self._created)
        for tally in self._tallies:
            for (counter, labels), grown in tally.take().items():
                series = self._one(counter, labels, self._family.COUNTER)
                if grown:
                    series.increment(float(grown))

    def _one(self, of: Counter, labels: tuple[str, ...], kind: Any) -> Any:
        """A series; it begins with 0."""
        if of.name not in self._families:
            made = self._family(name=of.name, description=of.text, kind=kind)
            self._families[of.name] = _for_ever(made)
        if (of.name, labels) not in self._series:
            made = self._families[of.name].Metric(labels=dict(zip(of.labels, labels)))
            self._series[of.name, labels] = _for_ever(made)
        return self._series[of.name, labels]


def _for_ever(metric: Any) -> Any:
    """The same, which Python never lets go of, not even when the process ends.

    Triton takes a series away, from all processes that add to it, when one of them lets go of its own. And a
    process that does so as it ends, when what connects it to Triton is gone, ends with a fault.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(metric))
    return metric


class StageModel:
    """A Triton Python model that serves the stage of its own name from the release beside it.

    Parameters of the model's configuration:
        stages: "module:function"; called as `function(name, release, **options)`, it returns the stage.
        option.<name>: an option.
        python_path: a folder to import that module from, where it is not installed.
        pad.<tensor>: JSON of the pad value of an input, where it is not "", 0 or False.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Build the stage; on failure the load is refused, naming what is wrong."""
        import triton_python_backend_utils as pb  # Triton puts it on the path of a model's process only

        self._pb = pb
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        inputs = [_spec(entry, parameters) for entry in config["input"]]
        self._outputs = [_spec(entry, parameters) for entry in config["output"]]
        folder = Path(args["model_repository"]) / args["model_version"]
        self._release: Release | None = None
        try:
            stage = self.build(config, parameters, folder)
        except Exception as error:
            pb.Logger.log_error(f"step '{config['name']}' cannot start\n{traceback.format_exc()}")
            raise pb.TritonModelException(f"step '{config['name']}' cannot start: {error}") from error
        self._inputs = inputs
        self._stage = BatchedStage(config["name"], stage, inputs, self._outputs, pb.Logger.log_error)
        self._refusals = refusal_tally(config["name"])
        tallies = (self._refusals, *getattr(stage, "tallies", ()))
        self._meter = Meter(pb.MetricFamily, tallies, self._release, args["model_version"])
        self._switch = DeadMansSwitch()

    def finalize(self) -> None:
        """Triton is about to end the process."""
        self._switch.release()
        self._meter.release()

    def build(self, config: Mapping[str, Any], parameters: Mapping[str, str], folder: Path) -> Stage:
        """The stage to run; `folder` is the model's version folder."""
        if "python_path" in parameters and parameters["python_path"] not in sys.path:
            sys.path.insert(0, parameters["python_path"])
        module, _, function = parameters["stages"].partition(":")
        registry = getattr(importlib.import_module(module), function)
        options = {
            key.removeprefix(OPTION): said for key, said in parameters.items() if key.startswith(OPTION)
        }
        self._release = Release.open(folder / RELEASE)
        return registry(config["name"], self._release, **options)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of one dynamic batch."""
        canaries = [CANARY in request.parameters() for request in requests]
        arrays = [self._read(request) for request, canary in zip(requests, canaries) if not canary]
        replies = iter(self._stage.run(arrays))
        return [self._respond(self._alive() if canary else next(replies)) for canary in canaries]

    def _read(self, request: Any) -> dict[str, np.ndarray]:
        tensors = {s.name: self._pb.get_input_tensor_by_name(request, s.name) for s in self._inputs}
        return {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}

    def _alive(self) -> dict[str, np.ndarray]:
        return {
            spec.name: np.full(
                [1, *(max(n, 1) for n in spec.shape)], "" if spec.dtype == STRING else 0, spec.dtype
            )
            for spec in self._outputs
        }

    def _respond(self, reply: Mapping[str, np.ndarray] | RequestError) -> Any:
        pb = self._pb
        if isinstance(reply, RequestError):
            self._refusals.add(reply.code)
            code = {Code.INVALID_ARGUMENT: "INVALID_ARG"}.get(reply.code, reply.code.value)
            return pb.InferenceResponse(error=pb.TritonError(reply.message, getattr(pb.TritonError, code)))
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in reply.items()])


def _spec(entry: Mapping[str, Any], parameters: Mapping[str, str]) -> TensorSpec:
    shape = entry["reshape"]["shape"] if "reshape" in entry else entry["dims"]
    pad = parameters.get(f"pad.{entry['name']}")
    dtype = TensorSpec.dtype_of(entry["data_type"])
    return TensorSpec(entry["name"], dtype, tuple(map(int, shape)), None if pad is None else json.loads(pad))
