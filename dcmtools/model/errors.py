"""Every way in which a command can fail, with its exit code (DESIGN §6).

    DcmtoolsError                       1   a defect of ours
    ├── UsageError                      2
    ├── Incomplete                      3   some items failed, the rest is done
    ├── BadData                        65   an input cannot be read
    ├── NoInput                        66   an input is missing
    ├── Unavailable                    69   node unreachable, or it does not offer the service
    ├── CannotCreate                   73   the output cannot be created
    ├── IOFailure                      74   read or write error
    │   └── DiskFull                   74
    ├── TryLater                       75   locked, port held, peer busy, deadline passed, reader gone
    │   ├── Locked                     75
    │   └── ReaderGone                 75
    ├── ProtocolError                  76   aborted, malformed or no answer
    ├── Refused                        77   AE title, move destination, TLS verification, privileges
    └── ConfigurationError             78   unknown node, bad INI file

A reason says what and where, an advice says what to do next; neither ever quotes a patient's data.
"""

import errno
import os
from typing import Any

from dcmtools.model.record import path_keys


class DcmtoolsError(Exception):
    """A failure with its words for people and its exit code."""

    exit_code = 1
    cause = "internal"

    def __init__(self, reason: str, advice: str = "", *, cause: str = "", **where: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        self.cause = cause or type(self).cause
        self.where = where

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason

    def record(self, **more: Any) -> dict[str, Any]:
        """The `error` record of this failure (DESIGN §3)."""
        record: dict[str, Any] = {"type": "error", **self.where, **more, "cause": self.cause, "reason": self.reason}
        if self.advice:
            record["advice"] = self.advice
        return {**record, "exit_code": self.exit_code}


class UsageError(DcmtoolsError):
    """The call's words are wrong."""

    exit_code = 2
    cause = "usage"


class Incomplete(DcmtoolsError):
    """Some items failed or are missing; the rest is done and a re-run resumes."""

    exit_code = 3
    cause = "incomplete"


class BadData(DcmtoolsError):
    """An input that cannot be read; `cause` is a code such as not-dicom or truncated."""

    exit_code = 65
    cause = "unreadable"


class NoInput(DcmtoolsError):
    """An input that is not there."""

    exit_code = 66
    cause = "missing"


class Unavailable(DcmtoolsError):
    """A node that cannot be reached, or that does not offer the service."""

    exit_code = 69
    cause = "unreachable"


class CannotCreate(DcmtoolsError):
    """An output that cannot be created."""

    exit_code = 73
    cause = "cannot-create"


class IOFailure(DcmtoolsError):
    """A read or a write that failed."""

    exit_code = 74
    cause = "io"


class DiskFull(IOFailure):
    """No room left where we write."""

    cause = "disk-full"


class TryLater(DcmtoolsError):
    """A passing obstacle: a lock, a busy peer, a port in use, a deadline."""

    exit_code = 75
    cause = "temporary"


class Locked(TryLater):
    """Another run holds the lock."""

    cause = "locked"


class ReaderGone(TryLater):
    """Whoever read our output has gone."""

    cause = "reader-gone"


class ProtocolError(DcmtoolsError):
    """The peer aborted, gave a malformed answer, or none in time."""

    exit_code = 76
    cause = "protocol"


class Refused(DcmtoolsError):
    """The peer, its administrator or the system said no."""

    exit_code = 77
    cause = "refused"


class ConfigurationError(DcmtoolsError):
    """An unknown node, or a settings file that cannot be used."""

    exit_code = 78
    cause = "configuration"


RETRYABLE = frozenset({69, 74, 75, 76})


def from_os(problem: OSError, doing: str, path: str | os.PathLike[str] = "") -> DcmtoolsError:
    """The error of this tree that tells of an OSError met while `doing` something with `path`."""
    where = path_keys(path) if path else {}
    text = f"{doing} {where.get('path', '')}".rstrip() + f": {problem.strerror or problem}"
    match problem.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return DiskFull(text, "free some space and run the same command again: it resumes", **where)
        case errno.ENOENT:
            return NoInput(text, "check the path", **where)
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.EEXIST | errno.ENOTDIR | errno.EISDIR:
            return CannotCreate(text, "check the permissions and the path", **where)
        case errno.EMFILE | errno.ENFILE:
            return TryLater(text, "raise the limit of open files (ulimit -n) or use fewer --jobs", **where)
        case _:
            return IOFailure(text, "check the disk, then run the same command again", **where)
