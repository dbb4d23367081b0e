"""Reports of storage commitment between two processes: those that somebody waits for, and no others."""

import os
from pathlib import Path

import pytest

from dcmtools.disk.reports import Reports
from dcmtools.model.errors import CannotCreate, NoInput

RECORD = {"type": "event", "TransactionUID": "1.2"}


def test_a_report_is_there_for_who_waits_for_it_and_gone_afterwards(tmp_path: Path) -> None:
    waiting, taking = Reports(tmp_path / "archive"), Reports(tmp_path / "archive")
    waiting.expect("1.2")

    assert waiting.get("1.2") is None
    taking.put("1.2", RECORD)
    assert waiting.get("1.2") == RECORD
    waiting.forget("1.2")
    with pytest.raises(NoInput):
        waiting.get("1.2")
    assert not list(waiting.folder.iterdir())


@pytest.mark.parametrize("transaction", ["1.2", "../../escaped", "", "x" * 300])
def test_what_nobody_waits_for_is_not_kept(tmp_path: Path, transaction: str) -> None:
    reports = Reports(tmp_path / "archive")
    reports.expect("1.2.3")

    reports.put(transaction, RECORD)

    assert [path.name for path in reports.folder.iterdir()] == ["1.2.3.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_what_one_left_that_was_killed_goes_after_a_week(tmp_path: Path) -> None:
    reports = Reports(tmp_path)
    for transaction in ("1.1", "1.2"):
        reports.expect(transaction)
    os.utime(reports.folder / "1.1.json", (0, 0))

    reports.expect("1.3")

    assert sorted(path.name for path in reports.folder.iterdir()) == ["1.2.json", "1.3.json"]


def test_where_nothing_can_be_written_nobody_can_wait(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CannotCreate):
        Reports(tmp_path / "file").expect("1.2")


def test_a_report_is_only_its_owners_to_read(tmp_path: Path) -> None:
    reports = Reports(tmp_path)
    reports.expect("1.2")
    reports.put("1.2", RECORD)

    assert (reports.folder / "1.2.json").stat().st_mode & 0o777 == 0o600
    assert reports.folder.stat().st_mode & 0o777 == 0o700
