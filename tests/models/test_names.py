"""Merlin's old names of TensorFlow and Keras lead to where they moved."""

import importlib

import pytest

from models import names  # noqa: F401  (before Merlin)

import tensorflow as tf  # isort: skip


def test_merlin_models_imports_on_this_tensorflow():
    assert tf.__version__.startswith("2.15")
    assert hasattr(importlib.import_module("merlin.models.tf"), "TwoTowerModelV2")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("keras.engine.base_layer", "keras.src.engine.base_layer"),
        ("keras.utils.tf_utils", "keras.src.utils.tf_utils"),
        ("keras.saving.experimental.saving_lib", "keras.src.saving.saving_lib"),
        ("tensorflow.python.training.tracking.base", "tensorflow.python.trackable.base"),
    ],
)
def test_an_old_name_is_the_moved_module(old, new):
    assert importlib.import_module(old) is importlib.import_module(new)


def test_dlpack_is_back_on_tensorflow_python():
    python = importlib.import_module("tensorflow.python")
    vector = python.from_dlpack(python.to_dlpack(tf.constant([1.0, 2.0])))
    assert vector.numpy().tolist() == [1.0, 2.0]


def test_a_name_that_never_was_stays_unknown():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("keras.never_there")


def test_a_module_keeps_its_own_name_and_spec():
    module = importlib.import_module("keras.engine.base_layer")
    assert module.__name__ == module.__spec__.name == "keras.src.engine.base_layer"
    assert module.Layer is tf.keras.layers.Layer


def test_a_name_that_is_still_there_is_not_replaced():
    assert importlib.import_module("keras.layers").__name__ == "keras.layers"
