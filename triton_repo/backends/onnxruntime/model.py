"""Triton backend "onnxruntime" for CPU hosts, where Triton comes without its C++ one.

It serves the same `config.pbtxt` and `model.onnx`, with the same thread parameters, so that one repository
runs on a laptop and in the GPU image.
"""

from ensemble.triton import StageModel

import onnxruntime


class TritonPythonModel(StageModel):
    """Runs `model.onnx` of the version folder, once per dynamic batch, with the threads configured."""

    @staticmethod
    def auto_complete_config(config):
        """Leave the configuration as it is written."""
        return config

    def build(self, config, parameters, folder):
        """The graph as a stage; refuses a graph whose inputs or outputs differ from the configuration, as the
        C++ backend would."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
        path = folder / (config.get("default_model_filename") or "model.onnx")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        outputs = [entry["name"] for entry in config["output"]]
        read, made = ({t.name: t for t in ts} for ts in (session.get_inputs(), session.get_outputs()))
        if set(read) != {entry["name"] for entry in config["input"]} or not made.keys() >= set(outputs):
            raise ValueError(f"the graph reads {sorted(read)} and makes {sorted(made)}; the steps differ")
        for entry in config["input"]:
            _expect_shape(entry, read[entry["name"]], exact=False)
        for entry in config["output"]:
            _expect_shape(entry, made[entry["name"]], exact=True)
        return lambda **arrays: dict(zip(outputs, session.run(outputs, arrays)))


def _expect_shape(entry, tensor, exact):
    """Refuse a tensor that has another shape in the graph than in the configuration; `exact` where what the
    graph leaves free may not be fixed."""
    said = [-1, *map(int, entry["reshape"]["shape"] if "reshape" in entry else entry["dims"])]
    has = [n if isinstance(n, int) else -1 for n in tensor.shape]
    fit = [a == b or (a == -1 and not exact) for a, b in zip(has, said)]
    if len(has) != len(said) or has[0] != -1 or not all(fit):
        raise ValueError(f"'{tensor.name}' is {has} in the graph and {said} in the steps; -1 is free")
