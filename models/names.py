"""Lets merlin-models 23.12, written for TensorFlow 2.12, import on TensorFlow 2.15.

Keras moved its internals to `keras.src` in 2.13. This module, imported before `merlin.models.tf`, answers
imports of the old names with the moved modules and puts two names back on `tensorflow.python`. Nothing of
Merlin or TensorFlow is changed on disk.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from workflows import runtime  # noqa: F401  (sets the environment before TensorFlow is imported)

warnings.filterwarnings("ignore", module="merlin|tensorflow|keras")

import keras.utils  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow.python as tensorflow_python  # noqa: E402

_MOVED = {
    "keras.saving.experimental": "keras.src.saving",
    "keras.": "keras.src.",
    "tensorflow.python.training.tracking": "tensorflow.python.trackable",
}
_KERAS_UTILS = ("tf_inspect", "tf_utils", "losses_utils", "metrics_utils", "layer_utils", "control_flow_util")


class _MovedNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers an old name that is no longer there with the moved module itself, never with a second copy."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if name.startswith("keras.src"):
            return None
        for old, new in _MOVED.items():
            if name.startswith(old):
                above = name.rpartition(".")[0]
                moved_above = above in sys.modules and sys.modules[above].__name__ != above
                # Below a moved package Python would find the files again and load them under the old name.
                if not moved_above and PathFinder.find_spec(name, path) is not None:
                    return None
                try:
                    module = importlib.import_module(new + name[len(old) :])
                except ImportError:
                    continue
                spec = ModuleSpec(name, self)
                spec.loader_state = module, module.__spec__
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return spec.loader_state[0]

    def exec_module(self, module: ModuleType) -> None:
        # Python has just given the module the spec of its old name; it keeps its own.
        module.__spec__ = module.__spec__.loader_state[1] if module.__spec__ else None


sys.meta_path.insert(0, _MovedNames())
for _name in ("to_dlpack", "from_dlpack"):
    if not hasattr(tensorflow_python, _name):
        setattr(tensorflow_python, _name, getattr(tf.experimental.dlpack, _name))
for _name in _KERAS_UTILS:
    if not hasattr(keras.utils, _name):
        setattr(keras.utils, _name, importlib.import_module(f"keras.src.utils.{_name}"))
tf.get_logger().setLevel("ERROR")
