"""Serving knows no training library, a release is data, packages import as the architecture says."""

import ast
import json
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import resolve_name
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from ensemble.cascade import Cascade, served_steps
from ensemble.plan import Plan
from ensemble.stages.events import Events
from ensemble.stages.feedback import Feedback
from ensemble.steps import StageStep
from tests.ensemble import synthetic
from tests.ensemble.asking import requests

REPOSITORY = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "market": set(),
    "supply": {"market"},
    "feedback": {"market", "supply"},
    "workflows": {"market"},
    "models": {"market", "workflows"},
    "ensemble": {"market", "supply", "feedback"},
    "triton_repo": {"ensemble"},
    "evaluation": {"market", "supply", "feedback", "workflows", "models", "ensemble", "triton_repo"},
    "pasar": {"market", "supply", "feedback", "workflows", "models", "ensemble", "triton_repo", "evaluation"},
    "benchmarks": {
        "market",
        "supply",
        "feedback",
        "workflows",
        "models",
        "ensemble",
        "triton_repo",
        "evaluation",
        "pasar",
    },
}
"""Package → packages of ours that it may import."""

BUILDERS = {"export.py", "build.py", "distil.py", "appraisal.py"}
"""Files of `ensemble` that may import models and workflows as well."""

MORE = {f"ensemble/{file}": {"models", "workflows"} for file in BUILDERS} | {"pasar/cli.py": {"benchmarks"}}
"""File → packages that it alone of its package may import. The command line runs the benchmarks, and they let
it serve: each imports the other, so the command line does so in their command alone."""

SERVE_BEHIND_THE_WALL = """
import importlib, json, pickle, sys
import numpy as np

BLOCKED = {
    "tensorflow", "keras", "merlin", "nvtabular", "pandas", "dask", "distributed", "cudf", "pyarrow",
    "cloudpickle", "joblib", "sklearn", "torch", "models", "workflows", "evaluation",
}

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is behind the wall")

sys.meta_path.insert(0, Wall())

def refused(*args, **kwargs):
    raise AssertionError("a pickle was read")

pickle.load = pickle.loads = pickle.Unpickler = refused
read = np.load

def plain(file, *args, allow_pickle=False, **kwargs):
    assert not allow_pickle
    return read(file, *args, allow_pickle=False, **kwargs)

np.load = plain

release_path, request_path, reply_path, *stages = sys.argv[1:]
for name in stages:
    importlib.import_module(f"ensemble.stages.{name}")
import ensemble.triton, ensemble.client
from ensemble.cascade import Cascade
from ensemble.release import Release

request = {}
for name, value in json.load(open(request_path)).items():
    request[name] = np.array(value["values"], value["dtype"]).reshape(value["shape"])
reply = Cascade(Release.open(release_path))(request)
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
json.dump({name: array.tolist() for name, array in reply.items()}, open(reply_path, "w"))
"""


@pytest.mark.slow
def test_a_request_is_served_where_no_training_library_can_be_imported(small_release, tmp_path):
    request = requests(small_release, 4)
    written = {
        name: {"values": array.ravel().tolist(), "dtype": str(array.dtype), "shape": array.shape}
        for name, array in request.items()
    }
    (tmp_path / "request.json").write_text(json.dumps(written))
    stages = [file.stem for file in (REPOSITORY / "ensemble" / "stages").glob("*.py")]
    files = [small_release.path, tmp_path / "request.json", tmp_path / "reply.json"]
    command = [sys.executable, "-c", SERVE_BEHIND_THE_WALL, *map(str, files)]
    command += [stage for stage in stages if stage != "__init__"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    reply = json.loads((tmp_path / "reply.json").read_text())
    for name, array in Cascade(small_release)(request).items():
        np.testing.assert_array_equal(np.array(reply[name], array.dtype), array, name)


BUILD_IN_THE_IMAGE = """
import sys

release_path, state, feedback, image, *steps = sys.argv[1:]
may = {*image.split(","), *sys.stdlib_module_names}

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in may and not name.startswith("_sysconfigdata"):
            raise ImportError(f"{name} is not in the image")

sys.meta_path.insert(0, Wall())

import ensemble.triton
from ensemble.release import Release
from ensemble.stages import build

for step in steps:
    build(step, Release.open(release_path), state=state, feedback=feedback)
"""


def in_the_image() -> set[str]:
    """Names of ours and of packages that can be imported in the image of `deploy/gpu-server.md`."""
    text = (REPOSITORY / "deploy" / "gpu-server.md").read_text(encoding="utf-8")
    (installed,) = re.findall(r"^ *RUN pip install (.*)$", text, re.MULTILINE)
    left, packages = re.findall(r'"([^"]+)"', installed), set()
    while left:
        wanted = Requirement(left.pop())
        if wanted.name not in packages and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            packages.add(wanted.name)
            left += metadata.requires(wanted.name) or []
    # By files: until Python 3.11 `packages_distributions` knows only packages with a top_level.txt.
    files = [file for package in packages for file in metadata.files(package) or []]
    brought = {file.parts[0].removesuffix(".py") for file in files if file.suffix in (".py", ".so")}
    return brought | set(re.findall(r"^ *COPY (\w+) /opt/pasar/", text, re.MULTILINE))


def test_each_step_of_its_own_is_built_from_what_the_gpu_image_installs(tmp_path):
    release = synthetic.release(tmp_path, 5)
    cascade = served_steps(Plan.of(release), one_process=False)
    steps = [*(step.name for step in cascade if isinstance(step, StageStep)), Events.name, Feedback.name]
    files = [str(release.path), str(tmp_path / "state"), str(tmp_path / "feedback")]
    command = [sys.executable, "-c", BUILD_IN_THE_IMAGE, *files, ",".join(in_the_image()), *steps]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_a_release_holds_graphs_arrays_and_json_alone(small_release):
    files = sorted(file.name for file in small_release.path.iterdir())
    assert {Path(file).suffix for file in files} == {".onnx", ".npy", ".json"}
    for file in files:
        if file.endswith(".npy"):
            assert not np.load(small_release.path / file, allow_pickle=False).dtype.hasobject


def imported(node: ast.AST, file: Path) -> set[str]:
    """Full names that a statement imports: of `from a import b` both `a` and `a.b`, which may be a module."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        here = ".".join(file.relative_to(REPOSITORY).parent.parts)
        module = resolve_name("." * node.level + (node.module or ""), here)
        return {module} | {f"{module}.{alias.name}" for alias in node.names}
    return set()


def imports(file: Path) -> set[str]:
    """Full names that a file imports, anywhere in it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {name for node in ast.walk(tree) for name in imported(node, file)}


def sources(package: str) -> list[Path]:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files, f"{package} has no files to look at"
    return files


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_every_package_of_ours_has_its_line_in_the_architecture():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (installed,) = re.findall(r"^packages = \[(.*)\]$", text, re.MULTILINE)
    assert set(re.findall(r'"(\w+)"', installed)) == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_that_the_architecture_allows(package):
    for file in sources(package):
        name = file.relative_to(REPOSITORY).as_posix()
        strangers = packages(imports(file)) & set(MAY_IMPORT)
        strangers -= {package} | MAY_IMPORT[package] | MORE.get(name, set())
        assert not strangers, f"{name} imports {', '.join(sorted(strangers))}"


def test_the_command_line_imports_the_benchmarks_late():
    file = REPOSITORY / "pasar" / "cli.py"
    assert "benchmarks" in packages(imports(file)), "it needs no exception any more"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    commands = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for command in commands for node in ast.walk(command)}
    for node in ast.walk(tree):
        if "benchmarks" in packages(imported(node, file)):
            assert id(node) in inside, f"pasar/cli.py imports the benchmarks in line {node.lineno}"


def test_the_stages_know_no_builder():
    """A stage that imported one of them would bring the training stack with it."""
    builders = {f"ensemble.{Path(file).stem}" for file in BUILDERS}
    assert {REPOSITORY / "ensemble" / file for file in BUILDERS} <= set(sources("ensemble"))
    for file in sources("ensemble"):
        if file.name not in BUILDERS:
            assert not imports(file) & builders, file.name


@pytest.mark.parametrize(
    "package", [name for name in MAY_IMPORT if (REPOSITORY / name / "__init__.py").is_file()]
)
def test_importing_a_package_imports_nothing(package):
    assert not imports(REPOSITORY / package / "__init__.py")
