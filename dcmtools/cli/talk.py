"""What a command says on stderr: errors always, one line each; all else only as far as somebody wants to read it."""

import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcmtools.model.errors import DcmtoolsError
from dcmtools.model.record import Record, encode

if TYPE_CHECKING:
    from collections.abc import Callable

_ERROR, _WARNING, _INFO, _DEBUG = 40, 30, 20, 10
_NAMES = {_ERROR: "error", _WARNING: "warning", _INFO: "info", _DEBUG: "debug"}


def on_terminal() -> bool:
    """Whether a person looks at stderr."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


class Talk:
    """The voice of one command. It never says a patient's data: reasons hold UIDs and paths only."""

    def __init__(self, command: str, *, quiet: bool = False, verbose: int = 0, as_json: bool = False) -> None:
        self.command = command
        self.as_json = as_json
        # Without a terminal a run in which all went well says nothing: cron would send it as a mail.
        self.level = _ERROR if quiet else (_INFO if on_terminal() else _WARNING) - 10 * verbose
        self.show: Callable[[str], None] = _write  # the progress bar steps aside for it

    def error(self, record: Record) -> None:
        """Says an error record in one line."""
        hidden = {"path", "path_b64"} if _is_named_by_people(record) else frozenset[str]()
        told = {key: value for key, value in record.items() if key in _TOLD and key not in hidden}
        self._say(_ERROR, sentence(record), **told)

    def warning(self, text: str) -> None:
        """Says what a person should know though all goes on."""
        self._say(_WARNING, text)

    def info(self, text: str) -> None:
        """Says what a person may like to know."""
        self._say(_INFO, text)

    def debug(self, text: str) -> None:
        """Says what helps to find out why."""
        self._say(_DEBUG, text)

    def summary(self, text: str, *, failed: bool) -> None:
        """Says at the end what became of it all: to a terminal, and wherever something failed."""
        self._say(_WARNING if failed else _INFO, text)

    def _say(self, level: int, text: str, **more: Any) -> None:
        if level < self.level:
            return
        if self.as_json:
            line = {"time": _now(), "level": _NAMES[level], "command": self.command, "message": text, **more}
            self.show(encode(clean(line)).decode().rstrip("\n"))
        else:
            self.show(printable(f"dcmtools {self.command}: {text}"))


# Paths of volumes and sorted files are made from what patients and physicians are called (DESIGN §5.9).
_NAMED_BY_PEOPLE = frozenset({"volume", "file"})
_ENDINGS = (".nii", ".nii.gz", ".json", ".png", ".bval", ".bvec")
_TOLD = frozenset(
    {
        "cause", "reason", "advice", "exit_code", "path", "path_b64", "node", "status",
        "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
    }
)  # fmt: skip


def sentence(record: Record) -> str:
    """What an error record says to people: what, where, and what to do."""
    reason, advice = str(record.get("reason") or record.get("cause") or "failed"), record.get("advice")
    path = record.get("path")
    if _is_named_by_people(record) and (uid := record.get("SeriesInstanceUID")):
        where = f"series {uid}: "
    else:
        where = f"{path}: " if isinstance(path, str) and path not in reason else ""
    return f"{where}{reason}; {advice}" if advice else where + reason


def _is_named_by_people(record: Record) -> bool:
    """Whether the record's path is made from what people are called; those of instances are made of UIDs."""
    if record.get("type") in _NAMED_BY_PEOPLE:
        return True
    return bool(record.get("SeriesInstanceUID")) and str(record.get("path") or "").lower().endswith(_ENDINGS)


def printable(text: str) -> str:
    """The text on one line, with every character that could steer a terminal written as its escape."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)


def clean(value: Any) -> Any:
    """The same value, with bytes of file names that are not UTF-8 written as escapes."""
    if isinstance(value, dict):
        return {clean(key): clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [clean(one) for one in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def defect(problem: BaseException) -> DcmtoolsError:
    """The error that an exception means which nobody expected; its text may quote data, its place does not."""
    steps = traceback.extract_tb(problem.__traceback__)
    place = f" at {Path(steps[-1].filename).name}:{steps[-1].lineno}" if steps else ""
    reason = f"a defect of dcmtools: {type(problem).__name__}{place}"
    return DcmtoolsError(reason, "run it again with --debug to see where, and report it")


def keep_quiet(*, debug: bool, logs: bool) -> None:
    """Silences what libraries say by themselves, for their warnings quote values of data sets.

    `logs` is whether libraries may be loaded that log: what silences them costs as much as an echo.
    """
    import warnings

    if debug:
        return
    warnings.simplefilter("ignore")
    if logs:
        import logging

        logging.getLogger().addHandler(logging.NullHandler())


def _write(line: str) -> None:
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # nobody listens: stderr is closed, or its reader has gone


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
