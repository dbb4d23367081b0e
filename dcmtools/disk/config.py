"""Our own settings: config.ini of the system and of the user, the environment, and options (DESIGN §7).

    [local]          what we call ourselves, where we listen, where the archive is, in which zone "yesterday" is meant
    [defaults]       defaults of options that most commands share

An option comes before the environment (DCMTOOLS_AE_TITLE, ...), that before the user's file, that before the system's.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dcmtools.disk import ini
from dcmtools.disk.ini import Document, Entry, Problem
from dcmtools.disk.places import default_archive, state_folder, system_config, user_config
from dcmtools.disk.registry import Registry, load_registry, read_registry
from dcmtools.disk.settings_values import choice, duration, time_zone, whole
from dcmtools.model.errors import ConfigurationError, UsageError
from dcmtools.model.node import DEFAULT_AE_TITLE, DEFAULT_PORT, Local, check_ae_title, check_host, check_port

_NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


def _bind(text: str) -> str:
    return check_host(text) if text else ""


def _path(text: str) -> str:
    return os.path.expanduser(text)


SECTIONS: Mapping[str, Mapping[str, Callable[[str], Any]]] = MappingProxyType(
    {
        "local": {
            "ae_title": check_ae_title,
            "port": check_port,
            "bind": _bind,
            "archive": _path,
            "zone": time_zone,
        },
        "defaults": {
            "deadline": duration,
            "format": choice("jsonl", "table", "csv", "tsv", "json", "dicom-json", "paths", "paths0", "uids"),
            "jobs": whole,
            "log_format": choice("text", "json"),
            "progress": choice("auto", "always", "never"),
        },
    }
)
KEYS: Mapping[str, Callable[[str], Any]] = MappingProxyType({**SECTIONS["local"], **SECTIONS["defaults"]})
_MAY_BE_EMPTY = frozenset({"bind"})


@dataclass(frozen=True)
class Settings:
    """What holds for this run. `origins` tells for each key where its value comes from."""

    local: Local
    archive: Path
    zone: str | None  # None is the machine's
    defaults: Mapping[str, Any]  # only what somebody has set
    origins: Mapping[str, str]
    files: tuple[Path, ...]  # looked in, whether they are there or not
    nodes_file: Path | None = None  # the one that an option names

    @cached_property
    def registry(self) -> Registry:
        """The nodes, read when they are asked for: a mistake in their files stops only who needs them."""
        return load_registry(self.nodes_file)

    @property
    def state(self) -> Path:
        """The folder of transfers and ledgers."""
        return state_folder()


@dataclass(frozen=True, slots=True)
class _Value:
    """A value with its origin."""

    value: Any
    origin: str


def load_settings(
    config_file: Path | None = None, nodes_file: Path | None = None, options: Mapping[str, str] = _NO_OPTIONS
) -> Settings:
    """The settings; ConfigurationError that tells of everything that is wrong in any file and in the environment.

    When only the files of nodes are wrong, that is left to `registry`.

    `options` are texts from the command line by the keys that they stand for; they come before everything else.
    """
    named = config_file or (Path(text) if (text := os.environ.get("DCMTOOLS_CONFIG")) else None)
    files = (system_config() / "config.ini", named or user_config() / "config.ini")
    problems: list[Problem] = []
    if named and not named.exists():
        problems.append(Problem(named, 0, "", "is not there"))
    values: dict[str, _Value] = {}
    for file in dict.fromkeys(files):
        document = ini.read(file)
        problems += document.problems
        values |= _values_of(document, problems)
    values |= _from_environment(problems)
    if problems:
        ini.refuse([*problems, *read_registry(nodes_file).problems])
    return _settings(values | _from_options(options), files, nodes_file)


def _values_of(document: Document, problems: list[Problem]) -> dict[str, _Value]:
    """The values that a file sets; what is wrong in it goes to the problems."""
    found: dict[str, _Value] = {}
    for name, section in document.sections.items():
        if not (known := SECTIONS.get(name)):
            reason = f"is not known{ini.nearest(name, SECTIONS)}; nodes belong into nodes.ini"
            problems.append(Problem(document.path, section.line, f"[{section.name}]", reason))
            continue
        problems += ini.unknown_keys(section, known, document.path)
        for key, entry in section.entries.items():
            if key in known and (value := _read(document.path, entry, problems)):
                found[key] = value
    return found


def _read(path: Path, entry: Entry, problems: list[Problem]) -> _Value | None:
    try:
        value = read_value(entry.key, entry.value)
    except ConfigurationError as problem:
        problems.append(Problem(path, entry.line, entry.key, str(problem)))
        return None
    if entry.key == "archive":
        value = os.path.join(os.path.abspath(path.parent), value)
    return _Value(value, f"{path}:{entry.line}")


def _from_environment(problems: list[Problem]) -> dict[str, _Value]:
    """The values of DCMTOOLS_AE_TITLE and its like; an empty one counts as unset."""
    found: dict[str, _Value] = {}
    for key in KEYS:
        name = f"DCMTOOLS_{key.upper()}"
        if text := os.environ.get(name):
            try:
                found[key] = _Value(read_value(key, text), f"${name}")
            except ConfigurationError as problem:
                problems.append(Problem(Path(f"${name}"), 0, "", str(problem)))
    return found


def _from_options(options: Mapping[str, str]) -> dict[str, _Value]:
    """The values of options; UsageError when one means nothing."""
    found: dict[str, _Value] = {}
    for key, text in options.items():
        name = f"--{key.replace('_', '-')}"
        try:
            found[key] = _Value(read_value(key, text), name)
        except ConfigurationError as problem:
            raise UsageError(f"{name}: {problem.reason}", problem.advice) from None
    return found


def read_value(key: str, text: str) -> Any:
    """What the text of a key means; ConfigurationError when it means nothing."""
    if not text and key not in _MAY_BE_EMPTY:
        raise ConfigurationError("is empty", "write a value, or take the key away to have the default")
    return KEYS[key](text)


def _settings(values: Mapping[str, _Value], files: tuple[Path, ...], nodes_file: Path | None) -> Settings:
    defaults: dict[str, Any] = {
        "ae_title": DEFAULT_AE_TITLE,
        "port": DEFAULT_PORT,
        "bind": "",
        "archive": default_archive(),
        "zone": None,
    }
    own = {key: values[key].value if key in values else value for key, value in defaults.items()}
    return Settings(
        local=Local(own["ae_title"], own["port"], own["bind"]),
        archive=Path(os.path.abspath(own["archive"])),
        zone=own["zone"],
        defaults={key: item.value for key, item in values.items() if key in SECTIONS["defaults"]},
        origins={key: values[key].origin if key in values else "default" for key in [*defaults, *values]},
        files=files,
        nodes_file=nodes_file,
    )
