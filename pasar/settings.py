"""Every knob in one file: `pasar.toml` is read into the packages' dataclasses, and written from them."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import re
import sys
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if typing.TYPE_CHECKING:
    from ensemble.build import BuildConfig
    from ensemble.plan import CascadeConfig
    from ensemble.serving import ServeConfig
    from evaluation.gates import GateConfig
    from market.world import WorldConfig

FILE = "pasar.toml"
DATA_SETS = Path(__file__).parents[1] / "evaluation" / "data_sets.toml"
SECTIONS = ("world", "build", "serve", "gate")


class SettingsError(ValueError):
    """A settings file that cannot be used; the text names the knob, what it got and what it allows."""


def schema() -> dict[str, type]:
    """Section name → dataclass. Importing the build imports the training stack, so it happens here."""
    from ensemble.build import BuildConfig
    from ensemble.serving import ServeConfig
    from evaluation.gates import GateConfig
    from market.world import WorldConfig

    return dict(zip(SECTIONS, (WorldConfig, BuildConfig, ServeConfig, GateConfig)))


@dataclass(frozen=True)
class Settings:
    """All knobs, by section of the file."""

    world: WorldConfig
    build: BuildConfig
    serve: ServeConfig
    gate: GateConfig


def load(path: Path | None = None) -> Settings:
    """Settings from a file; the defaults where `path` is None and the working folder has no `pasar.toml`.

    Raises:
        SettingsError: no such file, not TOML, or a knob that is unknown or out of range.
    """
    content, where = _content(path)
    return Settings(
        **{name: _read(kind, content.get(name, {}), where, name) for name, kind in schema().items()}
    )


def load_build(data_set: str, path: Path | None = None) -> BuildConfig:
    """How a public data set is built: as `path` says; without one as the working folder's file does and, of
    what the data set's shape asks for, `evaluation/data_sets.toml`.

    Raises:
        SettingsError: as `load`.
    """
    content, where = _content(path)
    build = content.get("build", {})
    if path is None:
        shape = tomllib.loads(DATA_SETS.read_text(encoding="utf-8")).get(data_set, {})
        for section, knobs in shape.items():
            said = build.get(section, {})
            if isinstance(said, Mapping):  # what is no section is refused as such
                build = build | {section: {**said, **knobs}}
    return _read(schema()["build"], build, where, "build")


def load_serve(path: Path | None = None) -> ServeConfig:
    """The server's knobs alone, read without importing what builds releases."""
    from ensemble.serving import ServeConfig

    content, where = _content(path)
    return _read(ServeConfig, content.get("serve", {}), where, "serve")


def load_cascade(path: Path | None = None) -> CascadeConfig:
    """The cascade's knobs alone, which the file must have, read without importing what builds releases."""
    from ensemble.plan import CascadeConfig

    content, where = _content(path)
    knobs = content.get("build", {}).get("cascade")
    if not isinstance(knobs, Mapping):
        raise SettingsError(f"{where} has no [build.cascade]; write the knobs there, see `pasar config`")
    return _read(CascadeConfig, knobs, where, "build.cascade")


def _content(path: Path | None) -> tuple[dict[str, Any], str]:
    """The tables of a settings file, and its name for messages."""
    if path is None and not Path(FILE).exists():
        return {}, FILE
    path = path or Path(FILE)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows mark UTF-8
    except (FileNotFoundError, IsADirectoryError):
        raise SettingsError(f"{path} is no file; write one with `pasar config > {FILE}`") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    _refuse_unknown(content, set(SECTIONS), str(path), "")
    for name, values in content.items():
        if not isinstance(values, Mapping):
            raise SettingsError(f"{path}: {name!r} is {values!r}; write it as a section, [{name}]")
    return content, str(path)


def _read(kind: Any, values: Mapping[str, Any], path: str, section: str) -> Any:
    """One dataclass from a table of the file, nested tables included."""
    _refuse_unknown_within(kind, values, path, section)
    _refuse_truths(kind, values, path, section)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise SettingsError(f"{path}: [{section}] " + "; ".join(map(_problem, error.errors()))) from None


def _refuse_unknown_within(kind: Any, values: Any, path: str, section: str) -> None:
    """Refuse what a dataclass, those within it and those in its tuples do not know."""
    if dataclasses.is_dataclass(kind) and isinstance(values, Mapping):
        _refuse_unknown(values, {f.name for f in dataclasses.fields(kind)}, path, section)
        hints = typing.get_type_hints(kind)
        for name, value in values.items():
            _refuse_unknown_within(hints[name], value, path, f"{section}.{name}")
    elif typing.get_origin(kind) is tuple and isinstance(values, list):
        for value in values:
            _refuse_unknown_within(typing.get_args(kind)[0], value, path, section)


def _refuse_truths(kind: Any, values: Mapping[str, Any], path: str, section: str) -> None:
    """Refuse true and false as numbers, which pydantic takes for 1 and 0."""
    for name, hint in typing.get_type_hints(kind).items():
        value = values.get(name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hint):
            _refuse_truths(hint, value, path, f"{section}.{name}")
        elif isinstance(value, bool) and hint in (int, float):
            raise SettingsError(f"{path}: [{section}] {name} is {_toml(value)}; write a number")


def _problem(error: Any) -> str:
    """One thing that pydantic found, in the words of the dataclass where it checked the value itself."""
    if "error" in error.get("ctx", {}):
        return str(error["ctx"]["error"])
    knob, got = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] == "tuple_type":  # which TOML does not have
        return f"{knob} is {_toml(got)}; write a list, {_toml([got])}"
    if error["type"] == "string_type" and isinstance(got, datetime.date):
        return f"{knob} is {got} without quotes; write {_toml(str(got))}"
    return f"{knob}: {error['msg']}, got {got!r}"


def _refuse_unknown(values: Mapping[str, Any], known: set[str], path: str, section: str) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            where = f"[{section}] " if section else ""
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise SettingsError(f"{path}: {where}{name!r} is no knob; {hint}")


def render() -> str:
    """The commented file with every knob at its default."""
    head = "# Every knob of Pasar, at its default. Remove what you do not change; units stand in brackets."
    parts = [head]
    for name, kind in schema().items():
        parts += _section(name, kind())
    return "\n".join(parts) + "\n"


def render_changed(build: BuildConfig) -> str:
    """The knobs of a build that are not at their defaults, as sections of a settings file."""
    return "\n".join(_changed("build", build, type(build)())) + "\n"


def _changed(section: str, config: Any, default: Any) -> list[str]:
    own: list[str] = []
    later: list[str] = []
    for knob in dataclasses.fields(config):
        value, usual = getattr(config, knob.name), getattr(default, knob.name)
        if dataclasses.is_dataclass(value):
            later += _changed(f"{section}.{knob.name}", value, usual)
        elif value != usual:
            own.append(f"{knob.name} = {_toml(value)}")
    return ([f"[{section}]", *own] if own else []) + later


def _section(name: str, config: Any) -> list[str]:
    lines = ["", f"[{name}]"]
    comments = _comments(type(config))
    later: list[str] = []
    for knob in dataclasses.fields(config):
        value = getattr(config, knob.name)
        if dataclasses.is_dataclass(value):
            later += _section(f"{name}.{knob.name}", value)
            continue
        if comment := comments.get(knob.name):
            lines += textwrap.wrap(comment, 100, initial_indent="# ", subsequent_indent="#   ")
        lines.append(f"{knob.name} = {_toml(value)}")
    return lines + later


def _toml(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {k: v for k, v in dataclasses.asdict(value).items() if v is not None}  # TOML has no null
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # which escapes as TOML does
    if isinstance(value, Mapping):
        entries = ", ".join(f"{k if k.isidentifier() else _toml(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{ {entries} }}" if entries else "{}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def _comments(kind: type) -> dict[str, str]:
    """What a dataclass's docstring says of each attribute; names that share a line share the comment."""
    text = re.split(r"\n\s*(?:Attributes|Args):\n", textwrap.dedent(kind.__doc__ or ""))
    if len(text) < 2:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text[1].splitlines():
        entry = re.match(r"\s{4,8}((?:\w+)(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.strip() and line.startswith("        ") and names:
            found |= {n: f"{found[n]} {line.strip()}" for n in names}
        else:
            names = []
    return found
