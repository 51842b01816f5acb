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
        """The graph as a stage; refuses a graph whose inputs or outputs differ from the configuration."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
        path = folder / (config.get("default_model_filename") or "model.onnx")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        outputs = [entry["name"] for entry in config["output"]]
        given = (
            {tensor.name for tensor in session.get_inputs()},
            {tensor.name for tensor in session.get_outputs()},
        )
        if given[0] != {entry["name"] for entry in config["input"]} or not given[1].issuperset(outputs):
            raise ValueError(
                f"the graph reads {sorted(given[0])} and makes {sorted(given[1])}; the steps differ"
            )
        return lambda **arrays: dict(zip(outputs, session.run(outputs, arrays)))
