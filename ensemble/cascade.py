"""The cascade, declared: the same steps run here in one process and in the Triton ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble.blending import Blend
from ensemble.counters import SlateTally, StrangerTally, Tally
from ensemble.errors import invalid
from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.stages import stage
from ensemble.stages.reordering import Reordering
from ensemble.stages.retrieval import Retrieval
from ensemble.stages.user_state import REQUEST, UserState
from ensemble.steering import NOTHING, Steering
from ensemble.steps import OnnxStep, StageStep, Step, TensorSpec, check_inputs
from ensemble.wire import NO_ROWS, WIRE_REQUEST, read_requests, wire_reply, write_slates

_USER = next(spec for spec in REQUEST if spec.name == "user_id")


def cascade_steps(plan: Plan) -> tuple[Step, ...]:
    """The cascade as an ordered list of steps."""
    history = TensorSpec("query_lists", np.int64, (plan.query_lists, plan.history_length))
    packed = (
        TensorSpec("query_ids", np.int64, (plan.query_ids,)),
        history,
        TensorSpec("query_numbers", np.float32, (plan.query_numbers,)),
    )
    user_state, retrieval = UserState.step(plan), Retrieval.step(plan)
    raw = tuple(spec for spec in user_state.outputs if spec.name.startswith("raw_"))
    vector = TensorSpec("query_vector", np.float32, (plan.dim,))
    contents = tuple(s for s in retrieval.outputs if s.name in ("content_ids", "content_numbers"))
    market = TensorSpec("market_index", np.int64)
    also = tuple(s for s in (*user_state.outputs, *retrieval.outputs) if s.name in plan.ranking_reads)
    # The graph takes any number of candidates, and what a graph leaves free its configuration may not fix.
    chances = TensorSpec("probabilities", np.float32, (-1, len(plan.tasks)))
    return (
        user_state,
        OnnxStep("query", "query.onnx", raw, (vector, *packed)),
        retrieval,
        OnnxStep("ranking", "ranking.onnx", (*packed, *contents, *also, market), (chances,)),
        Reordering.step(plan),
    )


def reply(plan: Plan) -> tuple[TensorSpec, ...]:
    """The tensors of a slate, in the order a client reads them."""
    return Reordering.step(plan).outputs


def served_steps(plan: Plan, *, one_process: bool) -> tuple[Step, ...]:
    """What Triton runs: the whole cascade as one step, or each of its steps as a model of its own.

    On a CPU host every model is a process of its own, and a request's way from one to the next costs more
    than most steps do. On a GPU host the graphs run in Triton's own backend, so there they stand alone.
    Either way the first reads what a client sends and the last writes what it gets; see `ensemble.wire`.
    """
    if one_process:
        return (StageStep(Cascade.name, WIRE_REQUEST, wire_reply(plan)),)
    first, *between, last = cascade_steps(plan)
    return (
        StageStep(first.name, WIRE_REQUEST, (*first.outputs, *_passed_on(plan))),
        *between,
        StageStep(last.name, (*last.inputs, _USER), wire_reply(plan)),
    )


def _passed_on(plan: Plan) -> tuple[TensorSpec, ...]:
    """Of a request, what is read after the first step."""
    read = {spec.name for step in cascade_steps(plan)[1:] for spec in step.inputs} | {_USER.name}
    return tuple(spec for spec in REQUEST if spec.name in read)


@dataclass(frozen=True)
class Served:
    """What a step of `served_steps` runs, and the tallies of what it did."""

    run: Callable[..., Mapping[str, np.ndarray]]
    tallies: tuple[Tally, ...] = ()

    def __call__(self, **arrays: np.ndarray) -> Mapping[str, np.ndarray]:
        return self.run(**arrays)


def served(name: str, release: Release, steering: Steering) -> Served:
    """What a step of `served_steps` runs."""
    if name == Cascade.name:
        cascade = Cascade(release, steering=steering)
        strangers = StrangerTally(cascade.plan, cascade.user_state.users)
        slates = SlateTally(cascade.plan, cascade.reordering.kind)

        def whole(request: np.ndarray) -> dict[str, np.ndarray]:
            made = cascade.everything(read_requests(request))
            strangers.add(made)
            slates.add(made)
            return write_slates(made, made[_USER.name])

        return Served(whole, (strangers, slates))
    run = stage(name, release, steering)
    if isinstance(run, UserState):
        read = [spec.name for spec in UserState.step(run.plan).inputs]
        passed = [spec.name for spec in _passed_on(run.plan)]
        strangers = StrangerTally(run.plan, run.users)

        def begin(request: np.ndarray) -> dict[str, np.ndarray]:
            asked = read_requests(request)
            made = run(**{name: asked[name] for name in read}) | {name: asked[name] for name in passed}
            strangers.add(made)
            return made

        return Served(begin, (strangers,))
    if isinstance(run, Reordering):
        slates = SlateTally(run.plan, run.kind)

        def end(user_id: np.ndarray, **made: np.ndarray) -> dict[str, np.ndarray]:
            reply = run(**made)
            slates.add(made | reply)
            return write_slates(reply, user_id)

        return Served(end, (slates,))
    return Served(run)


class Cascade:
    """The served cascade in one process: behind Triton on a CPU host, in tests, simulator and evaluation.

    Attributes:
        steps: in their order.
        inputs: names of the tensors that each step reads, by the step's name.
        run: what each step runs, by its name; whoever puts another function there changes the cascade.
    """

    name = "cascade"

    def __init__(self, release: Release, threads: int = 1, steering: Steering = NOTHING) -> None:
        self.plan = Plan.of(release)
        self.steps = cascade_steps(self.plan)
        self.inputs = {step.name: [spec.name for spec in step.inputs] for step in self.steps}
        self.outputs = [spec.name for spec in reply(self.plan)]
        self.run: dict[str, Any] = {
            step.name: stage(step.name, release, steering)
            if isinstance(step, StageStep)
            else onnx_function(release, step, threads)
            for step in self.steps
        }

    @property
    def user_state(self) -> UserState:
        """The stage of that name."""
        return self.run[UserState.name]

    @property
    def retrieval(self) -> Retrieval:
        """The stage of that name."""
        return self.run[Retrieval.name]

    @property
    def reordering(self) -> Reordering:
        """The stage of that name."""
        return self.run[Reordering.name]

    @property
    def blend(self) -> Blend:
        """How outcomes become a value."""
        return self.reordering.blend

    def __call__(self, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The slates of a batch of requests.

        Args:
            request: the tensors of `REQUEST`, each [B, ...].

        Returns:
            The tensors of `reply`.

        Raises:
            RequestError: as the server would answer.
        """
        made = self.everything(check_inputs(REQUEST, request))
        return {name: made[name] for name in self.outputs}

    def everything(self, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of requests, which were checked, and of all steps.

        Raises:
            RequestError: as the server would answer.
        """
        if not len(request["user_id"]):
            raise invalid(NO_ROWS)
        return self.up_to(self.steps[-1].name, request)

    def up_to(self, last: str, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of requests and of all steps up to the one named `last`, that one included."""
        if last not in self.inputs:
            raise ValueError(f"no step is named {last!r}; there are {', '.join(self.inputs)}")
        made = dict(request)
        for name in self.inputs:
            made |= self.apply(name, made)
            if name == last:
                break
        return made

    def apply(self, name: str, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What one step makes of the tensors made before it."""
        return self.run[name](**self.read(name, made))

    def read(self, name: str, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of the tensors made, those that a step reads."""
        return {tensor: made[tensor] for tensor in self.inputs[name]}


def onnx_function(release: Release, step: OnnxStep, threads: int):
    """A graph of the release as a function of arrays by name."""
    import onnxruntime  # where each step is a model of its own, Triton runs the graphs and its image has none

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(release.onnx_path(step.file)), options, providers=["CPUExecutionProvider"]
    )
    names = [spec.name for spec in step.outputs]
    return lambda **arrays: dict(zip(names, session.run(names, arrays)))
