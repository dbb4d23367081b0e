"""The formats in which records are written; each turns one record after the other into bytes."""

import os
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from dcmtools.cli.columns import columns_of, columns_of_all
from dcmtools.cli.talk import printable
from dcmtools.model.keys import QUERY_BY_KEYWORD
from dcmtools.model.record import UNIQUE_KEY, Record, encode, path_of, type_of

Row = list[str]

_NOT_DATA = frozenset({"event", "error"})
_GAP = "  "
_SAMPLE = 100  # rows from which a table learns its columns' widths
_MIN_WIDTH = 6


class Lines:
    """One JSON record a line: everything, as it is."""

    waiting = False
    says_everything = True

    def __init__(self, fields: Sequence[str] | None = None, *, to_terminal: bool = False) -> None:
        self.fields = fields
        self.to_terminal = to_terminal

    def render(self, record: Record) -> bytes:
        """The bytes for a record; they may come later, or never."""
        return self._one(record) + b"\n"

    def flush(self) -> bytes:
        """The bytes of what was held back."""
        return b""

    def end(self) -> bytes:
        """The bytes after the last record."""
        return b""

    def _one(self, record: Record) -> bytes:
        if self.fields is not None and type_of(record) not in _NOT_DATA:
            keys = ("type", *(key for key in self.fields if key != "type"))
            record = {key: record[key] for key in keys if key in record}
        line = encode(record).rstrip(b"\n")
        return _escaped(line) if self.to_terminal else line


class Array(Lines):
    """All records as one JSON array."""

    _any = False

    def render(self, record: Record) -> bytes:
        """The record with what joins it to the one before."""
        line = self._one(record)
        joint, self._any = b",\n" if self._any else b"[\n", True
        return joint + line

    def end(self) -> bytes:
        """The array's end."""
        return b"\n]\n" if self._any else b"[]\n"


class DicomJson(Array):
    """All records as one JSON array in the DICOM JSON model (PS3.18 F.2): attributes only, no keys of ours."""

    says_everything = False

    def render(self, record: Record) -> bytes:
        """The attributes of a record; nothing for events and errors."""
        return b"" if type_of(record) in _NOT_DATA else super().render(record)

    def _one(self, record: Record) -> bytes:
        keywords = [key for key in self.fields or record if key in record and key in QUERY_BY_KEYWORD]
        elements = {f"{QUERY_BY_KEYWORD[key].tag:08X}": _element(key, record[key]) for key in keywords}
        line = encode(dict(sorted(elements.items()))).rstrip(b"\n")
        return _escaped(line) if self.to_terminal else line


class Separated(Lines):
    """Values with a separator between them and a line of keys above: csv (RFC 4180) or tsv."""

    says_everything = False

    def __init__(self, separator: str, fields: Sequence[str] | None = None, *, to_terminal: bool = False) -> None:
        super().__init__(fields, to_terminal=to_terminal)
        self.separator = separator
        self._begun = False

    def render(self, record: Record) -> bytes:
        """One row; before the first one, the keys."""
        if type_of(record) in _NOT_DATA:
            return b""
        head = b""
        if not self._begun:
            self.fields, self._begun = self.fields or columns_of(record), True
            head = self._row(self.fields)
        return head + self._row(cell(record.get(key)) for key in self.fields or ())

    def _row(self, cells: Iterable[str]) -> bytes:
        shown = (printable(one) if self.to_terminal else one for one in cells)
        quoted = _csv if self.separator == "," else _tsv
        line = self.separator.join(map(quoted, shown)) or '""'  # one empty value is still a row
        return line.encode("utf-8", "surrogateescape") + b"\n"


class Table(Lines):
    """Columns for people; keys and widths come from the first records, and what does not fit a terminal is cut."""

    says_everything = False

    def __init__(self, fields: Sequence[str] | None = None, *, to_terminal: bool = False) -> None:
        super().__init__(fields, to_terminal=to_terminal)
        self._held: list[Record] = []
        self._widths: list[int] = []

    @property
    def waiting(self) -> bool:  # type: ignore[override]
        """Whether rows are held back."""
        return bool(self._held)

    def render(self, record: Record) -> bytes:
        """The row, once the widths are known."""
        if type_of(record) in _NOT_DATA:
            return b""
        if self._widths:
            return self._line(self._row(record))
        self._held.append(record)
        return self.flush() if len(self._held) >= _SAMPLE else b""

    def flush(self) -> bytes:
        """All rows that were held back, below the keys."""
        held, self._held = self._held, []
        if not held:
            return b""
        self.fields = self.fields or columns_of_all(held)
        rows = [[printable(key) for key in self.fields], *map(self._row, held)]
        self._widths = self._fitted([max(map(width, column)) for column in zip(*rows, strict=True)])
        return b"".join(map(self._line, rows))

    def end(self) -> bytes:
        """The rest."""
        return self.flush()

    def _row(self, record: Record) -> Row:
        return [printable(cell(record.get(key))) for key in self.fields or ()]

    def _line(self, row: Row) -> bytes:
        last = len(row) - 1
        cells = [_padded(one, self._widths[n], cut=self.to_terminal, last=n == last) for n, one in enumerate(row)]
        return (_GAP.join(cells).rstrip() + "\n").encode("utf-8", "replace")

    def _fitted(self, widths: list[int]) -> list[int]:
        """The widths, the widest ones made smaller until the table fits the terminal."""
        room = shutil.get_terminal_size().columns - len(_GAP) * (len(widths) - 1)
        while self.to_terminal and sum(widths) > room and max(widths) > _MIN_WIDTH:
            widths[widths.index(max(widths))] -= 1
        return widths


class Paths(Lines):
    """The path of each record, ended by a newline or, for xargs -0, by a zero byte."""

    says_everything = False

    def __init__(self, end: bytes, *, to_terminal: bool = False) -> None:
        super().__init__(to_terminal=to_terminal)
        self._end = end

    def render(self, record: Record) -> bytes:
        """The path's own bytes, be they UTF-8 or not; nothing where there is no path."""
        path = None if type_of(record) in _NOT_DATA else path_of(record)
        if path is None:
            return b""
        return (printable(os.fspath(path)).encode() if self.to_terminal else os.fsencode(path)) + self._end


class Uids(Lines):
    """The UID of each record; of a patient, the patient ID."""

    says_everything = False

    def render(self, record: Record) -> bytes:
        """The unique key of the record's level; of a volume or file, the deepest that it has."""
        kind = type_of(record)
        if kind in _NOT_DATA:
            return b""
        keys = (UNIQUE_KEY[kind],) if kind in UNIQUE_KEY else tuple(UNIQUE_KEY.values())[:0:-1]
        uid = next((cell(record[key]) for key in keys if record.get(key)), "")
        return f"{printable(uid)}\n".encode() if uid else b""


def format_for(name: str, fields: Sequence[str] | None, *, to_terminal: bool) -> Lines:
    """The format of this name."""
    if name in {"csv", "tsv"}:
        return Separated("," if name == "csv" else "\t", fields, to_terminal=to_terminal)
    if name in {"paths", "paths0"}:
        return Paths(b"\n" if name == "paths" else b"\0", to_terminal=to_terminal)
    if name == "tree":
        from dcmtools.cli.tree import Tree

        return Tree(fields, to_terminal=to_terminal)
    return _SIMPLE[name](fields, to_terminal=to_terminal)


_SIMPLE: dict[str, type[Lines]] = {
    "jsonl": Lines,
    "json": Array,
    "dicom-json": DicomJson,
    "table": Table,
    "uids": Uids,
}


def cell(value: Any) -> str:
    """A value as text: lists as DICOM writes them, with backslashes between; nothing for null."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "\\".join(map(cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return encode(value).decode().rstrip("\n") if isinstance(value, dict) else str(value)


def width(text: str) -> int:
    """The columns that a text takes on a terminal: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(_columns(one) for one in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _padded(text: str, columns: int, *, cut: bool, last: bool) -> str:
    if cut and width(text) > columns:
        while width(text) > columns - 1:
            text = text[:-1]
        text += "…"
    return text if last else text + " " * (columns - width(text))


def _csv(text: str) -> str:
    if any(one in text for one in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _tsv(text: str) -> str:
    if text.isprintable():
        return text
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _element(keyword: str, value: Any) -> Record:
    """An attribute in the DICOM JSON model: VR and values, person names by their groups (PS3.18 F.2.2)."""
    vr = QUERY_BY_KEYWORD[keyword].vr
    values = value if isinstance(value, list) else [] if value is None else [value]
    if vr == "PN":
        values = [_name(str(one)) for one in values]
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _name(text: str) -> Record:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return {group: name for group, name in groups if name}


def _escaped(line: bytes) -> bytes:
    """The JSON line with what could steer a terminal (DEL, C1 codes, bidirectional marks) written as escapes."""
    text = line.decode()
    if text.isprintable():
        return line
    return "".join(one if one.isprintable() else _json_escape(one) for one in text).encode()


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2))
