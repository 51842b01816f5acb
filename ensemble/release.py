"""A release: the folder of data that one version of the cascade is served from.

Only ONNX graphs, npy arrays and JSON; nothing in it is code and nothing needs pickle. `manifest.json` names
every file with its size and SHA-256 and carries a sum of itself, so a changed byte anywhere is found.
A release is written once and never changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np

from market.folders import drafted, link

# 2: seasons among the features of a pair; 3: lists of the search in blocks of 32 codes, graphs of markets;
# 4: low-rank affinities beside the item graph, conversions.
FORMAT = 5
MANIFEST = "manifest.json"
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(onnx|npy|json)")
_AGAIN = "copy the release again from where it was written, or write a new one"


class ReleaseError(ValueError):
    """A release that must not be served; the text names the file and what to do."""


class ReleaseWriter:
    """Writes a release: the folder appears at `target` complete and checked, or not at all.

    with ReleaseWriter("releases/7", name="nightly", info={"rows": 12}) as release:
        release.array("item_vectors.npy", vectors)
        release.json("items.json", ids)
        convert(model, release.path("ranking.onnx"))
    """

    def __init__(
        self, target: str | os.PathLike[str], *, name: str, info: Mapping[str, Any] | None = None
    ) -> None:
        self.target = Path(target)
        self.name = name
        self.info = dict(info or {})
        self._linked = dict[str, str]()

    def __enter__(self) -> ReleaseWriter:
        if os.path.lexists(self.target):
            raise ReleaseError(f"{self.target} exists already; a release never changes, choose a new folder")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._draft = drafted(self.target)
        self._folder = self._draft.__enter__()
        return self

    def path(self, file: str) -> Path:
        """Where to write `file` (*.onnx, *.npy or *.json)."""
        _check_name(file)
        return self._folder / file

    def array(self, file: str, array: np.ndarray) -> None:
        """Write an array as *.npy; text must be of dtype `<U…`, since object arrays need pickle."""
        if not file.endswith(".npy"):
            raise ReleaseError(f"{file!r} holds an array; name it *.npy")
        if array.dtype.hasobject:
            raise ReleaseError(
                f"{file} has dtype {array.dtype}, which needs pickle; convert it, text to a dtype of kind U"
            )
        np.save(self.path(file), array, allow_pickle=False)

    def json(self, file: str, value: Any) -> None:
        """Write a value as *.json; keys are sorted, NaN and infinity are refused."""
        if not file.endswith(".json"):
            raise ReleaseError(f"{file!r} holds JSON; name it *.json")
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
        self.path(file).write_text(text, encoding="utf-8")

    def copy(self, other: Release) -> None:
        """Take over every file of another release."""
        for file in other.files:
            shutil.copyfile(other.path / file, self.path(file))

    def link(self, other: Release, *, but: Collection[str]) -> None:
        """Take over every file of another release but some, which are not to be written here.

        They are hard links where the disk allows: a server that moves from one to the other maps the same
        pages. Each must still have the SHA-256 that the other's manifest says.
        """
        for file, sha256 in other.sums.items():
            if file not in but:
                link(other.path / file, self.path(file))
                self._linked[file] = sha256

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._draft.__exit__(None, None, None)

    def _finish(self) -> None:
        files = {}
        for path in sorted(self._folder.iterdir()):
            _check_name(path.name)
            _check_content(path)
            sha256 = _sha256(path)
            if sha256 != self._linked.get(path.name, sha256):
                raise ReleaseError(f"{path.name} changed while it was taken over; {_AGAIN}")
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256}
            _fsync(path)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        body = {"format": FORMAT, "name": self.name, "created": created, "files": files, "info": self.info}
        (self._folder / MANIFEST).write_bytes(_render(body))
        _fsync(self._folder / MANIFEST)
        _fsync(self._folder)
        self._folder.chmod(0o755)
        try:
            self._folder.rename(self.target)
        except OSError as error:
            if not os.path.lexists(self.target):
                raise
            raise ReleaseError(
                f"{self.target} was made meanwhile; a release never changes, choose a new folder"
            ) from error
        _fsync(self.target.parent)


class Release:
    """A release opened for reading; see `open`."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.name: str = manifest["name"]
        self.created: str = manifest["created"]
        self.files: tuple[str, ...] = tuple(manifest["files"])
        #: SHA-256 of each file.
        self.sums: dict[str, str] = {file: entry["sha256"] for file, entry in manifest["files"].items()}
        self.info: dict[str, Any] = manifest["info"]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Release:
        """Open a release folder.

        Args:
            path: the folder.
            verify: compare the SHA-256 of each file; without it only names, sizes and headers are checked.

        Raises:
            ReleaseError: a file is missing, truncated, changed, extra, of a kind that is not data, or the
                manifest is damaged or of a format this version cannot read.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        for file, entry in manifest["files"].items():
            _check_name(file)
            target = folder / file
            if target.is_symlink() or not target.is_file():
                raise ReleaseError(f"{target} is missing; {_AGAIN}")
            size = target.stat().st_size
            if size != entry["bytes"]:
                raise ReleaseError(
                    f"{target} has {size} bytes where the manifest says {entry['bytes']}; {_AGAIN}"
                )
            if verify and _sha256(target) != entry["sha256"]:
                raise ReleaseError(f"{target} differs from its SHA-256 in the manifest; {_AGAIN}")
            _check_content(target)
        extra = sorted({p.name for p in folder.iterdir()} - set(manifest["files"]) - {MANIFEST})
        if extra:
            raise ReleaseError(f"{folder / extra[0]} is not in the manifest; remove it, or {_AGAIN}")
        return cls(folder, manifest)

    def expect_outside(self, place: Path, advice: str) -> None:
        """Refuse, by a `ReleaseError`, to write at a `place` that lies in the release, which never changes.

        Args:
            advice: what to do instead, the end of its text.
        """
        if self.path.resolve() in place.resolve().parents:
            raise ReleaseError(f"{place} lies in the release {self.path}, which never changes; {advice}")

    def array(self, file: str, *, mmap: bool = True) -> np.ndarray:
        """The array of a *.npy file, read-only and mapped unless `mmap` is False."""
        path = self._find(file, ".npy")
        header = _npy_header(path)
        if not mmap:
            return np.load(path, allow_pickle=False)
        array = np.memmap(path, header.dtype, "r", header.bytes, header.shape, header.order)
        return array.view(np.ndarray)  # each indexing of a np.memmap costs microseconds in Python

    def json(self, file: str) -> Any:
        """The value of a *.json file."""
        return json.loads(self._find(file, ".json").read_bytes())

    def onnx_path(self, file: str) -> Path:
        """Where the graph of an *.onnx file lies."""
        return self._find(file, ".onnx")

    def _find(self, file: str, suffix: str) -> Path:
        if file not in self.files or not file.endswith(suffix):
            have = ", ".join(name for name in self.files if name.endswith(suffix)) or "none"
            raise ReleaseError(f"release '{self.name}' has no {file!r}; its {suffix} files: {have}")
        return self.path / file


def _check_name(file: str) -> None:
    if not _FILE.fullmatch(file) or file == MANIFEST:
        raise ReleaseError(
            f"{file!r} cannot be in a release; only plain names ending in .onnx, .npy or .json can"
        )


def _check_content(path: Path) -> None:
    """Refuse a file that is not what its suffix says, where that is cheap to see."""
    try:
        if path.suffix == ".npy":
            _npy_header(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.stat().st_size == 0:
            raise ValueError("it is empty")
    except ReleaseError:
        raise
    except (OSError, ValueError) as error:
        raise ReleaseError(
            f"{path} is not a readable {path.suffix} file ({error}); write it again"
        ) from error


class _Header(NamedTuple):
    """What an npy file says of its array, in its first `bytes`."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    bytes: int


def _npy_header(path: Path) -> _Header:
    """The header of an npy file; refuses one that needs pickle."""
    with path.open("rb") as file:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(file)
        header = _Header(shape, "F" if by_column else "C", dtype, file.tell())
    if dtype.hasobject:
        raise ReleaseError(f"{path} has dtype {dtype}, which needs pickle; save it with a plain dtype")
    if path.stat().st_size - header.bytes != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise ValueError("its data do not have the length of its header")
    return header


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _render(body: Mapping[str, Any]) -> bytes:
    """The manifest's bytes: its body and the sum of it."""
    plain = _dump(body)
    return _dump({**body, "sha256": hashlib.sha256(plain).hexdigest()})


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ReleaseError(
            f"{path} cannot be read ({error.strerror}); is {folder} a complete release?"
        ) from error
    try:
        manifest = json.loads(raw)
        version = manifest["format"]
        sound = _render({key: value for key, value in manifest.items() if key != "sha256"}) == raw
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReleaseError(f"{path} is damaged; {_AGAIN}") from error
    if version != FORMAT and isinstance(version, int):
        raise ReleaseError(
            f"{path} has format {version}; this version reads format {FORMAT}, export the release with it"
        )
    kinds = {"name": str, "created": str, "files": dict, "info": dict}
    whole = all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())
    if not sound or not whole or not all(map(_is_entry, manifest["files"].values())):
        raise ReleaseError(f"{path} is damaged; {_AGAIN}")
    return manifest


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
