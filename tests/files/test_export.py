"""What export does when the process that works on a file dies."""

import os
import signal
from pathlib import Path

import pytest

from dcmtools.files.export import ExportOptions, export, files_in
from dcmtools.files.taking_out import Job, NotTaken, Taken, TakeOut
from tests.builders import write_series


def test_file_whose_process_is_killed_is_an_error_and_the_others_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_series(tmp_path / "in", 80)
    take = TakeOut.__call__

    def taken(self: TakeOut, job: Job) -> Taken | NotTaken:
        if job.number == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, job)

    monkeypatch.setattr(TakeOut, "__call__", taken)
    records = list(export(files_in(files), tmp_path / "out", ExportOptions(jobs=2)))

    failed = [number for number, record in enumerate(records) if record["type"] == "error"]
    assert failed == [60]
    assert records[60]["path"] == str(files[60])
    assert "was killed" in records[60]["reason"]
    assert sum(record.get("state") == "copied" for record in records) == 79
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*.dcm")) == 79
