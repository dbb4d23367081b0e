"""The keys of a node's section in nodes.ini: how each is read, and what is wrong with it (DESIGN §7)."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dcmtools.disk.ini import Entry, Problem, Section, nearest, unknown_keys
from dcmtools.disk.settings_values import boolean, choice, hours, seconds, whole
from dcmtools.model.errors import ConfigurationError
from dcmtools.model.names import is_uid
from dcmtools.model.node import Node, check_ae_title, check_host, check_port
from dcmtools.model.uids import BY_NAME, TRANSFER_SYNTAXES

NEEDED = ("ae_title", "host", "port")
FILES = ("tls_ca", "tls_cert", "tls_key")
OUR_SIDE = "local"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
# The defined terms of Specific Character Set (PS3.3 C.12.1.1.2), several joined by a backslash.
_CHARSET = re.compile(r"(ISO_IR \d{1,3}|ISO 2022 IR \d{1,3}|GB18030|GBK|)(\\(ISO 2022 IR \d{1,3}))*\Z")
_STANDARD_ROOT = "1.2.840.10008."

# What people call the transfer syntaxes (PS3.5 10), beside their UIDs and their names in the standard.
SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "implicit": "1.2.840.10008.1.2",
        "explicit": "1.2.840.10008.1.2.1",
        "deflated": "1.2.840.10008.1.2.1.99",
        "big-endian": "1.2.840.10008.1.2.2",
        "rle": "1.2.840.10008.1.2.5",
        "jpeg": "1.2.840.10008.1.2.4.50",
        "jpeg-baseline": "1.2.840.10008.1.2.4.50",
        "jpeg-extended": "1.2.840.10008.1.2.4.51",
        "jpeg-lossless": "1.2.840.10008.1.2.4.70",
        "jpeg-ls": "1.2.840.10008.1.2.4.80",
        "jpeg-ls-lossless": "1.2.840.10008.1.2.4.80",
        "jpeg-ls-lossy": "1.2.840.10008.1.2.4.81",
        "j2k-lossless": "1.2.840.10008.1.2.4.90",
        "j2k": "1.2.840.10008.1.2.4.91",
        "htj2k-lossless": "1.2.840.10008.1.2.4.201",
        "htj2k-lossless-rpcl": "1.2.840.10008.1.2.4.202",
        "htj2k": "1.2.840.10008.1.2.4.203",
        "jxl-lossless": "1.2.840.10008.1.2.4.110",
        "jxl-jpeg": "1.2.840.10008.1.2.4.111",
        "jxl": "1.2.840.10008.1.2.4.112",
    }
)


def check_name(name: str) -> str:
    """The name, when a node may be called so; ConfigurationError otherwise."""
    if name.casefold() == OUR_SIDE:
        raise ConfigurationError(f"'{name}' is the name of our own side", "call the node differently", node=name)
    if not _NAME.match(name):
        advice = "use letters of ASCII, digits and . _ - and begin with a letter, a digit or _"
        raise ConfigurationError(f"'{name[:60]}' cannot be a node's name", advice, node=name)
    return name


def check_keys(keys: Mapping[str, str | None]) -> None:
    """Refuses, with a ConfigurationError that names the key, what a node's section cannot hold."""
    for key, text in keys.items():
        if key not in KEYS:
            raise ConfigurationError(f"'{key}' is not a key of a node{nearest(key, KEYS)}")
        if text is not None:
            try:
                read_value(key, text)
            except ConfigurationError as problem:
                raise ConfigurationError(f"{key}: {problem.reason}", problem.advice) from None


def read_value(key: str, text: str) -> Any:
    """What the text of a key means; ConfigurationError when it means nothing."""
    if not text and key != "description":
        raise ConfigurationError("is empty", "write a value, or take the key away to have the default")
    if text[:1] == text[-1:] and text[:1] in {'"', "'"} and key != "description":
        raise ConfigurationError("is in quotes", "they would be part of the value: take them away")
    return KEYS[key](text)


def node_of(section: Section, path: Path, *, administered: bool) -> tuple[Node | None, list[Problem]]:
    """The node that a section describes, or all that is wrong with it."""
    problems = [*_wrong_name(section, path), *_wrong_together(section, path), *unknown_keys(section, KEYS, path)]
    values: dict[str, Any] = {}
    for key, entry in section.entries.items():
        if key in KEYS:
            try:
                values[key] = _placed(key, read_value(key, entry.value), path)
            except ConfigurationError as problem:
                problems.append(Problem(path, entry.line, key, _in_words(problem, entry)))
    if problems:
        return None, problems
    origin = f"{path}:{section.line}"
    return Node(name=section.name, origin=origin, administered=administered, **values), []


def _in_words(problem: ConfigurationError, entry: Entry) -> str:
    behind = "; a comment needs a line of its own" if re.search(r"\s[#;]", entry.value) else ""
    return f"{problem}{behind}"


def _placed(key: str, value: Any, path: Path) -> Any:
    """The value; a file's name is relative to the INI file that names it."""
    return os.path.join(path.parent, os.path.expanduser(value)) if key in FILES else value


def _wrong_name(section: Section, path: Path) -> list[Problem]:
    try:
        check_name(section.name)
    except ConfigurationError as problem:
        return [Problem(path, section.line, f"[{section.name}]", str(problem))]
    return []


def _wrong_together(section: Section, path: Path) -> list[Problem]:
    """What is wrong though each key alone may be right."""
    has = section.entries
    problems = [Problem(path, section.line, f"[{section.name}]", f"has no {key}") for key in NEEDED if key not in has]
    if "tls" not in has:  # whoever writes these thinks that the connection is encrypted
        reason = "has no effect without TLS; write tls = yes into the section, or tls = no"
        problems += [Problem(path, has[key].line, key, reason) for key in ("tls_verify", *FILES) if key in has]
    if "tls_key" in has and "tls_cert" not in has:
        problems.append(Problem(path, has["tls_key"].line, "tls_key", "needs its certificate; write tls_cert too"))
    return problems


def _transfer_syntaxes(text: str) -> tuple[str, ...]:
    """The UIDs of transfer syntaxes written as UIDs, names or short names; some names have a comma in them."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    found: dict[str, None] = {}
    while words:
        for count in (2, 1):
            if uid := _syntax(", ".join(words[:count])):
                break
        else:
            known = [*SHORT_NAMES, *TRANSFER_SYNTAXES.values(), *TRANSFER_SYNTAXES]
            raise ConfigurationError(f"'{words[0][:70]}' is not a transfer syntax{nearest(words[0], known)}")
        found[uid] = None
        del words[:count]
    return tuple(found)


def _syntax(word: str) -> str | None:
    name = word.casefold()
    if uid := SHORT_NAMES.get(name) or BY_NAME.get(name):
        return uid
    known = word in TRANSFER_SYNTAXES or (is_uid(word) and not word.startswith(_STANDARD_ROOT))  # or a vendor's own
    return word if known else None


def _charset(text: str) -> str:
    if not _CHARSET.match(term := text.upper()):
        raise ConfigurationError(f"'{text[:60]}' is not a character set of DICOM", "for example ISO_IR 192 (UTF-8)")
    return term


KEYS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "ae_title": check_ae_title,
        "host": check_host,
        "port": check_port,
        "listen_port": check_port,
        "calling_ae_title": check_ae_title,
        "compression": _transfer_syntaxes,
        "charset": _charset,
        "description": str,
        "tls": boolean,
        "tls_verify": boolean,
        "tls_ca": str,
        "tls_cert": str,
        "tls_key": str,
        "retrieve": choice("auto", "move", "get"),
        "connect_timeout": seconds,
        "acse_timeout": seconds,
        "dimse_timeout": seconds,
        "max_associations": whole,
        "allowed_hours": hours,
    }
)
