"""A real Triton server on this host, from the nvidia-pytriton wheel.

The wheel brings Triton with the Python backend only; the project's own `onnxruntime` backend goes beside it,
so the repository is the one that the GPU image serves.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import tenacity
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from ensemble.network import DIRECT, administrator, draw_key, restrictions
from ensemble.repository import CONFIG, TEMPLATES, RepositoryError, models, read_config
from ensemble.steps import FEED, TensorSpec
from ensemble.triton import CANARY

_SHM = Path("/dev/shm")
_CLASH = re.compile(r"address already in use|failed to start .* service", re.IGNORECASE)
_HARMLESS = r"CUDA ?driver|NVML|DCGM|pinned system memory"
"""What Triton complains of on every host without a GPU."""
_FAULT = re.compile(
    rf"^(?!.*({_HARMLESS}))([EF]\d{{4}} |.*(error|failed|exception|no such file))", re.IGNORECASE
)
_SPLITS = re.compile(r"[^\w@%+=:,./-]")
"""What a shell reads as something else than a part of a name."""
_DEAD = re.compile(r"stub process .*not healthy", re.IGNORECASE | re.DOTALL)
_EXIT_S = 5
"""Seconds that requests under way have to finish when the server stops, and a watch when it ends."""
_FORGOTTEN_S = 10
"""Seconds in which a process answers what it was asked before its step was loaded anew."""
_LAST_BYTES = 8192
"""Of the log, where the end of a server that ended by itself is explained."""
_LIFELINE = f"""
read -r ended && exit
kill -TERM "$SERVER"
waited=0
while kill -0 "$SERVER" && [ $waited -lt {2 * _EXIT_S} ]; do sleep 1; waited=$((waited + 1)); done
kill -KILL -- "-$SERVER"
rm -f "$MEMORY"*
rm -rf -- "$FOLDER"
"""
"""A shell's script that ends the server when the pipe to whoever started it breaks before a word was said:
a process that is killed can stop nothing."""


class ServerError(RuntimeError):
    """A server that did not start or has died; the text ends with the lines of its log that say why."""


class _PortClash(ServerError):
    pass


class TritonServer:
    """Serves a model repository while the context lasts, and no longer than the process that started it.

    with TritonServer("build/repository", log="build/triton.log") as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

    Args:
        repository: a repository of `ensemble.repository`.
        log: file that the server's output is appended to.
        startup_deadline_s: seconds until every model must be ready; a stub that cannot start hangs for ever.
        http_port, grpc_port, metrics_port: a free one each where None.
        host: address to listen on.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        log: str | os.PathLike[str],
        startup_deadline_s: float = 60.0,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.repository = Path(repository).resolve()
        self.log = Path(log)
        self.host = host
        self._deadline_s = startup_deadline_s
        self._wanted = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._log_start = 0
        #: Until when each may take to end by itself (s of the monotonic clock), and its file descriptor.
        self._forgotten: list[tuple[float, int]] = []
        self._shm = f"pasar_{secrets.token_hex(6)}_"
        self._key = ""

    @property
    def grpc_url(self) -> str:
        """Where clients send requests, "host:port"."""
        return self._url("grpc")

    @property
    def http_url(self) -> str:
        """Triton's HTTP endpoint, "host:port"."""
        return self._url("http")

    @property
    def metrics_url(self) -> str:
        """Prometheus metrics, "host:port"; the path is /metrics."""
        return self._url("metrics")

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._running().pid

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> TritonServer:
        """Start and wait until every model is ready.

        Raises:
            ServerError: the host cannot run it, a model does not load, or the deadline passed.
        """
        if self._process is not None:
            raise ServerError("the server is running already; stop it first")
        if not models(self.repository):
            raise ServerError(f"{self.repository} holds no {CONFIG}; write a repository there first")
        wheel = find_server()
        # Triton has a shell start its processes, and quotes nothing.
        if _SPLITS.search(place := tempfile.gettempdir()):
            raise ServerError(
                f"Triton cannot start its processes from {place!r}, the folder for temporary files: a shell "
                "would not read that as one name; set TMPDIR to a folder without spaces or quotes"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="pasar-server-"))
        try:
            self._lay_out_backends(wheel, self._folder / "backends")
            (self._folder / "repository").symlink_to(self.repository)
            self._key = draw_key(self.repository)
            tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(_PortClash),
                stop=tenacity.stop_after_attempt(5),
                reraise=True,
            )(self._start_once, wheel, self._folder)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server: politely, then by force. Leaves no process and no shared memory."""
        self._end_process()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def wait(self, stop: threading.Event, *, every_s: float = 0.5) -> None:
        """Wait until `stop` is set.

        Raises:
            ServerError: the server ended by itself meanwhile.
        """
        process = self._running()
        while not stop.wait(every_s):
            if (status := process.poll()) is not None:
                raise ServerError(
                    f"the server ended by itself with status {status}; start it again; its log {self.log} "
                    f"says:\n{_why(self._last_words())}"
                )

    def revive(self, *, timeout_s: float = 5.0) -> list[str]:
        """Send every step a sign of life and load those anew whose process died; returns their names.

        Triton never restarts a dead stub and stays ready meanwhile. Each call reaches as many processes of a
        step as it has, though not surely each of them. Those that lived on beside the dead one Triton forgets
        without ending them; they are ended at a later call, when what they were asked is answered.
        """
        self._end_forgotten()
        with self._client() as client:
            dead = [name for name in models(self.repository) if not self._lives(client, name, timeout_s)]
            for model in sorted(dead, key=FEED.__eq__):  # the ensemble needs its steps
                before = self._stubs(model)
                try:
                    client.unload_model(model)
                    client.load_model(model)
                except BaseException:  # those that were there may go on serving
                    for handle in before:
                        os.close(handle)
                    raise
                self._forgotten += [(time.monotonic() + _FORGOTTEN_S, handle) for handle in before]
        return dead

    def _stubs(self, model: str) -> list[int]:
        """The processes of a step, as file descriptors: their ids may be another's by the time they count."""
        found = []
        for children in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # of a thread that has ended
                for pid in map(int, children.read_text().split()):
                    with contextlib.suppress(OSError, IndexError):
                        script = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[1]
                        if Path(script).parts[-3] == model:
                            found.append(os.pidfd_open(pid))
        return found

    def _end_forgotten(self, *, everybody: bool = False) -> None:
        """End the processes whose step was loaded anew a while ago, and that have not ended by themselves."""
        due = [one for one in self._forgotten if everybody or one[0] <= time.monotonic()]
        for _, handle in due:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        self._forgotten = [one for one in self._forgotten if one not in due]

    def _lives(self, client: grpc.InferenceServerClient, model: str, timeout_s: float) -> bool:
        config = read_config(self.repository, model)
        if not client.is_model_ready(model, client_timeout=timeout_s):
            return False
        inputs = [_blank(entry) for entry in config.input]
        for group in config.instance_group:  # an ensemble has none
            for _ in range(group.count):
                try:
                    client.infer(model, inputs, parameters={CANARY: True}, client_timeout=timeout_s)
                except InferenceServerException as error:
                    if _DEAD.search(error.message() or ""):
                        return False
        return True

    @contextlib.contextmanager
    def watch(self, *, every_s: float = 0.5) -> Iterator[None]:
        """Keep the steps alive from a thread of its own while the context lasts; see `revive`."""
        ended = threading.Event()

        def loop() -> None:
            while not ended.wait(every_s):
                # A server that is busy or on its way down is asked again at the next turn, and so is a
                # repository that is being written.
                with contextlib.suppress(InferenceServerException, RepositoryError):
                    self.revive()

        thread = threading.Thread(target=loop, name="triton-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_EXIT_S)  # the load of a step that hangs ends with the server alone

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not running; start it first")
        return self._process

    def _client(self) -> contextlib.closing[grpc.InferenceServerClient]:
        # It runs on this host, whatever address of it that is.
        return administrator(self.grpc_url, self._key, DIRECT)

    def _url(self, service: str) -> str:
        self._running()
        return f"{self.host}:{self._ports[service]}"

    def _start_once(self, wheel: Path, folder: Path) -> None:
        self._ports = _ports(self._wanted, self.host)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(wheel, folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(wheel),
                start_new_session=True,
            )
        try:
            self._hold_lifeline(self._process.pid, folder)
            self._wait_until_ready()
        except BaseException:
            self._end_process()
            raise

    def _end_process(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(2 * _EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + _EXIT_S
        with contextlib.suppress(ProcessLookupError):  # raised when the group, its stubs, is gone
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, signal.SIGKILL)
                time.sleep(0.01)
        self._process = None
        self._end_forgotten(everybody=True)
        if self._lifeline is not None:
            self._lifeline.communicate(b"ended\n")
            self._lifeline = None
        for leftover in _SHM.glob(f"{self._shm}*"):
            leftover.unlink(missing_ok=True)

    def _hold_lifeline(self, server: int, folder: Path) -> None:
        self._lifeline = subprocess.Popen(
            ["/bin/sh", "-c", _LIFELINE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "SERVER": str(server), "MEMORY": str(_SHM / self._shm), "FOLDER": str(folder)},
            start_new_session=True,
        )

    def _command(self, wheel: Path, folder: Path) -> list[str]:
        ports = [f"--{name}-port={port}" for name, port in self._ports.items()]
        return [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={folder / 'repository'}",
            f"--backend-directory={folder / 'backends'}",
            f"--cache-directory={wheel / 'caches'}",
            f"--backend-config=python,shm-region-prefix-name={self._shm}",
            f"--exit-timeout-secs={_EXIT_S}",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            "--load-model=*",
            *(f"--{name}-address={self.host}" for name in self._ports),
            *restrictions(self._key),
            *ports,
        ]

    def _lay_out_backends(self, wheel: Path, target: Path) -> None:
        """Copy the backends to one folder: Triton refuses links to them, and wheels drop run bits."""
        python = target / "python"
        shutil.copytree(wheel / "backends" / "python", python, dirs_exist_ok=True)
        shutil.copy(_stub(wheel), python)
        (python / "triton_python_backend_stub").chmod(0o755)
        shutil.copytree(TEMPLATES / "backends", target, dirs_exist_ok=True)
        server = wheel / "bin" / "tritonserver"
        if not os.access(server, os.X_OK):
            server.chmod(0o755)

    def _environment(self, wheel: Path) -> dict[str, str]:
        libraries = [sysconfig.get_config_var("LIBDIR"), str(wheel.parents[1] / "nvidia_pytriton.libs")]
        if "LD_LIBRARY_PATH" in os.environ:
            libraries.append(os.environ["LD_LIBRARY_PATH"])
        # The stub finds its packages through the first `python` on the path.
        path = [str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)]
        changed = {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": ":".join(path), "VIRTUAL_ENV": sys.prefix}
        # Stages are processes side by side: BLAS threads that wait for one another burn a core and gain
        # nothing.
        alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # Graphs run on the CPU here; Triton would start a copy of each for every GPU that it sees.
        return {**alone, **os.environ, **changed, "CUDA_VISIBLE_DEVICES": ""}

    def _wait_until_ready(self) -> None:
        process = self._running()
        deadline = time.monotonic() + self._deadline_s
        while time.monotonic() < deadline:
            if (status := process.poll()) is not None:
                text = self._log_from(self._log_start)
                kind = _PortClash if _CLASH.search(text) else ServerError
                raise kind(f"the server ended with status {status} before it was ready:\n{_why(text)}")
            if self._is_ready():
                return
            time.sleep(0.05)
        text = self._log_from(self._log_start)
        raise ServerError(f"the server was not ready after {self._deadline_s:g} s:\n{_why(text)}")

    def _is_ready(self) -> bool:
        try:  # bare connections first: a gRPC channel that was refused waits a second before it tries again
            for port in self._ports.values():  # Triton opens one after another
                socket.create_connection((self.host, port), timeout=1.0).close()
            with self._client() as client:
                return client.is_server_ready(client_timeout=1.0)
        except (OSError, InferenceServerException):
            return False

    def _last_words(self) -> str:
        """The end of the log, which somebody may have cut or put aside."""
        try:
            size = self.log.stat().st_size
            own = self._log_start if self._log_start <= size else 0
            return self._log_from(max(own, size - _LAST_BYTES))
        except FileNotFoundError:
            return "(nothing: it was taken away)"

    def _log_from(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")


def find_server() -> Path:
    """Triton's folder in the installed nvidia-pytriton wheel."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ServerError(
            f"the Triton wheel runs on Linux x86_64, this is {sys.platform} {platform.machine()}; "
            "use the in-process cascade here, or a Linux host"
        )
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        raise ServerError(
            "nvidia-pytriton is not installed; run `make setup`, in a conda environment "
            "`uv pip install --no-deps -r locks/server.txt`"
        )
    wheel = Path(found.submodule_search_locations[0]) / "tritonserver"
    stub = _stub(wheel)
    if not stub.is_file():
        raise ServerError(f"Triton has no stub for Python {stub.parent.name}; use Python 3.10 or 3.11")
    return wheel


def _stub(wheel: Path) -> Path:
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    return wheel / "python_backend_stubs" / minor / "triton_python_backend_stub"


def _ports(wanted: dict[str, int | None], host: str) -> dict[str, int]:
    """The ports asked for, and free ones for the rest, all different."""
    for asked in filter(None, wanted.values()):
        if len(names := [name for name, own in wanted.items() if own == asked]) > 1:
            raise ServerError(f"port {asked} is that of {' and '.join(names)}; give each its own")
    ports = {}
    with contextlib.ExitStack() as held:
        for name, port in wanted.items():
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                if not host:  # bound as every address, but refused by Triton as none
                    raise socket.gaierror(socket.EAI_NONAME, "it is empty")
                probe.bind((host, port or 0))
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                    raise ServerError(
                        f"{host!r} is no address to listen on ({error.strerror}); give a name or an IPv4 "
                        "address of this host"
                    ) from error
                raise ServerError(
                    f"the {name} port {port} on {host} cannot be used ({error.strerror}); choose another"
                ) from error
            ports[name] = probe.getsockname()[1]
    return ports


def _why(text: str) -> str:
    """The last lines of a log that say what went wrong; else its last lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(([line for line in lines if _FAULT.search(line)] or lines)[-8:])


def _blank(entry) -> grpc.InferInput:
    """One row of zeros for an input of a model."""
    shape = [1, *(max(n, 1) for n in entry.dims)]
    dtype = TensorSpec.dtype_of(grpc.model_config_pb2.DataType.Name(entry.data_type))
    blank = TensorSpec(entry.name, dtype)
    tensor = grpc.InferInput(entry.name, shape, blank.triton_type)
    return tensor.set_data_from_numpy(np.full(shape, blank.pad, dtype))
