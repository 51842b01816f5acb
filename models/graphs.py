"""ONNX graphs that are written by hand, to go behind the ranker's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from workflows.compiler.graph import IR_VERSION, OPSET

TINY = 1e-30
"""Least chance and doubt that a logarithm is taken of."""


def logit_nodes(probability: str, logit: str) -> list[onnx.NodeProto]:
    """Nodes that make the logit of a probability in a graph with the constants "tiny" (`TINY`) and "one"."""
    return [
        helper.make_node("Max", [probability, "tiny"], ["chance"]),
        helper.make_node("Log", ["chance"], ["log_chance"]),
        helper.make_node("Sub", ["one", probability], ["rest"]),
        helper.make_node("Max", ["rest", "tiny"], ["doubt"]),
        helper.make_node("Log", ["doubt"], ["log_doubt"]),
        helper.make_node("Sub", ["log_chance", "log_doubt"], [logit]),
    ]


def tensor(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
    """An input or output of a graph; `kind` as `onnx.TensorProto` has it."""
    return helper.make_tensor_value_info(name, kind, shape)


def finished(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, Any],
) -> onnx.ModelProto:
    """The model of nodes, which get a name each, checked; `constants` are arrays or numbers by name."""
    for place, node in enumerate(nodes):
        node.name = f"{node.op_type}_{place}"
    tensors = [numpy_helper.from_array(np.asarray(value), constant) for constant, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model
