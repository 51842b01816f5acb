"""Every Python step of the cascade; the step's name says which stage it runs."""

from ensemble.triton import StageModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
