"""The graphs of a release on ONNX Runtime's CUDA provider: what they say on the CPU."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ensemble.cascade import Cascade
from ensemble.release import Release
from tests.ensemble.asking import requests

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

CUDA = "CUDAExecutionProvider"
CUDNN = "libcudnn.so.9"
ROWS = 64


@pytest.mark.parametrize("name", ["query", "ranking"])
def test_a_graph_says_on_the_gpu_what_it_says_on_the_cpu(name, small_release: Release, tmp_path):
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider; see deploy/gpu-server.md")
    try:
        ctypes.CDLL(CUDNN)
    except OSError:
        pytest.skip(f"ONNX Runtime needs {CUDNN}, TensorFlow brings version 8; see deploy/gpu-server.md")
    onnxruntime.preload_dlls(cudnn=False)  # CUDA's, which come with TensorFlow
    cascade = Cascade(small_release)
    made = requests(small_release, ROWS)
    for step in cascade.steps:
        inputs = cascade.read(step.name, made)
        expected = cascade.apply(step.name, made)
        if step.name == name:
            break
        made |= expected
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(
        str(small_release.onnx_path(step.file)), options, providers=[CUDA, "CPUExecutionProvider"]
    )
    assert session.get_providers()[0] == CUDA, "the provider is there and did not load"
    for column, array in zip(expected, session.run(list(expected), inputs), strict=True):
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected[column], rtol=2e-3, atol=2e-3, err_msg=column)
        else:
            np.testing.assert_array_equal(array, expected[column], err_msg=column)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"] for event in events if event.get("args", {}).get("provider")]
    products = {args["provider"] for args in ran if args["op_name"] in ("MatMul", "Gemm", "FusedMatMul")}
    assert products == {CUDA}
