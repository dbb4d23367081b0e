"""INI files as we read and change them (DESIGN §7): plain values, line numbers, and all errors in one go.

Not configparser, which gives % a meaning, joins an indented line to the one above, spreads [DEFAULT] over all sections,
takes [PACS] and [pacs] for two, stops at a byte order mark and at the first error, and writes without the comments.

    [section]
    key = value

A line that begins with # or ; is a comment; behind a value it would be part of the value. Keys are the same in any
case, and so are sections.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dcmtools.disk.atomic import FILE_MODE, make_folders, write_atomic
from dcmtools.model.errors import ConfigurationError, from_os

_HEADER = re.compile(r"\[([^\[\]]*)\]\Z")
_ENTRY = re.compile(r"([^=:]+)[=:](.*)\Z", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_BOM = "\ufeff"
LOCK_WAIT = 10.0  # seconds; a change takes milliseconds


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file; line 0 is the file as a whole."""

    path: Path
    line: int
    key: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{place}: {self.key}: {self.reason}" if self.key else f"{place}: {self.reason}"


class Entry(NamedTuple):
    """One `key = value` with the line where it stands."""

    key: str
    value: str
    line: int


@dataclass(frozen=True, slots=True)
class Section:
    """One [name] with the entries below it, by their keys in lower case."""

    name: str
    line: int
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, str]:
        """The section's keys and values."""
        return {key: entry.value for key, entry in self.entries.items()}


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, as far as it could be read, and what is wrong with it."""

    path: Path
    sections: dict[str, Section] = field(default_factory=dict)  # by case-folded name
    problems: list[Problem] = field(default_factory=list)

    def section(self, name: str) -> Section | None:
        """The section of this name in any case."""
        return self.sections.get(name.casefold())


def read(path: Path) -> Document:
    """What the file says; a file that is not there says nothing, one that cannot be read is a problem."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Document(path)
    except OSError as problem:
        return Document(path, problems=[Problem(path, 0, "", f"cannot be read: {problem.strerror}")])
    try:
        return parse(raw.decode(), path)
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        return Document(path, problems=[Problem(path, line, "", "is not UTF-8; save the file in that encoding")])


def parse(text: str, path: Path) -> Document:
    """What a text says, which is or will be the file at `path`."""
    document = Document(path)
    section: Section | None = None
    odd = _CONTROL.search(text.replace("\n", "")) is not None
    for number, line in enumerate(text.removeprefix(_BOM).split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        if (line[0] in " \t" or odd) and (reason := _malformed(line)):
            document.problems.append(Problem(path, number, "", reason))
        elif stripped[0] == "[":
            section = _begin_section(document, stripped, number)
        else:
            _add_entry(document, section, stripped, number)
    return document


def _malformed(line: str) -> str:
    """What is wrong with a line whatever it says, or nothing."""
    if line[0] in " \t":
        return "is indented, which continues nothing here; write key = value on one line, from its first column"
    if _CONTROL.search(line.removesuffix("\r")):
        return "has a control character; take it away"
    return ""


def _begin_section(document: Document, line: str, number: int) -> Section:
    """The section that a header begins; a wrong one is told of and collects its keys where nobody looks."""
    match = _HEADER.match(line)
    name = match[1].strip() if match else ""
    section = Section(name, number)
    first = document.sections.get(name.casefold())
    if not name:
        reason = f"'{line[:60]}' is not a section; write [name] and nothing behind it"
    elif name.casefold() == "default":
        reason = "has no special meaning here; write each key into the sections that want it"
    elif first:
        reason = f"stands already in line {first.line}; give it another name or take one away"
    else:
        document.sections[name.casefold()] = section
        return section
    document.problems.append(Problem(document.path, number, f"[{name}]" if name else "", reason))
    return section


def _add_entry(document: Document, section: Section | None, line: str, number: int) -> None:
    """Notes a `key = value`, or what is wrong with it."""
    match = _ENTRY.match(line)
    key = match[1].rstrip().lower() if match else ""
    if not match or not key:
        key, reason = "", f"'{line[:60]}' is neither [section] nor key = value"
    elif section is None:
        reason = "stands before the first [section]"
    elif key in section.entries:
        reason = f"stands already in line {section.entries[key].line}"
    else:
        section.entries[key] = Entry(key, match[2].strip(), number)
        return
    document.problems.append(Problem(document.path, number, key, reason))


def unknown_keys(section: Section, known: Iterable[str], path: Path) -> list[Problem]:
    """A problem for each key of a section that is not known, with the nearest one that is."""
    names = list(known)
    return [
        Problem(path, entry.line, key, f"is not known{nearest(key, names)}")
        for key, entry in section.entries.items()
        if key not in names
    ]


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` when a known word is near, else nothing."""
    from difflib import get_close_matches

    names = {name.casefold(): name for name in known}
    found = get_close_matches(word.casefold(), list(names), n=1, cutoff=0.6)
    return f"; did you mean {names[found[0]]}?" if found else ""


def refuse(problems: Iterable[Problem]) -> None:
    """ConfigurationError that tells of all problems, when there are any; `problems` has them one by one."""
    if not (found := sorted(problems, key=lambda problem: (str(problem.path), problem.line))):
        return
    places = [{"path": str(item.path), "line": item.line, "key": item.key, "reason": item.reason} for item in found]
    raise ConfigurationError("; ".join(map(str, found)), cause="bad-ini", problems=places)


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Changes the text of a file under its lock, whole or not at all; a new one is for its owner's eyes only."""
    from dcmtools.disk.lock import Lock  # not above: who only reads needs none

    real = Path(os.path.realpath(path))  # a link into somebody's dotfiles stays a link
    try:
        make_folders(real.parent)
        with Lock(real.parent / f".dcmtools-{real.name}.lock", f"changing {real.name}", wait=LOCK_WAIT):
            text, mode = text_of(real)
            if (changed := change(text)) != text:
                write_atomic(real, changed.encode(), mode)
    except OSError as problem:
        raise from_os(problem, "writing", path) from problem


def text_of(path: Path) -> tuple[str, int]:
    """The text of a file and its permissions; no text and ours when it is not there."""
    try:
        return path.read_bytes().decode(), stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return "", FILE_MODE
    except UnicodeDecodeError:
        refuse(read(path).problems)
        raise


# --- Changing a text and keeping all of it that is not meant: comments, order, spelling, line ends.


def set_keys(text: str, name: str, keys: Mapping[str, str | None]) -> str:
    """The text with these values in a section that it has; None takes a key away."""
    section = parse(text, Path()).sections[name.casefold()]
    lines = _lines(text)
    last = max([section.line, *(entry.line for entry in section.entries.values())])
    new = {key: value for key, value in keys.items() if key not in section.entries}
    _insert(lines, last, [_entry(key, value) for key, value in new.items() if value is not None])
    for entry in sorted(section.entries.values(), key=lambda entry: -entry.line):
        if entry.key in keys:
            value, line = keys[entry.key], lines[entry.line - 1]
            lines[entry.line - 1 : entry.line] = [] if value is None else [_with_value(line, entry, value)]
    return "".join(lines)


def add_section(text: str, name: str, keys: Mapping[str, str]) -> str:
    """The text with a new section at its end."""
    lines = _lines(text)
    blank = [""] if text.strip(_BOM) and lines[-1].strip() else []
    _insert(lines, len(lines), [*blank, f"[{name}]", *(_entry(key, value) for key, value in keys.items())])
    return "".join(lines)


def remove_section(text: str, name: str) -> str:
    """The text without a section that it has, its comments and the comment directly above it.

    A comment at the very top introduces the file and stays; one directly above the next section belongs to that.
    """
    header = parse(text, Path()).sections[name.casefold()].line - 1
    lines = _lines(text)
    following = (number for number in range(header + 1, len(lines)) if lines[number].startswith("["))
    end = next(following, None)
    start = _comment_above(lines, header)
    if end is None:
        while start and not lines[start - 1].strip():
            start -= 1
        return "".join(lines[:start])
    return "".join(lines[:start] + lines[_comment_above(lines, end, header + 1) :])


def _comment_above(lines: list[str], header: int, first: int = 0) -> int:
    """Where the comment directly above a header begins: at the header when there is none, or when it opens the file."""
    start = header
    while start > first and lines[start - 1].startswith(("#", ";", _BOM)):
        start -= 1
    return start or header


def _lines(text: str) -> list[str]:
    """The lines with their ends; only the last may be without."""
    return re.findall(r"[^\n]*\n|[^\n]+\Z", text)


def _insert(lines: list[str], at: int, added: Iterable[str]) -> None:
    """Puts lines in, ended as the others are."""
    end = "\r\n" if any(line.endswith("\r\n") for line in lines) else "\n"
    if new := [line + end for line in added]:
        if at and not lines[at - 1].endswith("\n"):
            lines[at - 1] += end
        lines[at:at] = new


def _entry(key: str, value: str) -> str:
    return f"{key} = {_one_line(key, value)}".rstrip()


def _with_value(line: str, entry: Entry, value: str) -> str:
    """The line with another value, and everything else of it as it was."""
    content = line.rstrip("\r\n")
    head = content.rstrip()[: len(content.rstrip()) - len(entry.value)]
    return head + _one_line(entry.key, value) + line[len(content) :]


def _one_line(key: str, value: str) -> str:
    """The value as it can stand behind a key; ConfigurationError when it would not be read back so."""
    if _CONTROL.search(value) or value != value.strip() or value != value.encode("utf-8", "replace").decode():
        raise ConfigurationError(f"{key}: {value[:60]!a} cannot stand in an INI file", "write plain text on one line")
    return value
