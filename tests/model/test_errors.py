import errno
import os
import re

import pytest

from dcmtools.model import errors
from dcmtools.model.errors import BadData, DcmtoolsError, DiskFull, from_os
from dcmtools.model.record import decode, encode


def tree(kind: type[DcmtoolsError]) -> list[type[DcmtoolsError]]:
    return [
        kind,
        *(below for child in kind.__subclasses__() for below in tree(child) if below.__module__ == errors.__name__),
    ]


def test_the_drawing_shows_every_error_with_its_exit_code() -> None:
    drawn = dict(re.findall(r"(\w+) +(\d+)(?: |$)", errors.__doc__ or "", re.MULTILINE))

    assert drawn == {kind.__name__: str(kind.exit_code) for kind in tree(DcmtoolsError)}


def test_record_tells_cause_reason_advice_and_place() -> None:
    problem = BadData("it ends early", "fetch it again", cause="truncated", path="/x")

    assert problem.record(node="PACS") == {
        "type": "error",
        "path": "/x",
        "node": "PACS",
        "cause": "truncated",
        "reason": "it ends early",
        "advice": "fetch it again",
        "exit_code": 65,
    }
    assert str(problem) == "it ends early; fetch it again"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (errno.ENOSPC, 74),
        (errno.EDQUOT, 74),
        (errno.ENOENT, 66),
        (errno.EACCES, 73),
        (errno.EROFS, 73),
        (errno.EMFILE, 75),
        (errno.EIO, 74),
    ],
)
def test_system_error_gets_the_exit_code_of_its_kind(code: int, exit_code: int) -> None:
    problem = from_os(OSError(code, os.strerror(code)), "writing", "/some/file")

    assert problem.exit_code == exit_code
    assert problem.reason == f"writing /some/file: {os.strerror(code)}"
    assert problem.where == {"path": "/some/file"}


def test_full_disk_has_its_own_cause() -> None:
    assert isinstance(from_os(OSError(errno.ENOSPC, "full"), "writing"), DiskFull)


def test_name_that_is_not_utf8_still_makes_a_record() -> None:
    problem = from_os(OSError(errno.EIO, "broken"), "reading", os.fsdecode(b"/x/\xff"))

    assert decode(encode(problem.record()))["path"] == "/x/\\xff"
