"""Triton backend "tensorflow" for CPU hosts, where Triton comes without its C++ one.

Runs the `serving_default` signature of the `model.savedmodel` that Merlin Systems exports.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf
import triton_python_backend_utils as pb


class TritonPythonModel:
    """One SavedModel; the tensors are those of its configuration."""

    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = {
            entry["name"]: pb.triton_string_to_numpy(entry["data_type"]) for entry in config["input"]
        }
        self.outputs = [entry["name"] for entry in config["output"]]
        folder = Path(args["model_repository"], args["model_version"], "model.savedmodel")
        self.model = tf.saved_model.load(str(folder))
        self.run = self.model.signatures["serving_default"]

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        given = {
            name: tf.constant(pb.get_input_tensor_by_name(request, name).as_numpy().astype(dtype, copy=False))
            for name, dtype in self.inputs.items()
        }
        made = self.run(**given)
        return pb.InferenceResponse(
            [pb.Tensor(name, np.ascontiguousarray(made[name].numpy())) for name in self.outputs]
        )
