"""Lets merlin-models 23.12, written for TensorFlow 2.12, import on TensorFlow 2.15.

Keras moved its internals to `keras.src` in 2.13. This module, imported before `merlin.models.tf`, answers
imports of the old names with the moved modules and puts two names back on `tensorflow.python`. Nothing of
Merlin or TensorFlow is changed on disk.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType

from workflows import runtime  # noqa: F401  (sets the environment before TensorFlow is imported)

warnings.filterwarnings("ignore", module="merlin|tensorflow|keras")

import tensorflow as tf  # noqa: E402
import tensorflow.python as tensorflow_python  # noqa: E402

_MOVED = {
    "keras.saving.experimental": "keras.src.saving",
    "keras.": "keras.src.",
    "tensorflow.python.training.tracking": "tensorflow.python.trackable",
}
_KERAS_UTILS = ("tf_inspect", "tf_utils", "losses_utils", "metrics_utils", "layer_utils", "control_flow_util")


class _MovedNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its new name when the old one is asked for and no longer there."""

    def find_spec(self, name: str, path: object = None, target: object = None):
        if name.startswith("keras.src"):
            return None
        for old, new in _MOVED.items():
            if name.startswith(old):
                try:
                    module = importlib.import_module(new + name[len(old) :])
                except ImportError:
                    continue
                spec = importlib.machinery.ModuleSpec(name, self)
                spec.loader_state = module
                return spec
        return None

    def create_module(self, spec) -> ModuleType:
        return spec.loader_state

    def exec_module(self, module: ModuleType) -> None:
        pass


if not any(isinstance(finder, _MovedNames) for finder in sys.meta_path):
    sys.meta_path.append(_MovedNames())
    for _name in ("to_dlpack", "from_dlpack"):
        if not hasattr(tensorflow_python, _name):
            setattr(tensorflow_python, _name, getattr(tf.experimental.dlpack, _name))
    import keras.utils

    for _name in _KERAS_UTILS:
        if not hasattr(keras.utils, _name):
            setattr(keras.utils, _name, importlib.import_module(f"keras.src.utils.{_name}"))
    tf.get_logger().setLevel("ERROR")
