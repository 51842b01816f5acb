"""A small cascade for tests: two stages and one graph, whose replies say which release each of them read."""

import os
import time

import numpy as np

from ensemble.errors import Code, RequestError
from ensemble.release import ReleaseWriter
from ensemble.steps import OnnxStep, StageStep, TensorSpec

ITEMS = [f"item-{i}" for i in range(6)]

user_id = TensorSpec("user_id", str)
diversity = TensorSpec("diversity", np.float32)
exclude = TensorSpec("exclude", str, (-1,))
state = TensorSpec("state", np.float32, (3,))
vector = TensorSpec("vector", np.float32, (3,))
graph_release = TensorSpec("graph_release", np.float32)
stage_release = TensorSpec("stage_release", np.int64)
item_id = TensorSpec("item_id", str, (2,))
score = TensorSpec("score", np.float32, (2,))

REQUEST = (user_id, diversity, exclude)
REPLY = (item_id, score, stage_release, graph_release)
STEPS = (
    StageStep("user_state", (user_id,), (state,)),
    OnnxStep("query", "query.onnx", (state, diversity), (vector, graph_release)),
    StageStep("pick", (vector, exclude), (item_id, score, stage_release)),
)


def write_release(path, number=1, *, graph=None, tasks=""):
    """Write a release whose stages and graph all say `number`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def info(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    nodes = [
        helper.make_node("Unsqueeze", ["diversity", "axis"], ["column"]),
        helper.make_node("Add", ["state", "column"], ["vector"]),
        helper.make_node("Mul", ["diversity", "zero"], ["none"]),
        helper.make_node("Add", ["none", "number"], ["graph_release"]),
    ]
    constants = {"axis": np.array([1]), "zero": np.float32([0]), "number": np.float32([number])}
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(
        nodes,
        "query",
        [info("state", 3), info("diversity")],
        [info("vector", 3), info("graph_release")],
        initial,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    said = {"number": number, "feed": {"tasks": tasks}}
    with ReleaseWriter(path, name=f"release-{number}", info=said) as release:
        release.path("query.onnx").write_bytes(model.SerializeToString() if graph is None else graph)
        release.array("items.npy", np.random.default_rng(5).normal(size=(len(ITEMS), 3)).astype(np.float32))
        release.json("items.json", ITEMS)
    onnx.checker.check_model(model)
    return path


def build(name, release):
    """The registry: the stage of a step."""
    return {"user_state": _user_state, "pick": _Pick(release)}[name]


def _user_state(user_id):
    if "stranger" in user_id:
        raise RequestError(Code.NOT_FOUND, "user 'stranger' is not known; register the user first")
    if "breaks" in user_id:
        raise FileNotFoundError(f"{__file__} is secret")
    if "bad-shape" in user_id:
        return {"state": np.zeros((len(user_id), 4), np.float32)}
    if "sleeps" in user_id:
        time.sleep(0.5)
    if "naps" in user_id:
        time.sleep(0.1)
    if "dies" in user_id:
        os._exit(1)
    return {"state": np.array([[len(user), ord(user[0]) % 7, 1] for user in user_id], np.float32)}


class _Pick:
    def __init__(self, release):
        self._vectors = release.array("items.npy")
        self._ids = np.array(release.json("items.json"))
        self._number = release.info["number"]

    def __call__(self, vector, exclude):
        scores = (vector[:, None] * self._vectors).sum(2)
        scores[(self._ids[None, :, None] == exclude[:, None]).any(2)] = -np.inf
        top = np.argsort(-scores, axis=1, kind="stable")[:, :2]
        number = np.full(len(vector), self._number)
        return {
            "item_id": self._ids[top],
            "score": np.take_along_axis(scores, top, 1),
            "stage_release": number,
        }
