"""Join two ONNX models into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, checker, helper


def join(
    first: ModelProto,
    second: ModelProto,
    *,
    connect: Mapping[str, str],
    name: str,
    share: Collection[str] = (),
) -> ModelProto:
    """One model: `second` reads what `first` makes.

    Connected outputs and inputs disappear inside. All others stay, under their own names: the inputs of
    `first`, then of `second`; the outputs of `first`, then of `second`. Inner names get their graph's name
    in front, so they never clash.

    Args:
        first: the model that runs first.
        second: the model that runs on it.
        connect: output of `first` → input of `second`.
        name: the joined graph's name.
        share: inputs that both have and that are one input of the joined graph.

    Raises:
        ValueError: `connect` names a tensor that is not there, or two of different type or rank; the models
            use different versions of one operator set; or two tensors that stay have one name.
    """
    outputs = {value.name: value for value in first.graph.output}
    inputs = {value.name: value for value in second.graph.input}
    for output, target in connect.items():
        _check_pair(output, outputs, target, inputs, first.graph.name, second.graph.name)
    for shared in share:
        _check_pair(
            shared,
            {v.name: v for v in first.graph.input},
            shared,
            inputs,
            first.graph.name,
            second.graph.name,
        )
    if len(set(connect.values())) < len(connect):
        raise ValueError(f"an input of {second.graph.name!r} is connected twice: {dict(connect)}")

    inside = {*connect.values(), *share}
    kept_inputs = [*first.graph.input, *(v for v in second.graph.input if v.name not in inside)]
    kept_outputs = [*(v for v in first.graph.output if v.name not in connect), *second.graph.output]
    stays = Counter(value.name for value in [*kept_inputs, *kept_outputs])
    if twice := sorted(n for n, count in stays.items() if count > 1):
        raise ValueError(
            f"{first.graph.name!r} and {second.graph.name!r} both have inputs or outputs {twice}; "
            "connect or share them, or rename one"
        )

    tag_1, tag_2 = first.graph.name, second.graph.name
    if tag_1 == tag_2:
        tag_1, tag_2 = f"{tag_1}.1", f"{tag_2}.2"
    names_1, names_2 = _inner_names(first.graph, tag_1, stays), _inner_names(second.graph, tag_2, stays)
    names_2 |= {target: names_1.get(output, output) for output, target in connect.items()}

    graph = helper.make_graph([], name, kept_inputs, kept_outputs)
    for part, names, tag in ((first.graph, names_1, tag_1), (second.graph, names_2, tag_2)):
        _append(graph, part, names, tag)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*item) for item in _opsets(first, second).items()],
        ir_version=max(first.ir_version, second.ir_version),
        producer_name="pasar",
        functions=[*first.functions, *second.functions],
    )
    checker.check_model(model)
    return model


def _check_pair(
    output: str,
    outputs: Mapping[str, ValueInfoProto],
    target: str,
    inputs: Mapping[str, ValueInfoProto],
    first: str,
    second: str,
) -> None:
    if output not in outputs:
        raise ValueError(f"{first!r} has no output {output!r} to connect; it has {sorted(outputs)}")
    if target not in inputs:
        raise ValueError(f"{second!r} has no input {target!r} to connect; it has {sorted(inputs)}")
    made, wanted = outputs[output].type.tensor_type, inputs[target].type.tensor_type
    if made.elem_type != wanted.elem_type:
        types = [helper.tensor_dtype_to_np_dtype(t.elem_type) for t in (made, wanted)]
        raise ValueError(
            f"{first!r} makes {output!r} as {types[0]}, {second!r} reads {target!r} as {types[1]}"
        )
    if len(made.shape.dim) != len(wanted.shape.dim):
        raise ValueError(
            f"{first!r} makes {output!r} with {len(made.shape.dim)} dimensions, "
            f"{second!r} reads {target!r} with {len(wanted.shape.dim)}; export it with the same number"
        )


def _opsets(first: ModelProto, second: ModelProto) -> dict[str, int]:
    versions: dict[str, int] = {}
    for model in (first, second):
        for opset in model.opset_import:
            domain = "" if opset.domain == "ai.onnx" else opset.domain
            if versions.setdefault(domain, opset.version) != opset.version:
                raise ValueError(
                    f"{first.graph.name!r} uses {domain or 'ai.onnx'} {versions[domain]} and "
                    f"{second.graph.name!r} {opset.version}; export both with the same version"
                )
    return versions


def _inner_names(graph: GraphProto, tag: str, stays: Counter[str]) -> dict[str, str]:
    """New names for every tensor that the graph makes or stores and that does not stay public."""
    made = {name for node in graph.node for name in node.output if name}
    made |= {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    public = {value.name for value in [*graph.input, *graph.output] if value.name in stays}
    return {name: f"{tag}/{name}" for name in made - public}


def _append(graph: GraphProto, part: GraphProto, names: Mapping[str, str], tag: str) -> None:
    """Add the nodes and constants of `part` to `graph` under their new names."""
    for node in part.node:
        added = graph.node.add()
        added.CopyFrom(node)
        added.name = f"{tag}/{node.name}"
        _rename(added, names)
    for tensor in part.initializer:
        kept = graph.initializer.add()
        kept.CopyFrom(tensor)
        kept.name = names.get(tensor.name, tensor.name)
    for sparse in part.sparse_initializer:
        kept_sparse = graph.sparse_initializer.add()
        kept_sparse.CopyFrom(sparse)
        kept_sparse.values.name = names.get(sparse.values.name, sparse.values.name)


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        # The bodies of If, Loop and Scan read the tensors around them.
        for body in [attribute.g, *attribute.graphs]:
            for inner in body.node:
                _rename(inner, names)
