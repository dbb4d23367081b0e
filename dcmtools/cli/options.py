"""The options that commands share (DESIGN §13), each written once; and the query that the selectors mean."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from dcmtools.cli.completion import complete_keys, complete_nodes
from dcmtools.model.errors import UsageError
from dcmtools.model.filters import parse_filter
from dcmtools.model.keys import QUERY_BY_KEYWORD
from dcmtools.model.query import Query, level_of, parse_key, parse_sort
from dcmtools.model.record import Level

Format = Literal["jsonl", "table", "csv", "tsv", "json", "dicom-json", "paths", "paths0", "uids", "tree"]

Word = TypeVar("Word", bound=str)

SELECTORS = "Selectors"
COMMON = "Options of every command (also in the environment, as DCMTOOLS_ARCHIVE)"

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?\Z", re.ASCII)


def _common(*names: str, **more: Any) -> Any:
    """An option of the common section, which the environment can set, too."""
    variable = "DCMTOOLS_" + names[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, envvar=variable, show_envvar=False, show_default=False, rich_help_panel=COMMON, **more)


def _selector(*names: str, **more: Any) -> Any:
    return typer.Option(*names, show_default=False, rich_help_panel=SELECTORS, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options that every command has."""

    archive: Annotated[
        Path | None, _common("--archive", metavar="DIR", help="The folder with the files and their index.jsonl.")
    ] = None
    index: Annotated[Path | None, _common("--index", metavar="FILE", help="An index that lies elsewhere.")] = None
    nodes: Annotated[Path | None, _common("--nodes", metavar="FILE", help="The nodes.ini to use.")] = None
    config: Annotated[Path | None, _common("--config", metavar="FILE", help="The config.ini to use.")] = None
    format: Annotated[
        Format | None, _common("--format", help="Default: a table on a terminal, else one JSON record a line.")
    ] = None
    fields: Annotated[
        str | None,
        _common("--fields", metavar="KEY,...", help="Only type and these keys of each record, in this order."),
    ] = None
    output: Annotated[
        Path | None, _common("--output", metavar="FILE", help="Write to a file, whole or not at all.")
    ] = None
    new: Annotated[bool, _common("--new", help="Leave out what was here already (present, unchanged).")] = False
    dry_run: Annotated[bool, _common("--dry-run", help="Change nothing; tell what would be done.")] = False
    jobs: Annotated[
        int | None, _common("--jobs", min=1, metavar="N", help="How much is done at once. Default: by the processors.")
    ] = None
    deadline: Annotated[
        str | None, _common("--deadline", metavar="DUR", help="Stop after 90s, 10m, 2h or 1h30m, with exit code 75.")
    ] = None
    lock: Annotated[
        str | None, _common("--lock", metavar="NAME", help="End with 75 at once while another run holds this lock.")
    ] = None
    verbose: Annotated[int, _common("--verbose", "-v", count=True, help="Say more; -vv says most.")] = 0
    quiet: Annotated[bool, _common("--quiet", "-q", help="No progress, no summary; errors are said.")] = False
    log_format: Annotated[
        Literal["text", "json"] | None, _common("--log-format", help="How stderr is written. Default: text.")
    ] = None
    progress: Annotated[
        Literal["auto", "always", "never"] | None, _common("--progress", help="Default: auto, only on a terminal.")
    ] = None
    debug: Annotated[bool, _common("--debug", help="Show the traceback of a defect of dcmtools.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selectors:
    """The options that choose patients, studies, series or instances."""

    patient_name: Annotated[
        str | None, _selector("--patient-name", "-n", metavar="NAME", help="Such as 'DOE^J*'; * and ? stand for more.")
    ] = None
    patient_id: Annotated[str | None, _selector("--patient-id", "-p", metavar="ID", help="Such as 'P00*'.")] = None
    study_uid: Annotated[str | None, _selector("--study-uid", metavar="UID,...", help="StudyInstanceUID.")] = None
    series_uid: Annotated[str | None, _selector("--series-uid", metavar="UID,...", help="SeriesInstanceUID.")] = None
    instance_uid: Annotated[str | None, _selector("--instance-uid", metavar="UID,...", help="SOPInstanceUID.")] = None
    accession: Annotated[str | None, _selector("--accession", metavar="NUMBER", help="AccessionNumber.")] = None
    date: Annotated[
        str | None,
        _selector("--date", metavar="DATE", help="Study date: yesterday, -2d..today, 2024-01-01.., 20240101-20240131."),
    ] = None
    since: Annotated[str | None, _selector("--since", metavar="DATE", help="Study date from this day on.")] = None
    until: Annotated[str | None, _selector("--until", metavar="DATE", help="Study date up to this day.")] = None
    modality: Annotated[str | None, _selector("--modality", "-m", metavar="MR,...", help="One of these.")] = None
    description: Annotated[
        str | None,
        _selector("--description", metavar="TEXT", help="Of the study; at series and instance level, of the series."),
    ] = None
    physician: Annotated[
        str | None, _selector("--physician", metavar="NAME", help="ReferringPhysicianName, such as 'HOUSE*'.")
    ] = None
    key: Annotated[
        list[str] | None,
        _selector(
            "--key",
            "-k",
            metavar="KEYWORD=VALUE",
            help="Any key that queries know; several options are possible.",
            autocompletion=complete_keys,
        ),
    ] = None
    where: Annotated[
        list[str] | None,
        _selector(
            "--where",
            metavar="KEYWORD=VALUE",
            help="Looked at here, in the answers; also with !=, <, <=, >, >=.",
            autocompletion=complete_keys,
        ),
    ] = None
    level: Annotated[
        str | None, _selector("--level", "-l", metavar="LEVEL", help="patient, study, series or instance.")
    ] = None
    sort: Annotated[
        str | None, _selector("--sort", metavar="KEY,-KEY", help="The order; - in front of a key turns it round.")
    ] = None
    ignore_accents: Annotated[
        bool, _selector("--ignore-accents", help="Names match whatever their accents: Muller is Müller.")
    ] = False
    limit: Annotated[int | None, _selector("--limit", min=1, metavar="N", help="At most so many.")] = None
    all: Annotated[bool, _selector("--all", help="Everything: no selector was forgotten.")] = False


Node = Annotated[
    str, typer.Option(metavar="NODE", help="A node's name, or AET@host:port.", autocompletion=complete_nodes)
]
NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="A node's name, or AET@host:port.", autocompletion=complete_nodes)
]
NodeArguments = Annotated[
    list[str],
    typer.Argument(metavar="NODE...", help="Names of nodes, or AET@host:port.", autocompletion=complete_nodes),
]

Stack = Annotated[
    Literal["own", "pynetdicom"],
    typer.Option(help="Whose upper layer speaks to the node: a second opinion when they do not get on."),
]

Mode = Annotated[
    str | None, typer.Option("--mode", metavar="MODE", help="The files' mode, such as 640. Default: only for you.")
]

# The selectors that are a matching key as they stand, and the attribute that each means.
_KEYS: dict[str, str] = {
    "patient_name": "PatientName",
    "patient_id": "PatientID",
    "accession": "AccessionNumber",
    "physician": "ReferringPhysicianName",
}
# What shapes the answer and chooses nothing.
_SHAPING = ("level", "sort", "limit", "ignore_accents")
# Those that may be several, with commas between; C-FIND joins the values of a list with backslashes.
_LISTS: dict[str, str] = {
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "instance_uid": "SOPInstanceUID",
    "modality": "Modality",
}


def query_of(selectors: Selectors, today: date, level: Level | None = None, returns: tuple[str, ...] = ()) -> Query:
    """The query that the selectors mean; `level` is the one where --level was not given (default: study).

    Without either, a key that only instances have brings the query to instance level.
    """
    _refuse_empty(selectors)
    chosen = level_of(selectors.level) if selectors.level else None
    keys = {keyword: value for name, keyword in _KEYS.items() if (value := getattr(selectors, name)) is not None}
    keys |= {keyword: _list(value) for name, keyword in _LISTS.items() if (value := getattr(selectors, name))}
    keys |= dict(parse_key(text) for text in selectors.key or ())
    if "Modality" in keys:  # a code string has no lower case (PS3.5 6.2), and nodes compare it as it is
        keys["Modality"] = keys["Modality"].upper()
    chosen = chosen or _default_level(keys, level)
    if dates := _dates(selectors, today):
        keys["StudyDate"] = dates
    if selectors.description is not None:
        keys["StudyDescription" if chosen in {"patient", "study"} else "SeriesDescription"] = selectors.description
    return Query(
        level=chosen,
        keys=keys,
        where=tuple(parse_filter(text) for text in selectors.where or ()),
        sort=parse_sort(selectors.sort or ""),
        limit=selectors.limit,
        returns=returns,
        ignore_accents=selectors.ignore_accents,
    )


def given(selectors: Selectors) -> bool:
    """Whether the command line chose anything, be it --all."""
    _refuse_empty(selectors)
    return any(getattr(selectors, name) for name in type(selectors).__slots__ if name not in _SHAPING)


def check_input(inputs: Sequence[str], selectors: Selectors, *, need: bool = False) -> None:
    """Raises UsageError for selectors beside `-` or paths, which they would not filter, and for `-` beside paths.

    `need` is whether to choose nothing is an error, too (a command that sends or retrieves).
    """
    if inputs and given(selectors):
        raise UsageError("selectors do not choose from what is given", "filter with dcmtools find -")
    for name in _SHAPING if inputs else ():
        if getattr(selectors, name):
            raise UsageError(
                f"--{name.replace('_', '-')} does not go together with - or paths", "use it with dcmtools find -"
            )
    if "-" in inputs and len(inputs) > 1:
        raise UsageError("- stands for all input", "give - or paths, not both")
    if need and not (inputs or given(selectors)):
        raise UsageError("nothing was chosen", "use a selector, records on stdin (-), or --all")


def duration(text: str) -> float:
    """The seconds that 90s, 10m, 2h, 1h30m, 1d or plain 90 mean; UsageError when it means nothing."""
    match = _DURATION.match(text)
    if not text or not match:
        raise UsageError(f"'{text[:40]}' is not a duration", "write for example 90s, 10m or 1h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def mode_of(text: str | None) -> int | None:
    """The mode of files that an octal number such as 640 means; UsageError when it means none."""
    if text is None:
        return None
    if not re.match(r"0?[0-7]{3}\Z", text):
        raise UsageError(f"--mode {text[:20]}: is not a mode", "write three digits, such as 640")
    return int(text, 8)


def one_of(flags: Mapping[Word, bool]) -> Word:
    """The flag that is set, else the first; UsageError when there are several."""
    chosen = [word for word, is_set in flags.items() if is_set]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} does not go together with --{chosen[1]}", "give one of them")
    return chosen[0] if chosen else next(iter(flags))


def _refuse_empty(selectors: Selectors) -> None:
    """Raises UsageError for a selector without a value, as a script's unset variable makes it: it is not all."""
    for name in type(selectors).__slots__:
        value = getattr(selectors, name)
        empty = isinstance(value, str) and not (_list(value) if name in _LISTS else value.strip())
        if empty and name not in _SHAPING:
            raise UsageError(f"--{name.replace('_', '-')} has no value", "leave it out to choose everything")


def _default_level(keys: dict[str, str], level: Level | None) -> Level:
    if level and any(QUERY_BY_KEYWORD[keyword].level == "instance" for keyword in keys):
        return "instance"
    return level or "study"


def _dates(selectors: Selectors, today: date) -> str | None:
    if not (selectors.date or selectors.since or selectors.until):
        return None
    from dcmtools.model.dates import date_range

    if not (selectors.since or selectors.until):
        return date_range(selectors.date or "", today)
    if selectors.date:
        raise UsageError("--date does not go together with --since and --until", "give one or the other")
    return date_range(f"{selectors.since or ''}..{selectors.until or ''}", today)


def _list(text: str) -> str:
    return "\\".join(word.strip() for word in text.split(",") if word.strip())
