"""The doctor looks at everything a build and a server need, and says what to do about what is missing."""

import importlib.metadata
import os
import subprocess

import pytest

from pasar import doctor


@pytest.fixture(scope="module")
def findings():
    return {finding.what: finding for finding in doctor.examine()}


def test_this_machine_can_build_and_serve(findings):
    for what in ("Python", "nvtabular", "merlin-models", "Merlin imports", "onnxruntime", "Triton"):
        assert findings[what].found not in ("", "not installed", "not found")
        assert not findings[what].remedy
    assert findings["Merlin imports"].found == "yes"


def test_versions_are_those_that_are_installed(findings):
    assert findings["onnxruntime"].found == importlib.metadata.version("onnxruntime")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux keeps a process to some cores")
def test_the_cores_that_this_process_may_use_are_counted():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert doctor._memory().found.startswith("1 core, ")
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.parametrize(("conda", "remedy"), [(False, "run `make setup`"), (True, "run `uv pip install ")])
def test_a_package_of_another_version_is_told_with_the_pin(conda, remedy, monkeypatch, tmp_path):
    if conda:
        (tmp_path / "conda-meta").mkdir()
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path))
    assert f"pinned at 99.1: {remedy}" in doctor._package("numpy", "99.1").remedy
    assert doctor._package("no-such-package", "1").remedy.startswith(remedy)
    assert "environment.yml" in doctor._package("no-such-package", "1", gpu=True).remedy


@pytest.mark.parametrize("body", ["exit 9", "exec sleep 60"])
def test_a_driver_that_fails_or_hangs_is_told(monkeypatch, tmp_path, body):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "PATIENCE_S", 0.5)
    assert "install the NVIDIA driver" in doctor._gpu().remedy


def gpus(monkeypatch, answer):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(
        doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, answer, "")
    )
    return doctor._gpu()


def test_a_gpu_that_answers_is_named(monkeypatch):
    assert gpus(monkeypatch, "H200, 143771 MiB, 570.1\n") == ("GPU", "H200, 143771 MiB, 570.1", "")


def test_a_driver_that_is_too_old_is_told(monkeypatch):
    found = gpus(monkeypatch, "H100, 81559 MiB, 525.147.05\nH100, 81559 MiB, 525.147.05\n")
    assert found.found == "H100, 81559 MiB, 525.147.05; H100, 81559 MiB, 525.147.05"
    assert "535 or newer" in found.remedy
