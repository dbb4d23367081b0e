"""Where an instance lies below a folder: a template of attributes, made into a relative path that is safe anywhere.

For example `{PatientID}/{StudyDate}_{StudyInstanceUID}/{SeriesNumber:04}_{SeriesInstanceUID}/{SOPInstanceUID}.dcm`.

Each component is a safe name (`model/names.py`), so that no value leaves its folder or hides in it. Two values may give
one name: A/B and A_B always, ab and AB on a file system that does not tell case. Folders are then shared, which loses
nothing; files are kept apart by a SOP Instance UID in their name, which has neither, or by the name that
`distinct_path` gives where the layout has none.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from dcmtools.model.errors import UsageError
from dcmtools.model.keys import BY_KEYWORD
from dcmtools.model.names import MAX_BYTES, is_uid, safe_name, short_hash
from dcmtools.model.record import Record

# What stands where a record has no value.
MISSING = "_unknown"
MAX_DEPTH = 12
MAX_WIDTH = 20

_SERIES = "{SeriesNumber:04}_{SeriesInstanceUID}"
LAYOUTS: Mapping[str, str] = MappingProxyType(
    {
        "uid": "{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm",
        "patient": f"{{PatientID}}/{{StudyDate}}_{{StudyInstanceUID}}/{_SERIES}/{{SOPInstanceUID}}.dcm",
        "date": "{StudyDate}/{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm",
    }
)

_VRS = {"TransferSyntaxUID": "UI"} | {key.keyword: key.vr for key in BY_KEYWORD.values()}
_FIELD = re.compile(r"\{([^{}]*)\}")
_WORD = re.compile(r"(\w+)(?::0([1-9][0-9]?))?\Z", re.ASCII)
_FORBIDDEN = re.compile(r'[{}<>:"\\|?*^=\x00-\x1f\x7f-\x9f]')
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")
# Names by which an archive or a medium means something else than an instance, on file systems without case, too.
_TAKEN = re.compile(
    r"(quarantine|dicomdir|(conversions|sorted)\.jsonl|physicians\.json|index\.(jsonl|sqlite|lock).*)\Z"
)


@dataclass(frozen=True, slots=True)
class Field:
    """An attribute in a layout; `width` is to how many digits a number is filled up."""

    keyword: str
    width: int = 0

    def text(self, record: Record) -> str:
        """The record's value as part of a safe name."""
        value = record.get(self.keyword)
        if not self.width and is_uid(
            value
        ):  # as most fields are, and every one of the default layout: it is a safe name as it stands
            return str(value)
        value = _plain(value, _VRS[self.keyword])
        sign = "-" if value.startswith("-") else ""
        digits = value.removeprefix("-")
        if self.width and digits.isascii() and digits.isdecimal():
            value = sign + digits.zfill(self.width - len(sign))
        return safe_name(value, default=MISSING)


Component = tuple[str | Field, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A parsed template: one component for each folder and one for the file, which ends with `suffix`."""

    text: str
    components: tuple[Component, ...]
    suffix: str

    @property
    def keywords(self) -> tuple[str, ...]:
        """The attributes that it needs, in the order of the template."""
        return tuple(part.keyword for component in self.components for part in component if isinstance(part, Field))

    @property
    def tells_instances_apart(self) -> bool:
        """Whether the file's own name has the SOP Instance UID, so that no two instances want one name."""
        return any(isinstance(part, Field) and part.keyword == "SOPInstanceUID" for part in self.components[-1])

    def path(self, record: Record) -> str:
        """Where an instance belongs, relative and with / between the components."""
        return self._path(record, "")

    def distinct_path(self, record: Record) -> str:
        """Another name for it in the same folder, for where `path` is that of another instance already.

        It is the same at each call, since it ends with a hash of the SOP Instance UID.
        """
        return self._path(record, f"~{short_hash(str(record.get('SOPInstanceUID') or ''))}")

    def _path(self, record: Record, mark: str) -> str:
        *folders, file = ("".join(_texts(component, record)) for component in self.components)
        end = mark + self.suffix
        names = [folder if is_uid(folder) else _free(safe_name(folder, default=MISSING)) for folder in folders]
        if not is_uid(file):
            file = safe_name(file, default=MISSING, max_bytes=MAX_BYTES - len(end))
        return "/".join((*names, _free(file + end)))


@cache
def parse_layout(text: str) -> Layout:
    """The layout that a template, or the name of one in LAYOUTS, means; UsageError when it means none."""
    template = LAYOUTS.get(text, text)
    if template.startswith(("/", "~")):
        raise _wrong(text, "it must be a path below the folder", "begin it with a field, such as {PatientID}")
    names = template.split("/")
    if len(names) > MAX_DEPTH:
        raise _wrong(text, f"it has more than {MAX_DEPTH} components", "leave some out")
    for name in names:
        if not name.strip():
            raise _wrong(text, "a component is empty", "write one / between two components, and none at the end")
        if name.strip(". ") == "" or name.startswith("."):
            raise _wrong(text, f"'{name}' would leave the folder, or hide in it", "begin each component otherwise")
    found = _SUFFIX.search(names[-1])
    suffix = found[0] if found else ""
    names[-1] = names[-1].removesuffix(suffix)
    layout = Layout(template, tuple(tuple(_parts(name, text)) for name in names), suffix)
    if not layout.keywords:
        raise _wrong(
            text, "it has no field", f"name one of {', '.join(LAYOUTS)}, or write fields such as {{PatientID}}"
        )
    return layout


def _parts(component: str, text: str) -> Iterator[str | Field]:
    """The literal texts and the fields of a component, in their order."""
    for number, part in enumerate(_FIELD.split(component)):
        if number % 2:
            yield _field(part, text)
        elif found := _FORBIDDEN.search(part):
            raise _wrong(text, f"{found[0]!r} cannot be part of a name", "leave it out")
        elif part:
            yield part


def _field(word: str, text: str) -> Field:
    if not (match := _WORD.match(word)):
        raise _wrong(text, f"{{{word}}} is no field", "write {PatientID}, or {SeriesNumber:04} to fill up with zeros")
    keyword, width = match[1], int(match[2] or 0)
    if keyword not in _VRS:
        raise _wrong(text, f"{keyword} is not a key of the index", _near(keyword))
    if width > MAX_WIDTH:
        raise _wrong(text, f"a number of {width} digits is too long", f"write at most {{{keyword}:0{MAX_WIDTH}}}")
    return Field(keyword, width)


def _near(keyword: str) -> str:
    from difflib import get_close_matches

    folded = {known.casefold(): known for known in _VRS}
    close = get_close_matches(keyword.casefold(), folded, n=1, cutoff=0.6)
    return f"did you mean {folded[close[0]]}?" if close else "write for example {PatientID} or {StudyDate}"


def _wrong(text: str, reason: str, advice: str) -> UsageError:
    return UsageError(f"the layout '{text[:200]}': {reason}", advice)


def _texts(component: Component, record: Record) -> Iterator[str]:
    for part in component:
        yield part if isinstance(part, str) else part.text(record)


def _plain(value: Any, vr: str) -> str:
    """A value as text; nothing for what is none."""
    if isinstance(value, list):
        return "-".join(filter(None, (_plain(one, vr) for one in value)))
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return _name(value) if vr == "PN" and isinstance(value, str) else str(value)


def _name(value: str) -> str:
    """A person name's first group that says anything, its components with _ between them (PS3.5 6.2.1)."""
    groups = ([part.strip() for part in group.split("^")] for group in value.split("="))
    return next(filter(None, ("_".join(filter(None, parts)) for parts in groups)), "")


def _free(name: str) -> str:
    return f"_{name}" if _TAKEN.match(name.casefold()) else name
