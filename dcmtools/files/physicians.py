"""Who a physician is, whatever the spelling, and which folder is hers.

Two spellings are one physician when their keys are equal; nothing is ever merged on similarity. The folder that a key
got first stays its folder: `physicians.json` keeps it, and may be edited by hand between runs (another folder for a
key, or one folder for two).
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcmtools.disk.atomic import FILE_MODE, write_atomic
from dcmtools.model.errors import ConfigurationError, from_os
from dcmtools.model.names import MAX_BYTES, safe_name, short_hash
from dcmtools.model.record import Record

# What people and de-identifiers write where they mean nobody.
NOBODY = frozenset({"dn", "none", "anonymized", "anonymised", "anonymous", "unknown"})

# Marks that are accents: those on Latin and Greek letters, or on no letter. Elsewhere they make other letters (й is
# no и), and other words.
_ACCENTED = "A-Za-z\u00aa-\u02af\u0370-\u03ff\u1e00-\u1fff\u2c60-\u2c7f\ua720-\ua7ff"
_ACCENTS = re.compile(rf"(^|[^\w\u0300-\u036f]|[{_ACCENTED}])[\u0300-\u036f]+")
# Letters by their Unicode category, though people type them for an apostrophe (O'Brien).
_APOSTROPHES = re.compile("[`\u00b4\u02b9-\u02bf\u02c8\u2018-\u201b\u2032\uff07]")
# Latin letters which no decomposition takes apart, so that they would be lost in ASCII.
_LATIN = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
    | {"đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "\u0131": "i"}
)


@dataclass(frozen=True, slots=True)
class Physician:
    """One physician as a record names her."""

    key: str
    spelling: str
    identifier: str = ""
    shown: str = ""  # the spelling for a new folder, where --merge gives one


def key_of(name: str) -> str:
    """What all spellings of one person name have in common; empty when it names nobody.

    The first group (PS3.5 6.2.1.1: alphabetic, ideographic, phonetic) that says something; family, given and middle
    name of it, without titles, accents, case and punctuation.
    """
    return next((key for group in name.split("=") if (key := _plain(" ".join(_names(group))))), "")


def folder_name(spelling: str, *, ascii_only: bool = False) -> str:
    """The folder for a spelling: one safe path component of at most 120 bytes."""
    group = next((group for group in spelling.split("=") if _plain(" ".join(_names(group)))), "")
    seen = "".join(character for character in group if unicodedata.category(character) != "Cf")
    name = re.sub(r"[\^\s]+\Z", "", "^".join(_names(seen)))
    name = safe_name(name.translate(_LATIN) if ascii_only else name, ascii_only=ascii_only)
    return name if any(map(str.isalnum, name)) else f"physician-{short_hash(key_of(spelling))}"


def numbered(name: str, number: int) -> str:
    """The name, and from the second on with `~2` behind it, still within the bytes of one path component."""
    if number < 2:
        return name
    ending = f"~{number}"
    return safe_name(name, max_bytes=MAX_BYTES - len(ending)) + ending


def is_component(name: str) -> bool:
    """Whether a name that a file of ours has can be only one component of a path below the folder."""
    return bool(name) and not name.startswith(".") and "/" not in name and "\0" not in name


def name_in(record: Record) -> tuple[str, str]:
    """ReferringPhysicianName (0008,0090) as it stands in a record, and the identifier beside it, or empty strings."""
    value = record.get("ReferringPhysicianName")
    values = value if isinstance(value, list) else [value]
    text = "\\".join("" if one is None else str(one) for one in values)
    # A lone surrogate has no UTF-8: the files that keep this spelling could not be written.
    return text.encode("utf-8", "replace").decode(), _identifier(record)


class Spellings:
    """Reads names as they stand in records."""

    def __init__(self, merge: Mapping[str, str] | None = None, nobody: frozenset[str] = NOBODY) -> None:
        self._merge = merge or {}
        self._nobody = frozenset(map(key_of, nobody))

    def read(self, text: str, identifier: str = "") -> tuple[Physician, ...]:
        """The physicians that a value names, each once.

        One value is legal; several, separated by backslashes, are met. The identifier is the first one's.
        """
        found: dict[str, Physician] = {}
        for number, name in enumerate(text.split("\\")):
            physician = self._one(name.strip(), "" if number else identifier)
            if physician and physician.key not in found:
                found[physician.key] = physician
        return tuple(found.values())

    def _one(self, name: str, identifier: str) -> Physician | None:
        shown = self._merge.get(key_of(name), "")
        key = key_of(shown or name)
        if key and key not in self._nobody:
            return Physician(key, name, identifier, shown)
        return Physician(f"id {identifier}", identifier, identifier) if identifier else None


def read_merges(path: Path) -> dict[str, str]:
    """The aliases of a file with lines `A=B`, "who is written A is B": key of A -> spelling of B.

    Blank lines and lines that begin with `#` are skipped. Raises ConfigurationError (`file:line: reason`).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is not UTF-8 text", "save it as UTF-8") from None
    except OSError as problem:
        raise from_os(problem, "reading the names to merge from", path) from problem
    merges: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            alias, shown = _merge_of(line, f"{path}:{number}")
            if merges.setdefault(alias, shown) != shown:
                raise ConfigurationError(f"{path}:{number}: this name is merged into two", "keep one of the lines")
    return {alias: _last(alias, merges, path) for alias in merges}


class Registry:
    """`physicians.json`: for each key the folder, the spellings seen, and how many studies have each."""

    def __init__(self, path: Path, *, reserved: Iterable[str] = (), ascii_only: bool = False) -> None:
        self.path = path
        self._ascii = ascii_only
        self._bytes = b""
        self._entries: dict[str, dict[str, Any]] = self._load()
        self._by_identifier = {str(e["identifier"]): key for key, e in self._entries.items() if "identifier" in e}
        self._taken = {_folded(str(entry["folder"])) for entry in self._entries.values()}
        for name in reserved:
            if _folded(name) in self._taken:
                raise ConfigurationError(
                    f"{path}: {name} is the folder of a physician", "choose another name with --unknown"
                )
        self._taken |= {_folded(name) for name in reserved}

    def key(self, physician: Physician) -> str:
        """The key under which the registry has, or would have, this physician.

        An identifier is stronger than a name: it finds its folder under any spelling, and two identifiers with one
        name are two physicians. A name without identifier is the first of that name.
        """
        if (known := self._by_identifier.get(physician.identifier)) is not None:
            return known
        holder = self._entries.get(physician.key, {}).get("identifier", "")
        if not physician.identifier or holder in {"", physician.identifier}:
            return physician.key
        return f"{physician.key} ({physician.identifier})"

    def folder(self, physician: Physician) -> str:
        """The physician's folder; a new one gets the name that her spelling suggests, or `~2` when that is taken."""
        key = self.key(physician)
        entry = self._entries.get(key) or self._add(key, physician)
        if physician.identifier and "identifier" not in entry:
            entry["identifier"] = physician.identifier
            self._by_identifier[physician.identifier] = key
        return str(entry["folder"])

    def count(self, studies: Mapping[str, Mapping[str, int]]) -> None:
        """Puts the counts of studies, by key and spelling, in the place of the old ones."""
        for key, entry in self._entries.items():
            counted = studies.get(key, {})
            entry["spellings"] = {name: counted.get(name, 0) for name in {**entry["spellings"], **counted}}

    def save(self, mode: int = FILE_MODE) -> None:
        """Writes the file, if it would change."""
        data = json.dumps(self._entries, ensure_ascii=False, indent=2).encode() + b"\n"
        if data != self._bytes and (self._entries or self._bytes):
            try:
                write_atomic(self.path, data, mode)
            except OSError as problem:
                raise from_os(problem, "writing", self.path) from problem
            self._bytes = data

    def _add(self, key: str, physician: Physician) -> dict[str, Any]:
        name = folder_name(physician.shown or physician.spelling, ascii_only=self._ascii)
        number = 1
        # A shared folder may be read on a file system that does not tell case.
        while _folded(numbered(name, number)) in self._taken:
            number += 1
        entry = {"folder": numbered(name, number), "spellings": {physician.spelling: 0}}
        self._taken.add(_folded(str(entry["folder"])))
        self._entries[key] = entry
        return entry

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            self._bytes = self.path.read_bytes()
            entries = json.loads(self._bytes)
        except FileNotFoundError:
            return {}
        except OSError as problem:
            raise from_os(problem, "reading", self.path) from problem
        except ValueError as problem:
            raise self._bad(f"is not JSON: {problem}") from None
        if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
            raise self._bad("has an entry without a safe `folder` or without `spellings`")
        return entries

    def _bad(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path}: {what}", "mend it, or move it away: it is made anew from the names that are met"
        )


def _names(group: str) -> list[str]:
    """Family, given and middle name: the components before the titles."""
    return [component.strip() for component in group.split("^")[:3]]


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", _APOSTROPHES.sub(" ", text)).casefold()
    text = unicodedata.normalize("NFC", _ACCENTS.sub(r"\1", unicodedata.normalize("NFD", text)))
    return " ".join("".join(map(_letter, text)).split())


def _letter(character: str) -> str:
    """The character itself, a space for punctuation, nothing for what is not seen (direction marks)."""
    category = unicodedata.category(character)
    if category in {"Cf", "Cs"}:
        return ""
    return " " if category[0] in "PSZC" else character


def _identifier(record: Record) -> str:
    """The code in ReferringPhysicianIdentificationSequence (0008,0096), for example `LANR 4711` (PS3.3 10.1)."""
    code: Any = record
    for keyword in ("ReferringPhysicianIdentificationSequence", "PersonIdentificationCodeSequence"):
        items = code.get(keyword)
        code = items[0] if isinstance(items, list) and items else None
        if not isinstance(code, dict):
            return ""
    parts = (str(code.get(keyword) or "") for keyword in ("CodingSchemeDesignator", "CodeValue"))
    text = " ".join(" ".join(parts).split()) if code.get("CodeValue") else ""
    return text.encode("utf-8", "replace").decode()


def _merge_of(line: str, where: str) -> tuple[str, str]:
    alias, equals, shown = (part.strip() for part in line.partition("="))
    if not equals or not key_of(alias) or not shown:
        raise ConfigurationError(f"{where}: is not a line A=B with two names", "write - for B to mean nobody")
    return key_of(alias), shown


def _last(alias: str, merges: Mapping[str, str], path: Path) -> str:
    """The end of a chain A=B, B=C."""
    seen, shown = {alias}, merges[alias]
    while (key := key_of(shown)) in merges:
        if key in seen:
            if key == key_of(merges[key]):
                break  # A=A only chooses the spelling of the folder
            raise ConfigurationError(f"{path}: names are merged in a circle", "remove one of these lines")
        seen.add(key)
        shown = merges[key]
    return shown


def _folded(folder: str) -> str:
    return unicodedata.normalize("NFC", folder).casefold()


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(folder := entry.get("folder"), str)
        and is_component(folder)
        and isinstance(entry.get("spellings"), dict)
    )
