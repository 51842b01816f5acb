"""The CPU host's ONNX Runtime backend refuses the shapes that the GPU image's refuses."""

import importlib.util
from dataclasses import replace

import onnx
import pytest
from google.protobuf.json_format import MessageToDict

from ensemble.repository import TEMPLATES, read_config, write_repository
from tests.ensemble import toy

VARYING, FIXED, WRONG = (-1,), (3,), (4,)


def load(folder, graph, state, vector):
    """Load the toy cascade's graph, its input `state` and its output `vector` configured in these shapes."""
    first, query, last = toy.STEPS
    inputs = (replace(toy.state, shape=state), toy.diversity)
    outputs = (replace(toy.vector, shape=vector), toy.graph_release)
    steps = (replace(first, outputs=inputs[:1]), replace(query, inputs=inputs, outputs=outputs))
    steps += (replace(last, inputs=(outputs[0], toy.exclude)),)
    release = toy.write_release(folder / "release", graph=graph)
    write_repository(folder / "repository", release, steps, toy.REQUEST, toy.REPLY)
    config = MessageToDict(
        read_config(folder / "repository", "query"),
        preserving_proto_field_name=True,
        including_default_value_fields=True,
    )
    spec = importlib.util.spec_from_file_location("backend", TEMPLATES / "backends/onnxruntime/model.py")
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    return backend.TritonPythonModel().build(config, {}, folder / "repository" / "query" / "1")


@pytest.fixture(scope="module")
def free_graph(tmp_path_factory):
    """The toy graph for states of any length."""
    model = onnx.load(toy.write_release(tmp_path_factory.mktemp("free") / "release") / "query.onnx")
    for tensor in (model.graph.input[0], model.graph.output[0]):
        tensor.type.tensor_type.shape.dim[1].dim_param = "any"
    return model.SerializeToString()


@pytest.mark.parametrize("state", [VARYING, FIXED])
def test_what_a_graph_leaves_free_may_be_fixed_where_it_is_read(free_graph, state, tmp_path):
    assert load(tmp_path, free_graph, state, VARYING)


def test_what_a_graph_leaves_free_may_not_be_fixed_where_it_is_made(free_graph, tmp_path):
    with pytest.raises(ValueError, match=r"'vector' is \[-1, -1\] in the graph and \[-1, 3\] in the steps"):
        load(tmp_path, free_graph, FIXED, FIXED)


@pytest.mark.parametrize(("state", "vector"), [(VARYING, FIXED), (WRONG, FIXED), (FIXED, VARYING)])
def test_what_a_graph_fixes_is_fixed_alike(state, vector, tmp_path):
    assert load(tmp_path / "as-it-is", None, FIXED, FIXED)
    with pytest.raises(ValueError, match="in the graph and"):
        load(tmp_path, None, state, vector)
